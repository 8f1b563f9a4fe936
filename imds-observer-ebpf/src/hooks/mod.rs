//! One file a hook, with the stem of its event in `imds-observer-common`.

mod connect;
mod drop;
mod segment;
mod socket;
mod wire;
