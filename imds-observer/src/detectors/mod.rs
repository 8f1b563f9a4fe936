//! One file a detector, one registry.
