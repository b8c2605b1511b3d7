//! How lists are printed: a table for people, JSON and YAML for programs.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use clap::{Args, ValueEnum};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use crate::error::CliError;

/// How often a watched list is read.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Empties a terminal and begins at its top.
const CLEAR: &str = "\x1b[2J\x1b[H";
/// Spaces between two columns of a table.
const GAP: &str = "   ";

/// How results are printed.
#[derive(Debug, Args)]
pub(crate) struct OutputFlags {
    /// How results are printed; JSON and YAML are stable.
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = Output::Table)]
    pub(crate) output: Output,
    /// Show the list again whenever it changes, until interrupted: in place on a terminal, one
    /// after the other in a pipe (JSON as one line each).
    #[arg(short, long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Aligned columns, the important ones.
    Table,
    /// Aligned columns, all of them.
    Wide,
    /// One JSON object with the list in `items`.
    Json,
    /// The same as YAML.
    Yaml,
}

/// A column: its title, and whether only the wide table has it.
pub(crate) struct Column(pub(crate) &'static str, pub(crate) bool);

/// Something that a list shows.
pub(crate) trait Row: Serialize {
    /// The columns, in order.
    const COLUMNS: &'static [Column];
    /// One cell for each column.
    fn cells(&self) -> Vec<String>;
}

#[derive(Serialize)]
struct Items<'a, R> {
    items: &'a [R],
}

/// Prints a list on stdout, once or as long as somebody watches.
pub(crate) async fn show<R: Row>(
    flags: &OutputFlags,
    mut list: impl AsyncFnMut() -> Result<Vec<R>, CliError>,
) -> Result<(), CliError> {
    if !flags.watch {
        return write(&render(&list().await?, flags.output)?).map(drop);
    }
    let in_place = io::stdout().is_terminal();
    let mut shown: Option<String> = None;
    loop {
        let rows = list().await?;
        let text = match flags.output {
            Output::Json if !in_place => line_of_json(&rows)?,
            output => render(&rows, output)?,
        };
        if shown.as_ref() != Some(&text) {
            let before = match (in_place, flags.output, shown.is_some()) {
                (true, ..) => CLEAR,
                (false, Output::Yaml, true) => "---\n",
                (false, Output::Table | Output::Wide, true) => "\n",
                (false, ..) => "",
            };
            if !write(&format!("{before}{text}"))? {
                return Ok(());
            }
            shown = Some(text);
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
        if !is_read() {
            return Ok(());
        }
    }
}

/// Whether somebody still reads our results; a list that does not change would never find out.
fn is_read() -> bool {
    let stdout = io::stdout();
    let mut watched = [PollFd::new(&stdout, PollFlags::empty())];
    // No wait: only what went wrong is looked for.
    match poll(&mut watched, Some(&Timespec::default())) {
        Ok(_) => !watched[0].revents().contains(PollFlags::ERR),
        Err(_) => true,
    }
}

/// Prints one line on stdout.
pub(crate) fn say(line: &str) -> Result<(), CliError> {
    write(&format!("{line}\n")).map(drop)
}

fn line_of_json<R: Row>(rows: &[R]) -> Result<String, CliError> {
    serde_json::to_string(&Items { items: rows })
        .map(|json| json + "\n")
        .map_err(|error| unprintable(&error))
}

fn unprintable(error: &dyn std::fmt::Display) -> CliError {
    CliError::failed("the result cannot be printed").cause(error)
}

fn render<R: Row>(rows: &[R], output: Output) -> Result<String, CliError> {
    match output {
        Output::Table => Ok(table(rows, false)),
        Output::Wide => Ok(table(rows, true)),
        Output::Json => serde_json::to_string_pretty(&Items { items: rows })
            .map(|json| json + "\n")
            .map_err(|error| unprintable(&error)),
        Output::Yaml => {
            serde_saphyr::to_string(&Items { items: rows }).map_err(|error| unprintable(&error))
        }
    }
}

fn table<R: Row>(rows: &[R], wide: bool) -> String {
    let shown: Vec<usize> = (0..R::COLUMNS.len())
        .filter(|&index| wide || !R::COLUMNS[index].1)
        .collect();
    let mut lines: Vec<Vec<String>> = vec![
        shown
            .iter()
            .map(|&index| R::COLUMNS[index].0.to_owned())
            .collect(),
    ];
    for row in rows {
        let mut cells = row.cells();
        lines.push(
            shown
                .iter()
                .map(|&index| std::mem::take(&mut cells[index]))
                .collect(),
        );
    }
    let widths: Vec<usize> = (0..shown.len())
        .map(|column| {
            lines
                .iter()
                .map(|line| line[column].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for line in &lines {
        let mut shown = String::new();
        for (cell, &width) in line.iter().zip(&widths) {
            shown.push_str(cell);
            shown.extend(std::iter::repeat_n(' ', width - cell.chars().count()));
            shown.push_str(GAP);
        }
        text.push_str(shown.trim_end());
        text.push('\n');
    }
    text
}

/// Says whether somebody still reads.
fn write(text: &str) -> Result<bool, CliError> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        // Whoever read has seen enough: `bowline … | head` is no failure.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(CliError::failed("the result was not written").cause(error)),
        Ok(()) => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Disk {
        name: &'static str,
        bytes: u64,
    }

    impl Row for Disk {
        const COLUMNS: &'static [Column] = &[Column("NAME", false), Column("BYTES", true)];

        fn cells(&self) -> Vec<String> {
            vec![self.name.to_owned(), self.bytes.to_string()]
        }
    }

    const DISKS: [Disk; 2] = [
        Disk {
            name: "a",
            bytes: 1,
        },
        Disk {
            name: "longer",
            bytes: 22,
        },
    ];

    fn check(output: Output, expected: &str) {
        assert_eq!(render(&DISKS, output).unwrap(), expected);
    }

    #[test]
    fn tables_are_aligned_and_wide_ones_have_more_columns() {
        check(Output::Table, "NAME\na\nlonger\n");
        check(Output::Wide, "NAME     BYTES\na        1\nlonger   22\n");
    }

    #[test]
    fn json_and_yaml_hold_the_list_in_items() {
        let json = render(&DISKS, Output::Json).unwrap();
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["items"][1]["bytes"], 22);
        check(
            Output::Yaml,
            "items:\n- name: a\n  bytes: 1\n- name: longer\n  bytes: 22\n",
        );
    }

    #[test]
    fn empty_table_still_has_its_titles() {
        assert_eq!(render::<Disk>(&[], Output::Table).unwrap(), "NAME\n");
    }
}
