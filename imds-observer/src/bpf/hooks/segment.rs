//! Requests with their sender, and delivery of responses, at the sockets' cgroup.

use std::fs::File;
use std::path::Path;

use aya::programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType};

use super::super::error::{KernelError, cgroup_error};
use super::super::kernel::Kernel;
use super::super::occupied::CgroupHook;
use super::{Alternative, HookSpec, Method};

pub(super) const INGRESS: HookSpec = HookSpec {
    alternatives: &[Alternative {
        program: "segment_ingress",
        name: "segment-ingress",
        method: Method::Cgroup,
        target: "",
    }],
    hides: "everything: the observer can't start there",
};

pub(super) const EGRESS: HookSpec = HookSpec {
    alternatives: &[Alternative {
        program: "segment_egress",
        name: "segment-egress",
        method: Method::Cgroup,
        target: "",
    }],
    hides: "everything: the observer can't start there",
};

impl Kernel {
    /// Both or the observer doesn't start.
    pub(in super::super) fn attach_segment(&mut self, cgroup: &File, path: &Path) -> Result<(), KernelError> {
        // Ingress first: an answer must not be missed because its request was seen a moment before.
        for (hook, direction, kind) in [
            (&INGRESS, CgroupSkbAttachType::Ingress, CgroupHook::Ingress),
            (&EGRESS, CgroupSkbAttachType::Egress, CgroupHook::Egress),
        ] {
            let alternative = &hook.alternatives[0];
            self.loaded::<CgroupSkb>(alternative.program, None)
                .and_then(|program| program.attach(cgroup, direction, CgroupAttachMode::Single))
                .map_err(|error| cgroup_error(alternative.program, path, kind, &error))?;
            self.note(alternative, alternative.method.name(), &path.display().to_string());
        }
        Ok(())
    }
}
