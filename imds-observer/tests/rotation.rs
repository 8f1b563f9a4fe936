//! Kills a writer at random moments. Every written line must parse, except the last line of the newest file. No line may be missing in
//! between, and the next start must repair the files.
//!
//! The writer is this program, started again. It writes through the sink's own code as fast as it can, in files of four lines. A seeded
//! generator determines the moments; `IMDS_OBSERVER_TEST_SEED` selects another seed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use imds_observer::quantity::Size;
use imds_observer::sinks::destination::{Destination, Rotation};

/// Environment variable for the writer, with the number of its first line and the path of its file.
const WRITER: &str = "IMDS_OBSERVER_TEST_WRITER";
const NAME: &str = "every_line_of_a_killed_writer_parses_and_none_is_missing";

/// Length of a line in bytes. Lines are long, so that a kill may happen within one.
const LINE: usize = 8_000;
const LINES_A_FILE: u64 = 4;
const FILES: u32 = 5;
const ROTATIONS: u64 = 1_000;
const KILLS: u32 = 300;
/// Timeout on any machine.
const PATIENCE: Duration = Duration::from_secs(50);

/// xorshift64. The moments only have to be spread.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn line(number: u64) -> String {
    let mut line = format!("{{\"number\":{number},\"rest\":\"");
    let rest = LINE - line.len() - "\"}\n".len();
    line.push_str(&"x".repeat(rest));
    line.push_str("\"}\n");
    line
}

/// Writes lines until the process is killed.
fn write(job: &str) -> ! {
    let (first, path) = job.split_once(' ').unwrap();
    let mut number: u64 = first.parse().unwrap();
    let rotation = Rotation {
        size: Size(LINES_A_FILE * LINE as u64),
        files: FILES,
    };
    let mut destination = Destination::file(Path::new(path), Some(rotation)).unwrap();
    let mut random = Random(number + 1);
    loop {
        // Batches, as the queue's writer passes them.
        let lines: String = (0..=random.below(9)).map(|after| line(number + after)).collect();
        assert_eq!(destination.write_lines(lines.as_bytes()).unwrap(), lines.len());
        number += (lines.len() / LINE) as u64;
    }
}

/// State of the files after a kill.
#[derive(Debug, Default)]
struct Left {
    /// Number of the last complete line.
    last: Option<u64>,
    torn: bool,
    /// Whether the kill interrupted a rotation, so that `FILE` or one of the numbered files is missing.
    gap: bool,
}

/// Reads all files, beginning with the oldest, and checks the guarantees.
fn check(path: &Path) -> Left {
    let directory = path.parent().unwrap();
    let mut files: BTreeMap<u32, PathBuf> = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let number = match name.strip_prefix("trace").unwrap().strip_prefix('.') {
            Some(number) => number.parse().unwrap(),
            None => 0,
        };
        files.insert(number, entry.path());
    }
    assert!(files.len() <= FILES as usize, "{files:?}");
    let mut left = Left {
        gap: files.keys().copied().ne(0..files.len() as u32),
        ..Left::default()
    };
    let newest = files.keys().next().copied();
    for (number, path) in files.iter().rev() {
        let text = fs::read_to_string(path).unwrap();
        for line in text.split_inclusive('\n') {
            if !line.ends_with('\n') {
                assert_eq!(Some(*number), newest, "a torn line in an older file: {line:?}");
                left.torn = true;
                continue;
            }
            let value: serde_json::Value =
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{}: {error}: {line}", path.display()));
            let number = value["number"].as_u64().unwrap();
            if let Some(last) = left.last {
                assert_eq!(number, last + 1, "lines are missing before {}: {line}", path.display());
            }
            left.last = Some(number);
        }
    }
    left
}

#[test]
fn every_line_of_a_killed_writer_parses_and_none_is_missing() {
    if let Ok(job) = std::env::var(WRITER) {
        write(&job);
    }
    let seed = std::env::var("IMDS_OBSERVER_TEST_SEED").map_or(0x1bd5_2026, |seed| seed.parse().expect("a number"));
    let mut random = Random(seed);
    // In memory if possible: the test simulates a failure of the program, not of the power supply.
    let directory = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let path = directory.path().join("trace");
    let own = std::env::current_exe().unwrap();
    let begin = Instant::now();
    let (mut next, mut kills, mut torn, mut gaps) = (0, 0, 0, 0);
    while kills < KILLS || next / LINES_A_FILE < ROTATIONS {
        assert!(
            begin.elapsed() < PATIENCE,
            "{kills} kills and {next} lines in {PATIENCE:?}"
        );
        let mut writer = Command::new(&own)
            .args(["--exact", NAME, "--nocapture"])
            .env(WRITER, format!("{next} {}", path.display()))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // From the moment before it opens its file to some rotations later.
        std::thread::sleep(Duration::from_micros(random.below(15_000)));
        writer.kill().unwrap();
        writer.wait().unwrap();
        kills += 1;
        let left = check(&path);
        next = left.last.map_or(next, |last| last + 1);
        torn += u32::from(left.torn);
        gaps += u32::from(left.gap);
    }
    println!(
        "seed {seed}: {kills} kills, {} rotations, {torn} torn lines, {gaps} times in the midst of a rotation, {:.1} s",
        next / LINES_A_FILE,
        begin.elapsed().as_secs_f64()
    );
}
