//! What the new mount API needs beyond rustix.
