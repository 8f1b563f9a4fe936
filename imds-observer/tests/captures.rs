//! Captures of the lab, recorded with tcpdump and scrubbed (`captures/scrub.py`): what they show without anybody having observed.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_imds-observer"))
        .env_remove("IMDS_OBSERVER_LOG")
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .args(arguments)
        .output()
        .unwrap()
}

fn capture(name: &str) -> String {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/captures", name].iter().collect();
    path.to_str().unwrap().to_owned()
}

fn records(arguments: &[&str]) -> Vec<Value> {
    let output = run(&[&["analyze", "-o", "ndjson"], arguments].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Method, version, the request's TTL, the response's, outcome.
fn exchanges(name: &str) -> Vec<String> {
    records(&["--records", "exchange", &capture(name)])
        .iter()
        .map(|record| {
            let (request, response) = (&record["request"], &record["response"]);
            format!(
                "{} {} ttl {} -> {} ttl {} {}",
                request["method"].as_str().unwrap(),
                request["imds_version"].as_str().unwrap_or("?"),
                request["ttl"],
                response["status"],
                response["ttl"],
                record["outcome"].as_str().unwrap()
            )
        })
        .collect()
}

/// What becomes of a pod's SDK at hop limit 1: the token is lost, and it goes on without one.
const POD: [&str; 3] = [
    "PUT token ttl 63 -> 200 ttl 1 lost",
    "GET v1 ttl 63 -> 200 ttl 255 answered",
    "GET v1 ttl 63 -> 200 ttl 255 answered",
];
const NODE: [&str; 3] = [
    "PUT token ttl 64 -> 200 ttl 1 answered",
    "GET v2 ttl 64 -> 200 ttl 255 answered",
    "GET v2 ttl 64 -> 200 ttl 255 answered",
];

#[test]
fn every_interface_at_once_shows_each_request_once_though_nat_stands_between() {
    assert_eq!(exchanges("any.pcap"), POD);
    let told = records(&["--records", "exchange", &capture("any.pcap")]);
    assert!(
        told.iter().all(|record| record["connection"]["local"]
            .as_str()
            .unwrap()
            .starts_with("10.88.0.2:")),
        "told from the client's side"
    );
}

#[test]
fn the_uplink_alone_shows_who_is_beyond_the_hop_limit() {
    assert_eq!(exchanges("uplink-nano.pcap"), [NODE, POD].concat());
}

#[test]
fn a_snap_length_hides_headers_but_no_loss() {
    let cut = POD.map(|line| line.replace("v1", "?"));
    assert_eq!(exchanges("any-sll-snap.pcap"), cut);
}

#[test]
fn the_lost_token_response_is_found_in_each() {
    for name in ["any.pcap", "uplink-nano.pcap", "any-sll-snap.pcap"] {
        let output = run(&["analyze", "-o", "json", "--fail-on", "high", &capture(name)]);
        assert_eq!(output.status.code(), Some(3), "{name}");
        let object: Value = serde_json::from_slice(&output.stdout).unwrap();
        let codes: Vec<&str> = object["findings"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|finding| finding["code"].as_str())
            .collect();
        assert!(codes.contains(&"token-response-lost"), "{name}: {codes:?}");
        assert_eq!(object["input"]["skipped"], 0);
        assert!(object["summary"]["interfaces"][0]["egress_packets"].as_u64().unwrap() > 0);
    }
}

#[test]
fn compressed_piped_and_beside_our_own_records() {
    let plain = fs::read(capture("any.pcap")).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let packed = directory.path().join("any.pcap.gz");
    fs::write(&packed, gzip.finish().unwrap()).unwrap();
    let packed = packed.to_str().unwrap();
    let wanted = records(&["--records", "exchange", &capture("any.pcap")]);
    let without_ids =
        |records: &[Value]| -> Vec<Value> { records.iter().map(|record| record["request"].clone()).collect() };
    assert_eq!(
        without_ids(&records(&["--records", "exchange", packed])),
        without_ids(&wanted)
    );

    let mut child = Command::new(env!("CARGO_BIN_EXE_imds-observer"))
        .args(["analyze", "-o", "ndjson", "--records", "exchange", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for part in plain.chunks(7) {
        stdin.write_all(part).unwrap();
    }
    drop(stdin);
    let piped = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(piped.stdout).unwrap().lines().count(), wanted.len());

    let own: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/traces/healthy-botocore.ndjson"]
        .iter()
        .collect();
    let both = records(&["--records", "exchange", own.to_str().unwrap(), packed]);
    assert!(both.len() > wanted.len());
}

#[test]
fn a_cut_off_capture_gives_what_came_before_and_status_1() {
    let plain = fs::read(capture("any.pcap")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cut.pcap");
    fs::write(&path, &plain[..plain.len() - 5]).unwrap();
    let path = path.to_str().unwrap();
    let output = run(&["analyze", "-o", "json", path, &capture("uplink-nano.pcap")]);
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains(&format!("{path}:")) && told.contains("cut off"), "{told}");
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(object["input"]["skipped"], 1);
    assert!(object["input"]["records"].as_u64().unwrap() > 40);
}

#[test]
fn no_byte_of_a_body_or_token_comes_out() {
    // The scrubbed bytes stand where the secrets stood.
    for name in ["any.pcap", "uplink-nano.pcap"] {
        for format in ["text", "json", "ndjson"] {
            let output = run(&["analyze", "-o", format, &capture(name)]);
            assert!(!String::from_utf8(output.stdout).unwrap().contains("xxxxxxxx"));
        }
    }
}
