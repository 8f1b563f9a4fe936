//! Linux's error numbers.
//!
//! Records and kernel events hold the numbers of the host that was observed, so they have the same meaning wherever a trace is read:
//! `ECONNREFUSED` is 111 here and 61 on a Mac. All Linux targets of this program share them (asm-generic/errno.h).

pub(super) const EPERM: i32 = 1;
pub(super) const EINTR: i32 = 4;
pub(super) const EAGAIN: i32 = 11;
pub(super) const EACCES: i32 = 13;
pub(super) const EINVAL: i32 = 22;
pub(super) const ENETDOWN: i32 = 100;
pub(super) const ENETUNREACH: i32 = 101;
pub(super) const ECONNRESET: i32 = 104;
pub(super) const EISCONN: i32 = 106;
pub(super) const ETIMEDOUT: i32 = 110;
pub(super) const ECONNREFUSED: i32 = 111;
pub(super) const EHOSTDOWN: i32 = 112;
pub(super) const EHOSTUNREACH: i32 = 113;
pub(super) const EALREADY: i32 = 114;
pub(super) const EINPROGRESS: i32 = 115;

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    fn the_numbers_are_this_kernels() {
        macro_rules! same {
            ($($name:ident)*) => { $(assert_eq!(super::$name, libc::$name, stringify!($name));)* };
        }
        same!(EPERM EINTR EAGAIN EACCES EINVAL ENETDOWN ENETUNREACH ECONNRESET EISCONN ETIMEDOUT ECONNREFUSED EHOSTDOWN);
        same!(EHOSTUNREACH EALREADY EINPROGRESS);
    }
}
