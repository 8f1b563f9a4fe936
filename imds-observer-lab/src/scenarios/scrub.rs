//! Removes tokens, credentials and bodies from a capture, so that it can be kept. Lengths stay the same.
//!
//! Instead of searching for secrets, this overwrites everything that isn't known to be harmless. It keeps addresses, TCP headers, the
//! method and path of a request, the status of a response, and the values of the headers in [`HARMLESS`]. Tokens become numbers, so that
//! repeated use of a token remains visible. Checksums are not updated and are therefore wrong.

use std::collections::HashMap;

use anyhow::{Result, bail, ensure};

/// Headers whose values are kept.
const HARMLESS: &[&str] = &[
    "accept",
    "accept-encoding",
    "accept-ranges",
    "allow",
    "connection",
    "content-length",
    "content-type",
    "date",
    "host",
    "keep-alive",
    "last-modified",
    "metadata",
    "metadata-flavor",
    "server",
    "user-agent",
    "via",
    "x-amz-user-agent",
    "x-aws-ec2-metadata-token-ttl-seconds",
    "x-cache",
    "x-forwarded-for",
];
const TOKEN: &str = "x-aws-ec2-metadata-token";
const METHODS: &[&str] = &["GET ", "PUT ", "HEAD ", "POST ", "DELETE ", "OPTIONS "];
/// Byte that replaces secrets.
const BLANK: u8 = b'x';

const FILE_HEADER: usize = 24;
const PACKET_HEADER: usize = 16;
const ETHERNET: usize = 14;
const ICMP: usize = 8;
const IMDS_PORT: u16 = 80;

/// Scrubs a classic little-endian pcap of Ethernet frames. A truncated packet ends it. `private`: text that is removed from harmless
/// headers too.
pub fn scrub(capture: &[u8], private: &str) -> Result<Vec<u8>> {
    ensure!(capture.len() >= FILE_HEADER, "the capture has no header");
    if !matches!(capture[..4], [0xd4, 0xc3, 0xb2, 0xa1] | [0x4d, 0x3c, 0xb2, 0xa1]) {
        bail!("not a little-endian pcap: scrub what tcpdump writes on x86_64 or aarch64");
    }
    ensure!(capture[20] == 1, "not a capture of Ethernet frames");
    let mut out = capture.to_vec();
    let mut tokens = Tokens {
        private: private.as_bytes().to_vec(),
        numbers: HashMap::new(),
    };
    let mut at = FILE_HEADER;
    while let Some(header) = capture.get(at..at + PACKET_HEADER) {
        let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        let begin = at + PACKET_HEADER;
        let Some(packet) = out.get_mut(begin..begin.saturating_add(length)) else {
            out.truncate(at);
            break;
        };
        frame(packet, &mut tokens);
        at = begin + length;
    }
    Ok(out)
}

struct Tokens {
    private: Vec<u8>,
    /// Numbers of the tokens, in order of appearance.
    numbers: HashMap<Vec<u8>, usize>,
}

impl Tokens {
    fn replace(&mut self, value: &mut [u8]) {
        let next = self.numbers.len() + 1;
        let number = *self.numbers.entry(value.to_vec()).or_insert(next);
        let name = format!("token{number}-");
        blank(value);
        let length = name.len().min(value.len());
        value[..length].copy_from_slice(&name.as_bytes()[..length]);
    }
}

fn blank(bytes: &mut [u8]) {
    bytes.fill(BLANK);
}

fn frame(packet: &mut [u8], tokens: &mut Tokens) {
    let Some((header, rest)) = packet.split_at_mut_checked(ETHERNET) else {
        return blank(packet);
    };
    match [header[12], header[13]] {
        [0x08, 0x00] | [0x86, 0xdd] => ip(rest, tokens),
        // ARP: addresses only.
        [0x08, 0x06] => {
            if let Some(padding) = rest.get_mut(28..) {
                blank(padding);
            }
        }
        _ => blank(rest),
    }
}

/// Length of the IP header and number of the next protocol, or `None` for a packet that this module doesn't parse.
fn ip_header(packet: &[u8]) -> Option<(usize, u8)> {
    match packet.first()? >> 4 {
        4 => {
            let length = usize::from(packet[0] & 15) * 4;
            // A later fragment has no transport header.
            let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x1fff;
            (length >= 20 && packet.len() >= length && fragment == 0).then(|| (length, packet[9]))
        }
        6 => (packet.len() >= 40).then(|| (40, packet[6])),
        _ => None,
    }
}

fn ip(packet: &mut [u8], tokens: &mut Tokens) {
    let Some((length, protocol)) = ip_header(packet) else {
        // A later fragment, or an unknown protocol. Only addresses are kept.
        let header = packet.first().map_or(0, |first| match first >> 4 {
            4 => 20,
            6 => 40,
            _ => 0,
        });
        let kept = packet.len().min(header);
        return blank(&mut packet[kept..]);
    };
    let rest = &mut packet[length..];
    match protocol {
        6 => tcp(rest, tokens),
        1 | 58 => icmp(rest, protocol == 58),
        _ => {
            let kept = rest.len().min(8);
            blank(&mut rest[kept..]);
        }
    }
}

/// Length of the TCP header, including the options.
fn tcp_header(segment: &[u8]) -> Option<usize> {
    let length = usize::from(segment.get(12)? >> 4) * 4;
    (length >= 20 && segment.len() >= length).then_some(length)
}

fn tcp(segment: &mut [u8], tokens: &mut Tokens) {
    let Some(length) = tcp_header(segment) else {
        let kept = segment.len().min(20);
        return blank(&mut segment[kept..]);
    };
    let port = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
    let (from, to) = (port(0), port(2));
    let payload = &mut segment[length..];
    if from == IMDS_PORT && payload.starts_with(b"HTTP/1.") {
        let end = head(payload, tokens);
        blank(&mut payload[end..]);
    } else if to == IMDS_PORT {
        requests(payload, tokens);
    } else {
        blank(payload);
    }
}

/// Scrubs consecutive requests in a segment. Everything else, such as a body or a later part of a head, is overwritten.
fn requests(mut payload: &mut [u8], tokens: &mut Tokens) {
    while METHODS.iter().any(|method| payload.starts_with(method.as_bytes())) {
        let end = head(payload, tokens);
        payload = &mut payload[end..];
    }
    blank(payload);
}

/// Scrubs a head and returns its length. If the head is incomplete, the length is that of the available part.
fn head(payload: &mut [u8], tokens: &mut Tokens) -> usize {
    let mut at = 0;
    let mut first = true;
    while at < payload.len() {
        let line = payload[at..].iter().position(|byte| *byte == b'\n');
        let whole = line.is_some();
        let end = line.map_or(payload.len(), |length| at + length + 1);
        let text = &mut payload[at..end];
        let bare = text.iter().take_while(|byte| !matches!(byte, b'\r' | b'\n')).count();
        if bare == 0 {
            return end;
        }
        // The first line is the request line or the status line.
        if !first {
            field(&mut text[..bare], whole, tokens);
        }
        first = false;
        at = end;
    }
    at
}

fn field(line: &mut [u8], whole: bool, tokens: &mut Tokens) {
    let Some(colon) = line.iter().position(|byte| *byte == b':') else {
        return blank(line);
    };
    let name = String::from_utf8_lossy(&line[..colon]).trim().to_ascii_lowercase();
    let value = &mut line[colon + 1..];
    let spaces = value.iter().take_while(|byte| **byte == b' ').count();
    let value = &mut value[spaces..];
    if name == TOKEN && whole {
        tokens.replace(value);
    } else if !HARMLESS.contains(&name.as_str()) {
        blank(value);
    } else if !tokens.private.is_empty() {
        let length = tokens.private.len();
        for at in 0..value.len().saturating_sub(length - 1) {
            if value[at..at + length] == tokens.private[..] {
                blank(&mut value[at..at + length]);
            }
        }
    }
}

/// Scrubs an ICMP message. An error quotes the packet that caused it, with part of the payload.
fn icmp(message: &mut [u8], v6: bool) {
    let is_error = match message.first() {
        Some(kind) if v6 => *kind < 128,
        Some(kind) => matches!(kind, 3 | 4 | 5 | 11 | 12),
        None => return,
    };
    if !is_error {
        // Neighbor discovery has only addresses; a ping may carry anything.
        if !(v6 && matches!(message[0], 133..=137)) {
            let kept = message.len().min(ICMP);
            blank(&mut message[kept..]);
        }
        return;
    }
    let Some((_, quoted)) = message.split_at_mut_checked(ICMP) else {
        return;
    };
    let kept = ip_header(quoted).map_or(0, |(length, protocol)| {
        let rest = &quoted[length..];
        let of_transport = match protocol {
            6 => tcp_header(rest).unwrap_or(8),
            _ => 8,
        };
        length + of_transport
    });
    let kept = kept.min(quoted.len());
    blank(&mut quoted[kept..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "AQAEmadeup-secret-of-this-test-0123456789==";

    fn capture(packets: &[Vec<u8>]) -> Vec<u8> {
        let mut file = vec![
            0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0,
        ];
        for packet in packets {
            file.extend([0; 8]);
            file.extend(u32::try_from(packet.len()).unwrap().to_le_bytes());
            file.extend(u32::try_from(packet.len()).unwrap().to_le_bytes());
            file.extend(packet);
        }
        file
    }

    fn ipv4(protocol: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![
            0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 169, 254, 169, 254,
        ];
        packet.extend(rest);
        packet
    }

    fn segment(from: u16, to: u16, payload: &str) -> Vec<u8> {
        let mut segment = [from.to_be_bytes(), to.to_be_bytes()].concat();
        segment.extend([0; 8]);
        segment.extend([0x50, 0x18, 0, 0, 0, 0, 0, 0]);
        segment.extend(payload.as_bytes());
        segment
    }

    fn ethernet(rest: Vec<u8>) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0]);
        frame.extend(rest);
        frame
    }

    fn scrubbed(packets: &[Vec<u8>]) -> String {
        let before = capture(packets);
        let after = scrub(&before, "-mine").unwrap();
        assert_eq!(before.len(), after.len(), "lengths stay");
        String::from_utf8_lossy(&after).into_owned()
    }

    fn request(payload: &str) -> Vec<u8> {
        ethernet(ipv4(6, &segment(40_000, 80, payload)))
    }

    fn response(payload: &str) -> Vec<u8> {
        ethernet(ipv4(6, &segment(80, 40_000, payload)))
    }

    #[test]
    fn a_response_keeps_its_head_and_loses_its_body() {
        let text = scrubbed(&[
            response(&format!(
                "HTTP/1.1 200 OK\r\nServer: EC2ws\r\nSet-Cookie: {SECRET}\r\n\r\n{SECRET}"
            )),
            response(SECRET),
        ]);
        assert!(
            text.contains("HTTP/1.1 200 OK\r\nServer: EC2ws\r\nSet-Cookie: xxxx"),
            "{text}"
        );
        assert!(!text.contains("AQAE") && !text.contains("token"), "{text}");
    }

    #[test]
    fn tokens_of_requests_become_numbers() {
        let get = |token: &str| {
            format!(
                "GET /latest/x HTTP/1.1\r\nHost: h\r\nX-AWS-EC2-Metadata-Token: {token}\r\nAuthorization: {SECRET}\r\n\r\n"
            )
        };
        let other = SECRET.replace("made", "else");
        let pipelined = get(SECRET) + &get(&other);
        let text = scrubbed(&[request(&pipelined), request(&get(SECRET)), request(&get("INVALID"))]);
        assert_eq!(text.matches("Token: token1-xx").count(), 2, "{text}");
        assert_eq!(text.matches("Token: token2-xx").count(), 1);
        assert_eq!(text.matches("Token: token3-\r\n").count(), 1);
        assert_eq!(text.matches("GET /latest/x HTTP/1.1\r\nHost: h\r\n").count(), 4);
        assert!(!text.contains("AQAE"));
    }

    #[test]
    fn heads_that_are_cut_anywhere_give_nothing_away() {
        let whole = format!(
            "PUT /latest/api/token HTTP/1.1\r\nx-aws-ec2-metadata-token: {SECRET}\r\nContent-Length: 4\r\n\r\n{SECRET}"
        );
        for cut in 0..=whole.len() {
            let (one, two) = whole.split_at(cut);
            let text = scrubbed(&[request(one), request(two)]);
            for part in 0..SECRET.len() - 5 {
                assert!(!text.contains(&SECRET[part..part + 6]), "cut at {cut}: {text}");
            }
        }
    }

    #[test]
    fn what_is_private_goes_from_harmless_headers() {
        let text = scrubbed(&[request("GET / HTTP/1.1\r\nUser-Agent: a/6.1-mine b-mine-mine\r\n\r\n")]);
        assert!(text.contains("User-Agent: a/6.1xxxxx bxxxxxxxxxx\r\n"), "{text}");
    }

    #[test]
    fn errors_quote_no_payload() {
        let lost = ipv4(6, &segment(80, 40_000, &format!("HTTP/1.1 200 OK\r\n\r\n{SECRET}")));
        let mut icmp = vec![11, 0, 0, 0, 0, 0, 0, 0];
        icmp.extend(&lost);
        let text = scrubbed(&[ethernet(ipv4(1, &icmp))]);
        assert!(!text.contains("AQAE") && !text.contains("HTTP"), "{text}");
        let mut frame = vec![0; 12];
        frame.extend([0x86, 0xdd]);
        let mut v6 = vec![0x60, 0, 0, 0, 0, 0, 58, 64];
        v6.extend([0; 32]);
        v6.extend([3, 0, 0, 0, 0, 0, 0, 0]);
        v6.extend(&lost);
        frame.extend(v6);
        assert!(!scrubbed(&[frame]).contains("AQAE"));
    }

    #[test]
    fn what_is_not_understood_goes() {
        let strange = [
            ethernet(ipv4(17, &[&[0; 8][..], SECRET.as_bytes()].concat())),
            ethernet(ipv4(6, &segment(5000, 5001, SECRET))),
            ethernet([&[0x45, 0, 0, 0, 0, 0, 0, 9][..], &[0; 12], SECRET.as_bytes()].concat()),
            [&[0; 12][..], &[0x12, 0x34], SECRET.as_bytes()].concat(),
            SECRET.as_bytes()[..10].to_vec(),
            ethernet(ipv4(1, &[&[8, 0, 0, 0, 0, 0, 0, 0][..], SECRET.as_bytes()].concat())),
        ];
        let text = scrubbed(&strange);
        assert!(!text.contains("AQAE") && !text.contains("token"), "{text}");
    }

    #[test]
    fn any_bytes_are_taken() {
        let whole = capture(&[request("GET / HTTP/1.1\r\nHost: h\r\n\r\n")]);
        for length in 0..whole.len() {
            let _ = scrub(&whole[..length], "");
            let mut one = ethernet(ipv4(6, &segment(80, 80, "HTTP/1.1 200\r\n\r\nx")));
            one.truncate(length);
            assert_eq!(
                scrub(&capture(&[one.clone()]), "y").unwrap().len(),
                FILE_HEADER + PACKET_HEADER + one.len()
            );
        }
        assert!(scrub(b"no capture at all, is it?", "").is_err());
    }
}
