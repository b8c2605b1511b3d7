//! Tables and charts of a document.

mod chart;
mod table;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::result::{Document, write_whole};

/// Writes `name.json`, `name.md` and `name.svg` to a folder.
pub(crate) fn write(document: &Document, folder: &Path, name: &str) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    document.write(&folder.join(format!("{name}.json")))?;
    for (extension, text) in [
        ("md", table::markdown(document, name)),
        ("svg", chart::svg(document)),
    ] {
        let path = folder.join(format!("{name}.{extension}"));
        write_whole(&path, &text)?;
    }
    Ok(())
}

/// The tables, for a terminal.
pub(crate) fn print(document: &Document, name: &str) {
    println!("{}", table::markdown(document, name));
}
