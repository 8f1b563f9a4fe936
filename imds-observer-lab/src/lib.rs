//! Somewhere to observe: a stand-in for the metadata service, and the network namespaces around it.

pub mod server;
pub mod topology;
