//! Memory of the eBPF maps by limit, as the kernel reports it for each map of the observer.

use std::path::Path;
use std::{fs, io};

use anyhow::{Context as _, Result, ensure};
use imds_observer_lab::topology::{Lab, LabOptions};

use crate::numbers::Table;
use crate::observer::Observer;

/// Map types as numbered in `bpf.h`.
const ARRAY: u64 = 2;
const LRU_HASH: u64 = 9;
const LRU_PERCPU_HASH: u64 = 10;
const RING_BUFFER: u64 = 27;

/// Limit, and the properties that identify its map: type, number of entries, size of a key in bytes.
const LIMITS: [(&str, u64, u64, u64); 7] = [
    ("kernel.ring_bytes", RING_BUFFER, 4 << 20, 0),
    ("kernel.flows", LRU_HASH, 32_768, 8),
    ("kernel.tuples", LRU_HASH, 65_536, 36),
    ("kernel.sequences", LRU_HASH, 16_384, 8),
    ("kernel.connecting", ARRAY, 8_192, 4),
    ("kernel.processes", LRU_HASH, 16_384, 24),
    ("kernel.interfaces", LRU_PERCPU_HASH, 256, 4),
];

/// A map as `/proc/PID/fdinfo` describes it.
struct Map {
    id: u64,
    kind: u64,
    entries: u64,
    key_bytes: u64,
    memory: u64,
}

pub(crate) fn run(program: &Path) -> Result<()> {
    let lab = Lab::new(LabOptions {
        pods: Vec::new(),
        ..LabOptions::default()
    })?;
    let observer = Observer::start(&lab, program, lab.cgroup_directory(), &[])?;
    let mut maps = maps(observer.pid())?;
    observer.finish()?;
    let mut table = Table::new(&["limit", "entries", "MiB", "bytes each"]);
    let mut row = |key: &str, entries: u64, bytes: u64| {
        let mib = bytes as f64 / f64::from(1 << 20);
        let each = bytes as f64 / entries as f64;
        table.row(&[
            format!("`{key}`"),
            entries.to_string(),
            format!("{mib:.2}"),
            format!("{each:.0}"),
        ]);
    };
    for (key, kind, entries, key_bytes) in LIMITS {
        let at = maps
            .iter()
            .position(|map| (map.kind, map.entries, map.key_bytes) == (kind, entries, key_bytes));
        let map = maps.remove(at.with_context(|| format!("no map of the observer is that of {key}"))?);
        ensure!(
            map.memory > 0,
            "the kernel doesn't report the memory of the map of {key}"
        );
        row(key, entries, map.memory);
    }
    row("all other maps", 1, maps.iter().map(|map| map.memory).sum());
    table.print();
    Ok(())
}

fn maps(pid: u32) -> Result<Vec<Map>> {
    let mut maps: Vec<Map> = Vec::new();
    let directory = format!("/proc/{pid}/fdinfo");
    for entry in fs::read_dir(&directory).with_context(|| format!("list {directory}"))? {
        let text = match fs::read_to_string(entry?.path()) {
            // The descriptor was closed meanwhile. It wasn't a map: the observer keeps its maps open.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            text => text.context("read a descriptor's description")?,
        };
        let number = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse::<u64>().ok())
        };
        let Some(id) = number("map_id") else { continue };
        if maps.iter().any(|map| map.id == id) {
            continue;
        }
        maps.push(Map {
            id,
            kind: number("map_type").unwrap_or_default(),
            entries: number("max_entries").unwrap_or_default(),
            key_bytes: number("key_size").unwrap_or_default(),
            memory: number("memlock").unwrap_or_default(),
        });
    }
    Ok(maps)
}
