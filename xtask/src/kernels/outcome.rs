//! Parses a guest's console: which tests passed with which privileges, and the features of the kernel.

use std::fmt;

use anyhow::ensure;

use crate::test::Totals;

/// Results of all test programs with one set of privileges.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Round {
    pub(super) privileges: String,
    /// Features and their values, in the order printed.
    pub(super) facts: Vec<(String, String)>,
    failures: Vec<String>,
}

#[derive(Debug, Default, PartialEq)]
pub(super) struct Outcome {
    /// As printed by `uname -r`.
    pub(super) kernel: String,
    pub(super) rounds: Vec<Round>,
    pub(super) totals: Totals,
    errors: Vec<String>,
}

impl Outcome {
    /// Whether the tests with these privileges, or the guest as a whole, failed.
    pub(super) fn failed_in(&self, round: &Round) -> bool {
        !self.errors.is_empty() || !round.failures.is_empty()
    }

    pub(super) fn failed(&self) -> bool {
        self.totals.failed > 0 || !self.errors.is_empty() || self.rounds.iter().any(|round| !round.failures.is_empty())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for error in &self.errors {
            writeln!(f, "{}: {error}", self.kernel)?;
        }
        for round in &self.rounds {
            for failure in &round.failures {
                writeln!(f, "{} with {} privileges: {failure}", self.kernel, round.privileges)?;
            }
        }
        write!(f, "{}: {}", self.kernel, self.totals)
    }
}

/// Reads a console. A guest that ended before its final line has failed, regardless of earlier output.
pub(super) fn read(console: &str) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut ended = false;
    let mut current = None;
    for line in console.lines() {
        let line = line.trim_end();
        // On the first line, the marker follows output of the firmware.
        if let Some((_, word)) = line.split_once("@@ ") {
            let (word, rest) = word.split_once(' ').unwrap_or((word, ""));
            match word {
                "kernel" => rest.clone_into(&mut outcome.kernel),
                // The line is printed once per test program.
                "round" => {
                    let known = outcome.rounds.iter().position(|round| round.privileges == rest);
                    current = Some(known.unwrap_or_else(|| {
                        outcome.rounds.push(Round {
                            privileges: rest.to_owned(),
                            ..Round::default()
                        });
                        outcome.rounds.len() - 1
                    }));
                }
                "result" if !rest.contains(" exit 0 ") => {
                    if let Some(round) = current.and_then(|current| outcome.rounds.get_mut(current)) {
                        round.failures.push(rest.to_owned());
                    }
                }
                "error" | "module" => outcome.errors.push(rest.to_owned()),
                "end" => ended = true,
                _ => {}
            }
            continue;
        }
        outcome.totals += Totals::of_line(line);
        let Some(round) = current.and_then(|current| outcome.rounds.get_mut(current)) else {
            continue;
        };
        // libtest prints `test NAME ... ` first, and a test's own output follows on that line.
        if let Some((_, fact)) = line.split_once("fact: ")
            && let Some((name, value)) = fact.split_once(" = ")
        {
            round.facts.push((name.to_owned(), value.to_owned()));
        }
    }
    ensure!(
        ended && !outcome.rounds.is_empty(),
        "the guest ended too early; its last output:\n{}",
        tail(console)
    );
    Ok(outcome)
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "noise\r\n@@ kernel 6.1.0\r\n@@ round full\r\ntest a ... fact: wire = tcx\r\nok\r\n\
        test result: ok. 1 passed; 0 failed; 0 ignored;\r\n@@ result live exit 0 12 ms\r\n@@ round daemonset\r\n\
        test result: FAILED. 0 passed; 1 failed; 0 ignored;\r\n@@ result live exit 101 3 ms\r\n\
        @@ round full\r\ntest b ... fact: reasons = yes\r\nok\r\n@@ result live_kernel exit 0 7 ms\r\n@@ end\r\n";

    #[test]
    fn reads_rounds_facts_and_failures() {
        let outcome = read(CONSOLE).unwrap();
        assert_eq!(outcome.kernel, "6.1.0");
        assert_eq!(outcome.rounds.len(), 2);
        let facts = [("wire", "tcx"), ("reasons", "yes")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(outcome.rounds[0].facts, facts);
        assert_eq!(outcome.rounds[0].failures, Vec::<String>::new());
        assert_eq!(outcome.rounds[1].failures, ["live exit 101 3 ms"]);
        assert_eq!((outcome.totals.passed, outcome.totals.failed), (1, 1));
        assert!(outcome.failed());
    }

    #[test]
    fn a_guest_that_stops_in_between_has_failed() {
        let (before, _) = CONSOLE.split_once("@@ end").unwrap();
        assert!(read(before).is_err());
    }
}
