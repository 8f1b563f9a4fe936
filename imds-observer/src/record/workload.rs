//! Which callers belong together: what summaries, findings and preflight group by.
//!
//! A workload is the unit of deployment: a Deployment's pods, a systemd unit, else a program. A [`Group`]
//! is finer: the processes that one verdict may be about. A loop of short-lived processes (`curl` in a shell script)
//! is one group, because each process alone lives too briefly to show a pattern.

use std::hash::{Hash, Hasher};

use super::{Ancestor, Container, Process};
use crate::redact::{self, Role};

/// Limit of bytes of an argument in a name: the rest of a path adds nothing.
const MAX_NAME: usize = 128;

/// Programs that run another one as their child and wait: a new one each time, so they identify no loop.
const WRAPPERS: &[&str] = &["timeout", "sudo", "su", "runuser", "time", "doas", "setsid"];

/// The owner of a pod with this name: without the suffix that a ReplicaSet, Deployment, Job or `DaemonSet` adds.
///
/// Names made by controllers end in `-<5 of the safe alphabet>`, a Deployment's in `-<template hash>-<5>`, a CronJob's
/// in `-<minutes since 1970>-<5>`; a StatefulSet's end in an ordinal. Nothing else is cut.
pub fn pod_owner(name: &str) -> &str {
    // Kubernetes' rand.SafeEncodeString: no vowels, no 0, 1, 3 (they'd make words).
    let safe = |text: &str| text.bytes().all(|byte| b"bcdfghjklmnpqrstvwxz2456789".contains(&byte));
    let Some((owner, suffix)) = name.rsplit_once('-') else {
        return name;
    };
    if owner.is_empty() {
        return name;
    }
    if suffix.len() == 5 && safe(suffix) {
        return match owner.rsplit_once('-') {
            Some((deployment, hash))
                if !deployment.is_empty()
                    && ((6..=10).contains(&hash.len()) && safe(hash) && hash.bytes().any(|b| b.is_ascii_digit())
                        || hash.len() >= 8 && hash.bytes().all(|b| b.is_ascii_digit())) =>
            {
                deployment
            }
            _ => owner,
        };
    }
    if suffix.len() <= 3 && !suffix.is_empty() && suffix.bytes().all(|b| b.is_ascii_digit()) {
        return owner;
    }
    name
}

/// The systemd unit that a cgroup path names, if it is a service: the innermost one.
pub fn systemd_unit(cgroup: &str) -> Option<&str> {
    cgroup
        .rsplit('/')
        .find(|part| part.ends_with(".service") && !part.starts_with("user@"))
}

/// Display name of the program: its executable's name, for an interpreter with the script it runs.
pub fn program(process: &Process) -> String {
    let executable = base_name(process.exe.as_deref().unwrap_or(&process.comm));
    let mut name = clip(executable).to_owned();
    match script(process, executable) {
        Some(Script::File(file)) => {
            name.push(' ');
            name.push_str(clip(file));
        }
        Some(Script::Module(module)) => {
            name.push_str(" -m ");
            name.push_str(clip(module));
        }
        // Code is no name, and may hold secrets.
        Some(Script::Inline(code)) => {
            name.push_str(" -c #");
            name.push_str(&redact::fingerprint(code));
        }
        Some(Script::Hidden(argument)) => {
            name.push_str(" #");
            name.push_str(&redact::fingerprint(argument));
        }
        None => {}
    }
    name
}

/// The workload that a caller belongs to: `payments/api`, `app.service`, `curl`. `None`: nothing is known of it.
pub fn workload(process: Option<&Process>, container: Option<&Container>) -> Option<String> {
    if let Some(container) = container {
        if let Some(pod) = &container.pod {
            if let Some(name) = pod.name.as_deref() {
                let owner = pod_owner(name);
                return Some(match pod.namespace.as_deref() {
                    Some(namespace) => format!("{namespace}/{owner}"),
                    None => owner.to_owned(),
                });
            }
            if let Some(uid) = pod.uid.as_deref() {
                return Some(format!("pod {uid}"));
            }
        }
        return Some(
            container
                .name
                .clone()
                .unwrap_or_else(|| format!("container {}", short(&container.id))),
        );
    }
    let process = process?;
    if let Some(unit) = process.cgroup.as_deref().and_then(systemd_unit) {
        return Some(unit.to_owned());
    }
    Some(program(process))
}

/// The processes that one verdict is about.
#[derive(Clone, Copy, Debug)]
pub struct Group<'a> {
    process: Option<&'a Process>,
    container: Option<&'a Container>,
    /// Client address, where no process is known.
    address: &'a str,
}

impl<'a> Group<'a> {
    /// `local` is the connection's own end, `address:port`; it counts only where nothing better is known.
    pub fn of(process: Option<&'a Process>, container: Option<&'a Container>, local: Option<&'a str>) -> Self {
        let address = local.map_or("", |local| local.rsplit_once(':').map_or(local, |(address, _)| address));
        Self {
            process,
            container,
            address,
        }
    }

    /// The parent that distinguishes two loops: the nearest that isn't a wrapper. None inside pods, containers and services, which distinguish them already.
    fn parent(&self) -> Option<&'a Ancestor> {
        let process = self.process?;
        if self.container.is_some() || process.cgroup.as_deref().and_then(systemd_unit).is_some() {
            return None;
        }
        nearest_parent(process)
    }

    /// Feeds all properties that identify this group into a hasher, without allocating.
    pub fn hash_into(&self, state: &mut impl Hasher) {
        if let Some(container) = self.container {
            match &container.pod {
                Some(pod) if pod.uid.is_some() || pod.name.is_some() => {
                    // The name alone would merge a pod with its successor of the same name; the uid alone isn't always known.
                    (&pod.namespace, &pod.name, &pod.uid, &container.name).hash(state);
                }
                _ => container.id.hash(state),
            }
        }
        match self.process {
            Some(process) => {
                let executable = process.exe.as_deref().unwrap_or(&process.comm);
                executable.hash(state);
                script(process, base_name(executable)).hash(state);
                if self.container.is_none() {
                    process.cgroup.hash(state);
                    self.parent().map(|parent| (parent.pid, &parent.comm)).hash(state);
                }
            }
            None => self.address.hash(state),
        }
    }

    /// Stable within a run, readable, and the same for all processes of the group.
    pub fn key(&self) -> String {
        let program = self.process.map(program);
        if let Some(container) = self.container {
            let place = match &container.pod {
                Some(pod) if pod.name.is_some() || pod.uid.is_some() => {
                    let container_name = container.name.as_deref().unwrap_or("-");
                    format!("pod/{}/{container_name}", pod_name(pod))
                }
                _ => format!("container/{}", short(&container.id)),
            };
            return match program {
                Some(program) => format!("{place}/{program}"),
                None => place,
            };
        }
        let Some(process) = self.process else {
            return if self.address.is_empty() {
                "unknown".to_owned()
            } else {
                format!("address/{}", self.address)
            };
        };
        let program = program.unwrap_or_default();
        let cgroup = process.cgroup.as_deref().unwrap_or("-");
        match self.parent() {
            Some(parent) => format!("process/{cgroup}/{program}/{} {}", parent.comm, parent.pid),
            None => format!("process/{cgroup}/{program}"),
        }
    }

    /// For people: `pod payments/api-7c9d`, `curl (parent bash 4100)`, `python3 app.py (pid 4242)`.
    ///
    /// `processes`: how many of the group have been seen.
    pub fn name(&self, processes: u64) -> String {
        if let Some(container) = self.container {
            return match &container.pod {
                Some(pod) if pod.name.is_some() || pod.uid.is_some() => format!("pod {}", pod_name(pod)),
                _ => match &container.name {
                    Some(name) => format!("container {name}"),
                    None => format!("container {}", short(&container.id)),
                },
            };
        }
        let Some(process) = self.process else {
            return if self.address.is_empty() {
                "unknown client".to_owned()
            } else {
                format!("client {}", self.address)
            };
        };
        let program = program(process);
        let unit = process.cgroup.as_deref().and_then(systemd_unit);
        match (processes > 1, nearest_parent(process), unit) {
            (true, Some(parent), _) => format!("{program} (parent {} {})", parent.comm, parent.pid),
            (_, _, Some(unit)) => format!("{program} ({unit}, pid {})", process.pid),
            _ => format!("{program} (pid {})", process.pid),
        }
    }
}

/// `namespace/name`, as far as known, else the uid.
pub fn pod_name(pod: &super::Pod) -> String {
    match (&pod.namespace, &pod.name) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        (None, Some(name)) => name.clone(),
        _ => pod.uid.clone().unwrap_or_else(|| "unknown".to_owned()),
    }
}

/// The nearest ancestor that isn't a mere wrapper around the command.
pub fn nearest_parent(process: &Process) -> Option<&Ancestor> {
    process
        .ancestors
        .iter()
        .find(|ancestor| !WRAPPERS.contains(&ancestor.comm.as_str()))
        .or_else(|| process.ancestors.first())
}

/// The program that an interpreter runs.
#[derive(Clone, Copy, Hash)]
enum Script<'a> {
    File(&'a str),
    Module(&'a str),
    /// Code on the command line.
    Inline(&'a str),
    /// A script whose name may be a secret.
    Hidden(&'a str),
}

fn script<'a>(process: &'a Process, executable: &str) -> Option<Script<'a>> {
    let arguments = || process.cmdline.iter().flatten().skip(1).map(String::as_str);
    let roles = redact::roles(executable, arguments())?;
    roles.into_iter().zip(arguments()).find_map(|(role, argument)| {
        let part = |at: usize| argument.get(at..).unwrap_or_default();
        let named = |name: &'a str, kind: fn(&'a str) -> Script<'a>| {
            if redact::is_file_name(name) {
                kind(name)
            } else {
                Script::Hidden(name)
            }
        };
        match role {
            Role::Code(at) => Some(Script::Inline(part(at))),
            Role::Module(at) => Some(named(part(at), Script::Module)),
            Role::Script if redact::is_script(argument) => Some(Script::File(base_name(argument))),
            Role::Script => Some(Script::Hidden(argument)),
            Role::Option | Role::Value | Role::Argument => None,
        }
    })
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').find(|part| !part.is_empty()).unwrap_or(path)
}

fn clip(text: &str) -> &str {
    let line = text.lines().next().unwrap_or_default();
    let mut end = line.len().min(MAX_NAME);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    &line[..end]
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Pod;

    fn process(exe: &str, cmdline: &[&str], cgroup: &str, ancestors: &[(u32, &str)]) -> Process {
        Process {
            pid: 4242,
            tid: Some(4242),
            namespace_pid: None,
            comm: base_name(exe).to_owned(),
            exe: Some(exe.to_owned()),
            cmdline: Some(cmdline.iter().map(ToString::to_string).collect()),
            uid: Some(0),
            start_time: None,
            ancestors: ancestors
                .iter()
                .map(|(pid, comm)| Ancestor {
                    pid: *pid,
                    comm: (*comm).to_owned(),
                })
                .collect(),
            cgroup: Some(cgroup.to_owned()),
            netns: None,
        }
    }

    fn pod(name: &str) -> Container {
        Container {
            id: "0".repeat(64),
            runtime: None,
            name: Some("api".to_owned()),
            image: None,
            pod: Some(Pod {
                namespace: Some("payments".to_owned()),
                name: Some(name.to_owned()),
                uid: None,
                identity: None,
            }),
        }
    }

    #[test]
    fn controllers_suffixes_go_and_names_stay() {
        for (name, owner) in [
            ("api-7c9d8b6f5d-x2x4z", "api"),
            ("coredns-5d78c9869d-4jk2b", "coredns"),
            ("aws-node-x2x4z", "aws-node"),
            ("backup-28391040-x2x4z", "backup"),
            ("db-0", "db"),
            ("api", "api"),
            ("my-api", "my-api"),
            ("-x2x4z", "-x2x4z"),
            ("", ""),
        ] {
            assert_eq!(pod_owner(name), owner, "{name}");
        }
    }

    #[test]
    fn workloads_by_pod_unit_program() {
        let python = process("/usr/bin/python3.11", &["python3", "-u", "/srv/app.py"], "/", &[]);
        assert_eq!(workload(Some(&python), None).unwrap(), "python3.11 app.py");
        let unit = process("/opt/app", &["app"], "/system.slice/app.service", &[]);
        assert_eq!(workload(Some(&unit), None).unwrap(), "app.service");
        assert_eq!(
            workload(Some(&python), Some(&pod("api-7c9d8b6f5d-x2x4z"))).unwrap(),
            "payments/api"
        );
        assert_eq!(workload(None, None), None);
        for (arguments, name) in [
            (
                &["python3", "-W", "error", "-m", "app.main"][..],
                "python3.11 -m app.main",
            ),
            (&["python3"], "python3.11"),
            (&["python3", "-c"], "python3.11"),
        ] {
            let process = process("/usr/bin/python3.11", arguments, "/", &[]);
            assert_eq!(program(&process), name);
        }
        let java = process(
            "/usr/bin/java",
            &["java", "-Xmx1g", "-cp", "/lib/a.jar", "com.example.Main"],
            "/",
            &[],
        );
        assert_eq!(program(&java), "java com.example.Main");
    }

    #[test]
    fn a_shell_loop_is_one_group_and_two_loops_are_two() {
        let first = process(
            "/usr/bin/curl",
            &["curl", "-s"],
            "/",
            &[(50, "timeout"), (4100, "bash")],
        );
        let mut second = process(
            "/usr/bin/curl",
            &["curl", "-v"],
            "/",
            &[(51, "timeout"), (4100, "bash")],
        );
        second.pid = 4243;
        let other = process("/usr/bin/curl", &["curl"], "/", &[(4200, "bash")]);
        let key = |process| Group::of(Some(process), None, None).key();
        assert_eq!(key(&first), key(&second));
        assert_ne!(key(&first), key(&other));
        assert_eq!(Group::of(Some(&first), None, None).name(2), "curl (parent bash 4100)");
        assert_eq!(Group::of(None, None, Some("10.0.0.1:99")).name(1), "client 10.0.0.1");
    }
}
