//! Tokens, and the hashes that replace them.

use std::hash::{BuildHasher, Hasher as _, RandomState};

use siphasher::sip::SipHasher24;

/// Bytes of a token. Has no `Debug`, no `Display` and no way out but [`Hasher::hash`].
pub(super) struct Secret<'a>(&'a [u8]);

impl<'a> Secret<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes.trim_ascii())
    }
}

/// Turns tokens into short hashes that only distinguish them. The salt never leaves the process, so a hash can't be tried against
/// guessed tokens, nor compared between two runs.
#[derive(Clone)]
pub struct Hasher(SipHasher24);

impl std::fmt::Debug for Hasher {
    /// Without the salt.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hasher")
    }
}

impl Hasher {
    /// With a salt of its own, from the operating system's randomness.
    pub fn random() -> Self {
        let word = || RandomState::new().build_hasher().finish();
        Self::with_salt(word(), word())
    }

    /// With a given salt: for tests, and for those who split one run over several tables.
    pub fn with_salt(low: u64, high: u64) -> Self {
        Self(SipHasher24::new_with_keys(low, high))
    }

    /// 12 hexadecimal digits: 48 bits keep thousands of tokens apart. `None` for an empty value.
    pub(super) fn hash(&self, secret: &Secret<'_>) -> Option<String> {
        if secret.0.is_empty() {
            return None;
        }
        let mut hasher = self.0;
        hasher.write(secret.0);
        Some(format!("{:012x}", hasher.finish() >> 16))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_token_same_hash_within_one_salt_only() {
        let (one, two) = (Hasher::with_salt(1, 2), Hasher::with_salt(1, 3));
        let hash = |hasher: &Hasher, token: &[u8]| hasher.hash(&Secret::new(token)).unwrap();
        assert_eq!(hash(&one, b"abc"), hash(&one, b" abc "));
        assert_ne!(hash(&one, b"abc"), hash(&one, b"abd"));
        assert_ne!(hash(&one, b"abc"), hash(&two, b"abc"));
        assert_eq!(hash(&one, b"abc").len(), 12);
        assert_eq!(one.hash(&Secret::new(b" ")), None);
        assert_ne!(hash(&Hasher::random(), b"abc"), hash(&Hasher::random(), b"abc"));
    }
}
