//! TCP sequence numbers, which wrap.

/// A sequence number. Has no order of its own: only a distance to another one means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Seq(pub u32);

impl Seq {
    /// Bytes from `other` to this one; negative if this one comes first.
    pub fn from(self, other: Self) -> i32 {
        self.0.wrapping_sub(other.0) as i32
    }

    #[must_use]
    pub fn plus(self, bytes: u32) -> Self {
        Self(self.0.wrapping_add(bytes))
    }

    /// The later of two.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        if other.from(self) > 0 { other } else { self }
    }

    /// Whether this one lies in the `len` bytes from `start` on.
    pub fn within(self, start: Self, len: u32) -> bool {
        self.0.wrapping_sub(start.0) < len
    }
}

#[cfg(test)]
mod tests {
    use super::Seq;

    #[test]
    fn wraps() {
        let (before, after) = (Seq(u32::MAX), Seq(1));
        assert_eq!(after.from(before), 2);
        assert_eq!(before.from(after), -2);
        assert_eq!(before.max(after), after);
        assert_eq!(before.plus(2), after);
        assert!(Seq(0).within(before, 2) && !after.within(before, 2));
    }
}
