//! `start.missing` must list the features that the observer lacks and the resulting coverage gaps, and everything else must work. An
//! explicitly requested feature that is unavailable is an error.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use imds_observer_lab::faults::{Hook, crowd_uplink, occupy};
use imds_observer_lab::privileges::withhold;
use imds_observer_lab::topology::{Lab, LabOptions, PodOptions};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

use crate::support::{Observer, UPLINK, cgroup_of, in_netns, kernel, lab, output, run};

const NONE: &[&str] = &[];

/// `stream` on the lab's node, without the withheld capabilities, and with empty directories mounted over the hidden ones.
fn command(lab: &Lab, withheld: &[&str], hidden: &[&str], arguments: &[&str]) -> Command {
    let mut command = in_netns(lab.node(), env!("CARGO_BIN_EXE_imds-observer"));
    command
        .args(["stream", "--cgroup", lab.cgroup_directory().to_str().unwrap()])
        .args(arguments);
    if !hidden.is_empty() {
        let hidden: Vec<String> = hidden.iter().map(|&path| path.to_owned()).collect();
        let hide = move || {
            unshare(CloneFlags::CLONE_NEWNS)?;
            let nothing = None::<&str>;
            mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
            for path in &hidden {
                mount(Some("none"), path.as_str(), Some("tmpfs"), MsFlags::empty(), nothing)?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec only system calls are made; nothing is allocated.
        unsafe { command.pre_exec(hide) };
    }
    withhold(&mut command, withheld).unwrap();
    command
}

fn reduced(lab: &Lab, withheld: &[&str], hidden: &[&str]) -> (Observer, Value) {
    let mut observer = Observer::start(&mut command(lab, withheld, hidden, &["-i", UPLINK]));
    let start = observer.wait_for(|record| record["record"] == "start");
    (observer, start)
}

/// Names of the missing features, each with its coverage gap.
fn missing(start: &Value) -> Vec<(&str, &str)> {
    start["missing"]
        .as_array()
        .unwrap()
        .iter()
        .map(|missing| {
            assert!(!missing["why"].as_str().unwrap().is_empty(), "{missing}");
            (
                missing["capability"].as_str().unwrap(),
                missing["blinds"].as_str().unwrap(),
            )
        })
        .collect()
}

/// The record of a request that a process in the pod sends.
fn exchange(lab: &Lab, observer: &mut Observer) -> Value {
    let url = "http://169.254.169.254/latest/meta-data/instance-id";
    let output = run(lab.pod(0), "curl", &["-s", "-m", "5", url]);
    assert!(output.status.success(), "{output:?}");
    observer.wait_for(|record| record["record"] == "exchange")
}

/// Checks the facts that don't depend on these capabilities.
fn assert_rest_works(exchange: &Value) {
    assert_eq!(
        exchange["request"]["path"], "/latest/meta-data/instance-id",
        "{exchange}"
    );
    assert_eq!(exchange["response"]["status"], 200, "{exchange}");
    assert_eq!(exchange["response"]["ttl"], 255, "{exchange}");
    assert_eq!(exchange["outcome"], "answered");
}

#[test]
#[ignore = "live"]
fn nothing_is_missing_with_all_rights() {
    let lab = lab(LabOptions::default());
    let (mut observer, start) = reduced(&lab, NONE, NONE);
    assert_eq!(start["missing"], serde_json::json!([]));
    let exchange = exchange(&lab, &mut observer);
    assert_rest_works(&exchange);
    assert_eq!(exchange["process"]["comm"], "curl");
    observer.finish();
}

#[test]
#[ignore = "live"]
fn without_btf_requests_are_still_seen() {
    let lab = lab(LabOptions::default());
    let (mut observer, start) = reduced(&lab, NONE, &["/sys/kernel/btf"]);
    let missing = missing(&start);
    println!("{missing:?}");
    let (_, blinds) = missing.iter().find(|(name, _)| *name == "btf").expect("btf is missing");
    assert!(blinds.contains("dropped packets") && blinds.contains("executable"));
    assert!(!hooks(&start).iter().any(|hook| hook.starts_with("drop")), "{start}");
    assert_rest_works(&exchange(&lab, &mut observer));
    observer.finish();
}

#[test]
#[ignore = "live"]
fn without_tracefs_the_error_of_connect_comes_another_way_or_is_missing() {
    let lab = lab(LabOptions::default());
    let (mut observer, start) = reduced(&lab, NONE, &["/sys/kernel/tracing", "/sys/kernel/debug"]);
    let attached = start["attached"].as_array().unwrap();
    let method = attached.iter().find(|attached| attached["hook"] == "connect-returned");
    println!("connect-returned: {method:?}, missing: {:?}", missing(&start));
    match method {
        Some(method) => assert!(method["method"] == "fexit" || method["method"] == "raw_tp", "{method}"),
        None => assert!(
            missing(&start)
                .iter()
                .any(|(name, blinds)| *name == "connect-returned" && blinds.contains("connect()"))
        ),
    }
    assert_rest_works(&exchange(&lab, &mut observer));
    observer.finish();
}

#[test]
#[ignore = "live"]
fn without_btf_and_tracefs_the_error_of_connect_comes_from_all_calls() {
    let lab = lab(LabOptions::default());
    let (mut observer, start) = reduced(
        &lab,
        NONE,
        &["/sys/kernel/btf", "/sys/kernel/tracing", "/sys/kernel/debug"],
    );
    let missing = missing(&start);
    assert!(missing.iter().any(|(name, _)| *name == "btf"), "{missing:?}");
    let attached = start["attached"].as_array().unwrap();
    let method = attached.iter().find(|attached| attached["hook"] == "connect-returned");
    assert_eq!(method.expect("connect-returned is attached")["method"], "raw_tp");
    assert_rest_works(&exchange(&lab, &mut observer));
    observer.finish();
}

#[test]
#[ignore = "live"]
fn without_ptrace_or_syslog_or_admin_processes_are_still_named() {
    let lab = lab(LabOptions::default());
    for withheld in [
        &["CAP_SYS_PTRACE"][..],
        &["CAP_SYSLOG"],
        &["CAP_SYS_ADMIN"],
        &["CAP_SYS_RESOURCE", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH"],
    ] {
        let (mut observer, start) = reduced(&lab, withheld, NONE);
        let missing = missing(&start);
        println!("without {withheld:?}: {missing:?}");
        let reported = missing.iter().any(|(name, _)| *name == "CAP_SYS_PTRACE");
        assert_eq!(
            reported,
            withheld.contains(&"CAP_SYS_PTRACE"),
            "{withheld:?}: {missing:?}"
        );
        let exchange = exchange(&lab, &mut observer);
        assert_rest_works(&exchange);
        assert_eq!(exchange["process"]["comm"], "curl", "{withheld:?}");
        assert_eq!(exchange["process"]["cgroup"], cgroup_of(lab.pod(0)), "{withheld:?}");
        observer.finish();
    }
}

/// Exit status and error message of a `stream` that can't start.
fn refused(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
#[ignore = "live"]
fn what_nothing_works_without_is_an_error_that_says_what_to_try() {
    let lab = lab(LabOptions::default());
    // CAP_SYS_ADMIN includes the permissions of both capabilities.
    for withheld in [&["CAP_BPF", "CAP_SYS_ADMIN"], &["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]] {
        let (status, said) = refused(&mut command(&lab, withheld, NONE, &["-i", UPLINK, "--duration", "5s"]));
        println!("without {withheld:?}: {said}");
        assert_eq!(status, Some(1), "{said}");
        assert!(said.contains(withheld[0]), "{withheld:?}: {said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    }
    let (status, said) = refused(&mut command(&lab, NONE, NONE, &["-i", "nosuch0", "--duration", "5s"]));
    assert_eq!(status, Some(1));
    assert!(said.contains("nosuch0") && said.contains("ip link"), "{said}");
    let mut elsewhere = in_netns(lab.node(), env!("CARGO_BIN_EXE_imds-observer"));
    elsewhere.args(["stream", "-i", UPLINK, "--cgroup", "/nonexistent", "--duration", "5s"]);
    let (status, said) = refused(&mut elsewhere);
    assert_eq!(status, Some(1));
    assert!(said.contains("/nonexistent"), "{said}");
}

/// Runs without `--cgroup`, so that the observer must find the cgroup hierarchy too.
#[test]
#[ignore = "live"]
fn too_few_descriptors_are_named_as_the_cause() {
    let lab = lab(LabOptions::default());
    let mut refused = 0;
    for limit in (8..48).step_by(4) {
        let mut command = in_netns(lab.node(), "sh");
        let script = format!("ulimit -n {limit}; exec \"$@\"");
        let observer = env!("CARGO_BIN_EXE_imds-observer");
        command.args([
            "-c",
            &script,
            "sh",
            observer,
            "stream",
            "-i",
            UPLINK,
            "--duration",
            "1s",
        ]);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            continue;
        }
        refused += 1;
        let last = said.trim_end().lines().last().unwrap_or_default();
        assert!(last.contains("os error 24"), "ulimit -n {limit}: {said}");
    }
    assert!(refused > 2, "{refused}");
}

/// This must work with and without the kernel's mitigations against speculation, which only `mitigations=off` disables. Since 6.17 the
/// verifier inserts a barrier in cases in which it rejected the program before.
#[test]
#[ignore = "live"]
fn without_perfmon_requests_are_still_seen() {
    let lab = lab(LabOptions::default());
    let withheld = ["CAP_PERFMON", "CAP_SYS_ADMIN"];
    if kernel() < (6, 17) {
        let tried = command(&lab, &withheld, NONE, &["-i", UPLINK, "--duration", "1s"]).output();
        let tried = tried.unwrap();
        if !tried.status.success() {
            let said = String::from_utf8_lossy(&tried.stderr);
            println!("without {withheld:?}: {said}");
            assert_eq!(tried.status.code(), Some(1), "{said}");
            assert!(said.contains("lacks CAP_PERFMON"), "{said}");
            return;
        }
    }
    let (mut observer, start) = reduced(&lab, &withheld, NONE);
    let missing = missing(&start);
    println!("{missing:?}");
    let (_, blinds) = missing
        .iter()
        .find(|(name, _)| *name == "CAP_PERFMON")
        .expect("it is missing");
    assert!(blinds.contains("dropped packets"));
    let attached = hooks(&start);
    for hook in [
        "segment-ingress",
        "segment-egress",
        "connect4",
        "connect6",
        "connect-tuple",
        "wire-ingress",
        "wire-egress",
    ] {
        assert!(attached.iter().any(|attached| attached == hook), "{hook}: {start}");
    }
    assert_rest_works(&exchange(&lab, &mut observer));
    observer.finish();
}

#[test]
#[ignore = "live"]
fn where_tcx_is_refused_clsact_takes_its_place_and_leaves_nothing() {
    if !has_tcx() {
        eprintln!("left out: this kernel has no tcx (6.6) that could be refused");
        return;
    }
    let lab = lab(LabOptions::default());
    let crowd = crowd_uplink(&lab).unwrap();
    let filters = || {
        let show = |side| {
            let filters = in_netns(lab.node(), "tc")
                .args(["filter", "show", "dev", UPLINK, side])
                .output()
                .unwrap();
            String::from_utf8_lossy(&filters.stdout)
                .lines()
                .filter(|line| line.contains("wire_"))
                .count()
        };
        show("ingress") + show("egress")
    };
    let (mut observer, start) = reduced(&lab, NONE, NONE);
    let attached = start["attached"].as_array().unwrap();
    for hook in ["wire-ingress", "wire-egress"] {
        let method = attached.iter().find(|attached| attached["hook"] == hook).unwrap();
        assert_eq!(method["method"], "clsact", "{method}");
    }
    assert_eq!(filters(), 2);
    assert_rest_works(&exchange(&lab, &mut observer));
    observer.finish();
    assert_eq!(filters(), 0, "filters are left");
    crowd.undo().unwrap();
}

#[test]
#[ignore = "live"]
fn an_exclusive_program_is_named_and_the_rest_goes_on_where_it_can() {
    let lab = lab(LabOptions::default());
    let guard = occupy(&lab, Hook::Connect4).unwrap();
    let (mut observer, start) = reduced(&lab, NONE, NONE);
    let connect4 = start["missing"]
        .as_array()
        .unwrap()
        .iter()
        .find(|missing| missing["capability"] == "connect4");
    let why = connect4.expect("connect4 is missing")["why"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(why.contains("imdslab_policy") && why.contains("exclusively"), "{why}");
    assert_rest_works(&exchange(&lab, &mut observer));
    observer.finish();
    guard.undo().unwrap();

    let guard = occupy(&lab, Hook::CgroupEgress).unwrap();
    let (status, said) = refused(&mut command(&lab, NONE, NONE, &["-i", UPLINK, "--duration", "5s"]));
    assert_eq!(status, Some(1));
    assert!(
        said.contains("imdslab_policy") && said.contains("BPF_F_ALLOW_MULTI"),
        "{said}"
    );
    guard.undo().unwrap();
    let left = output("bpftool", &["cgroup", "show", lab.cgroup_directory().to_str().unwrap()]);
    assert!(!left.contains("segment_"), "{left}");
}

fn has_tcx() -> bool {
    let release = nix::sys::utsname::uname().unwrap();
    let release = release.release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 6)
}

fn hooks(start: &Value) -> Vec<String> {
    start["attached"]
        .as_array()
        .unwrap()
        .iter()
        .map(|attached| attached["hook"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
#[ignore = "live"]
fn a_pod_and_an_uplink_that_come_later_are_seen() {
    let mut lab = lab(LabOptions::default());
    let mut observer = Observer::start(&mut command(&lab, NONE, NONE, NONE));
    let start = observer.wait_for(|record| record["record"] == "start");
    assert_eq!(start["interfaces"], serde_json::json!([UPLINK]));

    let pod = lab.add_pod(&PodOptions::default()).unwrap();
    let url = "http://169.254.169.254/latest/meta-data/placement/region";
    let ask = |lab: &Lab| run(lab.pod(pod), "curl", &["-s", "-m", "5", url]);
    let of_pod = |record: &Value| record["record"] == "exchange" && record["process"]["comm"] == "curl";
    ask(&lab);
    let exchange = observer.wait_for(of_pod);
    assert_eq!(exchange["process"]["cgroup"], cgroup_of(lab.pod(pod)), "{exchange}");
    assert_eq!(exchange["process"]["netns"], lab.pod(pod).netns().inode());
    assert_eq!(exchange["response"]["ttl"], 255);

    let second = lab.add_uplink().unwrap();
    lab.route_through(&second).unwrap();
    lab.remove_uplink(UPLINK).unwrap();
    // The observer attaches to a new uplink with a short delay. Requests that were sent before have no TTL.
    let deadline = std::time::Instant::now() + crate::support::patience();
    loop {
        ask(&lab);
        let exchange = observer.wait_for(of_pod);
        if exchange["response"]["ttl"] == 255 {
            assert_eq!(exchange["process"]["cgroup"], cgroup_of(lab.pod(pod)), "{exchange}");
            break;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "{second} was not attached: {exchange}"
        );
    }
    let finished = observer.finish();
    let total = finished
        .kind("summary")
        .into_iter()
        .rfind(|summary| summary["total"] == true)
        .unwrap();
    let interfaces = total["interfaces"].as_array().unwrap();
    let second = interfaces
        .iter()
        .find(|interface| interface["name"] == second.as_str())
        .unwrap();
    assert!(second["egress_packets"].as_u64().unwrap() > 0, "{total}");
}
