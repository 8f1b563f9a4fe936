//! No output may contain a token, however unusual the spelling of the header is.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use imds_observer_lab::topology::LabOptions;

use crate::support::{Observer, lab};

/// An invented token that looks like a real one, so that no form of it may pass.
const TOKEN: &str = "AQAEAExampleMadeUpTokenThatNobodyMayEverSeeAgain0123456789==";

#[test]
#[ignore = "live"]
fn no_form_of_the_token_header_shows_the_token() {
    let long = format!("{TOKEN}{}", "x".repeat(3_000));
    let forms = [
        format!("X-AWS-EC2-Metadata-Token : {TOKEN}\r\n"),
        format!("x-aws-ec2-metadata-token:{TOKEN}\r\n"),
        format!("X-aws-ec2-metadata-token:\r\n {TOKEN}\r\n"),
        format!("X-aws-ec2-metadata-token: {TOKEN}\r\nX-aws-ec2-metadata-token: {TOKEN}second\r\n"),
        format!("X-aws-ec2-metadata-token: {long}\r\n"),
        format!("X-aws-ec2-metadata-token:\t{TOKEN}\n"),
        format!("\tX-aws-ec2-metadata-token: {TOKEN}\r\n"),
        format!("Cookie: a={TOKEN}\r\nX-aws-ec2-metadata-token: {TOKEN}\r\n"),
        format!("User-Agent: {TOKEN}\r\n"),
    ];
    let lab = lab(LabOptions::default());
    let observer = Observer::stream(&lab, &[]);
    lab.node()
        .run_in_thread(|| {
            for form in &forms {
                let whole = format!("GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: x\r\n{form}\r\n");
                send(&[whole.as_bytes()]);
                // In two segments that split the token.
                let middle = whole.find("MadeUp").unwrap();
                send(&[&whole.as_bytes()[..middle], &whole.as_bytes()[middle..]]);
            }
            // The token is in the request line.
            send(&[format!("GET /latest/meta-data/?token={TOKEN} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()]);
            send(&[format!("{TOKEN}\r\n\r\n").as_bytes()]);
            for path in [
                "/v2/credentials/MadeUpTokenId",
                "/v1/credentials?id=MadeUpTokenId",
                "/v2/splunk-token/MadeUpTokenId",
                "/v2/container-env/MadeUpTokenId",
                "/v3/MadeUpTokenId/task",
                "/v4/MadeUpTokenId",
                "http://u:MadeUpTokenId@169.254.169.254/latest/",
            ] {
                send(&[format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()]);
            }
            for header in [
                "Authorization: Bearer",
                "X-Metadata-Token:",
                "Metadata-Token:",
                "X-aliyun-ecs-metadata-token:",
            ] {
                send(&[format!("GET /v1/credentials HTTP/1.1\r\nHost: x\r\n{header} {TOKEN}\r\n\r\n").as_bytes()]);
            }
        })
        .unwrap();
    let finished = observer.finish();
    assert!(
        finished.kind("exchange").len() >= 2 * forms.len(),
        "{}",
        finished.stdout
    );
    for part in ["MadeUpToken", "NobodyMayEverSee", "AQAEAExample"] {
        assert!(!finished.stdout.contains(part), "{part} in: {}", finished.stdout);
        assert!(!finished.stderr.contains(part), "{part} in: {}", finished.stderr);
    }
    // No byte of a body may appear either: neither the stand-in's credentials nor its instance ID.
    for secret in ["SecretAccessKey", imds_observer_lab::server::INSTANCE_ID] {
        assert!(!finished.stdout.contains(secret), "{secret}");
    }
}

fn send(segments: &[&[u8]]) {
    let mut stream =
        TcpStream::connect_timeout(&"169.254.169.254:80".parse().unwrap(), Duration::from_secs(2)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    for segment in segments {
        stream.write_all(segment).unwrap();
        stream.flush().unwrap();
    }
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = stream.read_to_end(&mut Vec::new());
}
