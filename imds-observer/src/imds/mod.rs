//! Meaning of a request for the metadata service: version, dialect, path. Secrets stop here: tokens become salted hashes.

mod dialect;
mod endpoint;
mod fuzz;
mod path;
mod request;
mod secret;
mod trace_context;

pub use dialect::{Protocol, Refusal, TokenProtocol, cloud_of_server};
pub use endpoint::{
    DEFAULT_ENDPOINTS, IMDS, Norm, SERVICES, Selection, Service, beyond_this_host, endpoint_at, endpoint_of,
    is_own_request, service, service_at,
};
#[doc(hidden)]
pub use fuzz::fuzz_heads;
pub use path::{
    below_version, is_aws_path, is_dated_token_path, is_natural_404, is_role_listing, is_token_path, may_be_absent,
    normalise, role_of,
};
pub use request::{PATH_BYTES, USER_AGENT_BYTES, no_request, read_request, read_request_to, response_headers};
pub use secret::Hasher;
