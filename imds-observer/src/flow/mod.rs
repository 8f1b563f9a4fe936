//! Puts the packets of a connection back into byte streams, whatever way they were cut, repeated or lost.

mod reader;
mod requests;
mod responses;
mod seq;
mod stream;

pub use reader::{Meta, StreamLimits};
pub use requests::{FoundRequest, RequestReader};
pub use responses::{FoundResponse, ResponseReader};
pub use seq::Seq;
pub use stream::{Piece, Pushed, Refused, Stream};
