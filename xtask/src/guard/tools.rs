//! What counting needs of the machine beside the programs that are built here.

use anyhow::{Context, Result, bail};

use crate::tally::Tally;
use crate::{debian, process};

/// A program of others, what it is for, and the packages that bring it.
struct Tool {
    program: &'static str,
    /// Ends "which …".
    purpose: &'static str,
    packages: &'static [&'static str],
}

const VALGRIND: Tool = Tool {
    program: "valgrind",
    purpose: "counts instructions and allocations",
    // Valgrind needs the symbols of the C library's loader.
    packages: &["valgrind", "libc6-dbg"],
};
const TASKSET: Tool = Tool {
    program: "taskset",
    purpose: "keeps target and host on one core while system calls are counted",
    packages: &["util-linux"],
};

/// Which of them are here.
#[derive(Clone, Copy)]
pub(super) struct Tools {
    pub(super) valgrind: bool,
    pub(super) taskset: bool,
}

impl Tools {
    /// Looks for all of them, has what is missing installed if that can be, and tells what then
    /// goes without.
    pub(super) fn find(tally: &mut Tally) -> Self {
        let mut has = |name: &str, tool: &Tool| match tool.find() {
            Ok(()) => true,
            Err(why) => {
                tally.unavailable(&format!("perf guard: {name}"), &format!("{why:#}"));
                false
            }
        };
        Self {
            valgrind: has("instructions and allocations", &VALGRIND),
            taskset: has("system calls", &TASKSET),
        }
    }
}

impl Tool {
    fn find(&self) -> Result<()> {
        if process::find_program(self.program).is_some() {
            return Ok(());
        }
        self.install().with_context(|| self.missing())?;
        if process::find_program(self.program).is_none() {
            bail!("{}, though its packages are installed", self.missing());
        }
        Ok(())
    }

    fn install(&self) -> Result<()> {
        match debian::unusable() {
            Some(why) => bail!("{why}"),
            None => debian::install(self.packages),
        }
    }

    fn missing(&self) -> String {
        let Self {
            program,
            purpose,
            packages,
        } = self;
        let packages = packages.join(" ");
        format!(
            "`{program}` is not here, which {purpose} (Debian: `apt-get install {packages}`; \
             elsewhere the package that has `{program}`)"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_program_is_told_with_its_purpose_and_its_package() {
        let tool = Tool {
            program: "bowline-no-such-program",
            purpose: "does nothing",
            packages: &["bowline-no-such-package"],
        };
        let why = tool.missing();
        assert_eq!(
            why,
            "`bowline-no-such-program` is not here, which does nothing (Debian: `apt-get install \
             bowline-no-such-package`; elsewhere the package that has `bowline-no-such-program`)"
        );
    }
}
