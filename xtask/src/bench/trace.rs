//! Traces of any size, identical in each run: NDJSON as `stream` writes it, and a pcap of the corresponding packets.

use std::io::{self, Write};

use serde_json::Value;

/// Number of processes, half of them in pods.
const PROCESSES: u64 = 200;
const PATHS: [&str; 4] = [
    "/latest/meta-data/iam/security-credentials/",
    "/latest/meta-data/iam/security-credentials/app-role",
    "/latest/meta-data/instance-id",
    "/latest/meta-data/placement/availability-zone",
];
/// Begin of the trace, 2026-03-01, and time between two exchanges.
const BEGIN_S: u64 = 1_772_323_200;
const GAP_MS: u64 = 5;
/// Values for healthy callers: each sends a request every ten seconds, gets a token for six hours, and gets credentials once an hour.
const HEALTHY_GAP_MS: u64 = 50;
const HEALTHY_TOKEN: u64 = 2160;
const HEALTHY_CREDENTIALS: u64 = 360;

/// Behavior of the callers of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Callers {
    /// Each gets a new token for every three requests, two of which are for credentials. This causes two findings per caller, whose
    /// evidence keeps growing.
    Bad,
    /// Callers without any fault.
    Healthy,
    /// Each request has its own process, as in a shell loop. Keys are in alphabetical order, and keys with the value null are absent.
    ShortLived,
}

/// Writes exchanges until there are `bytes`, and returns their number.
pub(super) fn ndjson(out: &mut impl Write, bytes: u64, callers: Callers) -> io::Result<u64> {
    let mut written = 0;
    let mut number = 0;
    while written < bytes {
        let line = match callers {
            Callers::ShortLived => short_lived(number)?,
            Callers::Bad | Callers::Healthy => exchange(number, callers),
        };
        out.write_all(line.as_bytes())?;
        written += line.len() as u64;
        number += 1;
    }
    Ok(number)
}

fn exchange(number: u64, callers: Callers) -> String {
    let ms = number
        * match callers {
            Callers::Bad => GAP_MS,
            Callers::Healthy | Callers::ShortLived => HEALTHY_GAP_MS,
        };
    let (day, second) = (1 + ms / 86_400_000, ms / 1000 % 86_400);
    let time = format!(
        "2026-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}000000Z",
        3 + (day - 1) / 28,
        1 + (day - 1) % 28,
        second / 3600,
        second / 60 % 60,
        second % 60,
        ms % 1000
    );
    let who = number % PROCESSES;
    let asked = number / PROCESSES;
    // 0: the token request; otherwise the number of the path.
    let round = match callers {
        Callers::Bad => asked % 4,
        Callers::Healthy if (asked + who * 7).is_multiple_of(HEALTHY_TOKEN) => 0,
        Callers::Healthy if (asked + who).is_multiple_of(HEALTHY_CREDENTIALS) => 1,
        Callers::Healthy | Callers::ShortLived => 2 + asked % 2,
    };
    let container = if who.is_multiple_of(2) {
        "null".to_owned()
    } else {
        format!(
            r#"{{"id":"{}","runtime":"containerd","name":"api","image":null,"pod":{{"namespace":"team{}","name":"api{who}-7c9d8b6f5d-x2x4z","uid":"0c5b6a1e-7d2f-4c93-9f5e-2d7d4b6f8a10"}}}}"#,
            format!("{who:02x}").repeat(32).get(..64).unwrap_or_default(),
            who % 10
        )
    };
    let (request, ttl) = if round == 0 {
        (
            r#""method":"PUT","path":"/latest/api/token","dialect":"aws","imds_version":"token","token":null,"token_ttl_s":21600"#.to_owned(),
            1,
        )
    } else {
        (
            format!(
                r#""method":"GET","path":"{}","dialect":"aws","imds_version":"v2","token":"ab12cd34ef{who:02x}","token_ttl_s":null"#,
                PATHS[round as usize]
            ),
            255,
        )
    };
    format!(
        r#"{{"record":"exchange","schema":1,"time":"{time}","host":"node-1","process":{{"pid":{pid},"tid":{pid},"namespace_pid":null,"comm":"python3","exe":"/usr/bin/python3.11","cmdline":["python3","app{who}.py"],"uid":1000,"start_time":"2026-02-28T11:00:00.000000000Z","ancestors":[{{"pid":4100,"comm":"bash"}}],"cgroup":"/system.slice/app{who}.service","netns":4026531840}},"container":{container},"connection":{{"id":"{number:x}","local":"10.0.1.5:{port}","remote":"169.254.169.254:80","exchange":1,"interface":null,"cgroup":null,"netns":null}},"request":{{{request},"user_agent":"Boto3/1.34.0 md/Botocore#1.34.0","ttl":64,"forwarded":false,"retransmits":0}},"response":{{"status":200,"ttl":{ttl},"delivered":true,"server":null,"retransmits":0,"icmp":null,"via_proxy":null,"length":null}},"outcome":"answered","latency_ns":{latency},"waited_ns":null,"connect_ns":80000}}
"#,
        pid = 4000 + who,
        port = 20_000 + number % 40_000,
        latency = 250_000 + number % 7000,
    )
}

fn short_lived(number: u64) -> io::Result<String> {
    let mut exchange: Value = serde_json::from_str(&exchange(number, Callers::ShortLived))?;
    let pid = 10_000 + number % 4_000_000;
    exchange["process"]["pid"] = pid.into();
    exchange["process"]["tid"] = pid.into();
    exchange["process"]["start_time"] = exchange["time"].clone();
    without_null(&mut exchange);
    // Serializing a `Value` writes its keys in alphabetical order.
    let mut line = exchange.to_string();
    line.push('\n');
    Ok(line)
}

fn without_null(value: &mut Value) {
    if let Value::Object(members) = value {
        members.retain(|_, member| !member.is_null());
        members.values_mut().for_each(without_null);
    }
}

/// Writes a pcap of `exchanges` connections of ten packets each.
pub(super) fn pcap(out: &mut impl Write, exchanges: u64) -> io::Result<()> {
    out.write_all(&0xa1b2_c3d4_u32.to_le_bytes())?;
    out.write_all(&[2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 1, 0, 0, 0])?;
    for number in 0..exchanges {
        let round = number / PROCESSES % 4;
        let request = if round == 0 {
            "PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token-ttl-seconds: 21600\r\n\r\n"
                .to_owned()
        } else {
            format!(
                "GET {} HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token: {}\r\n\r\n",
                PATHS[round as usize],
                "x".repeat(56)
            )
        };
        let answer = format!(
            "HTTP/1.1 200 OK\r\nServer: EC2ws\r\nContent-Length: 56\r\n\r\n{}",
            "x".repeat(56)
        );
        let mut connection = Connection {
            port: 20_000 + (number % 40_000) as u16,
            us: BEGIN_S * 1_000_000 + number * GAP_MS * 1000,
            seq: number as u32 * 7919,
            ack: 0,
        };
        connection.talk(
            out,
            request.as_bytes(),
            answer.as_bytes(),
            if round == 0 { 1 } else { 255 },
        )?;
    }
    Ok(())
}

struct Connection {
    port: u16,
    us: u64,
    seq: u32,
    ack: u32,
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const ACK: u8 = 16;

impl Connection {
    fn talk(&mut self, out: &mut impl Write, request: &[u8], answer: &[u8], ttl: u8) -> io::Result<()> {
        self.packet(out, true, SYN, &[], 64)?;
        self.packet(out, false, SYN | ACK, &[], ttl)?;
        self.packet(out, true, ACK, &[], 64)?;
        self.packet(out, true, ACK, request, 64)?;
        self.packet(out, false, ACK, &[], ttl)?;
        self.packet(out, false, ACK, answer, ttl)?;
        self.packet(out, true, ACK, &[], 64)?;
        self.packet(out, false, FIN | ACK, &[], ttl)?;
        self.packet(out, true, FIN | ACK, &[], 64)?;
        self.packet(out, false, ACK, &[], ttl)
    }

    fn packet(&mut self, out: &mut impl Write, request: bool, flags: u8, payload: &[u8], ttl: u8) -> io::Result<()> {
        let (client, server) = ([10, 0, 1, 5], [169, 254, 169, 254]);
        let (from, to, source, destination) = if request {
            (client, server, self.port, 80)
        } else {
            (server, client, 80, self.port)
        };
        let (seq, ack) = if request {
            (self.seq, self.ack)
        } else {
            (self.ack, self.seq)
        };
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((40 + payload.len() as u16).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, ttl, 6, 0, 0]);
        frame.extend(from);
        frame.extend(to);
        frame.extend(source.to_be_bytes());
        frame.extend(destination.to_be_bytes());
        frame.extend(seq.to_be_bytes());
        frame.extend((if flags & ACK == 0 { 0 } else { ack }).to_be_bytes());
        frame.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        frame.extend(payload);
        for field in [
            (self.us / 1_000_000) as u32,
            (self.us % 1_000_000) as u32,
            frame.len() as u32,
            frame.len() as u32,
        ] {
            out.write_all(&field.to_le_bytes())?;
        }
        out.write_all(&frame)?;
        self.us += 40;
        let taken = payload.len() as u32 + u32::from(flags & (SYN | FIN) != 0);
        if request {
            self.seq = self.seq.wrapping_add(taken);
        } else {
            self.ack = self.ack.wrapping_add(taken);
        }
        Ok(())
    }
}
