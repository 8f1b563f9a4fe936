//! Metadata services of other clouds, by their vendors' documentation. All values are made up.

use super::answer::{Answer, Request};
use super::behaviour::{Behaviour, Serves};

/// Length of the made-up tokens: that of a real one, so that segments are cut alike.
const TOKEN_BYTES: usize = 1_024;

pub(super) fn decide(request: &Request, behaviour: &Behaviour) -> Answer {
    match behaviour.serves {
        Serves::Gcp => gcp(request, behaviour),
        Serves::Azure => azure(request, behaviour),
        Serves::Ibm => ibm(request, behaviour),
        Serves::Oracle => oracle(request, behaviour),
        _ => openstack(request),
    }
}

/// <https://cloud.google.com/compute/docs/metadata/querying-metadata>
fn gcp(request: &Request, behaviour: &Behaviour) -> Answer {
    let mut answer = if request.forwarded || request.flavor.as_deref() != Some("Google") {
        Answer::error(403)
    } else {
        match request.path.trim_end_matches('/') {
            "" => text("computeMetadata/"),
            "/computeMetadata/v1/project/project-id" => text("made-up-project"),
            "/computeMetadata/v1/universe/universe-domain" => text("googleapis.com"),
            "/computeMetadata/v1/instance/id" => text("1234567890123456789"),
            path if path.starts_with("/computeMetadata/v1/instance/service-accounts") && !behaviour.identity => {
                Answer::error(404)
            }
            "/computeMetadata/v1/instance/service-accounts/default" => json(&serde_json::json!({
                "aliases": ["default"],
                "email": "made-up@made-up-project.iam.gserviceaccount.com",
                "scopes": ["https://www.googleapis.com/auth/cloud-platform"],
            })),
            "/computeMetadata/v1/instance/service-accounts/default/token"
            | "/computeMetadata/v1/instance/service-accounts/made-up@made-up-project.iam.gserviceaccount.com/token" => {
                json(&serde_json::json!({"access_token": token(), "expires_in": 3_599, "token_type": "Bearer"}))
            }
            _ => Answer::error(404),
        }
    };
    answer.headers.push(("Metadata-Flavor", "Google".to_owned()));
    answer
}

/// <https://learn.microsoft.com/en-us/azure/virtual-machines/instance-metadata-service>
fn azure(request: &Request, behaviour: &Behaviour) -> Answer {
    let has_version = request
        .query
        .as_deref()
        .is_some_and(|query| query.contains("api-version="));
    let is_asked = request
        .metadata
        .as_deref()
        .is_some_and(|value| value.eq_ignore_ascii_case("true"));
    if request.forwarded || !is_asked || !has_version {
        return Answer {
            status: 400,
            ..json(&serde_json::json!({"error": "Bad request. Required metadata header not specified"}))
        };
    }
    match request.path.as_str() {
        "/metadata/identity/oauth2/token" if !behaviour.identity => Answer {
            status: 400,
            ..json(&serde_json::json!({"error": "invalid_request", "error_description": "Identity not found"}))
        },
        "/metadata/identity/oauth2/token" => json(&serde_json::json!({
            "access_token": token(),
            "client_id": "00000000-0000-4000-8000-000000000000",
            "expires_in": "86399",
            "expires_on": "4102444800",
            "resource": "https://management.azure.com",
            "token_type": "Bearer",
        })),
        "/metadata/instance" => json(&serde_json::json!({"compute": {"location": "westus", "name": "made-up"}})),
        _ => Answer::error(404),
    }
}

/// <https://cloud.ibm.com/docs/vpc?topic=vpc-imd-about>
fn ibm(request: &Request, behaviour: &Behaviour) -> Answer {
    let flavored = request.flavor.as_deref() == Some("ibm");
    let bearer = request
        .authorization
        .as_deref()
        .is_some_and(|value| value.starts_with("Bearer "));
    match (request.method.as_str(), request.path.as_str()) {
        ("PUT", "/instance_identity/v1/token") if flavored => {
            json(&serde_json::json!({"access_token": token(), "expires_in": 300}))
        }
        ("PUT", "/instance_identity/v1/token") => Answer::error(400),
        _ if !bearer => Answer::error(401),
        ("POST", "/instance_identity/v1/iam_token") if !behaviour.identity => Answer::error(404),
        ("POST", "/instance_identity/v1/iam_token") => json(&serde_json::json!({
            "access_token": ibm_token(),
            "created_at": "2026-01-01T00:00:00.000Z",
            "expires_at": "2030-01-01T00:00:00.000Z",
            "expires_in": 3_600,
        })),
        ("GET", "/metadata/v1/instance") => json(&serde_json::json!({"name": "made-up"})),
        _ => Answer::error(404),
    }
}

/// <https://docs.oracle.com/iaas/Content/Compute/Tasks/gettingmetadata.htm>
fn oracle(request: &Request, behaviour: &Behaviour) -> Answer {
    let document = || json(&serde_json::json!({"displayName": "made-up", "region": "eu-frankfurt-1"}));
    match request.path.trim_end_matches('/') {
        "/opc/v2/instance" if request.authorization.as_deref() == Some("Bearer Oracle") => document(),
        path if path.starts_with("/opc/v2") && request.authorization.as_deref() != Some("Bearer Oracle") => {
            Answer::error(401)
        }
        "/opc/v1/instance" if behaviour.legacy => document(),
        _ => Answer::error(404),
    }
}

/// <https://docs.openstack.org/nova/latest/user/metadata.html>
fn openstack(request: &Request) -> Answer {
    match (request.method.as_str(), request.path.trim_end_matches('/')) {
        ("GET", "") => text("1.0\n2009-04-04\nlatest"),
        ("GET", "/openstack") => text("2012-08-10\n2018-08-27\nlatest"),
        ("GET", path) if path.starts_with("/openstack/") && path.ends_with("/meta_data.json") => {
            json(&serde_json::json!({"uuid": "00000000-0000-4000-8000-000000000000", "name": "made-up"}))
        }
        ("GET", path) if path.starts_with("/openstack/") && path.ends_with("/network_data.json") => {
            json(&serde_json::json!({"links": [], "networks": [], "services": []}))
        }
        ("GET", path) if path.starts_with("/openstack/") && path.ends_with("/vendor_data.json") => {
            json(&serde_json::json!({}))
        }
        ("GET", "/latest/meta-data" | "/2009-04-04/meta-data") => text("ami-id\nhostname\ninstance-id\nlocal-ipv4"),
        ("GET", "/latest/meta-data/instance-id" | "/2009-04-04/meta-data/instance-id") => text("i-00000001"),
        ("PUT", _) => Answer::error(405),
        _ => Answer::error(404),
    }
}

fn token() -> String {
    "made-up-".repeat(TOKEN_BYTES / 8)
}

/// IBM's library reads the lifetime from the token, a JWT: `{"alg":"HS256"}`, `{"iat":1767225600,"exp":1893456000}`.
fn ibm_token() -> String {
    "eyJhbGciOiJIUzI1NiJ9.eyJpYXQiOjE3NjcyMjU2MDAsImV4cCI6MTg5MzQ1NjAwMH0.bWFkZS11cA".to_owned()
}

fn text(body: &str) -> Answer {
    Answer {
        status: 200,
        headers: Vec::new(),
        body: body.to_owned(),
        content_type: "text/plain",
        hop_limited: false,
    }
}

fn json(body: &serde_json::Value) -> Answer {
    Answer {
        content_type: "application/json",
        ..text(&body.to_string())
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use rstest::rstest;

    use super::super::answer::{Parsed, decide};
    use super::super::token::Mint;
    use super::*;

    #[rstest]
    #[case(
        Serves::Gcp,
        "GET /computeMetadata/v1/instance/id HTTP/1.1\r\nMetadata-Flavor: Google\r\n\r\n",
        200
    )]
    #[case(Serves::Gcp, "GET /computeMetadata/v1/instance/id HTTP/1.1\r\n\r\n", 403)]
    #[case(
        Serves::Gcp,
        "GET /computeMetadata/v1/instance/id HTTP/1.1\r\nMetadata-Flavor: Google\r\nX-Forwarded-For: a\r\n\r\n",
        403
    )]
    #[case(
        Serves::Azure,
        "GET /metadata/instance?api-version=2021-02-01 HTTP/1.1\r\nMetadata: true\r\n\r\n",
        200
    )]
    #[case(Serves::Azure, "GET /metadata/instance?api-version=2021-02-01 HTTP/1.1\r\n\r\n", 400)]
    #[case(Serves::Azure, "GET /metadata/instance HTTP/1.1\r\nMetadata: true\r\n\r\n", 400)]
    #[case(
        Serves::Ibm,
        "PUT /instance_identity/v1/token?version=2022-03-01 HTTP/1.1\r\nMetadata-Flavor: ibm\r\n\r\n",
        200
    )]
    #[case(Serves::Ibm, "GET /metadata/v1/instance HTTP/1.1\r\n\r\n", 401)]
    #[case(
        Serves::Oracle,
        "GET /opc/v2/instance/ HTTP/1.1\r\nAuthorization: Bearer Oracle\r\n\r\n",
        200
    )]
    #[case(Serves::Oracle, "GET /opc/v2/instance/ HTTP/1.1\r\n\r\n", 401)]
    #[case(Serves::Oracle, "GET /opc/v1/instance/ HTTP/1.1\r\n\r\n", 404)]
    #[case(Serves::OpenStack, "GET /openstack/latest/meta_data.json HTTP/1.1\r\n\r\n", 200)]
    #[case(Serves::OpenStack, "PUT /latest/api/token HTTP/1.1\r\n\r\n", 405)]
    fn statuses(#[case] serves: Serves, #[case] text: &str, #[case] status: u16) {
        let behaviour = Behaviour {
            serves,
            ..Behaviour::default()
        };
        let Parsed::Complete { request, .. } = Request::parse(text.as_bytes()) else {
            panic!("not a request: {text:?}");
        };
        assert_eq!(
            decide(&request, &behaviour, &Mint::new(), Timestamp::UNIX_EPOCH).status,
            status
        );
    }
}
