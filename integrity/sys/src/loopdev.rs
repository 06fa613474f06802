//! Loop devices: made read-only from an open descriptor, asked what backs them.
