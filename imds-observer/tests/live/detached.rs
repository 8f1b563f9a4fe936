//! Another tool detaches the observer's programs.

use std::fs;
use std::process::Command;

use imds_observer_lab::topology::LabOptions;

use crate::support::{Observer, lab, run};

/// IDs of the links of one type that a process has open.
fn links(pid: u32, kind: &str) -> Vec<String> {
    let mut ids = Vec::new();
    for file in fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap().flatten() {
        let text = fs::read_to_string(file.path()).unwrap_or_default();
        if text.contains(&format!("link_type:\t{kind}\n")) {
            let id = text.lines().find_map(|line| line.strip_prefix("link_id:")).unwrap();
            ids.push(id.trim().to_owned());
        }
    }
    ids
}

#[test]
#[ignore = "live"]
fn a_hook_that_another_tool_detaches_is_loss() {
    for kind in ["cgroup", "tcx"] {
        let lab = lab(LabOptions::default());
        let mut observer = Observer::stream(&lab, &[]);
        let url = "http://169.254.169.254/latest/meta-data/instance-id";
        assert!(
            run(lab.node(), "curl", &["-s", "-o", "/dev/null", url])
                .status
                .success()
        );
        observer.wait_for(|record| record["record"] == "exchange");
        let links = links(observer.pid(), kind);
        if links.is_empty() {
            assert_eq!(kind, "tcx", "cgroup hooks are links");
            eprintln!("left out: this kernel has no tcx");
            continue;
        }
        for id in &links {
            let detached = Command::new("bpftool")
                .args(["link", "detach", "id", id])
                .output()
                .unwrap();
            assert!(
                detached.status.success(),
                "{}",
                String::from_utf8_lossy(&detached.stderr)
            );
        }
        let loss = observer.wait_for(|record| record["record"] == "loss" && record["detached"] != 0);
        assert_eq!(loss["detached"], links.len(), "{loss}");
        let finished = observer.finish();
        assert_eq!(finished.kind("loss").pop().unwrap()["detached"], links.len());
        assert!(
            finished.stderr.contains("was detached by another tool"),
            "{}",
            finished.stderr
        );
    }
}
