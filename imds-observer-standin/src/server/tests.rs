use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::Duration,
};

use super::*;

fn start(change: impl FnOnce(&mut Behaviour)) -> Server {
    let server = Server::start(ServerOptions::new(vec!["127.0.0.1:0".parse().unwrap()])).unwrap();
    server.update(change);
    server
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.addresses()[0]).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream
}

/// Sends and reads until the server closes.
fn exchange(server: &Server, bytes: &str) -> String {
    let mut stream = connect(server);
    stream.write_all(bytes.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn body(response: &str) -> &str {
    response.split_once("\r\n\r\n").unwrap().1
}

const PUT: &str = "PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n";
const GET: &str = "GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: x\r\n\r\n";

#[test]
fn a_token_is_issued_and_taken() {
    let server = start(|b| b.tokens = Tokens::Required);
    assert!(exchange(&server, GET).starts_with("HTTP/1.1 401 "));
    let response = exchange(&server, PUT);
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n"));
    assert!(response.contains("\r\nX-Aws-Ec2-Metadata-Token-Ttl-Seconds: 60\r\n"));
    let with_token = GET.replace("Host: x", &format!("x-aws-ec2-metadata-token: {}", body(&response)));
    assert_eq!(body(&exchange(&server, &with_token)), INSTANCE_ID);
    server.expire_tokens();
    assert!(exchange(&server, &with_token).starts_with("HTTP/1.1 401 "));

    let log = server.take_log();
    let seen: Vec<_> = log
        .requests
        .iter()
        .map(|r| (r.method.as_str(), r.had_token, r.status, r.response_ttl))
        .collect();
    assert_eq!(
        seen,
        [
            ("GET", false, Some(401), Some(255)),
            ("PUT", false, Some(200), Some(1)),
            ("GET", true, Some(200), Some(255)),
            ("GET", true, Some(401), Some(255)),
        ]
    );
    let text = serde_json::to_string(&log).unwrap();
    assert!(!text.contains("AQAE"), "no token in the log");
    assert_eq!(server.log().requests.len(), 0);
    assert_eq!(server.log().total, 4);
}

#[test]
fn the_connection_closes_unless_keep_alive_is_on() {
    let server = start(|_| {});
    assert!(exchange(&server, GET).contains("\r\nConnection: close\r\n"));
    server.update(|b| b.keep_alive = true);
    let mut stream = connect(&server);
    for _ in 0..2 {
        stream.write_all(GET.as_bytes()).unwrap();
        let mut bytes = [0; 2048];
        let mut text = String::new();
        while !text.ends_with(INSTANCE_ID) {
            let length = stream.read(&mut bytes).unwrap();
            assert!(length > 0, "closed");
            text.push_str(std::str::from_utf8(&bytes[..length]).unwrap());
        }
        assert!(text.contains("\r\nConnection: keep-alive\r\n"));
    }
    let last = GET.replace("Host: x", "Connection: close");
    stream.write_all(last.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.ends_with(INSTANCE_ID));
    assert!(
        exchange(&server, &GET.replace("1.1", "1.0")).starts_with("HTTP/1.0 200 OK"),
        "1.0 closes by itself"
    );
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = start(|b| b.keep_alive = true);
    let last = GET
        .replace("instance-id", "mac")
        .replace("Host: x", "Connection: close");
    let text = exchange(&server, &format!("{PUT}{GET}{last}"));
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 3);
    assert!(text.find(INSTANCE_ID).unwrap() < text.find("0a:00:00:00:00:05").unwrap());
    let log = server.log();
    let ttls: Vec<_> = log.requests.iter().map(|r| (r.exchange, r.response_ttl)).collect();
    assert_eq!(ttls, [(1, Some(1)), (2, Some(255)), (3, Some(255))]);
}

#[test]
fn a_request_may_come_byte_by_byte_and_with_a_body() {
    let server = start(|_| {});
    let mut stream = connect(&server);
    stream.set_nodelay(true).unwrap();
    for byte in PUT.replace("Host: x", "Content-Length: 3").bytes().chain(*b"abc") {
        stream.write_all(&[byte]).unwrap();
    }
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK"));
}

#[test]
fn nonsense_and_endless_heads_are_refused() {
    let server = start(|_| {});
    assert!(exchange(&server, "\x16\x03\x01\r\n\r\n").starts_with("HTTP/1.1 400 "));
    let endless = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(70_000));
    let mut stream = connect(&server);
    let _ = stream.write_all(endless.as_bytes());
    let mut start_of_answer = [0; 12];
    stream.read_exact(&mut start_of_answer).unwrap();
    assert_eq!(&start_of_answer, b"HTTP/1.1 431");
}

#[test]
fn faults() {
    let server = start(|b| b.answer = AnswerMode::Close);
    assert_eq!(exchange(&server, GET), "");
    server.update(|b| b.answer = AnswerMode::Garbage);
    assert!(!exchange(&server, GET).starts_with("HTTP/"));
    server.update(|b| b.answer = AnswerMode::Reset);
    let mut stream = connect(&server);
    stream.write_all(GET.as_bytes()).unwrap();
    assert_eq!(
        stream.read(&mut [0; 16]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    server.update(|b| b.answer = AnswerMode::Silent);
    let mut stream = connect(&server);
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    stream.write_all(GET.as_bytes()).unwrap();
    assert_eq!(stream.read(&mut [0; 16]).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert!(server.log().requests.iter().all(|request| request.status.is_none()));

    server.update(|b| b.only = vec!["meta-data/spot".to_owned()]);
    assert!(
        exchange(&server, GET).starts_with("HTTP/1.1 200"),
        "the fault is for other paths"
    );
    server.set(Behaviour {
        delay_ms: 50,
        ..Behaviour::default()
    });
    let before = std::time::Instant::now();
    exchange(&server, GET);
    assert!(before.elapsed() >= Duration::from_millis(50));
}

#[test]
fn errors_come_at_their_rate() {
    let server = start(|b| {
        b.error = Some(ErrorRate {
            status: 503,
            per_mille: 250,
        });
    });
    let failed = (0..40)
        .filter(|_| exchange(&server, GET).starts_with("HTTP/1.1 503 "))
        .count();
    assert_eq!(failed, 10);
}

#[test]
fn the_listener_goes_down_and_comes_back() {
    let server = start(|b| b.listening = false);
    let address = server.addresses()[0];
    assert_eq!(
        TcpStream::connect(address).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
    server.update(|b| b.listening = true);
    assert!(exchange(&server, GET).starts_with("HTTP/1.1 200"));
}

#[test]
fn another_process_can_switch_it() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("control.sock");
    let server = Server::start(ServerOptions {
        control: Some(socket.clone()),
        ..ServerOptions::new(vec!["127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap()])
    })
    .unwrap();
    let mut control = ControlClient::connect(&socket).unwrap();
    let behaviour = control
        .set(serde_json::json!({"tokens": "required", "hop_limit": 3}))
        .unwrap();
    assert_eq!((behaviour.tokens, behaviour.hop_limit), (Tokens::Required, 3));
    assert!(exchange(&server, GET).starts_with("HTTP/1.1 401"));
    assert!(control.set(serde_json::json!({"hop": 3})).is_err());
    assert_eq!(control.take_log().unwrap().requests.len(), 1);
    control.set(serde_json::json!({"listening": false})).unwrap();
    assert_eq!(
        control.stats().unwrap(),
        Stats {
            requests: 1,
            evicted: 0,
            listening: false
        }
    );
    assert!(TcpStream::connect(server.addresses()[1]).is_err());
    control.reset().unwrap();
    assert_eq!(control.behaviour().unwrap(), Behaviour::default());
    assert!(TcpStream::connect(server.addresses()[1]).is_ok());
    drop(server);
    assert!(!socket.exists());
}

#[test]
fn the_log_is_bounded() {
    let options = ServerOptions {
        log_capacity: 2,
        ..ServerOptions::new(vec!["127.0.0.1:0".parse().unwrap()])
    };
    let server = Server::start(options).unwrap();
    for _ in 0..3 {
        exchange(&server, GET);
    }
    let log = server.log();
    assert_eq!((log.requests.len(), log.total, log.evicted), (2, 3, 1));
}
