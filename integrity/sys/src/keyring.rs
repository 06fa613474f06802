//! Keys in the calling thread's keyring.
