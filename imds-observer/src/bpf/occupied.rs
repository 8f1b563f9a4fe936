//! Which programs of other tools are at our hooks, and which of them keep ours away?
//!
//! A program that was attached without `BPF_F_ALLOW_MULTI` has its cgroup, and unless it may be overridden all below, to
//! itself: attaching there gives EPERM, which looks like a missing capability.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::hooks;

/// `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum CgroupHook {
    Ingress = 0,
    Egress = 1,
    SockOps = 3,
    Connect4 = 10,
    Connect6 = 11,
}

impl CgroupHook {
    pub const ALL: [Self; 5] = [
        Self::Ingress,
        Self::Egress,
        Self::SockOps,
        Self::Connect4,
        Self::Connect6,
    ];
}

impl fmt::Display for CgroupHook {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Ingress => "cgroup_skb ingress",
            Self::Egress => "cgroup_skb egress",
            Self::SockOps => "sock_ops",
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
        })
    }
}

/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS` (since 6.6).
const TCX: [(&str, u32); 2] = [("tcx ingress", 46), ("tcx egress", 47)];

const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_F_ALLOW_OVERRIDE: u32 = 1;
const BPF_F_ALLOW_MULTI: u32 = 2;
/// Programs that are looked at; a cgroup holds 64 at most.
const MAX_PROGRAMS: usize = 64;

/// Cgroups that are looked at; a node with a thousand pods has some five thousand.
const MAX_CGROUPS: usize = 16_384;

/// `union bpf_attr` for `BPF_PROG_QUERY`, whole: asked for interfaces, the kernel writes its last field whatever size is passed.
/// Kernels that know only its beginning take the rest as zero.
#[repr(C)]
#[derive(Default)]
struct Query {
    /// Or an interface's index.
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Flags and ids of what is attached at a cgroup (a descriptor) or an interface (an index) itself.
fn query(target: u32, attach_type: u32) -> io::Result<(u32, Vec<u32>)> {
    let mut ids = [0_u32; MAX_PROGRAMS];
    let mut query = Query {
        target,
        attach_type,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: ids.len() as u32,
        ..Query::default()
    };
    // SAFETY: the attributes and the array that they point to live through the call and have the stated sizes.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
    nix::errno::Errno::result(result)?;
    let count = (query.prog_cnt as usize).min(ids.len());
    Ok((query.attach_flags, ids[..count].to_vec()))
}

fn attached(cgroup: &File, hook: CgroupHook) -> io::Result<(u32, Vec<u32>)> {
    query(cgroup.as_raw_fd() as u32, hook as u32)
}

/// A program at a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occupant {
    /// `connect4`, `tcx ingress`.
    pub hook: String,
    /// A cgroup, as `/proc/PID/cgroup` shows it, or an interface.
    pub target: String,
    pub id: u32,
    /// `None`: not readable (needs CAP_SYS_ADMIN).
    pub name: Option<String>,
}

/// Programs and paths that were found in a tree of cgroups.
#[derive(Debug, Default)]
pub struct CgroupOccupants {
    pub programs: Vec<Occupant>,
    /// Paths by id, as nftables names cgroups.
    pub paths: HashMap<u64, String>,
    /// There are more cgroups than were looked at.
    pub incomplete: bool,
}

/// `path` below `root` as `/proc/PID/cgroup` shows it.
fn shown(root: &Path, mount: Option<&Path>, path: &Path) -> String {
    let prefix = mount
        .and_then(|mount| root.strip_prefix(mount).ok())
        .unwrap_or(Path::new(""));
    let shown = format!("/{}", prefix.join(path).display());
    match shown.trim_end_matches('/') {
        "" => "/".to_owned(),
        trimmed => trimmed.to_owned(),
    }
}

/// Programs at these hooks of `root` and of all cgroups below, with paths as from `mount`. Needs CAP_NET_ADMIN.
pub fn cgroup_occupants(root: &Path, mount: Option<&Path>, hooks: &[CgroupHook]) -> io::Result<CgroupOccupants> {
    // The first question shows whether we may ask at all.
    attached(&File::open(root)?, CgroupHook::Egress)?;
    let mut found = CgroupOccupants::default();
    let mut waiting = vec![PathBuf::new()];
    while let Some(path) = waiting.pop() {
        if found.paths.len() == MAX_CGROUPS {
            found.incomplete = true;
            break;
        }
        // A cgroup may go away at any time.
        let Ok(directory) = File::open(root.join(&path)) else {
            continue;
        };
        let shown = shown(root, mount, &path);
        if let Ok(metadata) = directory.metadata() {
            found.paths.insert(metadata.ino(), shown.clone());
        }
        for hook in hooks {
            let Ok((_, ids)) = attached(&directory, *hook) else {
                continue;
            };
            found.programs.extend(ids.into_iter().map(|id| Occupant {
                hook: hook.to_string(),
                target: shown.clone(),
                id,
                name: None,
            }));
        }
        if let Ok(entries) = fs::read_dir(root.join(&path)) {
            let below = entries
                .filter_map(Result::ok)
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| path.join(entry.file_name()));
            waiting.extend(below);
        }
    }
    // Mostly there are none, and asking for names means opening every program of the host.
    if !found.programs.is_empty() {
        let names = Names::read();
        for occupant in &mut found.programs {
            occupant.name = names.of(occupant.id);
        }
    }
    Ok(found)
}

/// Programs at an interface over tcx. Before 6.6 this hook doesn't exist, and the result is empty.
pub fn interface_occupants(ifindex: u32, name: &str) -> io::Result<Vec<Occupant>> {
    let names = Names::read();
    let mut found = Vec::new();
    for (hook, attach_type) in TCX {
        let (_, ids) = match query(ifindex, attach_type) {
            Ok(attached) => attached,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(found),
            Err(error) => return Err(error),
        };
        found.extend(ids.into_iter().map(|id| Occupant {
            hook: hook.to_owned(),
            target: name.to_owned(),
            id,
            name: names.of(id),
        }));
    }
    Ok(found)
}

/// Names of the loaded programs, where we may ask for them.
pub struct Names(HashMap<u32, String>);

impl Names {
    pub fn read() -> Self {
        let named = aya::programs::loaded_programs()
            .map_while(Result::ok)
            .filter_map(|program| Some((program.id(), program.name_as_str()?.to_owned())))
            .filter(|(_, name)| !name.is_empty());
        Self(named.collect())
    }

    pub fn of(&self, id: u32) -> Option<String> {
        self.0.get(&id).cloned()
    }
}

/// Whether a program of this name is an observer's: the kernel keeps 15 bytes of it.
pub fn is_ours(name: &str) -> bool {
    hooks::at_objects().any(|program| program == name)
}

/// Programs at `connect4` and `connect6` of the cgroups below `cgroup`. They run before those of `cgroup` itself, unless these have
/// `BPF_F_PREORDER`.
pub fn below_at_connect(cgroup: &Path, mount: Option<&Path>) -> Vec<Occupant> {
    let own = shown(cgroup, mount, Path::new(""));
    let mut found = cgroup_occupants(cgroup, mount, &[CgroupHook::Connect4, CgroupHook::Connect6])
        .map(|found| found.programs)
        .unwrap_or_default();
    found.retain(|occupant| occupant.target != own);
    found
}

/// Programs of other tools at `connect4` and `connect6` that run for a socket of `cgroup` or below: there, and in those above. Empty where
/// we may not ask.
pub fn others_at_connect(cgroup: &Path, mount: Option<&Path>) -> Vec<Occupant> {
    const HOOKS: [CgroupHook; 2] = [CgroupHook::Connect4, CgroupHook::Connect6];
    let mut found = cgroup_occupants(cgroup, mount, &HOOKS)
        .map(|found| found.programs)
        .unwrap_or_default();
    let above = cgroup
        .ancestors()
        .skip(1)
        .take_while(|path| mount.is_some_and(|mount| path.starts_with(mount)));
    for path in above {
        let Ok(directory) = File::open(path) else { continue };
        for hook in HOOKS {
            let (_, ids) = attached(&directory, hook).unwrap_or_default();
            found.extend(ids.into_iter().map(|id| Occupant {
                hook: hook.to_string(),
                target: path.display().to_string(),
                id,
                name: None,
            }));
        }
    }
    if found.iter().any(|occupant| occupant.name.is_none()) {
        let names = Names::read();
        for occupant in &mut found {
            occupant.name = occupant.name.take().or_else(|| names.of(occupant.id));
        }
    }
    found.retain(|occupant| !occupant.name.as_deref().is_some_and(is_ours));
    found
}

/// The programs, and how many more of them there are than one line holds.
pub fn listed(programs: &[&Occupant]) -> String {
    const MOST: usize = 4;
    let name = |occupant: &&Occupant| {
        let Occupant { hook, target, id, name } = *occupant;
        match name {
            Some(name) => format!("program {name:?} (id {id}) at {hook} of {target}"),
            None => format!("another tool's program (id {id}) at {hook} of {target}"),
        }
    };
    let mut text: Vec<String> = programs.iter().take(MOST).map(name).collect();
    if programs.len() > MOST {
        text.push(format!("{} more", programs.len() - MOST));
    }
    text.join(", ")
}

/// Names the program that has `cgroup` to itself at this hook. `None`: there is none, or the kernel doesn't report it.
pub fn exclusive_holder(cgroup: &Path, hook: CgroupHook) -> Option<String> {
    let tolerated = |own: bool| {
        if own {
            BPF_F_ALLOW_MULTI
        } else {
            BPF_F_ALLOW_MULTI | BPF_F_ALLOW_OVERRIDE
        }
    };
    cgroup.ancestors().enumerate().find_map(|(above, path)| {
        let (flags, ids) = attached(&File::open(path).ok()?, hook).ok()?;
        if ids.is_empty() || flags & tolerated(above == 0) != 0 {
            return None;
        }
        let names: Vec<String> = ids.iter().map(|id| describe(*id)).collect();
        Some(format!("{} holds {} exclusively", names.join(", "), path.display()))
    })
}

/// A program by its id, and by its name where we may ask for it.
fn describe(id: u32) -> String {
    let name = aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(str::to_owned));
    match name {
        Some(name) if !name.is_empty() => format!("program {name:?} (id {id})"),
        _ => format!("another tool's program (id {id})"),
    }
}
