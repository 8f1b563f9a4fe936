//! Public incidents: the program's findings for inputs that were made from public bug reports.
//!
//! Each incident is a row in `incidents/*.toml`, whose expected findings are written down before the detector is. A row that is still wrong
//! is marked `open`. The test fails when an open row becomes right, so that the mark is removed with the fault. `UPDATE_DOCS=1` regenerates
//! the table in docs/incidents.md.

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

/// One input and its expected findings.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Incident {
    file: String,
    /// Public reports, `owner/repository#number`, or `own: ...` for a variant or a control.
    source: String,
    happened: String,
    /// The expected finding in words.
    right: String,
    /// Codes of required findings. `a|b`: one of them; `code:severity`: exactly this severity.
    #[serde(default)]
    must: Vec<String>,
    /// Codes of forbidden findings. `code:severity`: forbidden from this severity up.
    #[serde(default)]
    must_not: Vec<String>,
    /// Words that no summary, remedy or command may contain, in any case.
    #[serde(default)]
    words_not: Vec<String>,
    /// Words of which at least one must be in a summary, a remedy, a command, a subject or the evidence.
    #[serde(default)]
    words_any: Vec<String>,
    /// Required number of findings by code, such as `{ "no-answer" = 2 }`.
    #[serde(default)]
    counts: std::collections::BTreeMap<String, usize>,
    /// Required number of causes that reports list for findings with a code.
    #[serde(default)]
    groups: std::collections::BTreeMap<String, usize>,
    /// Reason why the row is still wrong.
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

/// Output of `analyze -o json`.
fn report(file: &str) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_imds-observer"))
        .args(["analyze", "-o", "json"])
        .arg(directory().join(file))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{file}: {error}: {}", String::from_utf8_lossy(&output.stderr)))
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

/// Whether a finding matches `wanted`, which is `code` or `code:severity`.
fn is(finding: &Value, wanted: &str) -> bool {
    let (code, severity) = wanted.split_once(':').unwrap_or((wanted, ""));
    text(finding, "code") == code && (severity.is_empty() || text(finding, "severity") == severity)
}

/// Differences between the findings of the report and the expected ones.
fn faults(incident: &Incident, report: &Value) -> Vec<String> {
    let findings = report["findings"].as_array().unwrap();
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
    for (code, &wanted) in &incident.groups {
        let groups = report["groups"].as_array().unwrap();
        let found = groups.iter().filter(|group| text(group, "code") == code).count();
        if found != wanted {
            faults.push(format!("{code} in {found} groups, not {wanted}"));
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
        let faults = faults(incident, &report(&incident.file));
        match (&incident.open, faults.is_empty()) {
            (None, false) => writeln!(wrong, "{}: {}", incident.file, faults.join("; ")).unwrap(),
            (Some(_), true) => writeln!(wrong, "{}: right now, take `open` away", incident.file).unwrap(),
            (None, true) | (Some(_), false) => {}
        }
    }
    assert!(wrong.is_empty(), "of {} incidents:\n{wrong}", incidents.len());
}

/// Findings on another cloud must not contain commands of AWS.
#[test]
fn other_clouds_get_no_command_of_aws() {
    let text = fs::read_to_string(directory().join("clouds.toml")).unwrap();
    let table: Table = toml::from_str(&text).unwrap();
    let mut findings = 0;
    for incident in table.incident {
        // The agents' own services belong to AWS.
        if incident.file.starts_with("pod-identity-") || incident.file.starts_with("ecs-") {
            continue;
        }
        for finding in report(&incident.file)["findings"].as_array().unwrap() {
            let remedy = &finding["remedy"];
            let shown = format!("{} {} {}", finding["summary"], remedy["text"], remedy["commands"]);
            assert!(!shown.contains("aws "), "{}: {shown}", incident.file);
            findings += 1;
        }
    }
    assert!(findings >= 15, "only {findings} findings were looked at");
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

/// Sections by symptom, each with its codes.
const SECTIONS: [(&str, &[&str]); 6] = [
    (
        "The hop limit, and responses that arrive and are lost",
        &["token-response-lost", "response-dropped"],
    ),
    (
        "Tokens and IMDSv1",
        &[
            "token-request-refused",
            "token-rejected",
            "bad-token-request",
            "imdsv1-request",
            "token-not-reused",
        ],
    ),
    (
        "Roles and credentials",
        &[
            "credentials-unusable",
            "stale-role-name",
            "no-instance-role",
            "credential-churn",
            "access-forbidden",
            "container-credentials-failed",
            "node-role-used",
            "path-disappeared",
        ],
    ),
    (
        "Proxies, sidecars, redirects and missing paths",
        &[
            "proxied-request",
            "unexpected-redirect",
            "not-found",
            "connection-aborted",
            "redirected-locally",
        ],
    ),
    (
        "Firewalls, routes, policies and silence",
        &[
            "blocked-by-firewall",
            "denied-by-policy",
            "no-route",
            "neighbor-unresolved",
            "connection-refused",
            "no-answer",
            "ipv6-endpoint-silent",
            "connect-delayed",
        ],
    ),
    (
        "Polling, packet quota and slow answers",
        &["packet-quota", "tight-polling", "slow-responses", "server-errors"],
    ),
];
const QUIET: &str = "No fault, and no alarm";

/// Section of the first code that must be reported.
fn section(incident: &Incident) -> &'static str {
    let code = incident.must.first().map_or("", |wanted| {
        let first = wanted.split('|').next().unwrap_or_default();
        first.split(':').next().unwrap_or_default()
    });
    if code.is_empty() {
        return QUIET;
    }
    SECTIONS
        .iter()
        .find(|(_, codes)| codes.contains(&code))
        .unwrap_or_else(|| panic!("{}: `SECTIONS` lacks {code}", incident.file))
        .0
}

fn is_public(incident: &Incident) -> bool {
    !incident.source.starts_with("own: ")
}

/// `a/b#1, #2 (words)` as `(a/b, 1), (a/b, 2)`.
fn reports(source: &str) -> Vec<(String, String)> {
    let mut repository = String::new();
    let mut reports = Vec::new();
    for part in source.split([',', ';', ' ']) {
        let Some((before, number)) = part.split_once('#') else {
            continue;
        };
        if !before.is_empty() {
            before.trim_start_matches('(').clone_into(&mut repository);
        }
        let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
        if !digits.is_empty() {
            reports.push((repository.clone(), digits));
        }
    }
    reports
}

/// Links to the issues of these reports. GitHub redirects an issue's address to the pull request with that number, if there is one.
fn links(source: &str) -> String {
    let links: Vec<String> = reports(source)
        .iter()
        .map(|(repository, number)| format!("[{repository}#{number}](https://github.com/{repository}/issues/{number})"))
        .collect();
    links.join(", ")
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ").replace('<', "&lt;")
}

/// The text up to the first full stop that ends a sentence.
fn first_sentence(text: &str) -> &str {
    let ends = text.match_indices(". ").find(|(at, _)| {
        let next = text[at + 2..].chars().next();
        next.is_some_and(|next| next.is_uppercase() || next == '`')
    });
    ends.map_or(text, |(at, _)| &text[..=at])
}

/// Reported findings by cause, and the first sentence of the first remedy.
fn reported(groups: &[Value]) -> (String, String) {
    const MOST: usize = 3;
    let mut says: Vec<String> = groups
        .iter()
        .take(MOST)
        .map(|group| {
            let subjects = group["subjects"].as_array().unwrap();
            let what = match &subjects[..] {
                [only] => cell(text(only, "summary")),
                all => format!("{} subjects: {}", all.len(), cell(text(group, "cause"))),
            };
            format!("`{}` ({}): {what}", text(group, "code"), text(group, "severity"))
        })
        .collect();
    if groups.len() > MOST {
        says.push(format!("and {} more", groups.len() - MOST));
    }
    let Some(worst) = groups.first() else {
        return ("no finding".to_owned(), String::new());
    };
    let remedy = &worst["remedy"];
    let mut act = cell(first_sentence(text(remedy, "text")));
    let commands: Vec<&str> = remedy["commands"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    // The last command changes something, while earlier ones only show the state.
    if let Some(command) = commands.last().filter(|command| command.starts_with("aws ec2 modify")) {
        write!(act, "<br>`{command}`").unwrap();
    }
    (says.join("<br>"), act)
}

/// Generates docs/incidents.md.
fn page() -> String {
    let incidents = incidents();
    let (public, own): (Vec<&Incident>, Vec<&Incident>) = incidents.iter().partition(|incident| is_public(incident));
    let (open, right): (Vec<&Incident>, Vec<&Incident>) =
        public.into_iter().partition(|incident| incident.open.is_some());
    let distinct: std::collections::BTreeSet<_> = right.iter().flat_map(|incident| reports(&incident.source)).collect();
    let mut page = String::new();
    writeln!(
        page,
        "# Public incidents\n\n\
         This page shows what imds-observer reports for {} inputs, made from {} public bug reports. Addresses, tokens and names are made up. \
         For each input, the expected finding was committed before the detector was changed. A test compares the expected findings with \
         the program's output.\n\n\
         The inputs, their verdicts and the scripts that write them are in `imds-observer/tests/incidents`. Run any of them:\n\n\
         ```\nimds-observer analyze imds-observer/tests/incidents/groups-forty-pods-one-hop-limit.ndjson.gz\n```\n\n\
         `cargo xtask docs` writes this page from the program's output.",
        right.len(),
        distinct.len()
    )
    .unwrap();
    for title in SECTIONS.iter().map(|(title, _)| *title).chain([QUIET]) {
        let rows: Vec<_> = right.iter().filter(|incident| section(incident) == title).collect();
        if rows.is_empty() {
            continue;
        }
        if title == QUIET {
            writeln!(
                page,
                "\n## {title}\n\n| report | what happened | what imds-observer reports |\n|---|---|---|"
            )
            .unwrap();
        } else {
            writeln!(
                page,
                "\n## {title}\n\n| report | what happened | what imds-observer reports | what to do first |\n|---|---|---|---|"
            )
            .unwrap();
        }
        for incident in rows {
            let report = report(&incident.file);
            let mut groups = report["groups"].as_array().unwrap().clone();
            // The expected findings come first; other findings of the input follow.
            let wanted = |group: &Value| {
                incident
                    .must
                    .iter()
                    .flat_map(|must| must.split('|'))
                    .any(|must| is(group, must))
            };
            groups.sort_by_key(|group| !wanted(group));
            let (says, act) = reported(&groups);
            write!(
                page,
                "| {} | {} | {says} |",
                links(&incident.source),
                cell(&incident.happened)
            )
            .unwrap();
            if title != QUIET {
                write!(page, " {act} |").unwrap();
            }
            page.push('\n');
        }
    }
    if !open.is_empty() {
        page.push_str("\n## Not right yet\n\n| report | what happened | what would be right |\n|---|---|---|\n");
        for incident in open {
            let (happened, right) = (cell(&incident.happened), cell(&incident.right));
            writeln!(page, "| {} | {happened} | {right} |", links(&incident.source)).unwrap();
        }
    }
    let own = own.iter().filter(|incident| incident.open.is_none()).count();
    writeln!(
        page,
        "\nA further {own} inputs are variants and controls of our own: the same fault with another status, address or client, and healthy traffic that \
         looks like it."
    )
    .unwrap();
    page
}

#[test]
fn reports_are_read_from_a_source() {
    let pair = |repository: &str, number: &str| (repository.to_owned(), number.to_owned());
    assert_eq!(
        reports("a/b#1, #22 (comment), c/d#3"),
        [pair("a/b", "1"), pair("a/b", "22"), pair("c/d", "3")]
    );
    assert_eq!(
        links("a/b#1, #2"),
        "[a/b#1](https://github.com/a/b/issues/1), [a/b#2](https://github.com/a/b/issues/2)"
    );
    assert_eq!(first_sentence("Set it to 2. Then wait."), "Set it to 2.");
    assert_eq!(first_sentence("Ask e.g. once"), "Ask e.g. once");
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
