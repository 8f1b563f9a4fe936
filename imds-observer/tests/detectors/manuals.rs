//! The detectors' manual pages must be complete, contain a real record, and be the same in the source, in `docs/` and on the screen.
//!
//! `UPDATE_DOCS=1 cargo test -p imds-observer --test detectors manuals` regenerates the example records and the pages.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use imds_observer::detectors::{CATALOGUE, DetectorConfig, manual, manual_of};
use imds_observer::record::{Code, Finding, Record};
use serde_json::Value;

use crate::fixtures;

const SECTIONS: [&str; 6] = [
    "Detects",
    "Why it matters",
    "Example record",
    "Known false positives",
    "Options",
    "References",
];

fn update() -> bool {
    std::env::var_os("UPDATE_DOCS").is_some()
}

fn page(code: Code) -> String {
    manual(code).unwrap_or_else(|| panic!("{code} has no manual page"))
}

fn source_file(code: Code) -> PathBuf {
    let stem = code.as_str().replace('-', "_");
    root().join(format!("imds-observer/src/detectors/{stem}.rs"))
}

fn section<'a>(page: &'a str, name: &str) -> Option<&'a str> {
    let start = page.find(&format!("\n## {name}\n"))? + name.len() + 5;
    let rest = &page[start..];
    Some(rest[..rest.find("\n## ").unwrap_or(rest.len())].trim())
}

/// Formats a finding with one line per field: it has too many levels for one line per value.
fn pretty(finding: &Record<Finding>) -> String {
    let Value::Object(fields) = serde_json::to_value(finding).unwrap() else {
        unreachable!("a finding is an object")
    };
    // serde_json sorts the keys of a Value, but readers know the order of the record.
    let line = serde_json::to_string(finding).unwrap();
    let mut keys: Vec<&String> = fields.keys().collect();
    keys.sort_by_key(|key| line.find(&format!("\"{key}\":")).unwrap());
    let lines: Vec<String> = keys
        .iter()
        .map(|key| format!("  \"{key}\": {}", fields[*key]))
        .collect();
    format!("{{\n{}\n}}", lines.join(",\n"))
}

fn example(code: Code) -> Record<Finding> {
    fixtures::findings(code, "fires.ndjson")
        .into_iter()
        .rfind(|finding| finding.code == code)
        .unwrap_or_else(|| panic!("{code} doesn't fire on its fixture"))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn manuals_have_all_sections() {
    for entry in CATALOGUE {
        let page = page(entry.code);
        let mut last = 0;
        for name in SECTIONS {
            let text = section(&page, name).unwrap_or_else(|| panic!("{}: no section `## {name}`", entry.code));
            assert!(!text.is_empty() || update(), "{}: `## {name}` is empty", entry.code);
            let place = page.find(&format!("\n## {name}\n")).unwrap();
            assert!(place > last, "{}: `## {name}` is out of order", entry.code);
            last = place;
        }
    }
}

#[test]
fn manuals_name_every_option_with_its_default() {
    let Value::Object(config) = serde_json::to_value(DetectorConfig::default()).unwrap() else {
        unreachable!("a table")
    };
    for entry in CATALOGUE {
        let page = page(entry.code);
        let options = section(&page, "Options").unwrap();
        let table = format!("`[detectors.{}]`", entry.code);
        assert!(options.contains(&table), "{}: {table} is missing", entry.code);
        for (name, value) in config[entry.code.as_str()].as_object().unwrap() {
            let value = if value.as_array().is_some_and(Vec::is_empty) {
                "empty".to_owned()
            } else {
                value.to_string()
            };
            let reported = format!("- `{name}` ({value}): ");
            assert!(
                options.contains(&reported),
                "{}: the option {reported:?} is missing",
                entry.code
            );
        }
        let reported = options.lines().filter(|line| line.starts_with("- `")).count();
        assert_eq!(
            reported,
            config[entry.code.as_str()].as_object().unwrap().len(),
            "{}",
            entry.code
        );
    }
}

#[test]
fn manuals_show_real_records_and_are_the_pages_in_docs() {
    // The order matters: with UPDATE_DOCS, the second step makes the pages from the output of the first.
    examples_are_what_the_fixtures_give();
    pages_are_those_in_docs();
}

fn examples_are_what_the_fixtures_give() {
    for entry in CATALOGUE {
        let expected = format!("```json\n{}\n```", pretty(&example(entry.code)));
        if update() {
            let file = source_file(entry.code);
            let source = fs::read_to_string(&file).unwrap();
            let start = source.find("//! ## Example record\n").unwrap();
            let end = start + source[start..].find("//! ## Known false").unwrap();
            let block = format!("//! {}\n", expected.replace('\n', "\n//! "));
            let source = format!(
                "{}//! ## Example record\n//!\n{block}//!\n{}",
                &source[..start],
                &source[end..]
            );
            fs::write(&file, source).unwrap();
            continue;
        }
        let page = page(entry.code);
        let shown = section(&page, "Example record").unwrap();
        assert!(
            shown == expected,
            "{}: the example isn't what its fixture gives (write it anew with UPDATE_DOCS=1)\n{expected}",
            entry.code
        );
        let json = shown.trim_start_matches("```json").trim_end_matches("```");
        let record: Record<Finding> = serde_json::from_str(json).unwrap();
        assert_eq!(record.code, entry.code);
    }
}

fn pages_are_those_in_docs() {
    let docs = root().join("docs/detectors");
    let mut index = String::from(
        "# Detectors\n\nMade from the doc comments in `imds-observer/src/detectors/`; `imds-observer detectors explain CODE` \
         prints the same pages.\n\n",
    );
    for entry in CATALOGUE {
        let _ = writeln!(index, "- [{0}]({0}.md): {1}", entry.code, entry.line);
    }
    let mut pages = vec![("README.md".to_owned(), index)];
    for entry in CATALOGUE {
        let text = if update() {
            // The running program was built from the source before the first step changed it.
            manual_of(entry.code, &fs::read_to_string(source_file(entry.code)).unwrap())
        } else {
            page(entry.code)
        };
        pages.push((format!("{}.md", entry.code), text));
    }
    if update() {
        fs::create_dir_all(&docs).unwrap();
    }
    for (name, text) in &pages {
        let path = docs.join(name);
        if update() {
            fs::write(&path, text).unwrap();
            continue;
        }
        let written = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            written == *text,
            "docs/detectors/{name} is out of date (write it anew with UPDATE_DOCS=1)"
        );
    }
    for file in fs::read_dir(&docs).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(
            pages.iter().any(|(page, _)| *page == name),
            "docs/detectors/{name} belongs to no detector"
        );
    }
}
