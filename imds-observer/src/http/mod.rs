//! Reads request heads and status lines. Total: any bytes give a head, a need for more, or a reason.
//!
//! httparse refuses what some clients send and what a hostile one may send to hide a header from us (a space before the colon, folded lines,
//! control bytes), and gives nothing for a head that is cut. So the reading is line by line, and httparse is the judge in the tests: whatever it
//! accepts must read the same here.

mod head;
mod request;
mod response;

pub use head::{Header, Headers, Scan, Scanner};
pub use request::{Body, Request, may_begin_request, starts_with_method};
pub use response::{Response, status_of};
