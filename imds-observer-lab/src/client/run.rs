//! Runs a script, step by step.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{Connection, Failure, Outcome, Phase, Script, Segments, Step, TokenUse};

/// Limit on the size of a response in bytes. A longer one is an error.
const MAX_RESPONSE: usize = 1024 * 1024;

/// Runs the script in the calling thread, and reports each outcome as soon as it is known.
pub fn run(script: &Script, mut report: impl FnMut(Outcome)) {
    let mut client = Client {
        script,
        token: None,
        role: "role".to_owned(),
        kept: None,
    };
    for round in 0..script.rounds {
        let mut batch = Vec::new();
        for (index, step) in script.steps.iter().enumerate() {
            if step.only_in_round.is_some_and(|only| only != round)
                || (step.token == TokenUse::Required && client.token.is_none())
            {
                continue;
            }
            batch.push((index, step));
            let last = index + 1 == script.steps.len();
            if !step.pipelined || last {
                client.go(round, &std::mem::take(&mut batch), &mut report);
            }
        }
        if !batch.is_empty() {
            client.go(round, &batch, &mut report);
        }
    }
}

/// No `Debug`: it holds a token.
struct Client<'a> {
    script: &'a Script,
    token: Option<String>,
    role: String,
    kept: Option<(SocketAddr, Wire)>,
}

/// A connection, and the bytes that were read beyond the last response.
struct Wire {
    stream: TcpStream,
    bytes: Vec<u8>,
}

struct Response {
    status: u16,
    body: String,
    closes: bool,
    first_byte: Instant,
}

impl Client<'_> {
    /// Sends a batch of steps (one, or several pipelined ones) and reads their responses.
    fn go(&mut self, round: u32, batch: &[(usize, &Step)], report: &mut impl FnMut(Outcome)) {
        let Some((_, first)) = batch.first() else { return };
        thread::sleep(Duration::from_millis(first.sleep_before_ms));
        for attempt in 1..=first.tries.max(1) {
            let outcomes = self.attempt(round, batch);
            let silent = outcomes.iter().any(|outcome| outcome.error.is_some());
            outcomes.into_iter().for_each(&mut *report);
            if !silent || attempt == first.tries {
                return;
            }
        }
    }

    fn attempt(&mut self, round: u32, batch: &[(usize, &Step)]) -> Vec<Outcome> {
        let (_, first) = batch[0];
        let target = first.target.unwrap_or(self.script.target);
        let begun = Instant::now();
        let mut outcomes: Vec<Outcome> = batch
            .iter()
            .map(|(index, step)| Outcome {
                round,
                step: *index,
                method: step.method.clone(),
                path: self.path(step),
                target,
                local: None,
                had_token: step.token != TokenUse::None && self.token.is_some(),
                status: None,
                error: None,
                sent_unix_ns: None,
                latency_ns: None,
                elapsed_ns: 0,
            })
            .collect();
        if let Err((at, failure)) = self.exchange(target, batch, &mut outcomes) {
            for outcome in &mut outcomes[at..] {
                outcome.error = Some(failure.clone());
            }
        }
        for (outcome, (_, step)) in outcomes.iter_mut().zip(batch) {
            outcome.elapsed_ns = begun.elapsed().as_nanos() as u64;
            // A failed token PUT also discards the token that the client holds.
            if step.token_ttl_s.is_some() && outcome.status != Some(200) {
                self.token = None;
            }
        }
        outcomes
    }

    /// On failure, returns the index of the first step without a response.
    fn exchange(
        &mut self,
        target: SocketAddr,
        batch: &[(usize, &Step)],
        outcomes: &mut [Outcome],
    ) -> Result<(), (usize, Failure)> {
        let (_, first) = batch[0];
        let at = |index: usize, phase: Phase| move |error: io::Error| (index, failure(phase, &error));
        let kept = self
            .kept
            .take()
            .filter(|(to, _)| first.connection == Connection::Keep && *to == target);
        let mut wire = match kept {
            Some((_, wire)) => wire,
            None => Wire {
                stream: TcpStream::connect_timeout(&target, Duration::from_millis(first.connect_timeout_ms.max(1)))
                    .map_err(at(0, Phase::Connect))?,
                bytes: Vec::new(),
            },
        };
        let local = wire.stream.local_addr().ok();
        let text: String = batch.iter().map(|(_, step)| self.request(step, target)).collect();
        let sent = Instant::now();
        let sent_unix_ns = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos() as u64);
        for outcome in &mut *outcomes {
            (outcome.local, outcome.sent_unix_ns) = (local, Some(sent_unix_ns));
        }
        send(&mut wire.stream, text.as_bytes(), first).map_err(at(0, Phase::Send))?;
        let mut closes = false;
        for (index, ((_, step), outcome)) in batch.iter().zip(&mut *outcomes).enumerate() {
            let deadline = sent + Duration::from_millis(step.timeout_ms);
            let response = wire
                .response(deadline, step.method == "HEAD")
                .map_err(at(index, Phase::Receive))?;
            outcome.status = Some(response.status);
            outcome.latency_ns = Some(response.first_byte.duration_since(sent).as_nanos() as u64);
            closes = response.closes;
            self.learn(step, response);
        }
        if !closes {
            self.kept = Some((target, wire));
        }
        Ok(())
    }

    fn learn(&mut self, step: &Step, response: Response) {
        if response.status != 200 {
            return;
        }
        if step.token_ttl_s.is_some() {
            self.token = Some(response.body);
        } else if step.path.ends_with("security-credentials/")
            && let Some(role) = response.body.lines().next()
        {
            role.clone_into(&mut self.role);
        }
    }

    fn path(&self, step: &Step) -> String {
        step.path.replace("{role}", &self.role)
    }

    fn request(&self, step: &Step, target: SocketAddr) -> String {
        use std::fmt::Write as _;
        let minor = u8::from(!step.http_1_0);
        let mut text = format!("{} {} HTTP/1.{minor}\r\n", step.method, self.path(step));
        let host = match target {
            SocketAddr::V4(address) => address.ip().to_string(),
            SocketAddr::V6(address) => format!("[{}]", address.ip()),
        };
        let _ = write!(text, "Host: {host}\r\n");
        if let Some(user_agent) = &self.script.user_agent {
            let _ = write!(text, "User-Agent: {user_agent}\r\n");
        }
        for (name, value) in &step.headers {
            let _ = write!(text, "{name}: {value}\r\n");
        }
        if let Some(ttl_s) = step.token_ttl_s {
            let _ = write!(text, "X-aws-ec2-metadata-token-ttl-seconds: {ttl_s}\r\n");
        }
        if let (TokenUse::IfHeld | TokenUse::Required, Some(token)) = (step.token, &self.token) {
            let _ = write!(text, "X-aws-ec2-metadata-token: {token}\r\n");
        }
        if !step.body.is_empty() {
            let _ = write!(text, "Content-Length: {}\r\n", step.body.len());
        }
        text + "\r\n" + &step.body
    }
}

impl Wire {
    fn response(&mut self, deadline: Instant, head_only: bool) -> io::Result<Response> {
        let mut first_byte = (!self.bytes.is_empty()).then(Instant::now);
        loop {
            let mut headers = [httparse::EMPTY_HEADER; 64];
            let mut head = httparse::Response::new(&mut headers);
            let parsed = head
                .parse(&self.bytes)
                .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
            if let (httparse::Status::Complete(head_length), Some(status)) = (parsed, head.code) {
                let value = |name: &str| {
                    let header = head
                        .headers
                        .iter()
                        .find(|header| header.name.eq_ignore_ascii_case(name))?;
                    std::str::from_utf8(header.value).ok()
                };
                let length = value("content-length").and_then(|length| length.trim().parse::<usize>().ok());
                let length = if head_only { Some(0) } else { length };
                let closes = value("connection").is_none_or(|value| !value.eq_ignore_ascii_case("keep-alive"));
                let end = head_length.saturating_add(length.unwrap_or(0));
                if self.bytes.len() >= end && length.is_some() {
                    let body = String::from_utf8_lossy(&self.bytes[head_length..end]).into_owned();
                    self.bytes.drain(..end);
                    let first_byte = first_byte.unwrap_or_else(Instant::now);
                    return Ok(Response {
                        status,
                        body,
                        closes,
                        first_byte,
                    });
                }
            }
            if self.bytes.len() > MAX_RESPONSE {
                return Err(io::Error::new(ErrorKind::InvalidData, "the answer is too long"));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut part = [0; 16 * 1024];
            let length = self.stream.read(&mut part)?;
            if length == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            first_byte.get_or_insert_with(Instant::now);
            self.bytes.extend_from_slice(&part[..length]);
        }
    }
}

fn send(stream: &mut TcpStream, bytes: &[u8], step: &Step) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(Duration::from_millis(step.timeout_ms.max(1))))?;
    let sizes: Vec<usize> = match &step.segments {
        Segments::Whole => Vec::new(),
        Segments::Bytes => vec![1; bytes.len()],
        Segments::Sizes(sizes) => sizes.clone(),
    };
    let mut rest = bytes;
    for size in sizes {
        let (segment, after) = rest.split_at(size.clamp(1, rest.len().max(1)).min(rest.len()));
        stream.write_all(segment)?;
        rest = after;
        if step.segment_gap_ms > 0 && !rest.is_empty() {
            thread::sleep(Duration::from_millis(step.segment_gap_ms));
        }
    }
    stream.write_all(rest)
}

fn failure(phase: Phase, error: &io::Error) -> Failure {
    let what = match error.kind() {
        // The kernel reports a read timeout only as EAGAIN.
        ErrorKind::WouldBlock | ErrorKind::TimedOut => "timed out".to_owned(),
        ErrorKind::UnexpectedEof => "closed without an answer".to_owned(),
        ErrorKind::InvalidData => "not an HTTP answer".to_owned(),
        _ => error.to_string(),
    };
    Failure {
        phase,
        what,
        errno: error.raw_os_error().filter(|errno| *errno != libc::EAGAIN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        client::{self, Phase},
        server::{AnswerMode, Behaviour, Server, ServerOptions, Tokens},
    };

    fn server(behaviour: Behaviour) -> Server {
        Server::start(ServerOptions {
            behaviour,
            ..ServerOptions::new(vec!["127.0.0.1:0".parse().unwrap()])
        })
        .unwrap()
    }

    fn outcomes(server: &Server, script: Script) -> Vec<Outcome> {
        let mut all = Vec::new();
        run(
            &Script {
                target: server.addresses()[0],
                ..script
            },
            |outcome| all.push(outcome),
        );
        all
    }

    fn seen(server: &Server) -> Vec<(String, String, bool, Option<u16>)> {
        let log = server.take_log();
        log.requests
            .into_iter()
            .map(|r| (r.method, r.path, r.had_token, r.status))
            .collect()
    }

    fn expect(rows: &[(&str, &str, bool, u16)]) -> Vec<(String, String, bool, Option<u16>)> {
        rows.iter()
            .map(|(m, p, t, s)| ((*m).to_owned(), (*p).to_owned(), *t, Some(*s)))
            .collect()
    }

    #[test]
    fn botocore_gets_a_token_and_keeps_its_connection() {
        for keep_alive in [false, true] {
            let server = server(Behaviour {
                tokens: Tokens::Required,
                keep_alive,
                ..Behaviour::default()
            });
            let all = outcomes(&server, client::botocore());
            assert!(
                all.iter()
                    .all(|outcome| outcome.status == Some(200) && outcome.error.is_none()),
                "{all:?}"
            );
            let locals: std::collections::BTreeSet<_> = all.iter().map(|outcome| outcome.local).collect();
            assert_eq!(locals.len(), if keep_alive { 1 } else { 3 });
            assert_eq!(
                seen(&server),
                expect(&[
                    ("PUT", "/latest/api/token", false, 200),
                    ("GET", "/latest/meta-data/iam/security-credentials/", true, 200),
                    ("GET", "/latest/meta-data/iam/security-credentials/lab-role", true, 200),
                ])
            );
            assert!(
                !serde_json::to_string(&all).unwrap().contains("AQAE"),
                "no token in what is printed"
            );
        }
    }

    #[test]
    fn a_refused_token_means_v1_for_botocore_and_the_end_for_the_rust_sdk() {
        let server = server(Behaviour {
            forbid_put: true,
            ..Behaviour::default()
        });
        let statuses: Vec<_> = outcomes(&server, client::botocore())
            .iter()
            .map(|o| (o.had_token, o.status))
            .collect();
        assert_eq!(statuses, [(false, Some(403)), (false, Some(200)), (false, Some(200))]);
        assert_eq!(outcomes(&server, client::rust_sdk()).len(), 1);
    }

    #[test]
    fn the_probe_of_fluent_bit_and_rounds_with_one_token() {
        let server = server(Behaviour {
            tokens: Tokens::Required,
            ..Behaviour::default()
        });
        let statuses: Vec<_> = outcomes(&server, client::fluent_bit())
            .iter()
            .filter_map(|o| o.status)
            .collect();
        assert_eq!(&statuses[..3], &[401, 200, 200]);
        outcomes(&server, client::node_termination_handler(3, 0));
        let log = server.take_log();
        assert_eq!(
            log.requests
                .iter()
                .filter(|r| r.user_agent.as_deref() == Some("aws-node-termination-handler"))
                .count(),
            10
        );
    }

    #[test]
    fn segments_pipelines_and_methods() {
        let server = server(Behaviour {
            keep_alive: true,
            ..Behaviour::default()
        });
        let get = |segments, pipelined| Step {
            path: "/latest/meta-data/mac".to_owned(),
            segments,
            pipelined,
            connection: Connection::Keep,
            ..Step::default()
        };
        let steps = vec![
            get(Segments::Bytes, false),
            get(Segments::Sizes(vec![3, 0, 9, 10_000]), true),
            get(Segments::Whole, true),
            Step {
                method: "HEAD".to_owned(),
                ..get(Segments::Whole, false)
            },
            get(Segments::Whole, true),
        ];
        let script = Script {
            target: server.addresses()[0],
            comm: None,
            user_agent: None,
            rounds: 1,
            steps,
        };
        let all = outcomes(&server, script);
        assert!(all.iter().all(|outcome| outcome.status == Some(200)), "{all:?}");
        assert_eq!(
            server.log().requests.back().unwrap().exchange,
            5,
            "all on one connection"
        );
    }

    #[test]
    fn failures_say_where_and_what() {
        let server = server(Behaviour {
            answer: AnswerMode::Close,
            ..Behaviour::default()
        });
        let failure = |script| outcomes(&server, script).pop().unwrap().error.unwrap();
        let once = || client::tight_loop("/latest/meta-data/mac", 1, 0);
        assert_eq!(
            (failure(once()).phase, failure(once()).what.as_str()),
            (Phase::Receive, "closed without an answer")
        );
        server.update(|b| b.answer = AnswerMode::Garbage);
        assert_eq!(failure(once()).what, "not an HTTP answer");
        server.update(|b| b.answer = AnswerMode::Silent);
        let mut impatient = once();
        impatient.steps[0].timeout_ms = 50;
        impatient.steps[0].tries = 2;
        assert_eq!(outcomes(&server, impatient.clone()).len(), 2, "tried twice");
        assert_eq!(failure(impatient).what, "timed out");
        server.update(|b| b.listening = false);
        let refused = failure(once());
        assert_eq!(
            (refused.phase, refused.errno),
            (Phase::Connect, Some(libc::ECONNREFUSED))
        );
    }

    #[test]
    fn presets_are_scripts_that_survive_json() {
        for (name, script) in client::presets() {
            let text = serde_json::to_string(&script).unwrap();
            assert_eq!(serde_json::from_str::<Script>(&text).unwrap(), script, "{name}");
        }
        let minimal: Script = serde_json::from_str(r#"{"steps":[{"path":"/latest/"}]}"#).unwrap();
        assert_eq!(minimal.rounds, 1);
        assert!(serde_json::from_str::<Script>(r#"{"steps":[{"pth":"/"}]}"#).is_err());
    }
}
