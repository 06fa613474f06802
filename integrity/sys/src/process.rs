//! clone3, prctl and the like.
