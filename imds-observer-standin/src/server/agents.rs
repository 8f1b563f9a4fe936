//! The agents that give pods and tasks their credentials, by the rules in their sources: aws/eks-pod-identity-agent and
//! aws/amazon-ecs-agent. All values are made up.

use jiff::{SignedDuration, Timestamp};

use super::answer::{Answer, Request};
use super::behaviour::{Behaviour, Serves};

const POD_IDENTITY_HOSTS: [&str; 2] = ["169.254.170.23", "[fd00:ec2::23]"];
/// The ID of the only task, and of its credentials.
pub const TASK: &str = "0f0f0f0f-1111-4222-8333-444455556666";

pub(super) fn decide(request: &Request, behaviour: &Behaviour, now: Timestamp) -> Answer {
    match behaviour.serves {
        Serves::Ecs => ecs(request, behaviour, now),
        _ => pod_identity(request, behaviour, now),
    }
}

fn pod_identity(request: &Request, behaviour: &Behaviour, now: Timestamp) -> Answer {
    if request.path != "/v1/credentials" {
        return Answer::error(404);
    }
    if !request
        .host
        .as_deref()
        .is_some_and(|host| POD_IDENTITY_HOSTS.contains(&host))
    {
        return Answer::error(403);
    }
    // A JWT has three parts.
    let token = request.authorization.as_deref().unwrap_or_default();
    if token.split('.').filter(|part| !part.is_empty()).count() != 3 || token.contains(' ') {
        return Answer::error(400);
    }
    if !behaviour.association {
        return Answer::error(404);
    }
    credentials(behaviour, now)
}

fn ecs(request: &Request, behaviour: &Behaviour, now: Timestamp) -> Answer {
    let segments: Vec<&str> = request.path.split('/').filter(|segment| !segment.is_empty()).collect();
    match segments[..] {
        ["v2", "credentials", TASK] => credentials(behaviour, now),
        ["v3" | "v4", TASK, ..] => json(serde_json::json!({"Family": "lab", "KnownStatus": "RUNNING"}).to_string()),
        ["v2", "credentials", ..] | ["v3" | "v4", ..] => Answer::error(400),
        _ => Answer::error(404),
    }
}

fn credentials(behaviour: &Behaviour, now: Timestamp) -> Answer {
    let until = now.checked_add(SignedDuration::from_secs(i64::from(behaviour.credential_lifetime_s)));
    json(
        serde_json::json!({
            "AccessKeyId": "ASIAMADEUPMADEUP0000",
            "SecretAccessKey": "made-up-secret-access-key-0000000000000",
            "Token": "made-up-session-token-".repeat(20),
            "AccountId": "123456789012",
            "RoleArn": "arn:aws:iam::123456789012:role/lab-role",
            "Expiration": until.map_or_else(|_| now.to_string(), |until| until.to_string()),
        })
        .to_string(),
    )
}

fn json(body: String) -> Answer {
    Answer {
        status: 200,
        headers: Vec::new(),
        body,
        content_type: "application/json",
        hop_limited: false,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::answer::Parsed;
    use super::*;

    const GOOD: &str = "Host: 169.254.170.23\r\nAuthorization: made.up.jwt\r\n";

    fn status(behaviour: &Behaviour, text: &str) -> u16 {
        match Request::parse(format!("{text}\r\n").as_bytes()) {
            Parsed::Complete { request, .. } => decide(&request, behaviour, Timestamp::UNIX_EPOCH).status,
            _ => panic!("not a request: {text:?}"),
        }
    }

    #[rstest]
    #[case("GET / HTTP/1.1\r\n", "", 404)]
    #[case("GET /v1/credentials HTTP/1.1\r\n", GOOD, 200)]
    #[case(
        "GET /v1/credentials HTTP/1.1\r\n",
        "Host: agent\r\nAuthorization: made.up.jwt\r\n",
        403
    )]
    #[case("GET /v1/credentials HTTP/1.1\r\n", "Host: 169.254.170.23\r\n", 400)]
    #[case(
        "GET /v1/credentials HTTP/1.1\r\n",
        "Host: 169.254.170.23\r\nAuthorization: Bearer made.up.jwt\r\n",
        400
    )]
    fn pod_identity_follows_its_source(#[case] line: &str, #[case] headers: &str, #[case] expected: u16) {
        let behaviour = Behaviour {
            serves: Serves::PodIdentity,
            ..Behaviour::default()
        };
        assert_eq!(status(&behaviour, &format!("{line}{headers}")), expected);
        let alone = Behaviour {
            association: false,
            ..behaviour
        };
        let refused = if expected == 200 { 404 } else { expected };
        assert_eq!(status(&alone, &format!("{line}{headers}")), refused);
    }

    #[test]
    fn the_id_is_a_tasks_credential() {
        let behaviour = Behaviour {
            serves: Serves::Ecs,
            ..Behaviour::default()
        };
        let get = |path: &str| status(&behaviour, &format!("GET {path} HTTP/1.1\r\nHost: 169.254.170.2\r\n"));
        assert_eq!(get(&format!("/v2/credentials/{TASK}")), 200);
        assert_eq!(get("/v2/credentials/another"), 400);
        assert_eq!(get(&format!("/v4/{TASK}/task")), 200);
        assert_eq!(get("/latest/meta-data/"), 404);
    }
}
