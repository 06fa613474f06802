//! A Debian guest that has everything: dm-verity, IPE, SELinux, our certificate in its firmware.
//!
//! Its root and the kit are EROFS on dm-verity, each with a root hash that the kernel checked
//! against the firmware's `db`. Nothing else in it can be executed once the policy is active.

pub(crate) mod boot;
mod firmware;
pub(crate) mod init;
pub(crate) mod parts;
pub(crate) mod selinux;
