//! The main function: identifying clients, a tight loop, and proof of a lost token response.

use std::time::{Duration, Instant};

use imds_observer_lab::topology::{LabOptions, PodCgroup, PodOptions};
use serde_json::json;

use crate::support::{Observer, cgroup_of, fetch_credentials, kernel, lab, run_script, slowness};

const CONTAINER: &str = "0f8a1c5d9b3e7a2f4c6d8e0b1a3c5e7f9d2b4a6c8e0f1a3b5c7d9e1f3a5b7c9d";

fn pod() -> LabOptions {
    LabOptions {
        pods: vec![PodOptions {
            cgroup: PodCgroup::Kubepods {
                qos: "besteffort".to_owned(),
                uid: "6e1c5a52-3f0b-4a7e-9d0c-2b8f4a1e7c33".to_owned(),
                container_id: CONTAINER.to_owned(),
            },
            nested: false,
        }],
        ..LabOptions::default()
    }
}

#[test]
#[ignore = "live"]
fn a_lost_token_response_in_a_pod_is_proven_and_explained() {
    let lab = lab(pod());
    let mut observer = Observer::stream(&lab, &[]);
    let begin = Instant::now();
    assert!(fetch_credentials(lab.pod(0)), "the fallback to v1 works");
    // The role's credentials are requested last.
    observer.wait_for(|record| {
        record["record"] == "exchange" && record["request"]["imds_version"] == "v1" && {
            let path = record["request"]["path"].as_str().unwrap();
            path.contains("security-credentials/") && !path.ends_with('/')
        }
    });
    let took = begin.elapsed();
    let finished = observer.finish();

    let puts: Vec<_> = finished
        .kind("exchange")
        .into_iter()
        .filter(|record| record["request"]["method"] == "PUT")
        .collect();
    assert!(!puts.is_empty());
    for put in &puts {
        assert_eq!(put["outcome"], "lost", "{put}");
        assert_eq!(put["response"]["ttl"], 1);
        assert_eq!(put["response"]["status"], 200);
        assert_eq!(put["response"]["delivered"], false);
        assert_eq!(put["request"]["ttl"], 63);
        assert_eq!(put["request"]["imds_version"], "token");
        assert!(put["process"]["comm"].as_str().unwrap().starts_with("python"), "{put}");
        assert_eq!(put["process"]["cgroup"], cgroup_of(lab.pod(0)));
        assert_eq!(put["container"]["id"], CONTAINER);
        assert!(
            put["latency_ns"].as_u64().unwrap() < 500_000_000 * u64::from(slowness()),
            "the response's arrival, not the client's patience"
        );
        assert!(put["waited_ns"].as_u64().unwrap() >= 900_000_000, "what it cost: {put}");
    }
    let drops = finished.kind("drop");
    assert!(
        drops.iter().any(|drop| {
            // Kernels before 5.17 have no drop reasons.
            (drop["reason"] == "IP_INHDR" || kernel() < (5, 17) && drop["reason"].is_null())
                && drop["direction"] == "response"
                && drop["ttl"] == 1
                && drop["process"]["pid"] == puts[0]["process"]["pid"]
        }),
        "{drops:?}"
    );

    let opened = finished.opened("token-response-lost");
    assert_eq!(opened.len(), 1, "one finding, not one a request");
    let last = finished.last_word("token-response-lost").unwrap();
    let commands = last["remedy"]["commands"].to_string();
    assert!(
        commands.contains("modify-instance-metadata-options") && commands.contains("--http-put-response-hop-limit 2"),
        "{commands}"
    );
    let reported = last["evidence"].to_string();
    assert!(reported.contains("seconds"), "the cost in seconds: {reported}");
    // The fallback is reported as a consequence, not as a second finding of the same severity.
    for finding in finished.opened("imdsv1-request") {
        assert_eq!(finding["severity"], "info", "{finding}");
        assert!(finding.to_string().contains("hop limit"), "{finding}");
    }
    let v1 = finished
        .kind("exchange")
        .into_iter()
        .filter(|record| record["request"]["imds_version"] == "v1")
        .count();
    assert!(v1 >= 2, "listing and role were asked for without a token");
    assert!(took < Duration::from_secs(20) * slowness());
}

#[test]
#[ignore = "live"]
fn hop_limit_1_alone_is_no_finding_for_a_host_process() {
    let lab = lab(LabOptions::default());
    let mut observer = Observer::stream(&lab, &[]);
    assert!(fetch_credentials(lab.node()));
    observer.wait_for(|record| {
        record["record"] == "exchange" && {
            let path = record["request"]["path"].as_str().unwrap();
            path.contains("security-credentials/") && !path.ends_with('/')
        }
    });
    let finished = observer.finish();
    let exchanges = finished.kind("exchange");
    assert_eq!(exchanges.len(), 3, "{exchanges:?}");
    for exchange in &exchanges {
        assert_eq!(exchange["outcome"], "answered");
        assert_eq!(exchange["response"]["delivered"], true);
        assert_eq!(exchange["request"]["ttl"], 64);
    }
    assert_eq!(exchanges[0]["response"]["ttl"], 1);
    assert_eq!(exchanges[0]["request"]["token_ttl_s"], 21600);
    assert_eq!(exchanges[1]["request"]["imds_version"], "v2");
    assert_eq!(
        exchanges[1]["request"]["token"], exchanges[2]["request"]["token"],
        "one token, used twice"
    );
    assert!(exchanges[1]["request"]["token"].is_string());
    assert_eq!(finished.kind("finding"), Vec::<&serde_json::Value>::new());
    assert_eq!(finished.kind("drop"), Vec::<&serde_json::Value>::new());
    let loss = finished.kind("loss").pop().unwrap();
    for count in ["ring_buffer", "unparsed", "truncated", "evicted", "unattributed"] {
        assert_eq!(loss[count], 0, "{loss}");
    }
}

#[test]
#[ignore = "live"]
fn a_curl_loop_is_one_finding_for_the_loop() {
    let lab = lab(LabOptions::default());
    let mut observer = Observer::stream(&lab, &[]);
    // The loop ends by itself after at most 15 s.
    let script = "end=$((SECONDS+15)); while [ $SECONDS -lt $end ]; do curl -s -o /dev/null http://169.254.169.254/latest/meta-data/instance-id; done";
    let mut shell = lab
        .node()
        .command("bash")
        .unwrap()
        .args(["-c", script])
        .spawn()
        .unwrap();
    let finding = observer.wait_for(|record| record["record"] == "finding" && record["code"] == "tight-polling");
    assert_eq!(finding["state"], "open");
    shell.kill().unwrap();
    shell.wait().unwrap();
    let finished = observer.finish();
    let opened = finished.opened("tight-polling");
    assert_eq!(opened.len(), 1, "one for the loop, not one a curl: {opened:?}");
    let subject = opened[0]["subject"].to_string();
    assert!(
        subject.contains("curl") && subject.contains("bash"),
        "executable and parent: {subject}"
    );
    // Each curl must be fully identified, although it runs for only some milliseconds.
    let exchanges = finished.kind("exchange");
    assert!(exchanges.len() >= 50, "{}", exchanges.len());
    for exchange in exchanges {
        let process = &exchange["process"];
        assert_eq!(process["comm"], "curl", "{exchange}");
        assert!(process["exe"].as_str().unwrap().ends_with("/curl"));
        assert_eq!(
            process["cmdline"][4],
            json!("http://169.254.169.254/latest/meta-data/instance-id"),
            "{process}"
        );
        assert_eq!(process["ancestors"][0]["comm"], "bash");
        assert_eq!(process["cgroup"], cgroup_of(lab.node()));
    }
}

#[test]
#[ignore = "live"]
fn a_poller_of_three_paths_every_two_seconds_is_healthy() {
    let lab = lab(LabOptions::default());
    let mut observer = Observer::stream(&lab, &[]);
    let script = imds_observer_lab::client::node_termination_handler(6, 2_000);
    let output = run_script(lab.node(), &script);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    observer.wait_for(|record| record["record"] == "exchange");
    let finished = observer.finish();
    assert!(finished.kind("exchange").len() >= 18);
    assert_eq!(finished.kind("finding"), Vec::<&serde_json::Value>::new());
}
