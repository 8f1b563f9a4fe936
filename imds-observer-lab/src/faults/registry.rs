//! All faults by name, with the finding that each must cause.

use serde_json::json;

use super::{Chain, Family, Fault, Firewall, Hook, RouteFault, RuleAction, Scope, Tool, Victim};

/// A row in the table of faults.
#[derive(Clone, Debug)]
pub struct Entry {
    pub name: &'static str,
    pub fault: Fault,
    /// Origin of the requests that are affected.
    pub victim: Victim,
    /// Code of the expected finding, or `None` for a healthy counterpart.
    pub code: Option<&'static str>,
}

/// Every fault for one family. Pods are pod 0.
pub fn registry(family: Family) -> Vec<Entry> {
    let mut all = Vec::new();
    let mut add = |name, fault, victim, code| {
        all.push(Entry {
            name,
            fault,
            victim,
            code: Some(code),
        });
    };
    let pod = Victim::Pod(0);

    let firewall = |tool, chain, verdict, victim, scope| {
        Fault::Firewall(Firewall {
            tool,
            chain,
            verdict,
            victim,
            scope,
            family,
        })
    };
    let rows = [
        (
            "output-reject",
            Tool::Nft,
            Chain::Output,
            RuleAction::Reject,
            Victim::Node,
            Scope::All,
        ),
        (
            "output-reject-legacy",
            Tool::Legacy,
            Chain::Output,
            RuleAction::Reject,
            Victim::Node,
            Scope::All,
        ),
        (
            "output-reject-host",
            Tool::Nft,
            Chain::Output,
            RuleAction::RejectHost,
            Victim::Node,
            Scope::All,
        ),
        (
            "output-reject-reset",
            Tool::Nft,
            Chain::Output,
            RuleAction::RejectReset,
            Victim::Node,
            Scope::All,
        ),
        (
            "output-drop",
            Tool::Nft,
            Chain::Output,
            RuleAction::Drop,
            Victim::Node,
            Scope::All,
        ),
        (
            "output-drop-legacy",
            Tool::Legacy,
            Chain::Output,
            RuleAction::Drop,
            Victim::Node,
            Scope::All,
        ),
        (
            "output-drop-uid",
            Tool::Nft,
            Chain::Output,
            RuleAction::Drop,
            Victim::Node,
            Scope::Uid(0),
        ),
        (
            "output-drop-uid-legacy",
            Tool::Legacy,
            Chain::Output,
            RuleAction::Drop,
            Victim::Node,
            Scope::Uid(0),
        ),
        (
            "output-drop-cgroup",
            Tool::Nft,
            Chain::Output,
            RuleAction::Drop,
            Victim::Node,
            Scope::OwnCgroup,
        ),
        (
            "output-drop-cgroup-legacy",
            Tool::Legacy,
            Chain::Output,
            RuleAction::Drop,
            Victim::Node,
            Scope::OwnCgroup,
        ),
        (
            "output-drop-pod",
            Tool::Nft,
            Chain::Output,
            RuleAction::Drop,
            pod,
            Scope::All,
        ),
        (
            "forward-drop",
            Tool::Nft,
            Chain::Forward,
            RuleAction::Drop,
            pod,
            Scope::All,
        ),
        (
            "forward-drop-legacy",
            Tool::Legacy,
            Chain::Forward,
            RuleAction::Drop,
            pod,
            Scope::All,
        ),
        (
            "forward-reject",
            Tool::Nft,
            Chain::Forward,
            RuleAction::Reject,
            pod,
            Scope::All,
        ),
        (
            "forward-reject-legacy",
            Tool::Legacy,
            Chain::Forward,
            RuleAction::Reject,
            pod,
            Scope::All,
        ),
    ];
    for (name, tool, chain, verdict, victim, scope) in rows {
        add(
            name,
            firewall(tool, chain, verdict, victim, scope),
            victim,
            "blocked-by-firewall",
        );
    }

    let route = |kind, victim| Fault::Route { kind, victim, family };
    for (name, kind, fault_at, victim) in [
        ("no-route", RouteFault::None, Victim::Node, Victim::Node),
        ("route-unreachable", RouteFault::Unreachable, Victim::Node, Victim::Node),
        ("route-prohibit", RouteFault::Prohibit, Victim::Node, Victim::Node),
        ("route-blackhole", RouteFault::Blackhole, Victim::Node, Victim::Node),
        ("no-route-forwarded", RouteFault::None, Victim::Forwarded, pod),
        ("route-prohibit-forwarded", RouteFault::Prohibit, Victim::Forwarded, pod),
        (
            "route-blackhole-forwarded",
            RouteFault::Blackhole,
            Victim::Forwarded,
            pod,
        ),
        ("no-route-pod", RouteFault::None, pod, pod),
        ("route-unreachable-pod", RouteFault::Unreachable, pod, pod),
    ] {
        add(name, route(kind, fault_at), victim, "no-route");
    }
    add(
        "on-link-silent",
        route(RouteFault::OnLinkSilent, Victim::Node),
        Victim::Node,
        "neighbor-unresolved",
    );
    let connect = if family == Family::V6 {
        Hook::Connect6
    } else {
        Hook::Connect4
    };
    for (name, hook, fault_at, victim) in [
        ("policy-connect", connect, Victim::Node, Victim::Node),
        ("policy-connect-pod", connect, pod, pod),
        ("policy-cgroup-egress", Hook::CgroupEgress, Victim::Node, Victim::Node),
        ("policy-cgroup-egress-pod", Hook::CgroupEgress, pod, pod),
        ("policy-tc-egress", Hook::TcEgress, Victim::Node, Victim::Node),
        ("policy-tc-egress-pod", Hook::TcEgress, Victim::Node, pod),
        ("policy-tc-ingress-pod", Hook::TcIngress, pod, pod),
    ] {
        let fault = Fault::Policy { hook, victim: fault_at };
        add(name, fault, victim, "denied-by-policy");
    }
    let silent = if family == Family::V6 {
        "ipv6-endpoint-silent"
    } else {
        "no-answer"
    };
    add("silent-upstream", Fault::SilentUpstream(family), Victim::Node, silent);
    add(
        "quota",
        Fault::Quota { packets_per_s: 1024 },
        Victim::Node,
        "packet-quota",
    );
    add("server-down", Fault::ServerDown, Victim::Node, "connection-refused");

    let switch = |patch| Fault::Behaviour(patch);
    add(
        "hop-limit-1",
        switch(json!({"hop_limit": 1})),
        pod,
        "token-response-lost",
    );
    add(
        "server-silent",
        switch(json!({"answer": "silent"})),
        Victim::Node,
        "no-answer",
    );
    add("slow", switch(json!({"delay_ms": 300})), Victim::Node, "slow-responses");
    add(
        "throttled",
        switch(json!({"error": {"status": 429, "per_mille": 500}})),
        Victim::Node,
        "server-errors",
    );
    add(
        "unavailable",
        switch(json!({"error": {"status": 503, "per_mille": 500}})),
        Victim::Node,
        "server-errors",
    );
    add(
        "endpoint-disabled",
        switch(json!({"endpoint": "disabled"})),
        Victim::Node,
        "access-forbidden",
    );
    add(
        "tokens-rejected",
        switch(json!({"reject_tokens": true})),
        Victim::Node,
        "token-rejected",
    );
    add(
        "put-forbidden",
        switch(json!({"forbid_put": true})),
        Victim::Node,
        "access-forbidden",
    );
    let gone = json!({"missing": ["meta-data/autoscaling/target-lifecycle-state"]});
    add("live-migration", switch(gone), Victim::Node, "path-disappeared");

    all.push(Entry {
        name: "hop-limit-2",
        fault: switch(json!({"hop_limit": 2})),
        victim: pod,
        code: None,
    });
    if family == Family::V4 {
        all.push(Entry {
            name: "on-link",
            fault: route(RouteFault::OnLink, Victim::Node),
            victim: Victim::Node,
            code: None,
        });
    }
    all
}

/// Faults in which packets reach the endpoint or another program. Scenarios play them with clients whose requests show a pattern.
pub fn disturbances(family: Family) -> Vec<Entry> {
    let on_node = |name, fault, code| Entry {
        name,
        fault,
        victim: Victim::Node,
        code: Some(code),
    };
    let drop_responses = Fault::Firewall(Firewall {
        tool: Tool::Nft,
        chain: Chain::Input,
        verdict: RuleAction::Drop,
        victim: Victim::Node,
        scope: Scope::All,
        family,
    });
    vec![
        on_node("input-drop", drop_responses, "response-dropped"),
        on_node("syn-loss", Fault::SynLoss, "connect-delayed"),
        on_node("redirect", Fault::Redirect, "redirected-locally"),
        on_node(
            "redirect-to-port",
            Fault::RedirectToPort { forwarded: false },
            "redirected-locally",
        ),
        Entry {
            name: "redirect-pods-to-port",
            fault: Fault::RedirectToPort { forwarded: true },
            victim: Victim::Pod(0),
            code: Some("redirected-locally"),
        },
    ]
}
