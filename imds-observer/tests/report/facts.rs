//! Compares the page in the browser with `-o json` of the same traces.

use std::collections::BTreeMap;

use imds_observer::report::text::span;
use serde_json::Value;

/// All content with numbers, as the browser shows it.
pub(crate) const SHOWN: &str = r"(() => {
    const text = e => e.innerText.trim();
    const table = id => [...document.querySelectorAll('#' + id + ' tbody tr')].map(row => [...row.cells].map(cell => cell.textContent.trim()));
    return {
        tiles: Object.fromEntries([...document.querySelectorAll('.tiles li')].map(li => [li.id.replace('tile-', ''), li.querySelector('b').textContent])),
        period: text(document.querySelector('#period')),
        input: text(document.querySelector('#input')),
        sections: [...document.querySelectorAll('main section')].map(s => ({id: s.getAttribute('aria-labelledby'), height: s.getBoundingClientRect().height})),
        links: [...document.querySelectorAll('a[href]')].map(a => a.getAttribute('href')).filter(href => !document.querySelector(href)),
        groups: [...document.querySelectorAll('article')].map(a => ({
            code: a.dataset.code, severity: a.className, cause: a.querySelector('.cause') ? text(a.querySelector('.cause')) : null,
            subjects: [...a.querySelectorAll('.subject')].map(e => e.textContent.trim()),
            remedy: a.querySelector('.remedy') ? text(a.querySelector('.remedy')) : '', commands: [...a.querySelectorAll('pre')].map(text),
        })),
        findings: [...document.querySelectorAll('article .finding')].map(f => {
            // The content of a closed group is not drawn.
            const said = e => e.textContent.trim();
            const from = f.matches('details') ? f : f.closest('article');
            return {
                code: f.closest('article').dataset.code, severity: f.dataset.severity, subject: said(f.querySelector('.subject')),
                summary: said(f.querySelector('.summary')), seen: said(f.querySelector('.seen')),
                evidence: Object.fromEntries([...from.querySelectorAll('dt')].map(dt => [said(dt), said(dt.nextElementSibling)])),
            };
        }),
        callers: table('table-callers'), latency: table('table-latency'), versions: table('table-versions'), statuses: table('table-statuses'), ttl: table('table-ttl'),
        timeline: [...document.querySelectorAll('section[aria-labelledby=timeline] .strip')].map(s => [text(s.querySelector('.name')), text(s.querySelector('.caption')), s.querySelectorAll('rect').length]),
        latencyBars: document.querySelectorAll('section[aria-labelledby=latency] svg.tall rect').length,
        quota: [...document.querySelectorAll('section[aria-labelledby=quota] .strip')].map(s => [text(s.querySelector('.name')), text(s.querySelector('.caption'))]),
        gaps: [...document.querySelectorAll('section[aria-labelledby=gaps] li')].map(text),
    };
})()";

pub(crate) fn compare(shown: &Value, analysis: &Value) {
    let summary = &analysis["summary"];
    let rows = summary["processes"].as_array().unwrap();
    assert!(rows.len() > 2);
    let sum = |field: &str| rows.iter().map(|row| row[field].as_u64().unwrap()).sum::<u64>();

    let sections: Vec<&str> = shown["sections"]
        .as_array()
        .unwrap()
        .iter()
        .map(|section| {
            assert!(section["height"].as_f64().unwrap() > 40.0, "{section}");
            section["id"].as_str().unwrap()
        })
        .collect();
    assert_eq!(
        sections,
        [
            "findings", "callers", "timeline", "latency", "versions", "ttl", "quota", "gaps"
        ]
    );
    assert_eq!(shown["links"].as_array().unwrap().len(), 0, "{}", shown["links"]);

    for time in ["from", "to"] {
        let written = analysis[time].as_str().unwrap().replace('T', " ");
        assert!(text(&shown["period"]).contains(&written[..19]), "{}", shown["period"]);
    }
    let input = &analysis["input"];
    assert_eq!(
        text(&shown["input"]),
        format!(
            "{} {}, {} records, {} skipped",
            input["files"],
            if input["files"] == 1 { "file" } else { "files" },
            input["records"],
            input["skipped"]
        )
    );

    let findings = analysis["findings"].as_array().unwrap();
    let v1: u64 = rows.iter().filter_map(|row| row["by_version"]["v1"].as_u64()).sum();
    let serious = findings
        .iter()
        .filter(|finding| ["high", "critical"].contains(&text(&finding["severity"])));
    for (tile, wanted) in [
        (
            "requests",
            sum("requests") + summary["other_requests"].as_u64().unwrap(),
        ),
        ("lost", sum("lost")),
        ("connects", sum("failed_connects")),
        ("v1", v1),
        ("findings", findings.len() as u64),
        ("serious", serious.count() as u64),
        ("workloads", by_workload(rows, "requests").len() as u64),
    ] {
        assert_eq!(number(&shown["tiles"][tile]), wanted, "{tile}");
    }

    compare_findings(shown["findings"].as_array().unwrap(), findings);
    compare_groups(
        shown["groups"].as_array().unwrap(),
        analysis["groups"].as_array().unwrap(),
    );
    compare_callers(shown, rows);

    for (table, field) in [("versions", "by_version"), ("statuses", "by_status")] {
        let mut wanted = BTreeMap::<String, u64>::new();
        for (name, count) in rows.iter().flat_map(|row| row[field].as_object().unwrap()) {
            *wanted.entry(name.clone()).or_default() += count.as_u64().unwrap();
        }
        let cells = shown[table].as_array().unwrap().iter();
        let seen: BTreeMap<String, u64> = cells
            .map(|cells| (text(&cells[0]).to_owned(), number(&cells[1])))
            .collect();
        assert_eq!(seen, wanted, "{table}");
    }

    let lost = by_workload(rows, "lost");
    let ttl = shown["ttl"].as_array().unwrap();
    assert!(!ttl.is_empty());
    for cells in ttl {
        assert_eq!(number(&cells[6]), lost[text(&cells[0])], "{cells}");
        let beyond = number(&cells[6]) > 0;
        assert_eq!(text(&cells[1]) == "out of range", beyond, "{cells}");
    }
    assert!(
        ttl.iter().any(|cells| number(&cells[6]) > 0 && number(&cells[4]) == 2),
        "{ttl:?}"
    );

    let interfaces = summary["interfaces"].as_array().unwrap();
    let quota = shown["quota"].as_array().unwrap();
    assert_eq!(quota.len(), interfaces.len());
    for interface in interfaces {
        let reported = quota.iter().find(|reported| reported[0] == interface["name"]).unwrap();
        let numbers = numbers(text(&reported[1]));
        for field in ["peak_packets_per_s", "egress_packets", "ingress_packets"] {
            assert!(numbers.contains(&interface[field].as_u64().unwrap()), "{reported}");
        }
    }

    assert_eq!(shown["gaps"].as_array().unwrap().len(), 1, "{}", shown["gaps"]);
}

fn compare_findings(shown: &[Value], findings: &[Value]) {
    assert_eq!(shown.len(), findings.len());
    assert!(!findings.is_empty());
    for finding in findings {
        let reported = shown
            .iter()
            .find(|reported| reported["code"] == finding["code"] && reported["subject"] == finding["subject"]["name"])
            .unwrap_or_else(|| panic!("{finding} is not shown"));
        assert_eq!(reported["severity"], finding["severity"]);
        assert_eq!(reported["summary"], finding["summary"]);
        assert_eq!(numbers(text(&reported["seen"]))[0], finding["count"].as_u64().unwrap());
        let evidence = finding["evidence"].as_object().unwrap();
        let known = evidence.iter().filter(|(_, value)| !value.is_null());
        assert_eq!(reported["evidence"].as_object().unwrap().len(), known.clone().count());
        for (name, value) in known {
            let shown = text(&reported["evidence"][&name.replace('_', " ")]);
            match value {
                Value::String(wanted) => assert_eq!(shown, wanted),
                Value::Number(wanted) => assert_eq!(shown, wanted.to_string()),
                Value::Bool(wanted) => assert_eq!(shown, if *wanted { "yes" } else { "no" }),
                _ => assert!(!shown.is_empty(), "{name}"),
            }
        }
    }
}

fn compare_groups(shown: &[Value], groups: &[Value]) {
    assert_eq!(shown.len(), groups.len());
    for (reported, group) in shown.iter().zip(groups) {
        assert_eq!(reported["code"], group["code"]);
        assert_eq!(reported["severity"], group["severity"]);
        let subjects = group["subjects"].as_array().unwrap();
        let names: Vec<&Value> = subjects.iter().map(|subject| &subject["name"]).collect();
        assert_eq!(
            reported["subjects"].as_array().unwrap().iter().collect::<Vec<_>>(),
            names
        );
        assert_eq!(reported["remedy"], group["remedy"]["text"]);
        assert_eq!(reported["commands"], group["remedy"]["commands"]);
        if subjects.len() > 1 {
            assert_eq!(reported["cause"], group["cause"]);
        } else {
            assert!(reported["cause"].is_null(), "{reported}");
        }
    }
}

fn compare_callers(shown: &Value, rows: &[Value]) {
    let callers = shown["callers"].as_array().unwrap();
    let latency = shown["latency"].as_array().unwrap();
    assert_eq!(callers.len(), rows.len());
    let counts = |counts: &Value| {
        let counts = counts.as_object().unwrap().iter();
        counts
            .map(|(name, count)| format!("{name} {count}"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    for (cells, row) in callers.iter().zip(rows) {
        assert_eq!(text(&cells[0]), row["workload"].as_str().unwrap_or("unknown"));
        assert_eq!(number(&cells[2]), row["requests"].as_u64().unwrap());
        assert_eq!(text(&cells[3]), format!("{:.2}", row["rate_per_s"].as_f64().unwrap()));
        assert_eq!(text(&cells[4]), counts(&row["by_version"]));
        assert_eq!(text(&cells[5]), counts(&row["by_status"]));
        assert_eq!(number(&cells[6]), row["tokens"].as_u64().unwrap());
        assert_eq!(number(&cells[7]), row["lost"].as_u64().unwrap());
        assert_eq!(number(&cells[8]), row["failed_connects"].as_u64().unwrap());
        let Some(_) = row["latency_ns"]["p50"].as_u64() else {
            continue;
        };
        let spread = latency
            .iter()
            .find(|spread| spread[0] == cells[0] && spread[1] == cells[1])
            .unwrap();
        for (cell, quantile) in [(2, "p50"), (3, "p90"), (4, "p99"), (5, "max")] {
            assert_eq!(
                text(&spread[cell]),
                span(row["latency_ns"][quantile].as_u64().unwrap()),
                "{spread}"
            );
        }
    }
    assert!(shown["latencyBars"].as_u64().unwrap() > 0);

    let requests = by_workload(rows, "requests");
    let timeline = shown["timeline"].as_array().unwrap();
    assert_eq!(timeline.len(), requests.len());
    for strip in timeline {
        assert_eq!(numbers(text(&strip[1]))[0], requests[text(&strip[0])], "{strip}");
        assert!(strip[2].as_u64().unwrap() > 0, "{strip}");
    }
}

fn by_workload(rows: &[Value], field: &str) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for row in rows {
        let workload = row["workload"].as_str().unwrap_or("unknown").to_owned();
        *sums.entry(workload).or_default() += row[field].as_u64().unwrap();
    }
    sums
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

fn number(value: &Value) -> u64 {
    text(value)
        .replace(',', "")
        .parse()
        .unwrap_or_else(|_| panic!("no number: {value}"))
}

/// Integers in a text, with their thousands separators removed.
fn numbers(text: &str) -> Vec<u64> {
    text.replace(',', "")
        .split(|character: char| !character.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}
