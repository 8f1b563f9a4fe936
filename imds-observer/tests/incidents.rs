//! Public incidents: what the program reports about inputs that were made from other people's reports.
//!
//! One row an incident, in `incidents/*.toml`: the verdict is written down before the detector that reaches it. A row that is still
//! wrong is marked `open`, and the test fails when an open row has become right, so that the mark can't outlive the fault.
//! `UPDATE_DOCS=1` writes the table in docs/incidents.md again.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use serde_json::Value;

const SEVERITIES: [&str; 4] = ["info", "warning", "high", "critical"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    incident: Vec<Incident>,
}

/// One input and the verdict that is right for it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Incident {
    file: String,
    /// Public reports, `owner/repository#number`, or `own: ...` for a variant or a control.
    source: String,
    happened: String,
    /// The right verdict, in words.
    right: String,
    /// Codes that must be found; `a|b`: one of them; `code:severity`: exactly this severity.
    #[serde(default)]
    must: Vec<String>,
    /// Codes that must not be found; `code:severity`: not from this severity up.
    #[serde(default)]
    must_not: Vec<String>,
    /// Words that no summary, remedy or command may contain. Case is ignored.
    #[serde(default)]
    words_not: Vec<String>,
    /// Words of which one must be in a summary, remedy, command, subject or the evidence.
    #[serde(default)]
    words_any: Vec<String>,
    /// Number of findings with this code: `{ "no-answer" = 2 }`.
    #[serde(default)]
    counts: std::collections::BTreeMap<String, usize>,
    /// Why it is still wrong.
    open: Option<String>,
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/incidents")
}

fn incidents() -> Vec<Incident> {
    let mut tables: Vec<PathBuf> = fs::read_dir(directory())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    tables.sort();
    tables
        .iter()
        .flat_map(|path| {
            let text = fs::read_to_string(path).unwrap();
            toml::from_str::<Table>(&text)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
                .incident
        })
        .collect()
}

fn findings(file: &str) -> Vec<Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_imds-observer"))
        .args(["analyze", "-o", "json"])
        .arg(directory().join(file))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let report: Value = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{file}: {error}: {}", String::from_utf8_lossy(&output.stderr)));
    report["findings"].as_array().unwrap().clone()
}

fn text<'a>(finding: &'a Value, key: &str) -> &'a str {
    finding[key].as_str().unwrap_or_default()
}

fn rank(severity: &str) -> usize {
    SEVERITIES
        .iter()
        .position(|known| *known == severity)
        .unwrap_or_else(|| panic!("no severity: {severity}"))
}

/// Whether a finding is what `wanted` names: `code` or `code:severity`.
fn is(finding: &Value, wanted: &str) -> bool {
    let (code, severity) = wanted.split_once(':').unwrap_or((wanted, ""));
    text(finding, "code") == code && (severity.is_empty() || text(finding, "severity") == severity)
}

/// What is wrong with these findings; empty: nothing.
fn faults(incident: &Incident, findings: &[Value]) -> Vec<String> {
    let mut faults = Vec::new();
    for wanted in &incident.must {
        if !wanted
            .split('|')
            .any(|one| findings.iter().any(|finding| is(finding, one)))
        {
            faults.push(format!("no {wanted}"));
        }
    }
    for unwanted in &incident.must_not {
        let (code, severity) = unwanted.split_once(':').unwrap_or((unwanted, "info"));
        let found =
            |finding: &&Value| text(finding, "code") == code && rank(text(finding, "severity")) >= rank(severity);
        if let Some(finding) = findings.iter().find(found) {
            faults.push(format!("has {code} ({})", text(finding, "severity")));
        }
    }
    let mut prose = String::new();
    let mut all = String::new();
    for finding in findings {
        let remedy = &finding["remedy"];
        write!(
            prose,
            "{}\n{}\n{}\n",
            text(finding, "summary"),
            text(remedy, "text"),
            remedy["commands"]
        )
        .unwrap();
        write!(all, "{}\n{}\n", finding["evidence"], finding["subject"]).unwrap();
    }
    let prose = prose.to_lowercase();
    let all = prose.clone() + &all.to_lowercase();
    for word in &incident.words_not {
        if prose.contains(&word.to_lowercase()) {
            faults.push(format!("says {word:?}"));
        }
    }
    if !incident.words_any.is_empty() && !incident.words_any.iter().any(|word| all.contains(&word.to_lowercase())) {
        faults.push(format!("lacks {:?}", incident.words_any));
    }
    for (code, &wanted) in &incident.counts {
        let found = findings.iter().filter(|finding| text(finding, "code") == code).count();
        if found != wanted {
            faults.push(format!("{code} {found} times, not {wanted}"));
        }
    }
    if incident.must.is_empty()
        && let Some(loud) = findings
            .iter()
            .find(|finding| rank(text(finding, "severity")) >= rank("high"))
    {
        faults.push(format!("false alarm: {}", text(loud, "code")));
    }
    if !faults.is_empty() {
        let found: Vec<String> = findings
            .iter()
            .map(|finding| format!("{} {}", text(finding, "code"), text(finding, "severity")))
            .collect();
        faults.push(format!("found {found:?}"));
    }
    faults
}

#[test]
fn public_incidents_get_the_right_verdict() {
    let mut wrong = String::new();
    let incidents = incidents();
    for incident in &incidents {
        let faults = faults(incident, &findings(&incident.file));
        match (&incident.open, faults.is_empty()) {
            (None, false) => writeln!(wrong, "{}: {}", incident.file, faults.join("; ")).unwrap(),
            (Some(_), true) => writeln!(wrong, "{}: right now, take `open` away", incident.file).unwrap(),
            (None, true) | (Some(_), false) => {}
        }
    }
    assert!(wrong.is_empty(), "of {} incidents:\n{wrong}", incidents.len());
}

#[test]
fn every_input_has_a_row_and_every_row_a_source() {
    let incidents = incidents();
    for entry in fs::read_dir(directory()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let is_table = Path::new(&name)
            .extension()
            .is_some_and(|extension| extension == "toml");
        if entry.file_type().unwrap().is_file() && !is_table {
            let rows = incidents.iter().filter(|incident| incident.file == name).count();
            assert_eq!(rows, 1, "rows for {name}");
        }
    }
    for Incident {
        file, source, right, ..
    } in &incidents
    {
        assert!(!right.is_empty(), "{file}: no verdict in words");
        assert!(
            source.starts_with("own: ") || source.contains('#'),
            "{file}: source is `owner/repository#number`, or `own: ...`: {source}"
        );
    }
}

/// `a/b#1, #2` as links.
fn links(source: &str) -> String {
    let mut repository = "";
    let one = |part| {
        let Some((before, number)) = str::split_once(part, '#') else {
            return str::to_owned(part);
        };
        if !before.is_empty() {
            repository = before;
        }
        let number = number.split_whitespace().next().unwrap_or_default();
        format!("[{repository}#{number}](https://github.com/{repository}/issues/{number})")
    };
    if source.starts_with("own: ") {
        return source.to_owned();
    }
    source.split(", ").map(one).collect::<Vec<_>>().join(", ")
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// The table of docs/incidents.md.
fn page() -> String {
    const BEGIN: &str = "# Public incidents\n\nEach row is an input made from a public report, and what `imds-observer analyze` reports about it. The inputs are in `imds-observer/tests/incidents`; \
        the expected verdict is committed before the detector that reaches it. `cargo xtask docs` writes this page again.\n\n\
        | report | what happened | what the observer says |\n|---|---|---|\n";
    let mut page = BEGIN.to_owned();
    for incident in incidents().iter().filter(|incident| incident.open.is_none()) {
        let says: Vec<String> = findings(&incident.file)
            .iter()
            .map(|finding| {
                format!(
                    "`{}` ({}): {}",
                    text(finding, "code"),
                    text(finding, "severity"),
                    cell(text(finding, "summary"))
                )
            })
            .collect();
        let says = if says.is_empty() {
            "nothing: no fault".to_owned()
        } else {
            says.join("<br>")
        };
        writeln!(
            page,
            "| {} | {} | {says} |",
            links(&incident.source),
            cell(&incident.happened)
        )
        .unwrap();
    }
    page
}

#[test]
fn the_page_of_incidents_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/incidents.md");
    let page = page();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let have = fs::read_to_string(&path).unwrap_or_default();
    assert!(have == page, "docs/incidents.md is out of date: run `cargo xtask docs`");
}
