//! Session tokens: issued without being remembered.
//!
//! A token carries its own expiry and a keyed hash over it, so any number can be out at once and a flood of PUTs
//! needs no table here. They look like EC2's: 56 characters, `AQAE...==`.

use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use base64::{Engine, prelude::BASE64_URL_SAFE};

const PREFIX: &str = "AQAE";
/// expiry (8), generation (4), serial (8), hash (16) and one filler byte: 37 bytes are 52 characters in base64.
const RAW: usize = 37;

/// Issues and validates tokens.
pub(super) struct Mint {
    keys: [RandomState; 2],
    serial: AtomicU64,
    generation: AtomicU32,
}

impl Mint {
    pub(super) fn new() -> Self {
        Self {
            keys: [RandomState::new(), RandomState::new()],
            serial: AtomicU64::new(0),
            generation: AtomicU32::new(0),
        }
    }

    /// A token that is good until `expires_ms`.
    pub(super) fn issue(&self, expires_ms: u64) -> String {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        self.seal(expires_ms, self.generation.load(Ordering::Relaxed), serial)
    }

    pub(super) fn is_good(&self, token: &str, now_ms: u64) -> bool {
        let Some(raw) = token
            .strip_prefix(PREFIX)
            .and_then(|rest| BASE64_URL_SAFE.decode(rest).ok())
        else {
            return false;
        };
        let Ok(raw) = <[u8; RAW]>::try_from(raw) else {
            return false;
        };
        let [
            e0,
            e1,
            e2,
            e3,
            e4,
            e5,
            e6,
            e7,
            g0,
            g1,
            g2,
            g3,
            s0,
            s1,
            s2,
            s3,
            s4,
            s5,
            s6,
            s7,
            ..,
        ] = raw;
        let expires_ms = u64::from_le_bytes([e0, e1, e2, e3, e4, e5, e6, e7]);
        let generation = u32::from_le_bytes([g0, g1, g2, g3]);
        let serial = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        now_ms < expires_ms
            && generation == self.generation.load(Ordering::Relaxed)
            && self.seal(expires_ms, generation, serial) == token
    }

    /// From now on every token issued so far is refused.
    pub(super) fn expire_all(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    fn seal(&self, expires_ms: u64, generation: u32, serial: u64) -> String {
        let mut raw = Vec::with_capacity(RAW);
        raw.extend(expires_ms.to_le_bytes());
        raw.extend(generation.to_le_bytes());
        raw.extend(serial.to_le_bytes());
        for key in &self.keys {
            raw.extend(key.hash_one((expires_ms, generation, serial)).to_le_bytes());
        }
        raw.push(0);
        format!("{PREFIX}{}", BASE64_URL_SAFE.encode(raw))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_look_like_ec2s_and_expire() {
        let mint = Mint::new();
        let token = mint.issue(1_000);
        assert_eq!(token.len(), 56);
        assert!(token.starts_with("AQAE") && token.ends_with("=="));
        assert_ne!(token, mint.issue(1_000));
        assert!(mint.is_good(&token, 999));
        assert!(!mint.is_good(&token, 1_000));
        assert!(!Mint::new().is_good(&token, 0), "another server's token");
        for junk in ["", "INVALID", "AQAE", &token[..55], &token.replace("AQAE", "AQAF")] {
            assert!(!mint.is_good(junk, 0), "{junk:?}");
        }
        mint.expire_all();
        assert!(!mint.is_good(&token, 0));
        assert!(mint.is_good(&mint.issue(1_000), 0));
    }
}
