//! Which capabilities does this process hold?

use super::check::{Check, CheckState};
use crate::host::capabilities::{ALL, Held, NET_ADMIN, Needed};

const NAME: &str = "capability";

pub(super) fn checks() -> Vec<Check> {
    ALL.iter().map(|right| check(right, right.held())).collect()
}

fn check(right: &Needed, held: Option<Held>) -> Check {
    if *right == NET_ADMIN && held == Some(Held::ThroughAdmin) {
        // That does for BPF, and for nothing else.
        return Check::new(
            NAME,
            CheckState::Note,
            "not held; CAP_SYS_ADMIN suffices for attaching programs",
        )
        .about(&right.capability)
        .blinding("firewall rules can't be read, and before kernel 6.6 uplinks can't be attached");
    }
    let found = match held {
        Some(Held::Itself) => "held",
        Some(Held::ThroughAdmin) => "held through CAP_SYS_ADMIN",
        Some(Held::No) => "not held by this process",
        None => return Check::unread(NAME, "not reported by the kernel").about(&right.capability),
    };
    let remedy = "Run as root, or add the capability to the service or container.";
    Check::needed(NAME, held != Some(Held::No), found, right.blinds, remedy).about(&right.capability)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_held_is_missing() {
        let state = |held| check(&ALL[0], held).state;
        assert_eq!(
            [Some(Held::Itself), Some(Held::ThroughAdmin), Some(Held::No), None].map(state),
            [CheckState::Ok, CheckState::Ok, CheckState::Missing, CheckState::Unknown]
        );
        assert_eq!(check(&NET_ADMIN, Some(Held::ThroughAdmin)).state, CheckState::Note);
    }
}
