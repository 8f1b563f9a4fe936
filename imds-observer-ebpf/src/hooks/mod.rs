//! One file per hook, with the same name as the file of its event in `imds-observer-common`.

mod connect;
mod drop;
mod segment;
mod socket;
mod wire;
