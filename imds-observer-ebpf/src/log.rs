//! Debug log of what the hooks take up, for their developers.

/// A line for user space's log; without the feature `log` nothing at all. Never a byte of payload.
macro_rules! debug {
    ($($argument:tt)+) => {
        #[cfg(feature = "log")]
        aya_log_ebpf::debug!($($argument)+);
    };
}

pub(crate) use debug;
