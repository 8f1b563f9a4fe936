//! What a request means to the metadata service: version, dialect, path. Secrets stop here: tokens become salted hashes.

mod dialect;
mod fuzz;
mod path;
mod request;
mod secret;

#[doc(hidden)]
pub use fuzz::fuzz_heads;
pub use path::{
    below_version, is_aws_path, is_dated_token_path, is_natural_404, is_role_listing, is_token_path, may_be_absent,
    normalise, role_of,
};
pub use request::{PATH_BYTES, USER_AGENT_BYTES, no_request, read_request, response_headers};
pub use secret::Hasher;
