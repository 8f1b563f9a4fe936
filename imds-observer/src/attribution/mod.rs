//! Who called: process, cgroup, container, pod.
