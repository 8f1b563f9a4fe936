//! Requests of clients that can't be installed here, with sequences, timeouts and user agents from their documentation and source. Where
//! the real client runs, prefer it.

use std::net::SocketAddr;

use super::{CREDENTIALS_PATH, Connection, Script, Step, TOKEN_PATH, TokenUse};

/// Every preset with its name for `imds-observer-lab client --preset`, at its natural pace and for a short while.
pub fn presets() -> Vec<(&'static str, Script)> {
    vec![
        ("botocore", botocore()),
        ("problem-report", problem_report()),
        ("rust-sdk", rust_sdk()),
        ("js-sdk", js_sdk()),
        ("proxied", proxied()),
        ("node-termination-handler", node_termination_handler(30, 2000)),
        ("dotnet", dotnet(5, 120_000)),
        ("fluent-bit", fluent_bit()),
        (
            "cloud-init",
            cloud_init(Some((crate::topology::IMDS_V6, crate::topology::IMDS_PORT).into())),
        ),
        ("instance-connect", instance_connect()),
        ("stale-token", stale_token(3)),
        ("v1", v1(3, 1000)),
        ("token-per-request", token_per_request(30, 100)),
        ("tight-loop", tight_loop("/latest/meta-data/instance-id", 200, 20)),
        ("flood", flood(1000)),
    ]
}

fn script(comm: &str, user_agent: Option<&str>, steps: Vec<Step>) -> Script {
    Script {
        target: super::imds_v4(),
        comm: Some(comm.to_owned()),
        user_agent: user_agent.map(str::to_owned),
        rounds: 1,
        steps,
    }
}

fn put(ttl_s: u32) -> Step {
    Step {
        method: "PUT".to_owned(),
        path: TOKEN_PATH.to_owned(),
        token_ttl_s: Some(ttl_s),
        ..Step::default()
    }
}

fn get(path: &str, token: TokenUse) -> Step {
    Step {
        path: path.to_owned(),
        token,
        ..Step::default()
    }
}

fn credentials(token: TokenUse) -> [Step; 2] {
    [
        get(CREDENTIALS_PATH, token),
        get(&format!("{CREDENTIALS_PATH}{{role}}"), token),
    ]
}

fn kept(mut steps: Vec<Step>) -> Vec<Step> {
    for step in &mut steps {
        step.connection = Connection::Keep;
    }
    steps
}

/// Requests token, role and credentials for each load. Without a token it falls back to IMDSv1 after 1 s.
pub fn botocore() -> Script {
    let [list, role] = credentials(TokenUse::IfHeld);
    script(
        "python3",
        Some("Botocore/1.34.0 Python/3.11.2 Linux/6.1"),
        kept(vec![put(21_600), list, role]),
    )
}

/// Scenario 3: two PUTs one second apart, then IMDSv1 at 2 s.
pub fn problem_report() -> Script {
    let [list, role] = credentials(TokenUse::IfHeld);
    script(
        "app",
        None,
        vec![
            Step {
                tries: 2,
                ..put(21_600)
            },
            list,
            role,
        ],
    )
}

/// Never uses IMDSv1: without a token, it gets no credentials.
pub fn rust_sdk() -> Script {
    let [list, role] = credentials(TokenUse::Required);
    script(
        "app",
        Some("aws-sdk-rust/1.3.0 ua/2.0 api/imds/1.1.0 os/linux"),
        vec![put(21_600), list, role],
    )
}

/// Requests a new token for each load and sends no user agent. After a 403 for the PUT, it uses only IMDSv1.
pub fn js_sdk() -> Script {
    let [list, role] = credentials(TokenUse::IfHeld);
    script("node", None, vec![put(21_600), list, role])
}

/// A client behind an HTTP proxy that adds a header: the PUT is refused.
pub fn proxied() -> Script {
    let mut script = botocore();
    for step in &mut script.steps {
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        step.headers = vec![
            header("Via", "1.1 proxy.example"),
            header("X-Forwarded-For", "10.88.0.9"),
        ];
    }
    script
}

/// Three monitors that read their paths every `interval_ms` (2 s in the real client), with one token for an hour. Healthy.
pub fn node_termination_handler(ticks: u32, interval_ms: u64) -> Script {
    let monitor = |path: &str| get(&format!("/latest/meta-data/{path}"), TokenUse::IfHeld);
    let steps = vec![
        Step {
            only_in_round: Some(0),
            ..put(3600)
        },
        Step {
            sleep_before_ms: interval_ms,
            ..monitor("spot/instance-action")
        },
        monitor("autoscaling/target-lifecycle-state"),
        monitor("events/maintenance/scheduled"),
    ];
    Script {
        rounds: ticks,
        ..script("node-terminatio", Some("aws-node-termination-handler"), steps)
    }
}

/// Two tokens and two reads every `interval_ms` (2 min in the real client). For .NET, this is healthy.
pub fn dotnet(rounds: u32, interval_ms: u64) -> Script {
    let [list, role] = credentials(TokenUse::IfHeld);
    let patient = |step| Step {
        timeout_ms: 5000,
        connect_timeout_ms: 5000,
        tries: 3,
        ..step
    };
    let first = Step {
        sleep_before_ms: interval_ms,
        ..put(21_600)
    };
    let steps = [first, list, put(21_600), role].map(patient).to_vec();
    Script {
        rounds,
        ..script("dotnet", None, steps)
    }
}

/// Sends an invalid token and expects 401, to detect IMDSv2. Healthy.
pub fn fluent_bit() -> Script {
    let probe = Step {
        headers: vec![("X-aws-ec2-metadata-token".to_owned(), "INVALID".to_owned())],
        ..get("/", TokenUse::None)
    };
    let leaf = |path: &str| get(&format!("/latest/meta-data/{path}"), TokenUse::Required);
    let steps = vec![
        probe,
        put(21_600),
        leaf("placement/availability-zone"),
        leaf("instance-id"),
    ];
    script("fluent-bit", None, steps)
}

/// Crawl at boot: a PUT to each endpoint, then the whole tree at once. Some paths don't exist. Healthy.
pub fn cloud_init(v6: Option<SocketAddr>) -> Script {
    const TREE: &[&str] = &[
        "meta-data/",
        "meta-data/ami-id",
        "meta-data/ami-launch-index",
        "meta-data/ami-manifest-path",
        "meta-data/block-device-mapping/",
        "meta-data/block-device-mapping/ami",
        "meta-data/block-device-mapping/root",
        "meta-data/events/",
        "meta-data/events/maintenance/",
        "meta-data/events/maintenance/history",
        "meta-data/events/maintenance/scheduled",
        "meta-data/hostname",
        "meta-data/iam/",
        "meta-data/iam/info",
        "meta-data/instance-action",
        "meta-data/instance-id",
        "meta-data/instance-type",
        "meta-data/local-hostname",
        "meta-data/local-ipv4",
        "meta-data/mac",
        "meta-data/metrics/vhostmd",
        "meta-data/network/",
        "meta-data/network/interfaces/",
        "meta-data/network/interfaces/macs/",
        "meta-data/placement/",
        "meta-data/placement/availability-zone",
        "meta-data/placement/region",
        "meta-data/profile",
        "meta-data/public-hostname",
        "meta-data/public-ipv4",
        "meta-data/public-keys/",
        "meta-data/public-keys/0/openssh-key",
        "meta-data/reservation-id",
        "meta-data/security-groups",
        "meta-data/services/",
        "meta-data/services/domain",
        "meta-data/services/partition",
        "user-data",
        "dynamic/instance-identity/",
        "dynamic/instance-identity/document",
    ];
    let mut steps: Vec<Step> = v6
        .map(|v6| Step {
            target: Some(v6),
            timeout_ms: 200,
            connect_timeout_ms: 200,
            ..put(21_600)
        })
        .into_iter()
        .collect();
    steps.push(put(21_600));
    steps.extend(
        TREE.iter()
            .map(|path| get(&format!("/2021-03-23/{path}"), TokenUse::Required)),
    );
    script("cloud-init", Some("Cloud-Init/22.4.2"), steps)
}

/// One login: a token for 5 s and the keys of the user.
pub fn instance_connect() -> Script {
    let leaf = |path: &str| get(&format!("/latest/meta-data/{path}"), TokenUse::Required);
    let steps = vec![
        put(5),
        leaf("instance-id"),
        leaf("managed-ssh-keys/active-keys/lab-user"),
        leaf("managed-ssh-keys/signer-cert"),
        leaf("placement/availability-zone"),
    ];
    script("eic_curl_author", Some("curl/7.88.1"), steps)
}

/// Sends the same invented token again and again, and gets 401 each time.
pub fn stale_token(times: u32) -> Script {
    let stale = Step {
        headers: vec![(
            "x-aws-ec2-metadata-token".to_owned(),
            "MADE-UP-TOKEN-THAT-IS-NOT-GOOD==".to_owned(),
        )],
        ..get("/latest/meta-data/instance-id", TokenUse::None)
    };
    Script {
        rounds: times,
        ..script("app", None, vec![stale])
    }
}

/// Doesn't support tokens.
pub fn v1(rounds: u32, interval_ms: u64) -> Script {
    let [list, role] = credentials(TokenUse::None);
    let steps = vec![
        Step {
            sleep_before_ms: interval_ms,
            ..list
        },
        role,
    ];
    Script {
        rounds,
        ..script("old-app", Some("aws-sdk-nodejs/2.560.0 linux/v18"), steps)
    }
}

/// Requests a token for six hours and uses it once, so that PUTs use up the quota.
pub fn token_per_request(rounds: u32, interval_ms: u64) -> Script {
    let first = Step {
        sleep_before_ms: interval_ms,
        ..put(21_600)
    };
    Script {
        rounds,
        ..script(
            "app",
            None,
            vec![first, get("/latest/meta-data/instance-id", TokenUse::Required)],
        )
    }
}

/// Requests one path over and over.
pub fn tight_loop(path: &str, times: u32, gap_ms: u64) -> Script {
    let step = Step {
        sleep_before_ms: gap_ms,
        ..get(path, TokenUse::None)
    };
    Script {
        rounds: times,
        ..script("poller", None, vec![step])
    }
}

/// Sends PUT and GET as fast as responses arrive.
pub fn flood(rounds: u32) -> Script {
    let steps = vec![put(21_600), get("/latest/meta-data/instance-id", TokenUse::IfHeld)];
    Script {
        rounds,
        ..script("flood", None, steps)
    }
}
