//! All use of aya: load, attach, read the ring buffer, and what this kernel supports or why not.
