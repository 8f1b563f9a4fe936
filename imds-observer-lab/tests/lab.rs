//! Checks that the lab behaves like a host on EC2. Needs root; everything happens in namespaces that the tests create.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    net::{IpAddr, SocketAddr},
    process::{Child, Command, ExitStatus, Output, Stdio},
};

use imds_observer_lab::{
    can_run_live,
    client::Outcome,
    server::{Behaviour, INSTANCE_ID, Served},
    topology::{Lab, LabOptions, Place, PodCgroup, PodOptions, RouteStyle, cgroup_mount_point, clean},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const TOKEN_HEADER: &str = "X-aws-ec2-metadata-token-ttl-seconds: 60";

fn lab(options: LabOptions) -> Option<Lab> {
    can_run_live().then(|| Lab::new(options).unwrap())
}

fn curl(place: &Place, arguments: &[&str]) -> Output {
    place
        .command("curl")
        .unwrap()
        .args(["-sS", "--max-time", "1"])
        .args(arguments)
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn put(place: &Place, host: &str) -> Output {
    curl(
        place,
        &[
            "-X",
            "PUT",
            "-H",
            TOKEN_HEADER,
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            &url(host, "api/token"),
        ],
    )
}

fn url(host: &str, path: &str) -> String {
    format!("http://{host}/latest/{path}")
}

fn hosts(lab: &Lab) -> Vec<String> {
    lab.endpoints()
        .iter()
        .map(|endpoint| match endpoint {
            SocketAddr::V4(address) => address.ip().to_string(),
            SocketAddr::V6(address) => format!("[{}]", address.ip()),
        })
        .collect()
}

fn last(lab: &Lab) -> Served {
    lab.server().log().requests.back().unwrap().clone()
}

/// curl's exit status for a time-out.
const TIMED_OUT: i32 = 28;

#[test]
fn hop_limit_1_loses_the_token_of_a_pod_but_not_of_the_node() {
    let Some(lab) = lab(LabOptions::default()) else { return };
    assert_eq!(lab.endpoints().len(), 2, "this kernel has IPv6");
    for host in hosts(&lab) {
        assert_eq!(text(&put(lab.node(), &host)), "200", "node, {host}");
        let lost = put(lab.pod(0), &host);
        assert_eq!(lost.status.code(), Some(TIMED_OUT), "pod, {host}: {lost:?}");
        assert_eq!(last(&lab).status, Some(200), "the server did answer");
        let answer = curl(lab.pod(0), &[&url(&host, "meta-data/instance-id")]);
        assert_eq!(text(&answer), INSTANCE_ID, "without a token, {host}");
    }
    lab.server().update(|behaviour| behaviour.hop_limit = 2);
    for host in hosts(&lab) {
        assert_eq!(text(&put(lab.pod(0), &host)), "200", "hop limit 2, {host}");
    }
}

#[test]
fn pods_are_masqueraded_and_nested_ones_need_a_third_hop() {
    let options = LabOptions {
        behaviour: Behaviour {
            hop_limit: 2,
            ..Behaviour::default()
        },
        pods: vec![
            PodOptions::default(),
            PodOptions {
                nested: true,
                ..PodOptions::default()
            },
        ],
        route: RouteStyle::Default,
        ..LabOptions::default()
    };
    let Some(lab) = lab(options) else { return };
    for host in hosts(&lab) {
        for place in [lab.node(), lab.pod(0), lab.pod(1)] {
            assert_eq!(text(&curl(place, &[&url(&host, "meta-data/instance-id")])), INSTANCE_ID);
            let peer = last(&lab).peer.ip();
            let node: IpAddr = if peer.is_ipv4() {
                lab.node().ipv4().into()
            } else {
                lab.node().ipv6().unwrap().into()
            };
            assert_eq!(peer, node);
        }
        assert_eq!(text(&put(lab.pod(0), &host)), "200");
        assert_eq!(put(lab.pod(1), &host).status.code(), Some(TIMED_OUT));
    }
    lab.server().update(|behaviour| behaviour.hop_limit = 3);
    assert_eq!(text(&put(lab.pod(1), "169.254.169.254")), "200");
}

#[test]
fn without_masquerading_the_pods_own_address_arrives() {
    let Some(lab) = lab(LabOptions {
        masquerade: false,
        ..LabOptions::default()
    }) else {
        return;
    };
    assert_eq!(
        text(&curl(lab.pod(0), &[&url("169.254.169.254", "meta-data/instance-id")])),
        INSTANCE_ID
    );
    assert_eq!(last(&lab).peer.ip(), IpAddr::from(lab.pod(0).ipv4()));
}

#[test]
fn processes_run_in_their_places_cgroup_and_namespace() {
    let kubepods = PodCgroup::Kubepods {
        qos: "besteffort".to_owned(),
        uid: "0f0f0f0f-1111-2222-3333-444444444444".to_owned(),
        container_id: "ab".repeat(32),
    };
    let pods = vec![PodOptions {
        cgroup: kubepods,
        nested: false,
    }];
    let Some(mut lab) = lab(LabOptions {
        pods,
        ..LabOptions::default()
    }) else {
        return;
    };
    let path = format!(
        "/imdslab-{}/kubepods/besteffort/pod0f0f0f0f-1111-2222-3333-444444444444/{}",
        lab.id(),
        "ab".repeat(32)
    );
    assert_eq!(lab.pod(0).cgroup().path(), path);
    let second = lab.add_pod(&PodOptions::default()).unwrap();
    for place in [lab.node(), lab.pod(0), lab.pod(second)] {
        let mut show = place.command("sh").unwrap();
        let shown = text(
            &show
                .args(["-c", "cat /proc/self/cgroup; readlink /proc/self/ns/net"])
                .output()
                .unwrap(),
        );
        assert!(shown.contains(&format!("0::{}\n", place.cgroup().path())), "{shown}");
        assert!(shown.contains(&format!("net:[{}]", place.netns().inode())), "{shown}");
        let in_thread = place
            .run_in_thread(|| fs::read_link("/proc/thread-self/ns/net").unwrap())
            .unwrap();
        assert_eq!(in_thread.to_string_lossy(), format!("net:[{}]", place.netns().inode()));
    }
    lab.remove_pod(0).unwrap();
    assert_eq!(lab.pods().count(), 1);
    assert_eq!(
        text(&curl(
            lab.pod(second),
            &[&url("169.254.169.254", "meta-data/instance-id")]
        )),
        INSTANCE_ID
    );
}

#[test]
fn a_second_uplink_comes_and_goes() {
    let Some(mut lab) = lab(LabOptions::default()) else {
        return;
    };
    let uplink = lab.add_uplink().unwrap();
    assert_eq!(uplink, "eth1");
    lab.route_through(&uplink).unwrap();
    let ask = |lab: &Lab| {
        assert_eq!(
            text(&curl(lab.pod(0), &[&url("169.254.169.254", "meta-data/instance-id")])),
            INSTANCE_ID
        );
        last(lab).peer.ip().to_string()
    };
    assert_eq!(ask(&lab), "10.77.1.5");
    lab.route_through("eth0").unwrap();
    assert_eq!(ask(&lab), "10.77.0.5");
    lab.remove_uplink(&uplink).unwrap();
    assert!(lab.route_through(&uplink).is_err());
    assert_eq!(ask(&lab), "10.77.0.5");
}

/// Namespaces, cgroups and lock files of labs of this process.
fn traces(owner: &str) -> BTreeSet<String> {
    let mine = format!("imdslab-{owner}-");
    let mut found = BTreeSet::new();
    for (directory, prefix) in [
        ("/run/netns".into(), mine.as_str()),
        (cgroup_mount_point().unwrap(), mine.as_str()),
        ("/run/imds-observer-lab".into(), &mine[8..]),
    ] {
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        let names = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned());
        found.extend(
            names
                .filter(|name| name.starts_with(prefix))
                .map(|name| format!("{}/{name}", directory.display())),
        );
    }
    found
}

fn of_lab(id: &str) -> impl Fn(&String) -> bool {
    let (dash, dot) = (format!("{id}-"), format!("{id}."));
    let end = format!("imdslab-{id}");
    move |trace| trace.contains(&dash) || trace.contains(&dot) || trace.ends_with(&end)
}

#[test]
fn a_dropped_lab_leaves_nothing_not_even_processes() {
    let Some(lab) = lab(LabOptions::default()) else { return };
    let owner = std::process::id().to_string();
    let id = lab.id().to_owned();
    assert!(
        traces(&owner).iter().filter(|trace| of_lab(&id)(trace)).count() >= 6,
        "{:?}",
        traces(&owner)
    );
    let mut sleeper = lab.pod(0).command("sleep").unwrap().arg("1000").spawn().unwrap();
    drop(lab);
    assert!(!sleeper.wait().unwrap().success(), "it was killed");
    assert_eq!(
        traces(&owner).into_iter().filter(of_lab(&id)).collect::<Vec<_>>(),
        [""; 0]
    );
}

/// A lab in a separate process, which has reported that it is ready.
struct Up {
    process: Child,
    id: String,
}

impl Up {
    fn start() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_imds-observer-lab"));
        let mut process = command
            .args(["up", "--pods", "2", "--shared"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let first = lines.next().unwrap().unwrap();
        let id = first.split(' ').nth(1).unwrap().to_owned();
        assert!(
            lines.any(|line| line.unwrap().starts_with("ready")),
            "it ended before it was ready"
        );
        Self { process, id }
    }

    fn traces(&self) -> Vec<String> {
        traces(&self.process.id().to_string())
            .into_iter()
            .filter(of_lab(&self.id))
            .collect()
    }

    fn signal(&mut self, signal: Signal) -> ExitStatus {
        kill(Pid::from_raw(self.process.id() as i32), signal).unwrap();
        self.process.wait().unwrap()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = clean();
    }
}

#[test]
fn an_interrupted_lab_cleans_up_and_a_killed_one_is_cleaned_up_after() {
    if !can_run_live() {
        return;
    }
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut up = Up::start();
        assert!(up.traces().len() >= 7, "{:?}", up.traces());
        assert!(up.signal(signal).success());
        assert_eq!(up.traces(), [""; 0], "after {signal}");
    }
    let mut up = Up::start();
    up.signal(Signal::SIGKILL);
    assert!(up.traces().len() >= 7, "killed, it could not clean up");
    let lab = Lab::new(LabOptions {
        exclusive: false,
        ..LabOptions::default()
    })
    .unwrap();
    assert_eq!(up.traces(), [""; 0], "the next lab did");
    drop(lab);
}

#[test]
fn a_scripted_client_is_a_process_in_its_place() {
    let Some(lab) = lab(LabOptions::default()) else { return };
    let mut command = lab.pod(0).command(env!("CARGO_BIN_EXE_imds-observer-lab")).unwrap();
    let output = command.args(["client", "--preset", "botocore"]).output().unwrap();
    let outcomes: Vec<Outcome> = text(&output)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let [put, list, role] = &outcomes[..] else {
        panic!("{outcomes:?}")
    };
    assert_eq!(put.error.as_ref().unwrap().what, "timed out");
    assert_eq!((list.status, role.status), (Some(200), Some(200)), "as v1");
    let seen: Vec<_> = lab
        .server()
        .log()
        .requests
        .iter()
        .map(|r| (r.status, r.response_ttl, r.had_token))
        .collect();
    assert_eq!(
        seen,
        [
            (Some(200), Some(1), false),
            (Some(200), Some(255), false),
            (Some(200), Some(255), false)
        ]
    );
}
