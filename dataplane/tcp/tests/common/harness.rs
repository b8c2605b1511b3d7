//! A runner for tests that need the process to themselves: one after the other, on the main
//! thread. It speaks as the standard one does, so that its results are counted with the others.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// A test and its name.
pub(crate) type Test = (String, Box<dyn FnOnce()>);

/// Runs the tests whose names the command line does not exclude. Exits with 1 if one fails.
pub(crate) fn run(tests: Vec<Test>) {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let filters: Vec<&String> = arguments
        .iter()
        .filter(|word| !word.starts_with('-'))
        .collect();
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|part| name.contains(*part));
    if arguments.iter().any(|word| word == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return;
    }
    let all = tests.len();
    let chosen: Vec<Test> = tests.into_iter().filter(|(name, _)| wanted(name)).collect();
    let filtered = all - chosen.len();
    println!("\nrunning {} tests", chosen.len());
    let start = Instant::now();
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in chosen {
        match catch_unwind(AssertUnwindSafe(test)) {
            Ok(()) => {
                passed += 1;
                println!("test {name} ... ok");
            }
            Err(_) => {
                failed += 1;
                println!("test {name} ... FAILED");
            }
        }
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; \
         {filtered} filtered out; finished in {:.2}s\n",
        start.elapsed().as_secs_f64()
    );
    if failed > 0 {
        std::process::exit(1);
    }
}
