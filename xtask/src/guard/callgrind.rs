//! Callgrind's file: instructions per function.

use std::collections::HashMap;

/// Where counted instructions went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Instructions {
    /// Everything but the rest of this.
    pub(super) target: u64,
    /// Moving, filling and comparing memory: goes by the size, and by what the C library takes
    /// for the processor.
    pub(super) copies: u64,
    /// CRC-32C.
    pub(super) checksums: u64,
}

impl Instructions {
    /// Sums the costs of a file that callgrind wrote.
    pub(super) fn read(text: &str) -> Self {
        let mut names: HashMap<&str, &str> = HashMap::new();
        let mut sums = Self::default();
        let mut function = "";
        let mut is_call = false;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("fn=") {
                function = resolve(&mut names, name);
            } else if let Some(name) = line.strip_prefix("cfn=") {
                resolve(&mut names, name);
            } else if line.starts_with("calls=") {
                is_call = true;
            } else if let Some(cost) = cost(line) {
                // The line after `calls=` holds what the callee cost, which is in its own lines.
                if !std::mem::take(&mut is_call) {
                    *sums.part(function) += cost;
                }
            }
        }
        sums
    }

    fn part(&mut self, function: &str) -> &mut u64 {
        let bare = function.trim_start_matches('_');
        if bare.starts_with("mem") || bare.starts_with("bcmp") {
            &mut self.copies
        } else if function.contains("crc_fast") || function.contains("crc32") {
            &mut self.checksums
        } else {
            &mut self.target
        }
    }
}

/// Names of the C library's allocator that programs call.
const ALLOCATORS: &[&str] = &[
    "malloc",
    "calloc",
    "realloc",
    "posix_memalign",
    "aligned_alloc",
    "memalign",
];

/// Calls that take memory from the heap or make a piece of it larger.
pub(super) fn allocations(text: &str) -> Option<u64> {
    let mut names: HashMap<&str, &str> = HashMap::new();
    let (mut callee, mut sum) = ("", 0_u64);
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("fn=") {
            resolve(&mut names, name);
        } else if let Some(name) = line.strip_prefix("cfn=") {
            callee = resolve(&mut names, name);
        } else if let Some(calls) = line.strip_prefix("calls=")
            && ALLOCATORS.contains(&callee)
        {
            let count: u64 = calls.split_whitespace().next()?.parse().ok()?;
            sum = sum.checked_add(count)?;
        }
    }
    Some(sum)
}

/// A name is written out once, with a number; later the number stands for it.
fn resolve<'a>(names: &mut HashMap<&'a str, &'a str>, text: &'a str) -> &'a str {
    match text.split_once(' ') {
        Some((number, name)) => {
            names.insert(number, name);
            name
        }
        None => names.get(text).copied().unwrap_or(text),
    }
}

/// The cost in a line of a position and a cost; positions are absolute, relative or repeated.
fn cost(line: &str) -> Option<u64> {
    if !line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
        return None;
    }
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_summed_by_kind_and_calls_are_not_counted_twice() {
        let text = "version: 1\nevents: Ir\n\
            fl=(1) turn.rs\nfn=(1) bowline_tcp::turn\n10 100\n\
            cfi=(2) libc\ncfn=(2) __memcpy_avx\ncalls=1 0\n11 30\n\
            fi=(3) option.rs\n+1 7\n\
            fl=(2)\nfn=(2)\n0 20\n* 10\n\
            fn=(3) crc_fast::arch::update\n5 9\n\
            fn=(1)\n-2 1\n\ntotals: 147\n";
        let expected = Instructions {
            target: 108,
            copies: 30,
            checksums: 9,
        };
        assert_eq!(Instructions::read(text), expected);
    }

    #[test]
    fn allocations_are_calls_of_the_allocator() {
        let text = "fn=(1) main\n1 10\ncfn=(2) malloc\ncalls=3 0\n1 90\n\
            cfn=(3) free\ncalls=3 0\n1 30\n\
            fn=(2)\n1 90\ncfn=(4) malloc_consolidate\ncalls=1 0\n1 5\n\
            fn=(5) other\ncfn=(2)\ncalls=2 0\n1 60\n";
        assert_eq!(allocations(text), Some(5));
        assert_eq!(allocations("cfn=(1) malloc\ncalls=x 0\n"), None);
    }
}
