//! Which programs of other tools are where the observer's are, or would be?
//!
//! What such a program does can't be read from it. It is named, so that a denial can be traced to it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::check::{Check, CheckState};
use crate::bpf::occupied::{CgroupHook, Occupant, cgroup_occupants, exclusive_holder, interface_occupants, is_ours};
use crate::bpf::{CLSACT_HANDLES, cgroup2_mount, hidden_without};
use crate::host::Uplink;
use crate::host::filters::{Filter, filters};
use crate::record::Code;

/// Limit of reported programs.
const MAX_REPORTED: usize = 32;
/// Cgroups that are named of each.
const MAX_NAMED: usize = 4;

pub(super) fn checks(uplinks: &[Uplink], cgroup: Option<&Path>) -> Vec<Check> {
    let mut checks = Vec::new();
    match cgroup {
        Some(root) => at_cgroups(root, &mut checks),
        None => checks.push(Check::unread("cgroup-program", "no cgroup2 is mounted")),
    }
    for uplink in uplinks {
        checks.extend(at_interface(uplink).into_iter().map(|check| check.about(&uplink.name)));
    }
    checks
}

fn at_cgroups(root: &Path, checks: &mut Vec<Check>) {
    let name = "cgroup-program";
    let found = match cgroup_occupants(root, cgroup2_mount().as_deref(), &CgroupHook::ALL) {
        Ok(found) => found,
        Err(error) => {
            let check = Check::unread(name, format!("{}: {error}", root.display()));
            return checks.push(privileges(check, &error));
        }
    };
    for hook in CgroupHook::ALL {
        if let Some(holder) = exclusive_holder(root, hook) {
            checks.push(
                Check::new("exclusive-program", CheckState::Missing, format!("{holder}, at {hook}"))
                    .about(&root.display())
                    .blinding(hidden_without(hook))
                    .remedied(
                        "Configure that tool to attach with BPF_F_ALLOW_MULTI, or observe another cgroup with --cgroup.",
                        [],
                    ),
            );
        }
    }
    let before = checks.len();
    checks.extend(reported(&found.programs));
    if checks.len() == before {
        let found = format!(
            "no other tool's program is attached to the observer's hooks ({} cgroups checked)",
            found.paths.len()
        );
        checks.push(Check::ok(name, found));
    }
    if found.incomplete {
        checks.push(Check::unread(name, "too many cgroups: some were not checked"));
    }
}

/// One check for each program and hook, wherever it is attached.
fn reported(programs: &[Occupant]) -> Vec<Check> {
    let mut groups: BTreeMap<(String, String), Vec<&Occupant>> = BTreeMap::new();
    for program in programs
        .iter()
        .filter(|program| !program.name.as_deref().is_some_and(is_ours))
    {
        let shown = match &program.name {
            Some(name) => name.clone(),
            None => format!("id {}", program.id),
        };
        groups.entry((program.hook.clone(), shown)).or_default().push(program);
    }
    groups
        .into_iter()
        .take(MAX_REPORTED)
        .map(|((hook, shown), programs)| {
            let mut at: Vec<&str> = programs.iter().map(|program| program.target.as_str()).collect();
            at.dedup();
            let more = match at.len().saturating_sub(MAX_NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            at.truncate(MAX_NAMED);
            let found = format!("program {shown} at {hook} of {}{more}", at.join(", "));
            let connects = [CgroupHook::Connect4, CgroupHook::Connect6];
            Check::new("cgroup-program", CheckState::Note, found)
                .meaning(if connects.iter().any(|connect| connect.to_string() == hook) {
                    "may deny connections of processes in that cgroup, or rewrite the address (socket load balancing); connections rewritten to an address other than an endpoint's are not recorded"
                } else {
                    "may deny requests of processes in that cgroup; systemd's sd_fw_* programs do so for IPAddressDeny="
                })
                .remedied(
                    "Inspect the program if the observer reports denied-by-policy.",
                    ["bpftool cgroup tree".to_owned()],
                )
                .reported_as(Code::DeniedByPolicy)
        })
        .collect()
}

fn privileges(check: Check, error: &io::Error) -> Check {
    if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) {
        return check.remedied("Run with CAP_NET_ADMIN.", []);
    }
    check
}

fn at_interface(uplink: &Uplink) -> Vec<Check> {
    let name = "interface-program";
    let mut checks = Vec::new();
    let mut occupied = |hook: &str, program: String| {
        checks.push(
            Check::new(name, CheckState::Note, format!("{program} at {hook}"))
                .meaning("may drop or redirect requests or responses; the observer's program runs first")
                .remedied(
                    "Inspect the program if the observer reports denied-by-policy.",
                    [
                        format!("bpftool net show dev {}", uplink.name),
                        format!("tc filter show dev {} ingress", uplink.name),
                    ],
                )
                .reported_as(Code::DeniedByPolicy),
        );
    };
    let mut unread = None;
    match interface_occupants(uplink.ifindex, &uplink.name) {
        Ok(programs) => {
            for program in programs
                .iter()
                .filter(|program| !program.name.as_deref().is_some_and(is_ours))
            {
                let shown = program.name.clone().unwrap_or_else(|| format!("id {}", program.id));
                occupied(&program.hook, format!("program {shown}"));
            }
        }
        Err(error) => unread = Some(privileges(Check::unread(name, format!("tcx: {error}")), &error)),
    }
    match filters(uplink.ifindex) {
        Ok(filters) => {
            for filter in filters.iter().filter(|filter| !own(filter)) {
                let named = filter.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
                occupied(filter.hook, format!("filter {}{named}", filter.kind));
            }
        }
        Err(error) => unread = Some(Check::unread(name, format!("clsact: {error}"))),
    }
    if checks.is_empty() && unread.is_none() {
        checks.push(Check::ok(name, "no other tool's program"));
    }
    checks.extend(unread);
    checks
}

fn own(filter: &Filter) -> bool {
    filter.handle >> 16 == u32::from(CLSACT_HANDLES) || filter.name.as_deref().is_some_and(is_ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_reported_once_with_the_cgroups_it_is_at() {
        let program = |target: &str, name: &str| Occupant {
            hook: "connect4".into(),
            target: target.into(),
            id: 1,
            name: Some(name.into()),
        };
        let programs = [
            program("/", "connect4"),
            program("/", "deny"),
            program("/a", "deny"),
            program("/b", "deny"),
        ];
        let checks = reported(&programs);
        assert_eq!(checks.len(), 1);
        assert_eq!(checks[0].found, "program deny at connect4 of /, /a, /b");
    }
}
