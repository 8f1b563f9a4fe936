//! Offline commands need no kernel support. Tests their dependencies and their results without the feature `live`.
//!
//! The dependency trees are cargo's for other operating systems, so that a Linux-only dependency is detected on Linux.

use std::collections::BTreeSet;
use std::process::Command;

const WINDOWS: &str = "x86_64-pc-windows-gnu";
const MAC: &str = "aarch64-apple-darwin";
const LINUX: &str = "x86_64-unknown-linux-gnu";

/// Crates that need Linux. A `*` at the end matches all names with this prefix.
const LINUX_ONLY: &[&str] = &[
    "aya*",
    "caps",
    "inotify*",
    "io-uring",
    "landlock",
    "libbpf*",
    "linux-raw-sys",
    "netlink-*",
    "procfs*",
    "rtnetlink",
    "sd-notify",
    "seccompiler",
];

/// Crates that need Unix.
const UNIX_ONLY: &[&str] = &["nix", "rustix", "signal-hook*"];

/// Names of everything that is linked into the program.
fn tree(target: &str, features: &[&str]) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--package", "imds-observer", "--edges", "normal"])
        .args(["--target", target, "--prefix", "none", "--format", "{p}"])
        .args(features)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

fn found<'a>(tree: &'a BTreeSet<String>, names: &[&str]) -> Vec<&'a str> {
    let is = |name: &str, wanted: &str| match wanted.strip_suffix('*') {
        Some(begin) => name.starts_with(begin),
        None => name == wanted,
    };
    tree.iter()
        .map(String::as_str)
        .filter(|name| names.iter().any(|wanted| is(name, wanted)))
        .collect()
}

#[test]
fn nothing_of_linux_is_needed_elsewhere() {
    // This must hold with the default features too, so that `cargo install` on a Mac installs the offline commands.
    for features in [&["--no-default-features"][..], &["--features", "default"]] {
        for target in [WINDOWS, MAC] {
            let tree = tree(target, features);
            assert!(
                tree.contains("imds-observer") && tree.contains("serde_json"),
                "{tree:?}"
            );
            assert_eq!(found(&tree, LINUX_ONLY), [""; 0], "{target} {features:?}");
        }
        assert_eq!(found(&tree(WINDOWS, features), UNIX_ONLY), [""; 0], "{features:?}");
    }
    // These crates are dependencies of the live build.
    let live = tree(LINUX, &[]);
    assert!(found(&live, LINUX_ONLY).len() >= 10 && live.contains("nix"), "{live:?}");
    // Crates that only the live service uses are not dependencies of the offline build.
    let offline = tree(LINUX, &["--no-default-features"]);
    assert_eq!(
        found(
            &offline,
            &[
                "aya*",
                "axum",
                "caps",
                "hyper",
                "landlock",
                "netlink-*",
                "procfs*",
                "tokio"
            ]
        ),
        [""; 0]
    );
}

#[cfg(not(live))]
#[test]
fn live_commands_say_why_they_are_not_there() {
    for arguments in [
        // This harmless command is first, because a build with the feature in the same target directory may have replaced the program.
        &["stream", "--help"][..],
        &["stream"],
        &["stream", "-w", "trace.ndjson", "--metrics", "127.0.0.1:9469"],
        &["doctor", "-o", "json"],
        &["exec", "--against", "hops=1", "--", "true"],
        &["watch"],
        &["watch", "--plain"],
        &["preflight", "--hop-limit", "1"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_imds-observer"))
            .args(arguments)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert!(
            said.contains("this build can't observe a host")
                && said.contains("analyze FILE")
                && said.lines().count() == 1,
            "{arguments:?}: {said}"
        );
    }
}
