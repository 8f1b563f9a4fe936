//! The table in `docs/kernel-support.md`, from what the runs so far have left under `target/kernels`.

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

/// Notes the facts of one run. A run that failed replaces an earlier one too: the table must not say what isn't so.
pub(super) fn keep(arch: Arch, version: &Version, outcome: &Outcome) -> anyhow::Result<()> {
    fs::create_dir_all(results())?;
    let mut text = String::new();
    for round in &outcome.rounds {
        let state = if outcome.failed() { "FAILED" } else { "passed" };
        writeln!(
            text,
            "{}\t{}\t{}\tsuite\t{state}",
            arch.name(),
            outcome.kernel,
            round.rights
        )?;
        for (name, value) in &round.facts {
            writeln!(
                text,
                "{}\t{}\t{}\t{name}\t{value}",
                arch.name(),
                outcome.kernel,
                round.rights
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
    fs::write(page, format!("{before}{BEGIN}\n\n{}\n{END}{after}", table(&text)))?;
    Ok(())
}

/// One column per kernel and set of rights, one row per feature. A cell that no run filled is a dash.
fn table(facts: &str) -> String {
    // (version's numbers, version, machine, rights) -> check -> outcome.
    type Column<'a> = (Vec<u64>, &'a str, &'a str, &'a str);
    let mut columns: BTreeMap<Column<'_>, BTreeMap<&str, &str>> = BTreeMap::new();
    let mut features: Vec<&str> = Vec::new();
    for line in facts.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [arch, kernel, rights, feature, value] = fields[..] else {
            continue;
        };
        let order = kernel
            .split(['.', '-', '+'])
            .filter_map(|number| number.parse().ok())
            .collect();
        // All rights before fewer.
        let rank = if rights == "full" { "0" } else { "1" };
        columns
            .entry((order, arch, rank, kernel))
            .or_default()
            .insert(feature, value);
        if !features.contains(&feature) {
            features.push(feature);
        }
    }
    let mut out = String::from("| |");
    for (_, arch, rank, kernel) in columns.keys() {
        let rights = if *rank == "0" { "root" } else { "DaemonSet" };
        let _ = write!(out, " {kernel} {arch}, {rights} |");
    }
    out.push_str("\n|---|");
    out.push_str(&"---|".repeat(columns.len()));
    out.push('\n');
    for feature in features {
        let _ = write!(out, "| {feature} |");
        for values in columns.values() {
            let _ = write!(out, " {} |", values.get(feature).unwrap_or(&"-").replace('|', "\\|"));
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_in_order_of_kernels_and_gaps_are_dashes() {
        let facts = "x86_64\t6.12.1\tfull\twire\ttcx\nx86_64\t5.10.0-46\tdaemonset\twire\tclsact\n\
                     x86_64\t5.10.0-46\tfull\twire\tclsact\nx86_64\t6.12.1\tfull\treasons\tyes\n";
        assert_eq!(
            table(facts),
            "| | 5.10.0-46 x86_64, root | 5.10.0-46 x86_64, DaemonSet | 6.12.1 x86_64, root |\n|---|---|---|---|\n\
             | wire | clsact | clsact | tcx |\n| reasons | - | - | yes |\n"
        );
    }
}
