//! The public interface against tars made by hand, reference tools and the kernel.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]

mod entries;
mod hostile;
mod kernel;
mod objects;
mod oracle;
mod sparse;
mod tarball;
mod vectors;
