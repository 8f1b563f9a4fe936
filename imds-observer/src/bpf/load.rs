//! Hands programs to the verifier, several at once, within the limits of this process.

use std::sync::{Mutex, PoisonError};
use std::thread;

use aya::Ebpf;
use aya::programs::{Program, ProgramError};

use super::error::explain;
use super::hooks::HOOKS;

/// Programs that are looked at at once: the longest takes a third of the whole.
const MOST_AT_ONCE: usize = 4;

/// Lets the verifier look at several programs at once: that is most of the time that starting takes. Each hook's first alternative is loaded;
/// what the kernel refuses is tried again, and reported, where it would be attached.
pub(super) fn load_ahead(ebpf: &mut Ebpf, types: Option<&aya::Btf>) {
    let index = |name: &str| HOOKS.iter().position(|hook| hook.alternatives[0].program == name);
    let mut programs: Vec<(usize, &mut Program)> = ebpf
        .programs_mut()
        .filter_map(|(name, program)| Some((index(name)?, program)))
        .collect();
    programs.sort_by_key(|(index, _)| *index);
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let programs = Mutex::new(programs.into_iter());
    let next = || programs.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while let Some((index, program)) = next() {
            let name = HOOKS[index].alternatives[0].program;
            if let Err(error) = load(name, program, types) {
                tracing::debug!("load {name} ahead: {}", explain(&error));
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..processors.min(MOST_AT_ONCE) {
            scope.spawn(work);
        }
        work();
    });
}

/// Hands a program to the verifier.
pub(super) fn load(name: &str, program: &mut Program, types: Option<&aya::Btf>) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSkb(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::RawTracePoint(program) => program.load(),
        Program::TracePoint(program) => program.load(),
        Program::BtfTracePoint(program) => program.load(traced(name), types.ok_or(ProgramError::NotLoaded)?),
        Program::FExit(program) => program.load(traced(name), types.ok_or(ProgramError::NotLoaded)?),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// The tracepoint or kernel function that a program traces.
fn traced(name: &str) -> &'static str {
    HOOKS
        .iter()
        .flat_map(|hook| hook.alternatives)
        .find(|alternative| alternative.program == name)
        .map_or("", |alternative| alternative.target)
}

/// Kernels before 5.11 charge maps against this limit. If it can't be raised, loading fails with its name.
pub(super) fn raise_locked_memory() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
    if setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).is_err()
        && let Ok((_, hard)) = getrlimit(Resource::RLIMIT_MEMLOCK)
    {
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard);
    }
}

/// Parsing this kernel's types took tens of megabytes for a moment. They are free now, but the allocator keeps them unless asked.
pub(super) fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers; may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
