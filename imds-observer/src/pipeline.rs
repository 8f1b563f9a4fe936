//! READ FIRST: source -> flow -> exchange -> attribution -> detectors -> sinks.
