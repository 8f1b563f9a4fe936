//! Simulated days of a node: no finding if it is healthy, and one finding for one fault.

use imds_observer::detectors::{DetectorConfig, Detectors};
use imds_observer::record::{Exchange, Finding, Record, SECOND};

use crate::scenario::*;

const HOUR: f64 = 3600.0;

/// Simulates a day of a healthy node minute by minute, so that only the records of one minute are in memory.
fn day(mut change: impl FnMut(f64, &mut Record<Exchange>)) -> Vec<Record<Finding>> {
    let handler = Actor::pod(
        900,
        "/node-termination-handler",
        "kube-system",
        "aws-node-termination-handler-4jk2b",
    );
    let ssm = Actor::service(901, "/usr/bin/amazon-ssm-agent", "amazon-ssm-agent.service").agent("aws-sdk-go/1.44");
    let cni = Actor::pod(902, "/app/aws-k8s-agent", "kube-system", "aws-node-x2x4z").agent("aws-sdk-go-v2 ec2imds");
    let boto = Actor::service(903, "/usr/bin/python3.11", "app.service").agent("Boto3/1.34 Botocore/1.34");
    let dotnet = Actor::service(904, "/usr/bin/dotnet", "shop.service").agent("aws-sdk-dotnet-coreclr/3.7");
    let spot = Actor::service(905, "/usr/bin/ecs-agent", "ecs.service");
    let vector = Actor::pod(906, "/usr/bin/vector", "logging", "vector-9k2lm");

    let mut detectors = Detectors::new(&DetectorConfig::default(), facts());
    let mut findings = Vec::new();
    for minute in 0..24 * 60 {
        let start = f64::from(minute) * 60.0;
        let mut exchanges: Vec<Record<Exchange>> = Vec::new();
        for tick in 0..30 {
            let t = start + f64::from(tick) * 2.0;
            exchanges.push(
                handler
                    .get(t, "/latest/meta-data/spot/instance-action")
                    .but(status(404)),
            );
            exchanges.push(handler.get(t + 0.01, "/latest/meta-data/autoscaling/target-lifecycle-state"));
            exchanges.push(handler.get(t + 0.02, "/latest/meta-data/events/maintenance/scheduled"));
        }
        for second in 0..60 {
            let t = start + f64::from(second) + 0.3;
            exchanges.push(spot.get(t, "/latest/meta-data/spot/instance-action").but(status(404)));
        }
        for tick in 0..6 {
            for n in 0..9 {
                let path = format!("/latest/meta-data/field-{n}");
                exchanges.push(vector.get(start + f64::from(tick) * 10.0 + f64::from(n) * 0.001 + 0.5, &path));
            }
        }
        for n in 0..4 {
            let path = format!("/latest/meta-data/network/interfaces/macs/02:00:00:00:00:0{n}/device-number");
            exchanges.push(cni.get(start + 0.1 + f64::from(n) * 0.001, &path));
        }
        if minute % 5 == 0 {
            exchanges.push(cni.put(start + 0.05).but(|put| put.request.token_ttl_s = Some(300)));
        }
        if minute % 60 == 0 {
            exchanges.push(handler.put(start).but(|put| put.request.token_ttl_s = Some(3600)));
            exchanges.push(spot.put(start + 0.2));
            exchanges.push(vector.put(start + 0.4));
        }
        if minute % 30 == 7 {
            exchanges.push(ssm.put(start));
            exchanges.push(ssm.get(start + 0.01, CREDENTIALS));
            exchanges.push(ssm.get(start + 0.02, ROLE));
        }
        if minute % 60 == 20 {
            exchanges.push(boto.put(start));
            exchanges.push(boto.get(start + 0.01, CREDENTIALS));
            exchanges.push(boto.get(start + 0.02, ROLE));
        }
        if minute % 2 == 0 {
            exchanges.push(dotnet.put(start));
            exchanges.push(dotnet.get(start + 0.01, CREDENTIALS));
            exchanges.push(dotnet.put(start + 0.02));
            exchanges.push(dotnet.get(start + 0.03, ROLE));
        }
        // A client whose token cache `change` may break.
        for n in 0..4 {
            let t = start + f64::from(n) * 15.0 + 3.0;
            if minute == 0 && n == 0 || start >= LOST_CACHE_AT * HOUR {
                exchanges.push(batch().put(t));
            }
            exchanges.push(batch().get(t + 0.01, "/latest/dynamic/instance-identity/document"));
        }
        exchanges.sort_by_key(|exchange| exchange.time);
        for mut exchange in exchanges {
            let t = exchange.time.since(START) as f64 / SECOND as f64;
            change(t, &mut exchange);
            if exchange.request.method.is_some() {
                observe(&mut detectors, &exchange.into(), &mut findings);
            }
        }
        detectors.observe_summary(quota(start + 60.0, 40, 0).by_ref(), &mut findings);
    }
    detectors.finish(at(24.0 * HOUR), &mut findings);
    assert_eq!(detectors.evicted(), 0);
    findings
}

const LOST_CACHE_AT: f64 = 6.0;

fn batch() -> Actor {
    Actor::service(907, "/usr/bin/batch", "batch.service")
}

/// The simulation always contains the broken token requests. This change removes them for a healthy day.
fn healthy(t: f64, exchange: &mut Record<Exchange>) {
    let of_batch = exchange.process.as_ref().is_some_and(|process| process.pid == 907);
    if of_batch && t > 60.0 && exchange.request.method.as_deref() == Some("PUT") {
        exchange.request.method = None;
    }
}

#[test]
fn a_healthy_day_gives_no_finding() {
    let findings = day(healthy);
    assert_eq!(verdicts(&findings), Vec::<String>::new());
}

#[test]
fn a_live_migration_at_hour_13_gives_one() {
    let findings = day(|t, exchange| {
        healthy(t, exchange);
        let lifecycle = exchange
            .request
            .path
            .as_deref()
            .is_some_and(|path| path.ends_with("target-lifecycle-state"));
        if lifecycle && t >= 13.0 * HOUR {
            status(404)(exchange);
        }
    });
    assert_eq!(verdicts(&findings), ["path-disappeared warning"]);
    assert_eq!(findings[0].first_seen.since(START) / SECOND / 3600, 13);
    assert!(findings.len() < 40, "{} lines in 11 hours", findings.len());
}

#[test]
fn a_lost_token_cache_at_hour_6_gives_one() {
    let findings = day(|_, _| {});
    assert_eq!(verdicts(&findings), ["token-not-reused warning"]);
    assert_eq!(findings[0].first_seen.since(START) / SECOND / 3600, 6);
    assert_eq!(findings[0].subject.process.as_ref().unwrap().pid, 907);
    assert!(findings.len() < 60, "{} lines in 18 hours", findings.len());
}
