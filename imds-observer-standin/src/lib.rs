//! A stand-in for the EC2 instance metadata service, and network namespaces to run it in.
//!
//! It shares no code with the observer: a misunderstanding of the protocol shows as a difference between what the stand-in served and
//! what the observer recorded.

#![cfg(target_os = "linux")]

pub mod server;
pub mod wire;
pub mod world;
