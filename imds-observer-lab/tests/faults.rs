//! Checks that each fault has the known effect of the kernel on a client. Needs root; everything happens in the lab's namespaces.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use imds_observer_lab::{
    can_run_live,
    client::{Outcome, Phase, Script, Step, TOKEN_PATH},
    faults::{Entry, Family, Fault, Victim, registry},
    server::Behaviour,
    topology::{Lab, LabOptions, Place},
};

/// Result of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Status(u16),
    Connect(i32),
    ConnectTimesOut,
    AnswerTimesOut,
}

/// Sends one request from a client that is a separate process.
fn ask(place: &Place, target: SocketAddr, step: Step) -> (Fate, Duration) {
    let script = Script {
        target,
        comm: None,
        user_agent: None,
        rounds: 1,
        steps: vec![step],
    };
    let text = serde_json::to_string(&script).unwrap();
    let path = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(path.path(), text).unwrap();
    let begun = Instant::now();
    let mut client = place.command(env!("CARGO_BIN_EXE_imds-observer-lab")).unwrap();
    let output = client.arg("client").arg(path.path()).output().unwrap();
    let elapsed = begun.elapsed();
    let outcome: Outcome = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let fate = match (outcome.status, outcome.error) {
        (Some(status), _) => Fate::Status(status),
        (None, Some(error)) => match (error.phase, error.errno) {
            (Phase::Connect, Some(errno)) => Fate::Connect(errno),
            (Phase::Connect, None) => Fate::ConnectTimesOut,
            _ => Fate::AnswerTimesOut,
        },
        (None, None) => panic!("neither answer nor error"),
    };
    (fate, elapsed)
}

fn put() -> Step {
    Step {
        method: "PUT".to_owned(),
        path: TOKEN_PATH.to_owned(),
        token_ttl_s: Some(60),
        connect_timeout_ms: 400,
        timeout_ms: 400,
        ..Step::default()
    }
}

fn get(path: &str) -> Step {
    Step {
        path: format!("/latest/meta-data/{path}"),
        connect_timeout_ms: 400,
        timeout_ms: 400,
        ..Step::default()
    }
}

fn place(lab: &Lab, victim: Victim) -> &Place {
    match victim {
        Victim::Pod(number) => lab.pod(number),
        Victim::Node | Victim::Forwarded => lab.node(),
    }
}

/// Expected result of each fault of the registry, and the request that shows it.
fn expectation(name: &str, family: Family) -> (Step, Fate) {
    let patient = |step: Step| Step {
        connect_timeout_ms: 5000,
        ..step
    };
    let v4 = family == Family::V4;
    match name {
        "output-reject"
        | "output-reject-legacy"
        | "forward-reject"
        | "forward-reject-legacy"
        | "server-down"
        | "output-reject-reset" => (patient(put()), Fate::Connect(libc::ECONNREFUSED)),
        "output-reject-host" | "on-link-silent" => (patient(put()), Fate::Connect(libc::EHOSTUNREACH)),
        "no-route" | "no-route-forwarded" | "no-route-pod" => (patient(put()), Fate::Connect(libc::ENETUNREACH)),
        "route-unreachable" | "route-unreachable-pod" => (put(), Fate::Connect(libc::EHOSTUNREACH)),
        "route-prohibit" => (put(), Fate::Connect(libc::EACCES)),
        "route-blackhole" => (put(), Fate::Connect(libc::EINVAL)),
        // ICMP "administratively prohibited" is EHOSTUNREACH in IPv4 and EACCES in IPv6.
        "route-prohibit-forwarded" if v4 => (patient(put()), Fate::Connect(libc::EHOSTUNREACH)),
        "route-prohibit-forwarded" => (patient(put()), Fate::Connect(libc::EACCES)),
        "policy-connect" | "policy-connect-pod" => (put(), Fate::Connect(libc::EPERM)),
        "hop-limit-1" => (put(), Fate::AnswerTimesOut),
        "server-silent" => (get("mac"), Fate::AnswerTimesOut),
        "slow" | "quota" | "hop-limit-2" | "on-link" => (put(), Fate::Status(200)),
        "throttled" => (get("mac"), Fate::Status(429)),
        "unavailable" => (get("mac"), Fate::Status(503)),
        "endpoint-disabled" | "put-forbidden" => (put(), Fate::Status(403)),
        "tokens-rejected" => {
            let headers = vec![("X-aws-ec2-metadata-token".to_owned(), "made-up".to_owned())];
            (Step { headers, ..get("mac") }, Fate::Status(401))
        }
        "live-migration" => (get("autoscaling/target-lifecycle-state"), Fate::Status(404)),
        _ => (put(), Fate::ConnectTimesOut),
    }
}

fn every_fault(family: Family) {
    if !can_run_live() {
        return;
    }
    // A pod's PUT succeeds unless a fault prevents it.
    let behaviour = Behaviour {
        hop_limit: 2,
        ..Behaviour::default()
    };
    let lab = Lab::new(LabOptions {
        behaviour,
        ..LabOptions::default()
    })
    .unwrap();
    let target = *lab
        .endpoints()
        .iter()
        .find(|endpoint| family.has(endpoint.ip()))
        .unwrap();
    let mut wrong = Vec::new();
    for Entry {
        name,
        fault,
        victim,
        code,
    } in registry(family)
    {
        let (step, expected) = expectation(name, family);
        let place = place(&lab, victim);
        let guard = lab.inject(&fault).unwrap_or_else(|error| panic!("{error:#}"));
        let (fate, elapsed) = ask(place, target, step);
        if fate != expected {
            wrong.push(format!("{name}: {fate:?} after {elapsed:?}, not {expected:?}"));
        }
        if name == "on-link-silent" {
            assert!(
                elapsed > Duration::from_secs(2),
                "the neighbour is given up after 3 s: {elapsed:?}"
            );
        }
        if let Fault::Firewall(rule) = &fault
            && victim != Victim::Node
            && rule.victim == victim
        {
            assert_eq!(
                ask(lab.node(), target, put()).0,
                Fate::Status(200),
                "{name} spares the node"
            );
        }
        assert!(code.is_some() || fate == Fate::Status(200), "{name} is a healthy twin");
        guard.undo().unwrap_or_else(|error| panic!("{name}: {error:#}"));
        for healthy in [lab.node(), lab.pod(0)] {
            let step = Step {
                connect_timeout_ms: 2000,
                timeout_ms: 2000,
                ..put()
            };
            assert_eq!(ask(healthy, target, step).0, Fate::Status(200), "after {name}");
        }
    }
    assert!(wrong.is_empty(), "{family:?}:\n{}", wrong.join("\n"));
}

#[test]
fn every_fault_over_ipv4() {
    every_fault(Family::V4);
}

#[test]
fn every_fault_over_ipv6() {
    every_fault(Family::V6);
}

#[test]
fn a_fault_of_one_family_leaves_the_other_alone() {
    if !can_run_live() {
        return;
    }
    let lab = Lab::new(LabOptions::default()).unwrap();
    let endpoint = |family: Family| {
        *lab.endpoints()
            .iter()
            .find(|endpoint| family.has(endpoint.ip()))
            .unwrap()
    };
    let guard = lab.inject(&Fault::SilentUpstream(Family::V6)).unwrap();
    assert_eq!(ask(lab.node(), endpoint(Family::V6), put()).0, Fate::ConnectTimesOut);
    assert_eq!(ask(lab.node(), endpoint(Family::V4), put()).0, Fate::Status(200));
    drop(guard);
    assert_eq!(ask(lab.node(), endpoint(Family::V6), put()).0, Fate::Status(200));
}

#[test]
fn names_are_unique() {
    for family in [Family::V4, Family::V6] {
        let names: Vec<_> = registry(family).iter().map(|entry| entry.name).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
    }
}
