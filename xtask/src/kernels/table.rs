//! The table in `docs/kernel-support.md`, from the results under `target/kernels`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::outcome::Outcome;
use super::{Arch, Version};
use crate::run::root;

const BEGIN: &str = "<!-- table: cargo xtask test --kernel ... --write-table -->";
const END: &str = "<!-- end of table -->";

fn results() -> PathBuf {
    root().join("target/kernels/results")
}

/// Stores the facts of one run. A failed run replaces an earlier result too, so that the table is never wrong.
pub(super) fn keep(arch: Arch, version: &Version, outcome: &Outcome) -> anyhow::Result<()> {
    fs::create_dir_all(results())?;
    let mut text = String::new();
    for round in &outcome.rounds {
        let state = if outcome.failed_in(round) { "FAILED" } else { "passed" };
        writeln!(
            text,
            "{}\t{}\t{}\tsuite\t{state}",
            arch.name(),
            outcome.kernel,
            round.privileges
        )?;
        for (name, value) in &round.facts {
            writeln!(
                text,
                "{}\t{}\t{}\t{name}\t{value}",
                arch.name(),
                outcome.kernel,
                round.privileges
            )?;
        }
    }
    let path = results().join(format!("{}-{version}.tsv", arch.name()));
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

/// Replaces the table between the two marks of `page`.
pub(super) fn write(page: &Path) -> anyhow::Result<()> {
    let old = fs::read_to_string(page)?;
    let (before, rest) = old
        .split_once(BEGIN)
        .with_context(|| format!("the page lacks `{BEGIN}`"))?;
    let (_, after) = rest
        .split_once(END)
        .with_context(|| format!("the page lacks `{END}`"))?;
    let mut text = String::new();
    for entry in fs::read_dir(results())? {
        text.push_str(&fs::read_to_string(entry?.path())?);
    }
    fs::write(page, format!("{before}{BEGIN}\n\n{}\n{END}{after}", tables(&text)))?;
    Ok(())
}

/// A column of the table, which is a run on one kernel with one set of privileges: numbers of the version, machine, rank of the privileges,
/// version.
type Column<'a> = (Vec<u64>, &'a str, &'a str, &'a str);

/// Results of runs: one column per run, with the facts in the order of their first appearance.
#[derive(Default)]
struct Facts<'a> {
    columns: BTreeMap<Column<'a>, BTreeMap<&'a str, &'a str>>,
    names: Vec<&'a str>,
}

impl<'a> Facts<'a> {
    fn read(text: &'a str) -> Self {
        let mut facts = Self::default();
        for line in text.lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            let [arch, kernel, privileges, name, value] = fields[..] else {
                continue;
            };
            let order = kernel
                .split(['.', '-', '+'])
                .filter_map(|number| number.parse().ok())
                .collect();
            // Columns with all privileges precede those with fewer.
            let rank = if privileges == "full" { "0" } else { "1" };
            let column = facts.columns.entry((order, arch, rank, kernel)).or_default();
            column.insert(name, value);
            if !facts.names.contains(&name) {
                facts.names.push(name);
            }
        }
        facts
    }

    /// Table of the facts that `wanted` accepts, with the names that it returns. A cell without a result is a dash.
    fn table(&self, wanted: impl Fn(&'a str) -> Option<&'a str>) -> String {
        let mut out = String::from("| |");
        for (_, arch, rank, kernel) in self.columns.keys() {
            let privileges = if *rank == "0" { "root" } else { "DaemonSet" };
            let _ = write!(out, " {kernel} {arch}, {privileges} |");
        }
        out.push_str("\n|---|");
        out.push_str(&"---|".repeat(self.columns.len()));
        out.push('\n');
        for name in &self.names {
            let Some(called) = wanted(name) else { continue };
            let _ = write!(out, "| {called} |");
            for values in self.columns.values() {
                let value = values.get(name).unwrap_or(&"-");
                // Reasons are listed below the table.
                let value = value
                    .split_once(" (")
                    .filter(|_| value.starts_with(MISSING))
                    .map_or(*value, |(value, _)| value);
                let _ = write!(out, " {} |", value.replace('|', "\\|"));
            }
            out.push('\n');
        }
        out
    }

    /// All reasons for missing features, without duplicates.
    fn reasons(&self) -> String {
        let mut reasons: Vec<String> = Vec::new();
        for name in &self.names {
            for values in self.columns.values() {
                let why = values.get(name).and_then(|value| value.strip_prefix(MISSING));
                if let Some(why) = why.and_then(|why| why.strip_prefix(" (")?.strip_suffix(')')) {
                    let reason = format!("- `{name}`: {why}\n");
                    if !reasons.contains(&reason) {
                        reasons.push(reason);
                    }
                }
            }
        }
        reasons.concat()
    }
}

/// Prefix of the value of a feature that a kernel lacks.
const MISSING: &str = "missing";
/// Prefix of the name of a fact about a fault.
const FAULT: &str = "fault ";

fn tables(text: &str) -> String {
    let facts = Facts::read(text);
    let mut out = facts.table(|name| (!name.starts_with(FAULT)).then_some(name));
    let reasons = facts.reasons();
    if !reasons.is_empty() {
        let _ = write!(out, "\nWhy something is missing:\n\n{reasons}");
    }
    let faults = facts.table(|name| name.strip_prefix(FAULT));
    let _ = write!(out, "\nFaults, and the finding that each must lead to:\n\n{faults}");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: &str = "x86_64\t6.12.1\tfull\twire\ttcx\nx86_64\t5.10.0-46\tdaemonset\twire\tclsact\n\
                         x86_64\t5.10.0-46\tfull\twire\tclsact\nx86_64\t6.12.1\tfull\treasons\tyes\n\
                         x86_64\t5.10.0-46\tfull\treasons\tmissing (older than 5.17)\n\
                         x86_64\t6.12.1\tfull\tfault no-route over IPv4\tno-route\n";

    #[test]
    fn columns_are_in_order_of_kernels_and_gaps_are_dashes() {
        assert_eq!(
            Facts::read(FACTS).table(|name| (!name.starts_with(FAULT)).then_some(name)),
            "| | 5.10.0-46 x86_64, root | 5.10.0-46 x86_64, DaemonSet | 6.12.1 x86_64, root |\n|---|---|---|---|\n\
             | wire | clsact | clsact | tcx |\n| reasons | missing | - | yes |\n"
        );
    }

    #[test]
    fn reasons_stand_below_and_faults_apart() {
        let page = tables(FACTS);
        assert!(page.contains("- `reasons`: older than 5.17\n"), "{page}");
        assert!(page.contains("| no-route over IPv4 | - | - | no-route |\n"), "{page}");
        assert_eq!(page.matches("no-route over").count(), 1);
    }
}
