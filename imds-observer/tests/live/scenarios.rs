//! Scenarios that need only the tools of the tests. `cargo xtask scenarios` plays the others.

use std::path::{Path, PathBuf};

use imds_observer_lab::scenarios::{Prepared, Stage, Suite, Tools};
use rstest::rstest;

use crate::support::{lab_binary, python};

#[rstest]
#[case::a_probe_that_is_no_fault("fluent-bit-probe")]
#[case::the_problem_report("problem-report")]
#[case::a_proxy("proxied")]
#[case::a_bad_token_request("bad-token-request")]
#[case::a_drop_at_the_uplink("policy-tc-egress")]
#[ignore = "live"]
fn scenario(#[case] name: &str) {
    let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("../imds-observer-lab/clients");
    let stage = Stage {
        suite: Suite::load().unwrap(),
        tools: Tools {
            // The directory TOOLS in TOOLS/venv/bin/python3.
            tools: python().ancestors().nth(3).map(Path::to_path_buf).unwrap_or_default(),
            clients: clients.canonicalize().unwrap(),
            lab: lab_binary(),
            observer: PathBuf::from(env!("CARGO_BIN_EXE_imds-observer")),
        },
    };
    let scenario = stage
        .suite
        .scenarios
        .iter()
        .find(|scenario| scenario.name == name)
        .unwrap();
    let outcome = stage.prepare(scenario).and_then(Prepared::play).unwrap();
    assert_eq!(outcome.failure, None);
    assert_eq!(outcome.found, scenario.expect, "{:?}", outcome.reported);
}
