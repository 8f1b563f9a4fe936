//! How is a command run so that it alone is observed, and nothing of it is left behind?

pub mod against;
pub mod capture;
pub mod cgroup;
pub mod supervisor;
