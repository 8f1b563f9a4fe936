//! Captures of the lab, recorded with tcpdump and scrubbed (`captures/scrub.py`), and what `analyze` finds in them without an observer.

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

/// Exchanges as method, version, TTL of the request, TTL of the response, and outcome.
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

/// Requests of a pod's SDK at hop limit 1: the token is lost, and the SDK continues without one.
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
    let reported = records(&["--records", "exchange", &capture("any.pcap")]);
    assert!(
        reported.iter().all(|record| record["connection"]["local"]
            .as_str()
            .unwrap()
            .starts_with("10.88.0.2:")),
        "reported from the client's side"
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
    let reported = String::from_utf8(output.stderr).unwrap();
    assert!(
        reported.contains(&format!("{path}:")) && reported.contains("truncated"),
        "{reported}"
    );
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(object["input"]["skipped"], 1);
    assert!(object["input"]["records"].as_u64().unwrap() > 40);
}

#[test]
fn no_byte_of_a_body_or_token_comes_out() {
    // Scrubbed bytes replace the secrets.
    for name in ["any.pcap", "uplink-nano.pcap"] {
        for format in ["text", "json", "ndjson"] {
            let output = run(&["analyze", "-o", format, &capture(name)]);
            assert!(!String::from_utf8(output.stdout).unwrap().contains("xxxxxxxx"));
        }
    }
}

/// `docs/offline.md` documents a filter. The packets that pass it must lead to the same findings as the whole capture.
#[test]
fn the_documented_filter_loses_no_finding() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/offline.md")).unwrap();
    let filter = page
        .lines()
        .find(|line| line.starts_with("host 169.254.169.254 or "))
        .expect("the page has the filter on a line of its own");
    let scenarios: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/scenarios"].iter().collect();
    let directory = tempfile::tempdir().unwrap();
    let filtered = directory.path().join("filtered.pcap");
    let codes = |capture: &str| {
        let mut codes: Vec<String> = records(&["--records", "finding", capture])
            .iter()
            .filter(|record| record["state"] == "open")
            .map(|record| format!("{} {}", record["code"], record["subject"]["key"]))
            .collect();
        codes.sort();
        codes
    };
    let mut found = 0;
    for name in [
        "botocore-pod-hop-limit-1.pcap",
        "botocore-ipv6.pcap",
        "proxied.pcap",
        "output-reject.pcap",
        "silent-upstream.pcap",
        "no-route.pcap",
        "on-link-silent.pcap",
        "s3fs-v1-allowed.pcap",
    ] {
        let whole = scenarios.join(name);
        let tcpdump = Command::new("tcpdump")
            .args(["-r", whole.to_str().unwrap(), "-w", filtered.to_str().unwrap(), filter])
            .output()
            .expect("run tcpdump (cargo xtask setup --for test)");
        let said = String::from_utf8_lossy(&tcpdump.stderr);
        assert!(tcpdump.status.success(), "{name}: {said}");
        let wanted = codes(whole.to_str().unwrap());
        assert_eq!(codes(filtered.to_str().unwrap()), wanted, "{name}");
        found += wanted.len();
    }
    assert!(found > 3, "these captures have findings: {found}");
}

/// pktmon logs a packet once per component that it passes. Each request must still be reported once.
#[test]
fn copies_of_a_packet_count_once() {
    let path: PathBuf = [
        env!("CARGO_MANIFEST_DIR"),
        "tests/incidents/W-pktmon-live-migration.pcapng",
    ]
    .iter()
    .collect();
    let path = path.to_str().unwrap();
    let exchanges = records(&["--records", "exchange", path]);
    assert_eq!(exchanges.len(), 41, "a token and 40 polls");
    for exchange in &exchanges {
        assert_eq!(exchange["outcome"], "answered");
        assert_eq!(exchange["request"]["retransmits"], 0, "{exchange}");
        assert_eq!(exchange["response"]["retransmits"], 0, "{exchange}");
        assert!(exchange["process"].is_null(), "{exchange}");
    }
    let total = records(&["--records", "summary", path]);
    let interface = &total.last().unwrap()["interfaces"][0];
    // 3 packets of the handshake, 3 of the close, and request, response and acknowledgment of 41 exchanges.
    let packets = interface["egress_packets"].as_u64().unwrap() + interface["ingress_packets"].as_u64().unwrap();
    assert_eq!(packets, 3 + 3 + 3 * 41, "{interface}");
}

/// Returns an Ethernet capture, truncated to this snap length.
fn snapped(name: &str, snap: usize, directory: &tempfile::TempDir) -> String {
    let bytes = fs::read(capture(name)).unwrap();
    let mut cut = bytes[..24].to_vec();
    let mut at = 24;
    while at < bytes.len() {
        let captured = u32::from_le_bytes(bytes[at + 8..at + 12].try_into().unwrap()) as usize;
        let kept = captured.min(snap);
        cut.extend(&bytes[at..at + 8]);
        cut.extend(u32::try_from(kept).unwrap().to_le_bytes());
        cut.extend(&bytes[at + 12..at + 16 + kept]);
        at += 16 + captured;
    }
    let path = directory.path().join(format!("{snap}.pcap"));
    fs::write(&path, cut).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_capture_that_is_cut_within_its_headers_is_not_without_requests() {
    let directory = tempfile::tempdir().unwrap();
    for snap in [20, 33, 34, 40, 53, 54] {
        let path = snapped("uplink-nano.pcap", snap, &directory);
        let output = run(&["analyze", &path]);
        let (text, log) = (
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        );
        assert!(!text.contains("no requests to IMDS"), "{snap}: {text}");
        assert!(
            text.contains("no requests could be evaluated") && text.contains("unreadable"),
            "{snap}: {text}"
        );
        assert!(log.contains(&format!("cut to {snap} bytes")), "{snap}: {log}");
        assert_eq!(output.status.code(), Some(1), "{snap}: read in part");
        let preflight = run(&["preflight", "--http-tokens", "required", &path]);
        assert_eq!(preflight.status.code(), Some(4), "{snap}");
    }
}
