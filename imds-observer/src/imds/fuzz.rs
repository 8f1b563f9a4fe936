//! Any bytes as heads: for the fuzz targets.

use super::{Hasher, read_request, response_headers};
use crate::http::{Request, Response, Scan, Scanner};
use crate::record::Request as RequestRecord;

/// Reads `bytes` as a request and as a response, whole and cut. Panics if the two disagree where they must not.
pub fn fuzz_heads(bytes: &[u8]) -> RequestRecord {
    let hasher = Hasher::with_salt(1, 2);
    let whole = read_request(&Request::parse(bytes, false), &hasher);
    let cut = read_request(&Request::parse(bytes, true), &hasher);
    assert!(
        cut.imds_version.is_none() || cut.imds_version == whole.imds_version,
        "a cut head decides otherwise than a whole one"
    );
    let response = Response::parse(bytes, false);
    let _ = (response_headers(&response, false), response.body_length());
    if let Scan::Complete(len) = Scanner::default().scan(bytes) {
        assert!(len <= bytes.len(), "a head longer than its bytes");
    }
    whole
}
