//! Which hooks are there, how is each attached, and what is not visible without it?
//!
//! `imds-observer-ebpf/src/hooks` has the programs, in files of the same names.

mod connect;
mod drop;
mod segment;
mod socket;
pub(super) mod wire;

use aya::programs::{BtfTracePoint, FExit, Program, ProgramError, RawTracePoint, TracePoint};

use super::error::{explain, tracepoint_why};
use super::kernel::Kernel;
use super::load::load;
use super::occupied::CgroupHook;
use crate::record::{Attached, Missing};

/// Limit of recorded missing capabilities.
const MAX_MISSING: usize = 64;

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Cgroup,
    /// tcx (6.6), else clsact.
    Tc,
    Fexit,
    BtfTracepoint,
    RawTracepoint,
    Tracepoint,
}

impl Method {
    /// As in `start.attached`.
    const fn name(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroup",
            Self::Tc => "tc",
            Self::Fexit => "fexit",
            Self::BtfTracepoint => "tp_btf",
            Self::RawTracepoint => "raw_tp",
            Self::Tracepoint => "tracepoint",
        }
    }
}

/// One way to attach a hook.
#[derive(Debug)]
pub(super) struct Alternative {
    /// The program in the object.
    pub(super) program: &'static str,
    /// The hook as in `start.attached` and `start.missing`.
    name: &'static str,
    method: Method,
    /// Kernel function or tracepoint; a cgroup or an uplink is known only at run time.
    pub(super) target: &'static str,
}

#[derive(Debug)]
pub(super) struct HookSpec {
    /// The first that the kernel accepts is used.
    pub(super) alternatives: &'static [Alternative],
    /// What is not visible without the hook.
    hides: &'static str,
}

/// Programs that take the verifier longest come first: they are loaded in this order, in parallel.
pub(super) static HOOKS: [HookSpec; 11] = [
    connect::CONNECT6,
    connect::CONNECT4,
    segment::EGRESS,
    wire::INGRESS,
    wire::EGRESS,
    segment::INGRESS,
    connect::RETURNED,
    drop::DROP,
    socket::STATE,
    socket::ERROR,
    connect::TUPLE,
];

/// Programs that are attached to cgroups and interfaces, where other tools' programs may be too.
pub(super) fn at_objects() -> impl Iterator<Item = &'static str> {
    HOOKS
        .iter()
        .flat_map(|hook| hook.alternatives)
        .filter(|alternative| matches!(alternative.method, Method::Cgroup | Method::Tc))
        .map(|alternative| alternative.program)
}

/// What is not visible while another tool has `hook` of a cgroup to itself.
pub(crate) fn hidden_without(hook: CgroupHook) -> &'static str {
    match hook {
        CgroupHook::Ingress => segment::INGRESS.hides,
        CgroupHook::Egress => segment::EGRESS.hides,
        CgroupHook::SockOps => connect::TUPLE.hides,
        CgroupHook::Connect4 => connect::CONNECT4.hides,
        CgroupHook::Connect6 => connect::CONNECT6.hides,
    }
}

impl Kernel {
    /// Attaches `hook` by the first alternative that this kernel accepts, or records that it is missing. `types`: of this kernel, if programs
    /// may trace its functions.
    fn attach_traced(&mut self, hook: &HookSpec, types: Option<&aya::Btf>) {
        let mut refused = Vec::new();
        for alternative in hook.alternatives {
            let Alternative { method, target, .. } = *alternative;
            match self.trace(alternative, types) {
                Ok(()) => return self.note(alternative, method.name(), target),
                Err(why) => refused.push(format!("{} {target}: {why}", method.name())),
            }
            tracing::debug!("{}", refused[refused.len() - 1]);
        }
        self.miss(hook.name(), refused.join("; "), hook.hides);
    }

    fn trace(&mut self, alternative: &Alternative, types: Option<&aya::Btf>) -> Result<(), String> {
        let Alternative {
            program,
            method,
            target,
            ..
        } = *alternative;
        let why = |error: ProgramError| explain(&error);
        if matches!(method, Method::Fexit | Method::BtfTracepoint) && types.is_none() {
            return Err("needs BTF".to_owned());
        }
        match method {
            Method::Fexit => {
                self.loaded::<FExit>(program, types)
                    .and_then(FExit::attach)
                    .map(drop)
                    .map_err(why)?;
            }
            Method::BtfTracepoint => {
                let program = self.loaded::<BtfTracePoint>(program, types).map_err(why)?;
                program.attach().map_err(why)?;
            }
            Method::RawTracepoint => {
                let program = self.loaded::<RawTracePoint>(program, None).map_err(why)?;
                program.attach(target).map_err(why)?;
            }
            Method::Tracepoint => {
                let (category, name) = target.split_once('/').unwrap_or_default();
                let program = self.loaded::<TracePoint>(program, None).map_err(why)?;
                program.attach(category, name).map_err(|error| tracepoint_why(&error))?;
            }
            Method::Cgroup | Method::Tc => return Err("not a hook of the kernel's functions".to_owned()),
        }
        Ok(())
    }

    /// A program that the verifier has let in, now or before. `types`: of this kernel, which those that trace its functions take.
    fn loaded<T>(&mut self, name: &'static str, types: Option<&aya::Btf>) -> Result<&mut T, ProgramError>
    where
        for<'a> &'a mut T: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        if let Some(program) = self.ebpf.program_mut(name)
            && program.fd().is_err()
        {
            load(name, program, types)?;
        }
        self.program(name)
    }

    fn program<T>(&mut self, name: &'static str) -> Result<&mut T, ProgramError>
    where
        for<'a> &'a mut T: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        self.ebpf
            .program_mut(name)
            .ok_or(ProgramError::UnexpectedProgramType)
            .and_then(TryInto::try_into)
    }

    fn note(&mut self, alternative: &Alternative, method: &str, target: &str) {
        self.attached.push(Attached {
            hook: alternative.name.to_owned(),
            method: method.to_owned(),
            target: target.to_owned(),
        });
    }

    fn miss(&mut self, capability: &str, why: String, hides: &str) {
        // Recorded for the `start` record; later failures are only logged.
        if self.missing.len() < MAX_MISSING {
            self.missing.push(Missing {
                capability: capability.to_owned(),
                why,
                blinds: hides.to_owned(),
            });
        }
    }
}

impl HookSpec {
    /// Name of the last alternative, without which the hook has no program.
    fn name(&self) -> &'static str {
        self.alternatives[self.alternatives.len() - 1].name
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};

    use super::super::kernel::OBJECT;
    use super::{HOOKS, Method};

    #[test]
    fn each_program_of_the_object_belongs_to_a_hook() {
        let object = object::File::parse(OBJECT).unwrap();
        // Functions that programs call are in .text.
        let functions = object.section_by_name(".text").map(|section| section.index());
        let programs: BTreeSet<&str> = object
            .symbols()
            .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_global())
            .filter(|symbol| symbol.section_index() != functions)
            .map(|symbol| symbol.name().unwrap())
            .collect();
        let named: BTreeSet<&str> = HOOKS
            .iter()
            .flat_map(|hook| hook.alternatives)
            .map(|alternative| alternative.program)
            .collect();
        assert_eq!(programs, named);
    }

    #[test]
    fn each_hook_states_what_is_hidden_without_it() {
        for hook in &HOOKS {
            assert!(!hook.hides.is_empty(), "{}", hook.name());
            for alternative in hook.alternatives {
                let known_at_run_time = matches!(alternative.method, Method::Cgroup | Method::Tc);
                assert_eq!(
                    alternative.target.is_empty(),
                    known_at_run_time,
                    "{}",
                    alternative.program
                );
            }
        }
    }
}
