//! Checks the parts of a release (workflows, scripts, the kubectl plugin, the manual pages), each with an independent tool.
//!
//! Without these tools, a test fails if `CI=true` (as in `cargo xtask test`), and is skipped otherwise. `cargo xtask setup --for test`
//! installs them. `cargo xtask dist --check` checks the packages.

#![cfg(live)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn tool(name: &str) -> Option<Command> {
    let tools = std::env::var_os("IMDS_OBSERVER_TOOLS").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".local/share/imds-observer-tools"),
        PathBuf::from,
    );
    let own = tools.join("deploy/bin").join(name);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::iter::once(own)
        .chain(std::env::split_paths(&path).map(|directory| directory.join(name)))
        .find(|path| path.is_file());
    if found.is_none() {
        let missing = format!("no {name} (cargo xtask setup --for test)");
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{missing}");
        eprintln!("skipped: {missing}");
    }
    found.map(Command::new)
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn workflows() -> Vec<PathBuf> {
    let mut workflows: Vec<PathBuf> = fs::read_dir(root().join(".github/workflows"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    workflows.sort();
    workflows
}

#[test]
fn workflows_fit_githubs_schema() {
    let check = |files: &[PathBuf]| {
        let mut command = tool("check-jsonschema")?;
        command
            .args(["--builtin-schema", "vendor.github-workflows"])
            .args(files);
        Some(command.output().unwrap())
    };
    let Some(output) = check(&workflows()) else { return };
    assert!(output.status.success(), "{}", said(&output));
    // The tool detects an error.
    let directory = tempfile::tempdir().unwrap();
    let broken = directory.path().join("broken.yml");
    let text = fs::read_to_string(&workflows()[0])
        .unwrap()
        .replace("runs-on:", "run-on:");
    fs::write(&broken, text).unwrap();
    assert!(!check(&[broken]).unwrap().status.success());
}

/// The action and the job with which other repositories run `exec`.
#[test]
fn the_files_for_ci_fit_their_schemas() {
    for (schema, file) in [
        ("vendor.github-actions", "deploy/exec/action.yml"),
        ("vendor.gitlab-ci", "deploy/exec/gitlab-ci.yml"),
    ] {
        let check = |path: &Path| {
            let mut command = tool("check-jsonschema")?;
            command.args(["--builtin-schema", schema]).arg(path);
            Some(command.output().unwrap())
        };
        let Some(output) = check(&root().join(file)) else {
            return;
        };
        assert!(output.status.success(), "{}", said(&output));
        // The tool detects an error.
        let text = fs::read_to_string(root().join(file)).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let broken = directory.path().join("broken.yml");
        fs::write(&broken, text.replace("runs:", "run:").replace("script:", "scripts:")).unwrap();
        assert!(!check(&broken).unwrap().status.success(), "{file}");
    }
    // Every input of the action reaches the script.
    let action = fs::read_to_string(root().join("deploy/exec/action.yml")).unwrap();
    let script = fs::read_to_string(root().join("deploy/exec/run.sh")).unwrap();
    for name in ["COMMAND", "AGAINST", "MATRIX", "ASSERT", "FAIL_ON", "REPORT"] {
        let name = format!("EXEC_{name}");
        assert!(
            action.contains(&format!("{name}: ")) && script.contains(&format!("{name}:")),
            "{name}"
        );
    }
}

/// Files and commands that a workflow uses exist.
#[test]
fn workflows_call_what_exists() {
    let help = fs::read_to_string(root().join("xtask/src/dist.rs")).unwrap();
    for path in workflows() {
        let text = fs::read_to_string(&path).unwrap();
        for word in text
            .split_whitespace()
            .filter(|word| word.starts_with("deploy/") || word.starts_with(".ci/"))
        {
            assert!(root().join(word).is_file(), "{}: {word}", path.display());
        }
        for line in text.lines().filter(|line| line.contains("cargo xtask dist")) {
            for flag in line.split_whitespace().filter_map(|word| word.strip_prefix("--")) {
                assert!(
                    help.contains(&format!("    {flag}: bool")),
                    "{}: {flag}",
                    path.display()
                );
            }
        }
        // A tag can be moved to other code, which would run with the release's permissions. Only major versions of the two named publishers
        // are allowed.
        for action in text
            .lines()
            .filter_map(|line| line.split_once("uses: ").map(|(_, action)| action))
        {
            assert!(
                action.starts_with("actions/") || action.starts_with("sigstore/"),
                "{}: {action}",
                path.display()
            );
        }
    }
}

#[test]
fn shell_scripts_are_clean() {
    let Some(mut shellcheck) = tool("shellcheck") else {
        return;
    };
    let output = shellcheck
        .args(["deploy/release.sh", "deploy/krew/kubectl-imds", "deploy/exec/run.sh"])
        .args(["postinst", "prerm", "postrm"].map(|name| format!("deploy/debian/{name}")))
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

/// Runs the plugin with a kubectl that records its arguments and returns `answer`.
fn plugin(arguments: &[&str], answer: &str) -> (Option<i32>, String, String) {
    let directory = tempfile::tempdir().unwrap();
    let (kubectl, log) = (directory.path().join("kubectl"), directory.path().join("log"));
    let script = format!(
        "#!/bin/sh\necho \"$*\" >> '{}'\ncase $1 in get) printf '{answer}' ;; logs) echo '{{\"record\":\"start\"}}'; echo '{{\"record\":\"finding\"}}' ;; esac\n",
        log.display(),
    );
    fs::write(&kubectl, script).unwrap();
    fs::set_permissions(&kubectl, fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::join_paths(
        std::iter::once(directory.path().to_owned())
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    )
    .unwrap();
    let output = Command::new("sh")
        .arg(root().join("deploy/krew/kubectl-imds"))
        .args(arguments)
        .env("PATH", path)
        .env("KUBECTL_IMDS_IMAGE", "registry.example/imds-observer:1")
        .output()
        .unwrap();
    let log = fs::read_to_string(log).unwrap_or_default();
    (output.status.code(), log, said(&output))
}

#[test]
fn the_kubectl_plugin_makes_a_debug_pod_or_asks_the_daemonset() {
    let (status, log, _) = plugin(&["watch", "node-1", "--duration", "1m"], "");
    assert_eq!(status, Some(0));
    assert_eq!(
        log,
        "debug node/node-1 --stdin --quiet --profile=sysadmin --image=registry.example/imds-observer:1 -- \
         /imds-observer watch --host-root /host --duration 1m\n"
    );
    let (status, log, text) = plugin(&["findings", "node-1"], "imds-observer imds-observer-x7\\n");
    assert_eq!(status, Some(0), "{text}");
    assert!(
        log.contains("spec.nodeName=node-1") && log.contains("logs --namespace imds-observer imds-observer-x7"),
        "{log}"
    );
    let findings: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(findings.iter().all(|record| record["record"] == "finding") && !findings.is_empty());
    let (status, _, text) = plugin(&["findings", "node-1"], "");
    assert_eq!(status, Some(1));
    assert!(
        text.contains("no running pod") && text.contains("kubectl imds watch node-1"),
        "{text}"
    );
    for wrong in [&["watch"][..], &["findings", "--all"], &["explode", "node-1"]] {
        assert_eq!(plugin(wrong, "").0, Some(2), "{wrong:?}");
    }
}

/// The program accepts the plugin's arguments.
#[test]
fn the_plugins_options_are_the_programs() {
    let help = Command::new(env!("CARGO_BIN_EXE_imds-observer"))
        .args(["watch", "--host-root", "/host", "--help"])
        .output()
        .unwrap();
    assert!(help.status.success(), "{}", said(&help));
}

#[test]
fn manual_pages_are_clean() {
    let man = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_imds-observer"))
            .arg("man")
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let names = man(&["--list"]);
    for command in [
        "watch",
        "stream",
        "analyze",
        "preflight",
        "doctor",
        "detectors",
        "schema",
        "completions",
    ] {
        assert!(
            names.lines().any(|name| name == format!("imds-observer-{command}")),
            "{names}"
        );
    }
    let directory = tempfile::tempdir().unwrap();
    let mut checked = 0;
    for name in names.lines() {
        let page = directory.path().join(format!("{name}.1"));
        let command = name.strip_prefix("imds-observer-");
        fs::write(&page, man(&command.into_iter().collect::<Vec<_>>())).unwrap();
        // `-W warning` fails on warnings and errors. clap_mangen determines the style.
        if let Some(mut mandoc) = tool("mandoc") {
            let output = mandoc
                .args(["-T", "lint", "-W", "warning"])
                .arg(&page)
                .output()
                .unwrap();
            assert!(output.status.success(), "{name}: {}", said(&output));
            checked += 1;
        }
        if let Some(mut groff) = tool("man") {
            let output = groff
                .args([
                    "--warnings",
                    "--encoding=UTF-8",
                    "--local-file",
                    "--troff-device=utf8",
                    "--ditroff",
                ])
                .arg(&page)
                .env("MANROFFSEQ", "")
                .env("MANWIDTH", "80")
                .output()
                .unwrap();
            assert!(
                output.status.success() && output.stderr.is_empty(),
                "{name}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    eprintln!("{checked} pages were checked");
}

/// Version and date of the newest released section of the changelog, and its text.
fn newest_release(changelog: &str) -> (&str, &str, &str) {
    let (_, rest) = changelog
        .split_once("\n## ")
        .filter(|(_, rest)| !rest.starts_with("Unreleased"))
        .or_else(|| changelog.split_once("\n## Unreleased\n")?.1.split_once("\n## "))
        .expect("a released section");
    let (heading, text) = rest.split_once('\n').unwrap();
    let (version, date) = heading.split_once(' ').unwrap();
    let text = text.split("\n## ").next().unwrap();
    (version, date.trim_matches(['(', ')']), text)
}

#[test]
fn manual_pages_have_the_date_of_the_version_in_the_changelog() {
    let changelog = fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    let (version, date, _) = newest_release(&changelog);
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    let output = Command::new(env!("CARGO_BIN_EXE_imds-observer"))
        .arg("man")
        .output()
        .unwrap();
    let page = String::from_utf8(output.stdout).unwrap();
    let title = page.lines().find(|line| line.starts_with(".TH")).unwrap();
    assert!(
        title.contains(date) && title.contains(version),
        "CHANGELOG.md: {version} ({date}); the page: {title}"
    );
}

#[test]
fn the_changelog_names_every_finding() {
    let changelog = fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_imds-observer"))
        .args(["detectors", "list"])
        .output()
        .unwrap();
    let list = String::from_utf8(output.stdout).unwrap();
    let codes: Vec<&str> = list
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|word| word.contains('-'))
        .collect();
    assert!(codes.len() > 20, "{list}");
    for code in codes {
        assert!(changelog.contains(&format!("`{code}`")), "{code}");
    }
}

/// The release workflow calls this before it builds anything.
#[test]
fn a_tag_must_be_the_version_that_all_files_name() {
    let release = |arguments: &[&str]| {
        Command::new(root().join("deploy/release.sh"))
            .args(arguments)
            .output()
            .unwrap()
    };
    let version = env!("CARGO_PKG_VERSION");
    let output = release(&["version", &format!("v{version}")]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(said(&output), format!("version={version}\n"));
    for (wrong, why) in [("v9.9.9", "names 9.9.9"), (version, "doesn't begin with v")] {
        let output = release(&["version", wrong]);
        assert!(
            !output.status.success() && said(&output).contains(why),
            "{}",
            said(&output)
        );
    }
    let notes = said(&release(&["notes", version]));
    assert!(
        notes.contains("### What it finds") && !notes.contains("\n## "),
        "{notes}"
    );
}
