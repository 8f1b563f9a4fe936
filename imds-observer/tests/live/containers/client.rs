//! The only file in the test's image: a program that sends one request and ends. It is built statically, without crates.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, address, path] = arguments.as_slice() else {
        panic!("usage: client ADDRESS:PORT PATH");
    };
    let (method, header) = if path == "/latest/api/token" {
        ("PUT", "X-aws-ec2-metadata-token-ttl-seconds: 60\r\nContent-Length: 0\r\n")
    } else {
        ("GET", "")
    };
    let mut stream = TcpStream::connect(address)?;
    // The timeout of AWS's clients for token requests, and a longer one for others.
    stream.set_read_timeout(Some(Duration::from_secs(if method == "PUT" { 1 } else { 5 })))?;
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {address}\r\n{header}Connection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    assert!(answer.starts_with(b"HTTP/1.1 200"), "not answered with 200");
    Ok(())
}
