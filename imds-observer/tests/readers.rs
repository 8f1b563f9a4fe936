//! Every file that reads untrusted bytes must have a fuzz target. A new reader without one fails here.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Functions that read untrusted bytes. A file that uses one is a reader, or is listed below with the reason why it isn't.
const SIGNS: &[&str] = &[
    "serde_json::from_slice",
    "serde_json::from_str",
    "from_utf8_lossy",
    "std::str::from_utf8",
    "pcap_parser",
    "NlasIterator",
    "from_ne_bytes",
    "from_be_bytes",
    "from_le_bytes",
    "Message::decode",
];

/// Readers, and the targets that reach them.
const READERS: &[(&str, &str)] = &[
    ("attribution/cgroup.rs", "host_files"),
    ("attribution/names.rs", "host_files"),
    ("attribution/process.rs", "host_files"),
    ("bpf/btf.rs", "btf"),
    ("bpf/decode.rs", "kernel_event"),
    ("host/firewall", "kernel_answers"),
    ("host/netlink.rs", "kernel_answers"),
    ("http/", "heads"),
    ("imds/", "heads"),
    ("redact/", "redaction"),
    ("record/mod.rs", "trace"),
    ("record/process.rs", "host_files"),
    ("source/capture/", "trace"),
    ("source/ndjson/", "trace"),
    ("source/input.rs", "trace"),
];

/// Files that read bytes of this program, of its user, or of the kernel in a form in which errors don't matter, each with the reason.
const OTHERS: &[(&str, &str)] = &[
    ("attribution/fuzz.rs", "a fuzz target"),
    (
        "attribution/sockets.rs",
        "numbers of sockets that this kernel's cgroup and netns give; no text",
    ),
    ("cli/completions.rs", "what clap has made"),
    (
        "doctor/proxies.rs",
        "environment of processes, shown escaped; any_bytes in its tests",
    ),
    ("exchange/fuzz.rs", "a fuzz target"),
    (
        "host/ethtool.rs",
        "the driver's counters; any_bytes_are_survived in its tests",
    ),
    (
        "host/filters.rs",
        "the kernel's filters; any_bytes_are_survived in its tests",
    ),
    (
        "host/uplinks.rs",
        "routes and rules that the kernel reports, read by the netlink crates",
    ),
    (
        "exec/supervisor.rs",
        "five bytes of the other half of this program over a socket pair, and PIDs of /proc",
    ),
    (
        "cli/exec/matrix.rs",
        "the report of this program for one setting; another form is an error",
    ),
    (
        "host/owner.rs",
        "kubelet's arguments and the ECS agent's file, as text; names are checked, and its tests have a hostile one",
    ),
    ("redact/fuzz.rs", "a fuzz target"),
    (
        "doctor/agents.rs",
        "the kernel's list of listening sockets, of which two words a line are parsed as numbers",
    ),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_reader_of_foreign_bytes_has_a_fuzz_target() {
    let targets: BTreeSet<String> = fs::read_dir(root().join("../fuzz/fuzz_targets"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let (base, mut files, mut unknown) = (root().join("src"), Vec::new(), Vec::new());
    sources(&base, &mut files);
    for file in files {
        let name = file.strip_prefix(&base).unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&file).unwrap();
        // Tests create their own bytes; only the code before them is a reader.
        let code = text.split("#[cfg(test)]").next().unwrap();
        if name.ends_with("tests.rs") || !SIGNS.iter().any(|sign| code.contains(sign)) {
            continue;
        }
        let known = READERS.iter().chain(OTHERS).any(|(reader, _)| name.starts_with(reader));
        if !known {
            unknown.push(name);
        }
    }
    assert!(
        unknown.is_empty(),
        "these read bytes; name a fuzz target for each, or why none is needed: {unknown:#?}"
    );
    for (reader, target) in READERS {
        assert!(targets.contains(*target), "{reader}: there is no fuzz target {target}");
    }
    let used: BTreeSet<&str> = READERS
        .iter()
        .map(|(_, target)| *target)
        .chain(["flow_table"])
        .collect();
    let idle: Vec<&String> = targets
        .iter()
        .filter(|target| !used.contains(target.as_str()))
        .collect();
    assert!(idle.is_empty(), "targets that no reader names: {idle:?}");
}
