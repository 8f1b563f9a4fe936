//! Headings and examples of the help texts, shared by the commands.

pub(super) const CHANGE: &str = "Change to check";
#[cfg(live)]
pub(super) const EXPORT: &str = "Metrics and telemetry";
pub(super) const FILTERS: &str = "Filters";
pub(super) const RECORDS: &str = "Records";
pub(super) const SCOPE: &str = "Scope";
pub(super) const CONFIGURATION: &str = "Configuration";

pub(super) const PROGRAM: &str = "\
Examples:
  Diagnose this host without sending a packet:
    sudo imds-observer doctor
  Show callers and findings now:
    sudo imds-observer watch
  Record, then analyze on another machine:
    sudo imds-observer stream -w trace.ndjson
    imds-observer analyze trace.ndjson

Exit status:
  0  success
  1  could not run, or part of the input could not be read
  2  invalid command line
  3  analyze, exec --fail-on: a finding has that severity; exec --assert: an assertion failed; preflight: not safe
  4  preflight: inconclusive
  exec: the status of its command; 125 exec failed, 126 the command can't be run, 127 it was not found

Log lines go to stderr. Set IMDS_OBSERVER_LOG=info or =debug for more of them.";

pub(super) const WATCH: &str = "\
Examples:
  Observe this host:
    sudo imds-observer watch
  Observe one pod for a minute, as plain text:
    sudo imds-observer watch --plain --pod payments/api-7c9d --duration 1m
  Replay a trace ten times as fast:
    imds-observer watch --from trace.ndjson --speed 10x";

#[cfg(live)]
pub(super) const STREAM: &str = "\
Examples:
  Record to a file until Ctrl-C:
    sudo imds-observer stream -w trace.ndjson
  Keep at most 8 files of 64 MiB, and serve metrics:
    sudo imds-observer stream -w imds.ndjson -C 64m -W 8 --metrics 127.0.0.1:9469
  Print findings as they open:
    sudo imds-observer stream --records finding | jq -r .summary";

pub(super) const ANALYZE: &str = "\
Examples:
  Report what a trace shows:
    imds-observer analyze trace.ndjson
  Write a page for a packet capture:
    imds-observer analyze capture.pcap.gz -o html -w report.html
  Fail a CI job on findings of severity high or critical:
    imds-observer analyze trace.ndjson --fail-on high";

pub(super) const PREFLIGHT: &str = "\
Examples:
  Would requiring IMDSv2 break a workload on this host? Observe for a day:
    sudo imds-observer preflight --http-tokens required --duration 24h
  The same for all nodes, from their traces:
    imds-observer preflight --http-tokens required traces/*.ndjson
  Check a hop limit of 1, as JSON:
    imds-observer preflight --hop-limit 1 -o json trace.ndjson";

#[cfg(live)]
pub(super) const EXEC: &str = "\
Examples:
  Does this program work in a container, with tokens required and a hop limit of 1?
    sudo imds-observer exec --against tokens=required,hop-limit=1,hops=1 -- aws sts get-caller-identity
  Try it with all usual settings:
    sudo imds-observer exec --matrix -- ./app --check
  Fail a CI job if it uses IMDSv1 or waits:
    imds-observer exec --against tokens=optional --assert 'no v1, credentials obtained, waited < 1s' -- ./app
  Observe it with this host's own IMDS:
    sudo imds-observer exec -- ./app

Exit status:
  That of the command, 128 + N if signal N ended it
  3    --fail-on: a finding has that severity; --assert: an assertion failed
  125  exec itself failed
  126  the command can't be run
  127  the command was not found";

#[cfg(live)]
pub(super) const DOCTOR: &str = "\
Examples:
  Check this host:
    sudo imds-observer doctor
  Check a pod's network namespace:
    sudo nsenter --net=/proc/PID/ns/net imds-observer doctor
  List only what blocks IMDS, from JSON:
    sudo imds-observer doctor -o json | jq '.checks[] | select(.state == \"fault\")'";

pub(super) const DETECTORS: &str = "\
Examples:
  List all finding codes:
    imds-observer detectors list
  Explain one:
    imds-observer detectors explain token-response-lost
  Search the list:
    imds-observer detectors list | grep -i token";

pub(super) const SCHEMA: &str = "\
Examples:
  Save the schema:
    imds-observer schema > imds-observer.schema.json
  List the record kinds:
    imds-observer schema | jq '.. | .const? // empty'
  Compare the schemas of two versions:
    diff <(old/imds-observer schema) <(imds-observer schema)";

pub(super) const COMPLETIONS: &str = "\
Examples:
  bash:
    imds-observer completions bash > /etc/bash_completion.d/imds-observer
  zsh:
    imds-observer completions zsh > \"${fpath[1]}/_imds-observer\"
  fish:
    imds-observer completions fish > ~/.config/fish/completions/imds-observer.fish";
