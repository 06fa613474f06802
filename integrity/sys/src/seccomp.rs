//! Installing a compiled seccomp program.
