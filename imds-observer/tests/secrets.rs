//! Puts generated secrets into every string of a record, in every position, encoding and joiner. No output may contain them.

use std::fs;
use std::process::{Command, Stdio};

use imds_observer::http;
use imds_observer::imds::{Hasher, read_request, read_request_to, response_headers};
use imds_observer::record::workload::{self, Group};
use imds_observer::record::{Ancestor, Process, Request, Unredacted};
use proptest::prelude::*;
use proptest::sample::select;

/// Names that indicate a secret.
const NAMES: &[&str] = &[
    "token",
    "X-aws-ec2-metadata-token",
    "password",
    "PASSWD",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "api_key",
    "api-key",
    "apiKey",
    "client_secret",
    "Authorization",
    "access_token",
    "id[token]",
    "Cookie",
    "sig",
    "auth",
];

/// A generated secret of any kind.
#[derive(Clone, Debug)]
struct Secret(String);

/// A secret of upper-case and lower-case letters and digits, as key generators create them.
fn generated() -> impl Strategy<Value = Secret> {
    "[A-Z][a-z][0-9][A-Za-z0-9]{21,40}".prop_map(Secret)
}

/// A password that a person chose.
fn chosen() -> impl Strategy<Value = Secret> {
    prop_oneof![
        "q[a-z]{9,14}x",
        "[a-z]{4,8}[0-9!$#]{3,6}",
        "[A-Z][a-z]{5,8}-[A-Z][a-z]{5,8}-[0-9]{2,4}"
    ]
    .prop_map(Secret)
}

fn any_secret() -> impl Strategy<Value = Secret> {
    prop_oneof![generated(), chosen()]
}

const ENCODINGS: usize = 7;

fn encoded(secret: &str, encoding: usize) -> String {
    let percent = |which: fn(usize) -> bool| -> String {
        secret
            .bytes()
            .enumerate()
            .map(|(at, byte)| {
                if which(at) {
                    format!("%{byte:02x}")
                } else {
                    (byte as char).to_string()
                }
            })
            .collect()
    };
    match encoding {
        0 => secret.to_owned(),
        1 => percent(|_| true),
        2 => percent(|at| at % 3 == 0),
        3 => percent(|_| true).replace('%', "%25"),
        4 => percent(|_| true).replace('%', ""),
        5 => base64(secret.as_bytes()),
        _ => format!("\"{secret}\""),
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    bytes
        .chunks(3)
        .map(|chunk| {
            let word = chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
            (0..4)
                .map(|at| {
                    if at <= chunk.len() {
                        DIGITS[(word >> (18 - 6 * at) & 63) as usize] as char
                    } else {
                        '='
                    }
                })
                .collect::<String>()
        })
        .collect()
}

/// Checks that the output contains no eight consecutive characters of the secret, in any encoding.
fn assert_hidden(shown: &str, secret: &str) {
    for encoding in 0..ENCODINGS - 1 {
        let form = encoded(secret, encoding);
        for start in 0..form.len().saturating_sub(7) {
            let part = &form[start..start + 8];
            assert!(!shown.contains(part), "{part} of {secret} in {shown}");
        }
    }
}

/// A request head as in a record.
fn recorded(head: &str) -> Request {
    read_request(&http::Request::parse(head.as_bytes(), false), &Hasher::with_salt(1, 2))
}

/// A request head as in a record of a request to this address.
fn recorded_at(head: &str, address: &str) -> Request {
    let head = http::Request::parse(head.as_bytes(), false);
    read_request_to(&head, &Hasher::with_salt(1, 2), Some(address.parse().unwrap()))
}

/// All output about a process.
fn shown(process: &Process) -> String {
    let group = Group::of(Some(process), None, None);
    format!(
        "{} {process:?} {} {} {} {:?}",
        serde_json::to_string(process).unwrap(),
        workload::program(process),
        group.key(),
        group.name(1),
        workload::workload(Some(process), None)
    )
}

fn process(exe: &str, arguments: Vec<String>) -> Process {
    Process::new(Unredacted {
        pid: 1,
        tid: None,
        namespace_pid: None,
        comm: "app".to_owned(),
        exe: Some(exe.to_owned()),
        cmdline: Some(arguments),
        uid: Some(0),
        start_time: None,
        ancestors: Vec::new(),
        cgroup: Some("/user.slice".to_owned()),
        netns: None,
    })
}

/// One or several arguments that contain the secret.
fn arguments(name: &str, value: &str, joiner: usize) -> Vec<String> {
    let one = |text: String| vec![text];
    match joiner {
        0 => vec![format!("--{}", name.to_lowercase()), value.to_owned()],
        1 => one(format!("--{}={value}", name.to_lowercase())),
        2 => one(format!("{name}={value}")),
        3 => vec!["-H".to_owned(), format!("{name}: {value}")],
        4 => vec!["-H".to_owned(), format!("{name}:{value}")],
        5 => vec!["-H".to_owned(), format!("Authorization: Bearer {value}")],
        6 => one(format!("http://169.254.169.254/latest/?{name}=&{name}={value}")),
        7 => one(format!("http://169.254.169.254/latest/?a=1;{name}%3D{value};b=2")),
        8 => one(format!("http://169.254.169.254/latest/?{value}")),
        9 => one(format!("https://user:{value}@host.example.com/")),
        10 => one(format!("https://user:{value}/{value}@host.example.com/x@y")),
        11 => vec!["-d".to_owned(), format!("{{\"{name}\": \"{value}\"}}")],
        12 => vec!["-u".to_owned(), format!("user:{value}")],
        13 => one(format!("-p{value}")),
        14 => vec!["-p".to_owned(), value.to_owned()],
        15 => one(value.to_owned()),
        16 => one(format!("{name}={value};{name}={value}")),
        17 => one(format!("a=1,{name}={value}")),
        18 => one(format!("postgres://app:{value}@db:5432/app")),
        19 => one(format!("{value}=")),
        _ => one(format!("a {name} {value} b")),
    }
}

/// Interpreters and options whose value is code.
const INLINE: &[(&str, &[&str])] = &[
    ("/usr/bin/python3.11", &["-c"]),
    ("/usr/bin/python3.11", &["-uc"]),
    ("/usr/bin/python3.11", &["-W", "error", "-Bc"]),
    ("/usr/bin/bash", &["-c"]),
    ("/usr/bin/bash", &["-lc"]),
    ("/usr/bin/bash", &["-c", "-e"]),
    ("/usr/bin/bash", &["-eo", "pipefail", "-c"]),
    ("/bin/dash", &["-ec"]),
    ("/bin/busybox", &["sh", "-c"]),
    ("/usr/bin/zsh", &["-fc"]),
    ("/usr/bin/node", &["-e"]),
    ("/usr/bin/node", &["-pe"]),
    ("/usr/bin/node", &["--eval"]),
    ("/usr/bin/deno", &["eval"]),
    ("/usr/bin/perl", &["-e"]),
    ("/usr/bin/perl", &["-lne"]),
    ("/usr/bin/ruby3.2", &["-e"]),
    ("/usr/bin/php8.2", &["-r"]),
    ("/usr/bin/lua5.4", &["-e"]),
    ("/usr/bin/Rscript", &["-e"]),
    ("/usr/bin/gawk", &[]),
    ("/usr/bin/pwsh", &["-Command"]),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 2_000 } else { 50_000 }))]

    #[test]
    fn arguments_hide_secrets(
        exe in select(vec!["/usr/bin/curl", "/opt/app/server", "/usr/bin/python3.11", "/usr/bin/java", "/usr/bin/env"]),
        before in prop::collection::vec(select(vec!["-s", "run", "--region", "eu-west-1", "app.py", "--", "-v", "--port=80"]), 0..4),
        after in prop::collection::vec(select(vec!["-s", "x", "--debug"]), 0..3),
        name in select(NAMES.to_vec()), secret in any_secret(), encoding in 0..ENCODINGS, joiner in 0..21_usize,
    ) {
        let mut line = vec![exe.rsplit('/').next().unwrap().to_owned()];
        line.extend(before.iter().map(ToString::to_string));
        line.extend(arguments(name, &encoded(&secret.0, encoding), joiner));
        line.extend(after.iter().map(ToString::to_string));
        let process = process(exe, line);
        assert_hidden(&shown(&process), &secret.0);
        // A record that is written and read again shows no more than before.
        let again: Process = serde_json::from_str(&serde_json::to_string(&process).unwrap()).unwrap();
        prop_assert_eq!(again, process);
    }

    #[test]
    fn code_is_not_shown(
        (exe, options) in select(INLINE.to_vec()),
        secret in any_secret(), encoding in 0..ENCODINGS, name in select(NAMES.to_vec()), shape in 0..5_usize,
    ) {
        let value = encoded(&secret.0, encoding);
        let code = match shape {
            0 => format!("import os; os.environ['{name}'] = '{value}'"),
            1 => value,
            2 => format!("curl -H '{name}: {value}' http://h/"),
            3 => format!("/srv/{value}"),
            _ => format!("{name}={value} app\n"),
        };
        let mut line = vec![exe.rsplit('/').next().unwrap().to_owned()];
        line.extend(options.iter().map(ToString::to_string));
        line.push(code);
        assert_hidden(&shown(&process(exe, line)), &secret.0);
    }

    #[test]
    fn names_and_paths_of_processes_hide_secrets(
        secret in generated(), name in select(NAMES.to_vec()), encoding in 0..4_usize, shape in 0..4_usize, place in 0..4_usize,
    ) {
        let value = encoded(&secret.0, encoding);
        let text = match shape {
            0 => format!("/opt/{name}={value}/app"),
            1 => format!("/opt/{name}:{value}/app"),
            2 => format!("/opt/{value}/app"),
            _ => format!("/opt/app-{value}"),
        };
        let mut found = Unredacted {
            pid: 1, tid: None, namespace_pid: None, comm: "app".to_owned(), exe: None, cmdline: None, uid: None, start_time: None,
            ancestors: vec![Ancestor { pid: 2, comm: "sh".to_owned() }], cgroup: None, netns: None,
        };
        match place {
            0 => found.exe = Some(text),
            1 => found.cgroup = Some(text),
            2 => found.comm = text,
            _ => found.ancestors[0].comm = text,
        }
        assert_hidden(&shown(&Process::new(found)), &secret.0);
    }

    #[test]
    fn requests_and_responses_hide_secrets(
        secret in any_secret(), random in generated(), name in select(NAMES.to_vec()), encoding in 0..ENCODINGS, place in 0..12_usize,
    ) {
        let value = encoded(&secret.0, encoding).replace('"', "");
        let get = |target: &str, headers: &str| format!("GET {target} HTTP/1.1\r\nHost: 169.254.169.254\r\n{headers}\r\n");
        let (request, hidden) = match place {
            0 => (get(&format!("/latest/?{name}={value}"), ""), &secret),
            1 => (get(&format!("/latest/?{name}=&{name}={value}"), ""), &secret),
            2 => (get(&format!("/latest/?a=b;{name}={value};c"), ""), &secret),
            3 => (get(&format!("/latest/?q={value}"), ""), &secret),
            4 => (get(&format!("/latest/?{{\"{name}\":\"{value}\"}}"), ""), &secret),
            5 => (get(&format!("/latest/%3F{name}%3D{value}"), ""), &secret),
            6 => (get(&format!("/latest/{name}={value}"), ""), &secret),
            7 => (get(&format!("/latest/{}", encoded(&random.0, encoding % 4)), ""), &random),
            8 => (get("/latest/", &format!("{name}: {value}\r\n")), &secret),
            9 => (get("/latest/", &format!("User-Agent: app/1 {name}: {value}\r\n")), &secret),
            10 => (get("/latest/", &format!("User-Agent: app/1 (Bearer {value})\r\n")), &secret),
            _ => (get("/latest/", &format!("User-Agent: app/1 +https://u:{value}/@h/\r\n")), &secret),
        };
        let record = recorded(&request);
        assert_hidden(&format!("{record:?} {}", serde_json::to_string(&record).unwrap()), &hidden.0);
        let head = format!("HTTP/1.1 200 OK\r\nServer: x {name}={value}\r\nSet-Cookie: {name}={value}\r\n\r\n");
        let (server, _) = response_headers(&http::Response::parse(head.as_bytes(), false), false);
        assert_hidden(&format!("{server:?}"), &secret.0);
    }
}

/// ID of an ECS task, in any of its forms.
fn task_id() -> impl Strategy<Value = Secret> {
    prop_oneof![
        "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
        "[0-9a-f]{32}-[0-9]{10}",
        "[0-9A-F]{8}-[0-9A-F]{4}-[0-9A-F]{4}-[0-9A-F]{4}-[0-9A-F]{12}",
        "q[a-z]{9,14}x",
    ]
    .prop_map(Secret)
}

/// Paths with the ID of a task. Only forms in which the position identifies the ID.
const ID_PATHS: &[&str] = &[
    "/v2/credentials/ID",
    "/v1/credentials?id=ID",
    "/v1/credentials?x=y&id=ID",
    "/v2/splunk-token/ID",
    "/v2/container-env/ID",
    "/v3/ID",
    "/v3/ID/task",
    "/v4/ID/stats",
    "/v4/ID/task/stats",
    "/v4/ID/taskWithTags",
    "/v4/ID/other/ID",
    "/api/ID/task-protection/v1/state",
    "/api/ID/fault/v1/network-latency/start",
    "//v2//credentials//ID",
    "/./v2/./credentials/./ID/",
    "/V2/Credentials/ID",
    "/%76%32/%63redentials/ID",
    "/v2%2Fcredentials%2FID",
    "/v2/credentials/ID?ID",
    "/v2/credentials/ID/ID",
    "/proxy/v2/credentials/ID",
];

/// Headers of metadata services with a secret as their value.
const SECRET_HEADERS: &[&str] = &[
    "Authorization",
    "Authorization: Bearer",
    "Authorization: Basic",
    "Proxy-Authorization",
    "X-Metadata-Token",
    "Metadata-Token",
    "X-aliyun-ecs-metadata-token",
    "X-aws-ec2-metadata-token",
    "X-Vault-Token",
    "X-Google-Token",
    "X-Auth-Token",
    "Cookie",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 2_000 } else { 50_000 }))]

    #[test]
    fn ids_of_tasks_are_not_shown_in_requests(
        id in task_id(), path in select(ID_PATHS.to_vec()), encoding in 0..4_usize,
        origin in select(vec!["", "http://169.254.170.2", "http://u:p@169.254.170.2:80"]), method in select(vec!["GET", "PUT", "POST"]),
    ) {
        let target = format!("{origin}{}", path.replace("ID", &encoded(&id.0, encoding)));
        let head = format!("{method} {target} HTTP/1.1\r\nHost: 169.254.170.2\r\n\r\n");
        let mut record = recorded(&head);
        let json = serde_json::to_string(&record).unwrap();
        assert_hidden(&format!("{record:?} {json}"), &id.0);
        let of_agent = recorded_at(&head, "169.254.170.2");
        assert_hidden(&format!("{of_agent:?} {}", serde_json::to_string(&of_agent).unwrap()), &id.0);
        prop_assert_eq!(&serde_json::from_str::<Request>(&json).unwrap(), &record);
        // The form in which an earlier version wrote it.
        record.path = Some(path.replace("ID", &encoded(&id.0, encoding)));
        let read: Request = serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap();
        assert_hidden(&format!("{read:?}"), &id.0);
    }

    #[test]
    fn ids_of_tasks_are_not_shown_in_arguments(
        id in task_id(), path in select(ID_PATHS.to_vec()), encoding in 0..4_usize, place in 0..10_usize,
        exe in select(vec!["/usr/bin/curl", "/usr/bin/env", "/usr/bin/python3.11", "/opt/app"]),
    ) {
        let path = path.replace("ID", &encoded(&id.0, encoding));
        let line = match place {
            0 => vec![path],
            1 => vec![format!("http://169.254.170.2{path}")],
            2 => vec![format!("169.254.170.2{path}")],
            3 => vec![format!("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI={path}"), "app".to_owned()],
            4 => vec![format!("AWS_CONTAINER_CREDENTIALS_FULL_URI=http://169.254.170.2{path}")],
            5 => vec![format!("ECS_CONTAINER_METADATA_URI_V4=http://169.254.170.2{path}")],
            6 => vec!["--url".to_owned(), format!("http://169.254.170.2{path}")],
            7 => vec![format!("--url=http://169.254.170.2:80{path}")],
            8 => vec!["-H".to_owned(), format!("Host: {path}")],
            _ => vec![format!("@{path}")],
        };
        let line = std::iter::once("app".to_owned()).chain(line).collect();
        assert_hidden(&shown(&process(exe, line)), &id.0);
    }

    #[test]
    fn user_agents_hide_ids_of_tasks(id in task_id(), path in select(ID_PATHS.to_vec()), place in 0..5_usize) {
        let path = path.replace("ID", &id.0);
        let agent = match place {
            0 => format!("app/1 (http://169.254.170.2{path})"),
            1 => format!("app/1 169.254.170.2{path}"),
            2 => format!("app/1 {path} x"),
            3 => format!("app/1 {{\"uri\":\"{path}\"}}"),
            _ => format!("app/1 RELATIVE_URI={path}"),
        };
        let head = format!("GET / HTTP/1.1\r\nUser-Agent: {agent}\r\n\r\n");
        let record = recorded(&head);
        assert_hidden(&format!("{record:?}"), &id.0);
    }

    #[test]
    fn headers_of_other_services_are_not_shown(
        secret in any_secret(), name in select(SECRET_HEADERS.to_vec()), encoding in 0..ENCODINGS, spelling in 0..6_usize,
        path in select(vec!["/v1/credentials", "/opc/v2/instance/", "/meta-data/latest/api/token", "/instance_identity/v1/token", "/v1/token"]),
    ) {
        let value = encoded(&secret.0, encoding);
        let name = if name.contains(':') { format!("{name} ") } else { format!("{name}: ") };
        let header = match spelling {
            0 => format!("{name}{value}"),
            1 => format!("{}{value}", name.to_lowercase()),
            2 => format!("{}{value}", name.replace(": ", " :")),
            3 => format!("{name}\r\n\t{value}"),
            4 => format!("User-Agent: app/1\r\n {name}{value}"),
            _ => format!("User-Agent: app/1 {name}{value}"),
        };
        let head = format!("GET {path} HTTP/1.1\r\n{header}\r\n\r\n");
        let record = recorded(&head);
        assert_hidden(&format!("{record:?} {}", serde_json::to_string(&record).unwrap()), &secret.0);
        for address in ["169.254.170.23", "169.254.170.2", "100.100.100.200"] {
            let record = recorded_at(&head, address);
            assert_hidden(&format!("{record:?} {}", serde_json::to_string(&record).unwrap()), &secret.0);
        }
        let line = vec!["curl".to_owned(), "-H".to_owned(), format!("{name}{value}"), format!("-H{name}{value}"), format!("--header={name}{value}")];
        assert_hidden(&shown(&process("/usr/bin/curl", line)), &secret.0);
    }

    #[test]
    fn userinfo_of_targets_is_not_shown(secret in any_secret(), encoding in 0..4_usize, place in 0..6_usize) {
        let value = encoded(&secret.0, encoding);
        let target = match place {
            0 => format!("http://user:{value}@169.254.169.254/latest/meta-data/"),
            1 => format!("http://user:/{value}@169.254.169.254/latest/meta-data/"),
            2 => format!("HTTP://user:a?{value}@169.254.169.254/latest/"),
            3 => format!("https://{value}@169.254.169.254"),
            4 => format!("//user:{value}@169.254.169.254/latest/"),
            _ => format!("/latest/http://user:{value}@169.254.169.254/"),
        };
        let head = format!("GET {target} HTTP/1.1\r\n\r\n");
        let record = recorded(&head);
        assert_hidden(&format!("{record:?}"), &secret.0);
    }
}

/// A capture on an Ethernet interface, with one connection per request, answered with 200.
fn capture(requests: &[String]) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        file.extend(word.to_le_bytes());
    }
    for (at, request) in requests.iter().enumerate() {
        let port = 40_000 + u16::try_from(at).unwrap();
        // With equal numbers, the connections would count as one connection that was captured twice.
        let (mut client, mut server) = (u32::from(port) * 1_000, u32::from(port) * 7_000);
        let response = b"HTTP/1.1 200 OK\r\nServer: EC2ws\r\nContent-Length: 2\r\n\r\nok";
        let packets: [(bool, u8, &[u8]); 7] = [
            (true, 0x02, b""),
            (false, 0x12, b""),
            (true, 0x10, b""),
            (true, 0x18, request.as_bytes()),
            (false, 0x18, response),
            (true, 0x11, b""),
            (false, 0x11, b""),
        ];
        for (nth, (outgoing, flags, data)) in packets.into_iter().enumerate() {
            let (sequence, acknowledged) = if outgoing { (client, server) } else { (server, client) };
            let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
            packet.extend(u16::try_from(40 + data.len()).unwrap().to_be_bytes());
            packet.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
            let ends = [([10, 0, 1, 5], port), ([169, 254, 169, 254], 80)];
            let (from, to) = if outgoing {
                (ends[0], ends[1])
            } else {
                (ends[1], ends[0])
            };
            packet.extend(from.0);
            packet.extend(to.0);
            packet.extend(from.1.to_be_bytes());
            packet.extend(to.1.to_be_bytes());
            packet.extend(sequence.to_be_bytes());
            packet.extend(if flags == 0x02 { 0 } else { acknowledged }.to_be_bytes());
            packet.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
            packet.extend(data);
            let length = u32::try_from(packet.len()).unwrap();
            let micros = u32::try_from(at * 10_000 + nth * 300).unwrap();
            for word in [1_772_366_400 + micros / 1_000_000, micros % 1_000_000, length, length] {
                file.extend(word.to_le_bytes());
            }
            file.extend(packet);
            let advance = u32::try_from(data.len()).unwrap() + u32::from(flags & 0x03 != 0);
            *if outgoing { &mut client } else { &mut server } += advance;
        }
    }
    file
}

#[test]
fn no_output_of_a_capture_shows_credentials_of_any_endpoint() {
    const ID: &str = "5ec7e75e-c7e7-4ec7-8ec7-e75ec7e75ec7";
    const WORD: &str = "S3CRETS3CRET";
    let mut requests = Vec::new();
    for path in ID_PATHS {
        for id in [ID, WORD] {
            for origin in ["", "http://u:S3CRETS3CRET@169.254.170.2"] {
                requests.push(format!(
                    "GET {origin}{} HTTP/1.1\r\nHost: h\r\n\r\n",
                    path.replace("ID", id)
                ));
            }
        }
    }
    for name in SECRET_HEADERS {
        let name = if name.contains(':') {
            format!("{name} ")
        } else {
            format!("{name}: ")
        };
        for path in [
            "/v1/credentials",
            "/latest/meta-data/",
            "/computeMetadata/v1/instance/service-accounts/default/token",
        ] {
            requests.push(format!("GET {path} HTTP/1.1\r\nHost: h\r\n{name}{WORD}\r\n\r\n"));
            requests.push(format!(
                "GET {path} HTTP/1.1\r\nHost: h\r\nUser-Agent: a/1\r\n {name}{WORD}\r\n\r\n"
            ));
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("capture.pcap");
    fs::write(&path, capture(&requests)).unwrap();
    let mut lines = 0;
    for arguments in [
        &["analyze", "-o", "ndjson"][..],
        &["analyze", "-o", "text"],
        &["analyze", "-o", "json"],
        &["analyze", "-o", "html"],
        &["preflight", "--http-tokens", "required", "-o", "text"],
        &["preflight", "--http-tokens", "required", "-o", "json"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_imds-observer"))
            .args(arguments)
            .arg(&path)
            .env("IMDS_OBSERVER_LOG", "trace")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        for secret in [WORD, "5ec7e75e", "c7e75ec7e75ec7"] {
            assert!(!text.contains(secret), "{arguments:?}: {text}");
        }
        lines += text
            .lines()
            .filter(|line| line.starts_with(r#"{"record":"exchange""#))
            .count();
    }
    assert_eq!(lines, requests.len(), "each request is a record of `-o ndjson`");
}

/// One exchange whose process has secrets in all possible places.
fn trace() -> String {
    let process = |pid: u32, exe: &str, arguments: &str| {
        format!(
            r#"{{"pid":{pid},"tid":{pid},"namespace_pid":null,"comm":"app","exe":"{exe}","cmdline":{arguments},"uid":0,"start_time":null,"ancestors":[],"cgroup":"/","netns":null}}"#
        )
    };
    let callers = [
        process(1, "/usr/bin/python3.11", r#"["python3","-uc","t='S3CRETS3CRET'"]"#),
        process(2, "/usr/bin/bash", r#"["bash","-lc","S3CRETS3CRET"]"#),
        process(3, "/opt/token=S3CRETS3CRET/app", r#"["app","--token","S3CRETS3CRET"]"#),
        process(4, "/opt/app", r#"["app","{\"a\":\"S3CRETS3CRET\"}"]"#),
    ];
    let mut lines = String::new();
    for (at, process) in callers.iter().cycle().take(400).enumerate() {
        lines += &format!(
            r#"{{"record":"exchange","schema":1,"time":"2026-03-01T12:00:{:02}.{:03}000000Z","host":"n","process":{process},"container":null,"connection":{{"id":"{at}","local":"10.0.0.1:{}","remote":"169.254.169.254:80","exchange":1,"interface":null,"cgroup":null,"netns":null}},"request":{{"method":"GET","path":"/latest/meta-data/","dialect":"aws","imds_version":"v1","token":null,"token_ttl_s":null,"user_agent":null,"ttl":64,"forwarded":false,"retransmits":0}},"response":{{"status":200,"ttl":255,"delivered":true,"server":null,"retransmits":0,"icmp":null,"via_proxy":null}},"outcome":"answered","latency_ns":300000}}"#,
            at / 20,
            at % 20 * 50,
            2000 + at
        );
        lines.push('\n');
    }
    lines
}

#[test]
fn no_output_of_a_recorded_trace_shows_them() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trace.ndjson");
    fs::write(&path, trace()).unwrap();
    for arguments in [
        &["analyze", "-o", "text"][..],
        &["analyze", "-o", "json"],
        &["analyze", "-o", "ndjson"],
        &["analyze", "-o", "html"],
        &["preflight", "--http-tokens", "required", "-o", "text"],
        &["preflight", "--http-tokens", "required", "-o", "json"],
    ] {
        for mode in [None, Some("redacted"), Some("none")] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_imds-observer"));
            command.args(arguments).arg(&path).stdin(Stdio::null());
            if let Some(mode) = mode {
                command.args(["--cmdline", mode]);
            }
            let output = command.output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            assert!(text.len() > 100, "{text}");
            assert!(!text.contains("S3CRETS3CRET"), "{arguments:?} {mode:?}: {text}");
            let named = text.contains("python3.11 -c #");
            assert_eq!(named, mode != Some("none"), "two one-liners are two workloads: {text}");
        }
    }
    let full = Command::new(env!("CARGO_BIN_EXE_imds-observer"))
        .args(["analyze", "-o", "ndjson", "--cmdline", "full"])
        .arg(&path)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&full.stdout);
    assert!(
        text.contains(r#""cmdline":["bash","-lc","S3CRETS3CRET"]"#),
        "as it was asked for"
    );
    assert!(!text.contains("bash S3CRETS3CRET"), "code is no name of a workload");
}
