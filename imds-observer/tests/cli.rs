//! Tests the program from outside: arguments and input, output and exit status.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imds-observer"));
    command
        .env_remove("IMDS_OBSERVER_LOG")
        .env("NO_COLOR", "1")
        .stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

fn trace(name: &str) -> String {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/traces", name].iter().collect();
    path.to_str().unwrap().to_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    stdout(output)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn validator() -> jsonschema::Validator {
    let schema: Value = serde_json::from_slice(&run(&["schema"]).stdout).unwrap();
    jsonschema::validator_for(&schema).unwrap()
}

const TRACES: [&str; 3] = ["healthy-botocore.ndjson", "lost-token-pod.ndjson", "tight-loop.ndjson"];

#[test]
fn analyze_writes_a_report_for_people() {
    for name in TRACES {
        let output = run(&["analyze", &trace(name)]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        insta::assert_snapshot!(format!("text-{name}"), stdout(&output));
    }
}

#[test]
fn analyze_writes_one_object() {
    for name in TRACES {
        let output = run(&["analyze", "-o", "json", &trace(name)]);
        assert_eq!(output.status.code(), Some(0));
        insta::assert_snapshot!(format!("json-{name}"), stdout(&output));
        let object: Value = serde_json::from_slice(&output.stdout).unwrap();
        let validator = validator();
        assert!(validator.is_valid(&object["summary"]) && validator.is_valid(&object["loss"]));
        assert!(
            object["findings"]
                .as_array()
                .unwrap()
                .iter()
                .all(|finding| validator.is_valid(finding))
        );
        assert!(object.as_object().unwrap().contains_key("verdict"));
    }
}

#[test]
fn the_three_traces_give_the_findings_that_they_should() {
    let codes = |name: &str| {
        let output = run(&["analyze", "-o", "json", &trace(name)]);
        let object: Value = serde_json::from_slice(&output.stdout).unwrap();
        let findings = object["findings"].as_array().unwrap().clone();
        findings
            .iter()
            .map(|finding| finding["code"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(codes(TRACES[0]), Vec::<String>::new());
    assert_eq!(
        codes(TRACES[1])
            .iter()
            .filter(|code| *code == "token-response-lost")
            .count(),
        1
    );
    assert_eq!(
        codes(TRACES[2]).iter().filter(|code| *code == "tight-polling").count(),
        1
    );
}

#[test]
fn analyze_writes_the_records_and_every_one_fits_the_schema() {
    let validator = validator();
    for name in TRACES {
        let output = run(&["analyze", "-o", "ndjson", &trace(name)]);
        let records = lines(&output);
        for record in &records {
            let errors: Vec<String> = validator.iter_errors(record).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{record}: {errors:?}");
        }
        let kinds: Vec<&str> = records
            .iter()
            .map(|record| record["record"].as_str().unwrap())
            .collect();
        assert_eq!(kinds[0], "start");
        assert_eq!(kinds[kinds.len() - 2..], ["summary", "loss"]);
        assert_eq!(records[records.len() - 2]["total"], true);
        // The output can be analyzed again, with the same result.
        let again = analyze_stdin(&output.stdout, &["-o", "ndjson", "-"]);
        assert_eq!(stdout(&again), stdout(&output));
        assert_eq!(again.status.code(), Some(0));
    }
}

#[test]
fn the_schema_refuses_what_is_no_record() {
    let validator = validator();
    let text = fs::read_to_string(trace(TRACES[0])).unwrap();
    let record: Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
    assert!(validator.is_valid(&record));
    for (field, value) in [("record", "loss"), ("outcome", "maybe"), ("extra", "field")] {
        let mut wrong = record.clone();
        wrong[field] = value.into();
        assert!(!validator.is_valid(&wrong), "{field}");
    }
}

fn analyze_stdin(input: &[u8], arguments: &[&str]) -> Output {
    let mut command = program();
    let mut child = command
        .arg("analyze")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // The program may end before it has read everything.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

#[test]
fn compressed_traces_and_pipes_read_the_same() {
    let plain = run(&["analyze", "-o", "json", &trace(TRACES[1])]);
    let text = fs::read(trace(TRACES[1])).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&text).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = ruzstd::encoding::compress_to_vec(text.as_slice(), ruzstd::encoding::CompressionLevel::Fastest);
    for bytes in [text, gzip, zstd] {
        assert_eq!(stdout(&analyze_stdin(&bytes, &["-o", "json", "-"])), stdout(&plain));
    }
}

#[test]
fn several_traces_are_merged_by_time() {
    let output = run(&[
        "analyze",
        "-o",
        "ndjson",
        "--records",
        "exchange",
        &trace(TRACES[0]),
        &trace(TRACES[2]),
    ]);
    let times: Vec<String> = lines(&output)
        .iter()
        .map(|record| record["time"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(times.len(), 9 + 120);
    assert!(times.is_sorted());
}

#[test]
fn broken_lines_are_reported_and_passed_over() {
    let text = fs::read_to_string(trace(TRACES[0])).unwrap();
    let whole = run(&["analyze", "-o", "json", &trace(TRACES[0])]);
    let wanted: Value = serde_json::from_slice(&whole.stdout).unwrap();

    let secret = "AQAEsecret==";
    let broken = format!("{{\"token\":\"{secret}\"}}\nnot json {secret}\n{text}");
    let output = analyze_stdin(broken.as_bytes(), &["-o", "json", "-"]);
    assert_eq!(output.status.code(), Some(1));
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(object["summary"], wanted["summary"]);
    assert_eq!(object["input"]["skipped"], 2);
    let reported = stderr(&output);
    assert!(
        reported.contains("-:0: line 1") && reported.contains("-:25: line 2"),
        "{reported}"
    );
    assert!(!reported.contains(secret), "{reported}");

    // A killed writer leaves an incomplete line, which is reported but is no error.
    let cut = &text.as_bytes()[..text.len() - 40];
    let output = analyze_stdin(cut, &["-o", "json", "-"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stderr(&output).contains("incomplete"), "{}", stderr(&output));
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(object["input"]["skipped"], 1);
}

#[test]
fn one_record_an_hour_ahead_changes_no_verdict() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trace");
    let text = fs::read_to_string(trace(TRACES[2])).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for at in [1, lines.len() / 2] {
        let mut ahead: Value = serde_json::from_str(&lines[at]).unwrap();
        let time = ahead["time"].as_str().unwrap().replace("T12:", "T13:");
        ahead["time"] = time.into();
        lines.insert(at, ahead.to_string());
    }
    fs::write(&path, lines.join("\n") + "\n").unwrap();
    let findings = |path: &str| {
        let object: Value = serde_json::from_slice(&run(&["analyze", "-o", "json", path]).stdout).unwrap();
        (object["findings"].clone(), object["loss"]["unparsed"].clone())
    };
    let (expected, none) = findings(&trace(TRACES[2]));
    let (found, left_out) = findings(path.to_str().unwrap());
    assert_eq!(found, expected);
    assert_eq!((none, left_out), (0.into(), 2.into()), "and they are counted");
}

#[test]
fn a_file_that_is_broken_at_its_start_costs_itself_only() {
    let directory = tempfile::tempdir().unwrap();
    let broken = directory.path().join("broken.gz");
    fs::write(&broken, [0x1f, 0x8b, 0xff, 0xff, 0xff]).unwrap();
    let output = run(&["analyze", "-o", "json", broken.to_str().unwrap(), &trace(TRACES[0])]);
    assert_eq!(output.status.code(), Some(1), "part of the input was not read");
    assert!(stderr(&output).contains("broken.gz"), "{}", stderr(&output));
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&object["input"]["files"], &object["input"]["skipped"]),
        (&2.into(), &1.into())
    );
    assert!(object["input"]["records"].as_u64().unwrap() > 5);
    let (change, good) = (
        ["preflight", "--http-tokens", "required", "--min-duration", "1m"],
        trace(TRACES[0]),
    );
    let output = run(&[&change[..], &[broken.to_str().unwrap(), &good]].concat());
    assert_eq!(output.status.code(), Some(4), "{}", stdout(&output));
    let missing = directory.path().join("missing");
    assert_eq!(
        run(&["analyze", missing.to_str().unwrap(), &good]).status.code(),
        Some(1)
    );
}

#[test]
fn half_a_gzip_file_gives_what_is_in_it() {
    let text = fs::read(trace(TRACES[2])).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    gzip.write_all(&text).unwrap();
    let mut gzip = gzip.finish().unwrap();
    gzip.truncate(gzip.len() * 3 / 4);
    let output = analyze_stdin(&gzip, &["-o", "json", "-"]);
    assert_eq!(output.status.code(), Some(1));
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(object["input"]["records"].as_u64().unwrap() > 10);
    assert!(stderr(&output).contains("read error"), "{}", stderr(&output));
}

#[test]
fn fail_on_reports_by_its_status() {
    let code = |severity: &str, name: &str| run(&["analyze", "--fail-on", severity, &trace(name)]).status.code();
    assert_eq!(code("info", TRACES[0]), Some(0));
    assert_eq!(code("high", TRACES[1]), Some(3));
    assert_eq!(code("critical", TRACES[1]), Some(0));
}

#[test]
fn filters_hold_for_counts_and_findings() {
    let filtered = |arguments: &[&str]| {
        let mut all = vec!["analyze", "-o", "json"];
        all.extend(arguments);
        let (one, two) = (trace(TRACES[0]), trace(TRACES[1]));
        all.extend([one.as_str(), two.as_str()]);
        let object: Value = serde_json::from_slice(&run(&all).stdout).unwrap();
        let rows = object["summary"]["processes"].as_array().unwrap();
        let requests: u64 = rows.iter().map(|row| row["requests"].as_u64().unwrap()).sum();
        (requests, object["findings"].as_array().unwrap().len())
    };
    assert_eq!(filtered(&[]).0, 18);
    assert_eq!(filtered(&["--pid", "4242"]), (9, 0));
    assert_eq!(filtered(&["--uid", "0"]).0, 9);
    assert_eq!(filtered(&["--pod", "payments/api-7c9d8b6f5d-x2x4z"]).0, 9);
    assert_eq!(filtered(&["--pod", "payments/other"]), (0, 0));
    assert_eq!(filtered(&["--container", "abab", "--comm", "python3"]).0, 9);
    assert_eq!(filtered(&["--comm", "curl"]), (0, 0));
}

#[test]
fn the_configuration_file_is_read_and_flags_win() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.toml");
    let config = path.to_str().unwrap();
    fs::write(&path, "host = 'from-file'\nrecords = ['loss']\n[filter]\npid = [1]\n").unwrap();
    let output = run(&["analyze", "-o", "ndjson", "--config", config, &trace(TRACES[0])]);
    let records = lines(&output);
    assert_eq!((records.len(), &records[0]["host"]), (1, &Value::from("from-file")));
    let output = run(&[
        "analyze",
        "-o",
        "ndjson",
        "--config",
        config,
        "--pid",
        "4242",
        "--records",
        "exchange",
        &trace(TRACES[0]),
    ]);
    assert_eq!(lines(&output).len(), 9);

    fs::write(&path, "colour = true\n").unwrap();
    let output = run(&["analyze", "--config", config, &trace(TRACES[0])]);
    assert_eq!(output.status.code(), Some(1));
    let reported = stderr(&output);
    assert!(
        reported.contains("config.toml") && reported.contains("colour") && reported.lines().count() == 1,
        "{reported}"
    );
}

#[test]
fn what_cannot_run_says_why_in_one_line() {
    for arguments in [
        &["analyze", "/does/not/exist.ndjson"][..],
        &["analyze", "--config", "/does/not/exist.toml", "-"],
        &["analyze", "-o", "json", "-w", "/does/not/exist/out", "-"],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let reported = stderr(&output);
        assert!(
            reported.contains("/does/not/exist") && reported.lines().count() == 1,
            "{reported}"
        );
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn bad_usage_is_status_2() {
    for arguments in [
        &["analyze"][..],
        &["analyze", "--fail-on", "terrible", "-"],
        &["analyze", "-o", "xml", "-"],
        &["watch", "--records", "exchanges"],
        &["watch", "--duration", "soon"],
        &["watch", "-c", "0"],
        #[cfg(live)]
        &["stream", "-C", "1m"],
        &["watch", "--pod", "payments"],
        &["watch", "--endpoint", "imdsv2"],
        &["detectors", "explain", "nonsense"],
        &["nonsense"],
        &[],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_closed_pipe_is_a_normal_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("long.ndjson");
    let text = fs::read_to_string(trace(TRACES[2])).unwrap();
    // More than any pipe can hold.
    fs::write(&path, text.repeat(40)).unwrap();
    let mut child = program()
        .args(["analyze", "-o", "ndjson", path.to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
}

#[test]
fn a_signal_ends_the_run_in_good_order() {
    let mut child = program()
        .args(["analyze", "-o", "ndjson", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&fs::read(trace(TRACES[0])).unwrap()).unwrap();
    // After the first batch of output, the program handles signals. The pipe stays open.
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    reader.read_line(&mut text).unwrap();
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let kinds: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["record"].clone())
        .collect();
    assert_eq!(kinds.first().unwrap(), "start");
    assert_eq!(kinds[kinds.len() - 2..], ["summary", "loss"]);
    drop(stdin);
}

#[test]
fn analyze_writes_to_a_file() {
    let directory = tempfile::tempdir().unwrap();
    for format in ["text", "json", "ndjson"] {
        let path = directory.path().join(format);
        let output = run(&["analyze", "-o", format, "-w", path.to_str().unwrap(), &trace(TRACES[1])]);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0));
        assert_eq!(
            fs::read(&path).unwrap(),
            run(&["analyze", "-o", format, &trace(TRACES[1])]).stdout
        );
    }
}

#[test]
fn untrusted_text_cannot_reach_the_terminal() {
    let text = fs::read_to_string(trace(TRACES[2])).unwrap();
    let hostile = text
        .replace("\"comm\":\"curl\"", "\"comm\":\"c\\u001b[2J\"")
        .replace("/usr/bin/curl", "/usr/\\u001b]0;x\\u0007");
    let output = analyze_stdin(hostile.as_bytes(), &["-"]);
    assert!(stdout(&output).contains("\\u{1b}"));
    assert!(
        stdout(&output)
            .chars()
            .all(|character| character == '\n' || !character.is_control())
    );
}

#[test]
fn detectors_are_listed_and_explained() {
    let output = run(&["detectors", "list"]);
    let listed = stdout(&output);
    let codes: Vec<&str> = listed
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(codes.contains(&"tight-polling") && codes.contains(&"token-response-lost"));
    for code in codes {
        let output = run(&["detectors", "explain", code]);
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout(&output).contains(code));
    }
}

#[test]
fn completions_and_help_are_there() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success() && stdout(&output).contains("imds-observer"));
    }
    let output = run(&["help"]);
    for command in [
        "watch",
        "stream",
        "analyze",
        "doctor",
        "detectors",
        "schema",
        "completions",
    ] {
        assert!(stdout(&output).contains(command));
    }
}

#[test]
fn an_empty_trace_is_no_error() {
    let directory = tempfile::tempdir().unwrap();
    let path: &Path = &directory.path().join("empty.ndjson");
    fs::write(path, "").unwrap();
    let output = run(&["analyze", "-o", "json", "--host", "h", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0));
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(object["from"].is_null() && object["to"].is_null());
}

fn preflight(arguments: &[&str], name: &str) -> (Option<i32>, Value) {
    let path = trace(name);
    let mut all = vec!["preflight", "-o", "json"];
    all.extend(arguments);
    all.push(&path);
    let output = run(&all);
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn preflight_names_who_would_break() {
    let required = ["--http-tokens", "required", "--min-duration", "1m"];
    let (status, answer) = preflight(&required, TRACES[0]);
    assert_eq!((status, &answer["verdict"]), (Some(0), &Value::from("safe")));
    assert_eq!(answer["breaks"].as_array().unwrap().len(), 0);

    let (status, answer) = preflight(&required, TRACES[1]);
    assert_eq!((status, &answer["verdict"]), (Some(3), &Value::from("not-safe")));
    assert_eq!(answer["breaks"][0]["workload"], "payments/api");
    assert_eq!(answer["breaks"][0]["count"], 6);
    assert_eq!(answer["breaks"][0]["last_seen"], "2026-03-01T12:02:03.004000000Z");

    // A host process needs no hop. If IMDS is disabled, every client fails.
    assert_eq!(
        preflight(&["--hop-limit", "1", "--min-duration", "1m"], TRACES[0]).0,
        Some(0)
    );
    let both = ["--http-tokens", "required", "--hop-limit", "1", "--min-duration", "1m"];
    let (status, answer) = preflight(&both, TRACES[1]);
    assert_eq!((status, &answer["breaks"][0]["count"]), (Some(3), &Value::from(6)));
    let (status, answer) = preflight(&["--endpoint", "disabled", "--min-duration", "1m"], TRACES[0]);
    assert_eq!((status, &answer["breaks"][0]["count"]), (Some(3), &Value::from(9)));
}

#[test]
fn preflight_says_what_keeps_it_from_an_answer() {
    let (status, answer) = preflight(&["--http-tokens", "required"], TRACES[0]);
    assert_eq!((status, &answer["verdict"]), (Some(4), &Value::from("cannot-say")));
    assert!(
        answer["reasons"][0].as_str().unwrap().contains("--min-duration"),
        "{answer}"
    );

    let doubtful = |change: fn(&str) -> String| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace");
        fs::write(&path, change(&fs::read_to_string(trace(TRACES[0])).unwrap())).unwrap();
        let output = run(&[
            "preflight",
            "--http-tokens",
            "required",
            "--min-duration",
            "1m",
            path.to_str().unwrap(),
        ]);
        (output.status.code(), stdout(&output))
    };
    assert_eq!(doubtful(str::to_owned).0, Some(0));
    let (status, text) = doubtful(|text| text.replace("\"ring_buffer\":0", "\"ring_buffer\":7"));
    assert!(status == Some(4) && text.contains("7 events lost"), "{text}");
    let (status, text) = doubtful(|text| format!("{}{text}", &text[..=text.find('\n').unwrap()]));
    assert!(status == Some(4) && text.contains("restarted 1 time"), "{text}");
    let (status, text) = doubtful(|text| format!("nonsense\n{text}"));
    assert!(status == Some(4) && text.contains("1 line of the input"), "{text}");
    let (status, text) = doubtful(|text| {
        text.replace(
            "\"missing\":[]",
            r#""missing":[{"capability":"wire","why":"no","blinds":"TTLs at the uplink"}]"#,
        )
    });
    assert!(status == Some(4) && text.contains("TTLs at the uplink"), "{text}");
}

#[test]
fn preflight_needs_a_change() {
    let path = trace(TRACES[0]);
    for arguments in [
        &["preflight", path.as_str()][..],
        &["preflight", "--http-tokens", "optional", &path],
        &["preflight", "--hop-limit", "65", &path],
        &["preflight", "--endpoint", "enabled", &path],
    ] {
        assert_eq!(run(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn preflight_wants_each_node_watched_long_enough() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("short");
    let whole = fs::read_to_string(trace(TRACES[0])).unwrap();
    let short: String = whole.split_inclusive('\n').take(2).collect();
    fs::write(&path, short.replace("\"host\":\"", "\"host\":\"other-")).unwrap();
    let change = ["preflight", "--http-tokens", "required", "--min-duration", "1m"];
    let output = run(&[&change[..], &[path.to_str().unwrap(), &trace(TRACES[0])]].concat());
    assert_eq!(output.status.code(), Some(4));
    assert!(stdout(&output).contains("other-"), "{}", stdout(&output));
}

#[test]
fn forty_pods_behind_one_hop_limit_are_one_cause() {
    let path = format!(
        "{}/tests/incidents/groups-forty-pods-one-hop-limit.ndjson.gz",
        env!("CARGO_MANIFEST_DIR")
    );
    let object: Value = serde_json::from_slice(&run(&["analyze", "-o", "json", &path]).stdout).unwrap();
    assert_eq!(object["findings"].as_array().unwrap().len(), 40);
    let [group] = &object["groups"].as_array().unwrap()[..] else {
        panic!("{}", object["groups"])
    };
    assert_eq!(group["code"], "token-response-lost");
    assert_eq!(group["severity"], "high");
    assert_eq!(group["subjects"].as_array().unwrap().len(), 40);
    let commands = group["remedy"]["commands"].as_array().unwrap();
    assert!(
        commands[1]
            .as_str()
            .unwrap()
            .ends_with("--http-put-response-hop-limit 2")
    );

    let text = stdout(&run(&["analyze", &path]));
    assert_eq!(text.matches("--http-put-response-hop-limit 2").count(), 1, "{text}");
    assert!(text.contains("HIGH token-response-lost 40 subjects\n"), "{text}");
    assert!(text.contains("and 30 more\n"), "{text}");

    let page = stdout(&run(&["analyze", "-o", "html", &path]));
    assert_eq!(page.matches("<article").count(), 1);
    assert_eq!(page.matches("class=\"finding\"").count(), 40);
}

#[test]
fn a_page_holds_no_foreign_markup_and_needs_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hostile");
    let text = fs::read_to_string(trace(TRACES[2])).unwrap();
    let hostile = r#"</title></style><script>alert(1)</script><img src=x onerror=alert(1)>\"'&\u202e\u0000"#;
    let text = text.replace("instance-id", hostile).replace("curl", hostile);
    fs::write(&path, text).unwrap();
    let output = run(&["analyze", "-o", "html", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let page = stdout(&output);
    assert!(
        page.contains("&#60;script&#62;") || page.contains("&lt;script&gt;"),
        "{page}"
    );
    for foreign in [
        "<script", "<img", "\u{202e}", "\0", "http://", "https://", "@import", "url(",
    ] {
        assert!(!page.contains(foreign), "{foreign:?}");
    }
    assert_eq!(page.matches("</style>").count(), 1);
    for section in [
        "findings", "callers", "timeline", "latency", "versions", "ttl", "quota", "gaps",
    ] {
        assert!(page.contains(&format!("id=\"{section}\"")), "{section}");
    }
}

#[cfg(unix)]
#[test]
fn a_device_without_an_end_is_read_until_the_first_signal() {
    let mut child = program()
        .args(["analyze", "-o", "json", "/dev/zero"])
        .env("IMDS_OBSERVER_LOG", "warn")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(child.id() as i32);
    // Once the program has used processor time, it is running.
    let used = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.split_whitespace().nth(13).unwrap().parse::<u64>().unwrap()
    };
    while used() < 20 {
        std::thread::yield_now();
    }
    kill(pid, Signal::SIGTERM).unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let (ended, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || ended.send(stdout.lines().count()));
    let lines = end.recv_timeout(std::time::Duration::from_secs(20));
    if lines.is_err() {
        child.kill().unwrap();
    }
    child.wait().unwrap();
    assert!(lines.is_ok(), "still reading 20 s after SIGTERM");
}
