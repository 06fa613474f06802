//! Device control by eBPF (cgroup v2).
