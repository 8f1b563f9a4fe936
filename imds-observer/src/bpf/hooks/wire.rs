//! TTLs on the wire, arrival of responses, and packets for the quota, at the uplinks.

use std::sync::Arc;

use aya::programs::links::LinkOrder;
use aya::programs::tc::{SchedClassifierLinkId, TcAttachOptions};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};

use super::super::clsact::Filters;
use super::super::error::{KernelError, attach_error, explain};
use super::super::kernel::Kernel;
use super::{Alternative, HookSpec, Method};

const HIDES: &str = "TTLs on arrival, lost responses and the packet quota";

pub(super) const INGRESS: HookSpec = HookSpec {
    alternatives: &[Alternative {
        program: "wire_ingress",
        name: "wire-ingress",
        method: Method::Tc,
        target: "",
    }],
    hides: HIDES,
};

pub(super) const EGRESS: HookSpec = HookSpec {
    alternatives: &[Alternative {
        program: "wire_egress",
        name: "wire-egress",
        method: Method::Tc,
        target: "",
    }],
    hides: HIDES,
};

pub(in super::super) struct AttachedUplink {
    /// Kept: the reader's thread may be in another network namespace later.
    name: Arc<str>,
    links: Vec<(&'static str, SchedClassifierLinkId)>,
    /// Where the kernel has no tcx.
    pub(in super::super) filters: Option<Filters>,
}

impl Kernel {
    /// Attaches to an uplink of the current network namespace: tcx where the kernel has it (6.6), else clsact.
    /// Both directions or none: half of an uplink would report lost responses that were not.
    pub fn attach_uplink(&mut self, interface: &str) -> Result<(), KernelError> {
        let index = nix::net::if_::if_nametoindex(interface).map_err(|errno| {
            // The C library reports no such interface where it has no descriptor left to ask with.
            let spare = std::fs::File::open("/dev/null");
            let (why, hint) = match spare {
                Err(error) => (error.to_string(), "raise the limit of open files, see `ulimit -n`"),
                Ok(_) => (
                    errno.desc().to_owned(),
                    "see `ip link` for the interfaces of this network namespace",
                ),
            };
            KernelError::Attach {
                hook: "wire",
                target: interface.to_owned(),
                why,
                hint,
            }
        })?;
        // An interface that was replaced under its index has taken its filters along.
        self.detach_uplink(index);
        let mut uplink = AttachedUplink {
            name: Arc::from(interface),
            links: Vec::new(),
            filters: None,
        };
        let mut methods = Vec::new();
        for (hook, direction) in [(&INGRESS, TcAttachType::Ingress), (&EGRESS, TcAttachType::Egress)] {
            let alternative = &hook.alternatives[0];
            match self.attach_wire(alternative.program, direction, &mut uplink) {
                Ok(method) => methods.push((alternative, method)),
                Err(error) => {
                    self.detach(uplink);
                    return Err(attach_error(alternative.program, interface, &error));
                }
            }
        }
        for (alternative, method) in methods {
            self.note(alternative, method, interface);
        }
        self.uplinks.insert(index, uplink);
        Ok(())
    }

    /// Loads what uplinks that come later will take: by then there is no right to load anything.
    pub fn prepare_uplinks(&mut self) -> Result<(), KernelError> {
        for hook in [&INGRESS, &EGRESS] {
            let program = hook.alternatives[0].program;
            self.loaded::<SchedClassifier>(program, None)
                .map_err(|error| attach_error(program, "uplinks to come", &error))?;
        }
        Ok(())
    }

    fn attach_wire(
        &mut self,
        hook: &'static str,
        direction: TcAttachType,
        uplink: &mut AttachedUplink,
    ) -> Result<&'static str, ProgramError> {
        let program = self.loaded::<SchedClassifier>(hook, None)?;
        // First of all: another tool's program may consume the packet.
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        match program.attach_with_options(&uplink.name, direction, order) {
            Ok(link) => {
                uplink.links.push((hook, link));
                return Ok("tcx");
            }
            Err(tcx) => tracing::debug!("{hook} at {} over tcx: {}", uplink.name, explain(&tcx)),
        }
        let filters = match &mut uplink.filters {
            Some(filters) => filters,
            none => none.insert(Filters::at(&uplink.name)?),
        };
        filters.attach(program, direction, hook)?;
        Ok("clsact")
    }

    /// An uplink has another name now.
    pub fn rename_uplink(&mut self, index: u32, name: &str) {
        let Some(uplink) = self.uplinks.get_mut(&index) else {
            return;
        };
        let before = std::mem::replace(&mut uplink.name, Arc::from(name));
        for attached in &mut self.attached {
            if attached.hook.starts_with("wire-") && attached.target == *before {
                name.clone_into(&mut attached.target);
            }
        }
    }

    /// Detaches from an uplink that no longer exists.
    pub fn detach_uplink(&mut self, index: u32) {
        let Some(uplink) = self.uplinks.remove(&index) else {
            return;
        };
        self.attached
            .retain(|attached| !(attached.hook.starts_with("wire-") && attached.target == *uplink.name));
        self.detach(uplink);
    }

    fn detach(&mut self, uplink: AttachedUplink) {
        for (hook, link) in uplink.links {
            let result = self
                .program::<SchedClassifier>(hook)
                .and_then(|program| program.detach(link));
            // With the interface its programs are gone as well.
            if let Err(error) = result {
                tracing::debug!("detach {hook}: {}", explain(&error));
            }
        }
    }

    /// Name of an uplink that was attached.
    pub fn uplink(&self, index: u32) -> Option<Arc<str>> {
        self.uplinks.get(&index).map(|uplink| Arc::clone(&uplink.name))
    }

    /// Uplinks that are attached.
    pub fn uplinks(&self) -> impl Iterator<Item = (u32, Arc<str>)> + '_ {
        self.uplinks
            .iter()
            .map(|(index, uplink)| (*index, Arc::clone(&uplink.name)))
    }

    /// Records that an uplink's traffic is not visible.
    pub fn miss_uplink(&mut self, why: String) {
        self.miss("wire", why, HIDES);
    }
}
