//! Which system calls may be made after start. All others fail with EPERM and are noted in the kernel's audit log.
//!
//! A list of what is allowed, so that calls that are invented later are refused. It has what the Rust runtime, the C library, the
//! async runtime and this program use, and their likely alternatives; what gives power is narrowed by its arguments: `bpf` reads maps
//! and attaches, but loads no program; `clone` makes threads, no process; memory is writable or executable, never both.

use std::collections::BTreeMap;

use anyhow::Context as _;
use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition as Condition,
    SeccompFilter, SeccompRule as Rule, sock_filter,
};

/// Allowed whatever the arguments are.
const ALLOWED: &[c_long] = &[
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_membarrier,
    // Threads, their end, signals to itself.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    // To drop more.
    libc::SYS_capget,
    libc::SYS_capset,
    // Time.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    // Who and where it is.
    libc::SYS_getcpu,
    libc::SYS_getcwd,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getpgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrlimit,
    libc::SYS_getrusage,
    libc::SYS_getsid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_sysinfo,
    libc::SYS_times,
    libc::SYS_uname,
    // Files that are open.
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fadvise64,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    // Files by name; which ones, Landlock decides.
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_readlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_unlinkat,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    // Sockets, of the families below.
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
];

/// The same under the names that only this architecture still has.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_getdents,
    libc::SYS_getpgrp,
    libc::SYS_lstat,
    libc::SYS_open,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_time,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[c_long] = &[];

/// Netlink to this host's kernel, TCP to clients that scrape metrics and to a collector. Unix sockets have a rule of their own.
const FAMILIES: [i32; 3] = [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
/// Types of sockets, without the flags that are joined to them.
const SOCKET_TYPE: u64 = 0xf;

/// `TIOCSTI` and `TIOCLINUX`: requests of `ioctl` that type into the terminal from which the observer was started. By number, because C
/// libraries give them different types.
const TYPING: [u64; 2] = [0x5412, 0x541c];
/// Options of `prctl` that open this memory to others, or change what `/proc` shows of it.
const OPENING: [i32; 3] = [libc::PR_SET_DUMPABLE, libc::PR_SET_PTRACER, libc::PR_SET_MM];

/// Commands of `bpf`, from `linux/bpf.h`: reading maps, attaching a program that is loaded already, and asking what is attached.
const BPF_COMMANDS: [(u64, &str); 9] = [
    (1, "BPF_MAP_LOOKUP_ELEM"),
    // The reader announces that it goes to sleep.
    (2, "BPF_MAP_UPDATE_ELEM"),
    (4, "BPF_MAP_GET_NEXT_KEY"),
    (8, "BPF_PROG_ATTACH"),
    (9, "BPF_PROG_DETACH"),
    (15, "BPF_OBJ_GET_INFO_BY_FD"),
    (16, "BPF_PROG_QUERY"),
    (28, "BPF_LINK_CREATE"),
    (34, "BPF_LINK_DETACH"),
];

/// Any of `rules` lets the call pass, if all of its conditions hold.
fn rules(rules: &[&[(u8, Op, u64)]]) -> Result<Vec<Rule>, seccompiler::BackendError> {
    rules
        .iter()
        .map(|conditions| {
            let conditions = conditions
                .iter()
                .map(|(argument, operator, value)| Condition::new(*argument, Len::Dword, operator.clone(), *value));
            Rule::new(conditions.collect::<Result<_, _>>()?)
        })
        .collect()
}

fn allowed() -> Result<BTreeMap<i64, Vec<Rule>>, seccompiler::BackendError> {
    let mut calls: BTreeMap<i64, Vec<Rule>> = ALLOWED
        .iter()
        .chain(ALLOWED_HERE)
        .map(|call| (*call, Vec::new()))
        .collect();
    let (write, execute) = (libc::PROT_WRITE as u64, libc::PROT_EXEC as u64);
    // Libraries are still mapped (names of hosts are looked up by one that is loaded when it is wanted).
    calls.insert(
        libc::SYS_mmap,
        rules(&[&[(2, Op::MaskedEq(write), 0)], &[(2, Op::MaskedEq(execute), 0)]])?,
    );
    calls.insert(libc::SYS_mprotect, rules(&[&[(2, Op::MaskedEq(execute), 0)]])?);
    let thread = libc::CLONE_THREAD as u64;
    calls.insert(libc::SYS_clone, rules(&[&[(0, Op::MaskedEq(thread), thread)]])?);
    // Refused by a filter of its own.
    calls.insert(libc::SYS_clone3, Vec::new());
    // `abort` and `raise`. Process 0 would be the process group, which a shell or a service manager may belong to.
    let own = u64::from(std::process::id());
    calls.insert(libc::SYS_tgkill, rules(&[&[(0, Op::Eq, own)]])?);
    calls.insert(libc::SYS_kill, rules(&[&[(0, Op::Eq, own)]])?);
    // Reading its own limits, not setting them. A pointer is compared whole: its lower half may be 0.
    let own_limits = [
        Condition::new(0, Len::Dword, Op::Eq, 0)?,
        Condition::new(2, Len::Qword, Op::Eq, 0)?,
    ];
    calls.insert(libc::SYS_prlimit64, vec![Rule::new(own_limits.into())?]);
    let not_typing = TYPING.map(|request| (1, Op::Ne, request));
    calls.insert(libc::SYS_ioctl, rules(&[&not_typing])?);
    let not_opening = OPENING.map(|option| (0, Op::Ne, option as u64));
    calls.insert(libc::SYS_prctl, rules(&[&not_opening])?);
    // For sockets that are older than the observer; takes CAP_SYS_ADMIN, which is held until they were looked for.
    calls.insert(libc::SYS_setns, rules(&[&[(1, Op::Eq, libc::CLONE_NEWNET as u64)]])?);
    let of_families: Vec<_> = FAMILIES.iter().map(|family| [(0, Op::Eq, *family as u64)]).collect();
    // The service manager is sent datagrams. Runtimes of containers and the message bus, which have power to give, listen on streams.
    let datagrams = [
        (0, Op::Eq, libc::AF_UNIX as u64),
        (1, Op::MaskedEq(SOCKET_TYPE), libc::SOCK_DGRAM as u64),
    ];
    let mut of_families: Vec<&[_]> = of_families.iter().map(<[_; 1]>::as_slice).collect();
    of_families.push(&datagrams);
    calls.insert(libc::SYS_socket, rules(&of_families)?);
    calls.insert(libc::SYS_socketpair, rules(&[&[(0, Op::Eq, libc::AF_UNIX as u64)]])?);
    let commands: Vec<_> = BPF_COMMANDS
        .iter()
        .map(|(command, _)| [(0, Op::Eq, *command)])
        .collect();
    let commands: Vec<&[_]> = commands.iter().map(<[_; 1]>::as_slice).collect();
    calls.insert(libc::SYS_bpf, rules(&commands)?);
    Ok(calls)
}

fn compile(
    calls: BTreeMap<i64, Vec<Rule>>,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Result<BpfProgram, seccompiler::BackendError> {
    SeccompFilter::new(calls, otherwise, listed, std::env::consts::ARCH.try_into()?)?.try_into()
}

/// From now on, for every thread of the process, those that are there and those to come.
pub(super) fn filter_calls() -> anyhow::Result<()> {
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let calls = allowed().context("build the list of system calls")?;
    let list = compile(calls, refuse, SeccompAction::Allow).context("compile the list of system calls")?;
    // Its flags lie in memory, where no filter can look: glibc then takes `clone`, but only if the call fails with ENOSYS.
    let absent = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let no_call = SeccompAction::Errno(libc::ENOSYS as u32);
    let absent = compile(absent, SeccompAction::Allow, no_call).context("compile the list of system calls")?;
    nix::sys::prctl::set_no_new_privs().context("set no_new_privs")?;
    // The list last: it has no place for setting another one.
    apply(&absent)?;
    apply(&list)
}

/// seccompiler's own function has no way to have refusals logged.
fn apply(program: &[sock_filter]) -> anyhow::Result<()> {
    let mut program = libc::sock_fprog {
        len: program.len().try_into().context("the system call filter is too long")?,
        filter: program.as_ptr().cast_mut().cast(),
    };
    let flags = libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_LOG;
    // SAFETY: the kernel copies the program, whose length is right and whose layout is seccompiler's copy of the kernel's.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw mut program,
        )
    };
    match result {
        0 => Ok(()),
        -1 => Err(std::io::Error::last_os_error()).context("install the system call filter"),
        thread => anyhow::bail!("thread {thread} already has a different filter"),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Set in the process that the test starts, for the filter stays for good.
    const INSIDE: &str = "IMDS_OBSERVER_TEST_FILTERED";

    fn errno(result: c_long) -> i32 {
        if result == -1 {
            std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
        } else {
            0
        }
    }

    /// Body of the test in the filtered process.
    fn inside() {
        let earlier = std::thread::spawn(|| {
            std::thread::park();
            // SAFETY: fails, or gives this thread another host name; no pointers.
            errno(unsafe { libc::syscall(libc::SYS_unshare, libc::CLONE_NEWUTS) })
        });
        filter_calls().unwrap();
        earlier.thread().unpark();
        assert_eq!(
            earlier.join().unwrap(),
            libc::EPERM,
            "threads that were there are filtered as well"
        );
        // Threads, files, sockets, time go on.
        assert_eq!(std::thread::spawn(|| 7).join().unwrap(), 7);
        assert!(std::fs::read("/proc/self/status").is_ok());
        assert!(std::net::TcpListener::bind("127.0.0.1:0").is_ok());
        assert!(
            std::os::unix::net::UnixDatagram::unbound().is_ok(),
            "to the service manager"
        );
        assert!(nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_CORE).is_ok());
        std::thread::sleep(std::time::Duration::from_millis(1));
        let refused = Command::new("/bin/true").status().unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        // SAFETY: none of these calls touches memory before it is refused.
        unsafe {
            assert_eq!(
                errno(libc::syscall(libc::SYS_ptrace, libc::PTRACE_TRACEME, 0, 0, 0)),
                libc::EPERM
            );
            assert_eq!(
                errno(libc::syscall(libc::SYS_socket, libc::AF_PACKET, libc::SOCK_RAW, 0)),
                libc::EPERM
            );
            assert_eq!(
                errno(libc::syscall(libc::SYS_bpf, 5, 0, 0)),
                libc::EPERM,
                "BPF_PROG_LOAD"
            );
            assert_eq!(
                errno(libc::syscall(libc::SYS_bpf, 0, 0, 0)),
                libc::EPERM,
                "BPF_MAP_CREATE"
            );
            assert_eq!(errno(libc::syscall(libc::SYS_kill, 1, 0)), libc::EPERM);
            assert_eq!(
                errno(libc::syscall(libc::SYS_kill, 0, 0)),
                libc::EPERM,
                "the process group"
            );
            // A pointer whose lower half is zero; and the limits of another process.
            let crafted = 1_u64 << 32;
            assert_eq!(
                errno(libc::syscall(libc::SYS_prlimit64, 0, libc::RLIMIT_CORE, crafted, 0)),
                libc::EPERM
            );
            assert_eq!(
                errno(libc::syscall(libc::SYS_prlimit64, 1, libc::RLIMIT_CORE, 0, 0)),
                libc::EPERM
            );
            for kind in [
                libc::SOCK_STREAM,
                libc::SOCK_SEQPACKET,
                libc::SOCK_STREAM | libc::SOCK_CLOEXEC,
            ] {
                assert_eq!(
                    errno(libc::syscall(libc::SYS_socket, libc::AF_UNIX, kind, 0)),
                    libc::EPERM
                );
            }
            for request in TYPING {
                assert_eq!(errno(libc::syscall(libc::SYS_ioctl, 0, request, 0)), libc::EPERM);
            }
            for option in OPENING {
                assert_eq!(errno(libc::syscall(libc::SYS_prctl, option, 1, 0, 0, 0)), libc::EPERM);
            }
            assert_eq!(errno(libc::syscall(libc::SYS_clone3, 0, 0)), libc::ENOSYS);
            let both = libc::PROT_WRITE | libc::PROT_EXEC;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            assert_eq!(
                errno(libc::syscall(libc::SYS_mmap, 0, 4096, both, flags, -1, 0)),
                libc::EPERM
            );
        }
    }

    #[test]
    fn what_an_observer_never_does_is_refused_and_the_rest_goes_on() {
        if std::env::var_os(INSIDE).is_some() {
            return inside();
        }
        let own = std::env::current_exe().unwrap();
        let name = "sandbox::seccomp::tests::what_an_observer_never_does_is_refused_and_the_rest_goes_on";
        let output = Command::new(own)
            .args(["--exact", name, "--nocapture"])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn no_call_is_listed_twice() {
        let mut seen = std::collections::BTreeSet::new();
        assert!(ALLOWED.iter().chain(ALLOWED_HERE).all(|call| seen.insert(*call)));
    }
}
