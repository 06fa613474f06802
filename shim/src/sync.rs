//! Taking a mutex whose owner panicked.
//!
//! No guard in this program is held across an await or a call that leaves the data half written, so poisoning says
//! nothing about the data and the lock is simply taken.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`, poisoned or not.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
