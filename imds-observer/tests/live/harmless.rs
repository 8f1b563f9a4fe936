//! The observer must not change anything, neither while it runs nor when it is killed.

use std::collections::BTreeSet;

use imds_observer_lab::topology::{Lab, LabOptions};

use crate::support::{Observer, UPLINK, in_netns, kernel, lab, lives, output, patience, run};

/// Programs, links and filters of this machine, as other tools list them.
fn traces(lab: &Lab) -> BTreeSet<String> {
    let mut traces = BTreeSet::new();
    for line in output("bpftool", &["prog", "show"]).lines() {
        // `17: cgroup_skb  name segment_egress  tag ...`
        if let Some((_, name)) = line.split_once("name ") {
            traces.insert(format!(
                "program {}",
                name.split_whitespace().next().unwrap_or_default()
            ));
        }
    }
    for line in output("bpftool", &["link", "show"])
        .lines()
        .filter(|line| line.contains("prog"))
    {
        traces.insert(format!("link {line}"));
    }
    for line in output("bpftool", &["cgroup", "tree", lab.cgroup_directory().to_str().unwrap()]).lines() {
        traces.insert(format!("cgroup {line}"));
    }
    for side in ["ingress", "egress"] {
        let filters = in_netns(lab.node(), "tc")
            .args(["filter", "show", "dev", UPLINK, side])
            .output()
            .unwrap();
        traces.extend(
            String::from_utf8_lossy(&filters.stdout)
                .lines()
                .map(|line| format!("filter {line}")),
        );
    }
    let net = in_netns(lab.node(), "bpftool")
        .args(["net", "show", "dev", UPLINK])
        .output()
        .unwrap();
    traces.extend(
        String::from_utf8_lossy(&net.stdout)
            .lines()
            .filter(|line| line.contains("id "))
            .map(|line| format!("net {line}")),
    );
    traces
}

#[test]
#[ignore = "live"]
fn kill_9_leaves_nothing_attached() {
    let lab = lab(LabOptions::default());
    let before = traces(&lab);
    let observer = Observer::stream(&lab, &[]);
    let during = traces(&lab);
    let ours: Vec<_> = during.difference(&before).collect();
    for wanted in ["program segment_egress", "program wire_ingress", "program connect4"] {
        assert!(
            ours.iter().any(|trace| trace.starts_with(wanted)),
            "{wanted} is seen while it runs: {ours:?}"
        );
    }
    let pid = observer.pid();
    observer.kill_9();
    assert!(!lives(pid));
    if kernel() < (6, 6) {
        // Without tcx, a filter belongs to the interface. It remains until the next observer starts.
        Observer::stream(&lab, &[]).finish();
    }
    // The kernel frees programs after a grace period.
    let deadline = std::time::Instant::now() + patience();
    loop {
        let after = traces(&lab);
        let left: Vec<_> = after.difference(&before).collect();
        if left.is_empty() {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "left behind: {left:?}");
        std::thread::yield_now();
    }
}

#[test]
#[ignore = "live"]
fn the_same_requests_give_the_same_answers_with_and_without() {
    let lab = lab(LabOptions::default());
    let ask = || {
        let mut answers = Vec::new();
        for (place, host) in [
            (lab.node(), "169.254.169.254"),
            (lab.pod(0), "169.254.169.254"),
            (lab.node(), "[fd00:ec2::254]"),
            (lab.pod(0), "[fd00:ec2::254]"),
        ] {
            for path in [
                "latest/meta-data/",
                "latest/meta-data/instance-id",
                "latest/meta-data/spot/instance-action",
                "latest/dynamic/instance-identity/document",
                "latest/user-data",
            ] {
                let url = format!("http://{host}/{path}");
                let answer = run(
                    place,
                    "curl",
                    &[
                        "-s",
                        "-m",
                        "2",
                        "-w",
                        "%{http_code} %{size_download} %{num_connects}",
                        &url,
                    ],
                );
                answers.push((url, answer.status.code(), answer.stdout));
            }
        }
        answers
    };
    let without = ask();
    let mut observer = Observer::stream(&lab, &[]);
    let with = ask();
    observer.wait_for(|record| record["record"] == "exchange");
    let finished = observer.finish();
    assert_eq!(without, with);
    assert_eq!(
        finished.kind("exchange").len(),
        with.len(),
        "each request is one exchange"
    );
    assert_eq!(ask(), without, "and after it");
}
