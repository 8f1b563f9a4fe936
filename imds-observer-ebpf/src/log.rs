//! Debug log of the packets that the hooks process, for developers.

/// Logs a line to user space. Without the feature `log` it does nothing. It must never log payload.
macro_rules! debug {
    ($($argument:tt)+) => {
        #[cfg(feature = "log")]
        aya_log_ebpf::debug!($($argument)+);
    };
}

pub(crate) use debug;
