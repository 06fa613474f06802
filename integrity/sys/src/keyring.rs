//! Keys in the calling thread's keyring, where device-mapper looks a root hash signature up.
//!
//! A thread keyring is seen by its thread only, so a [`ThreadKey`] is neither `Send` nor `Sync`:
//! whoever adds a key uses it on the same thread.
//!
//! Source: add_key(2), keyctl(2), kernel `drivers/md/dm-verity-verify-sig.c` (`request_key(&key_type_user, …)`).

use std::ffi::CString;
use std::marker::PhantomData;

use crate::{Error, Result};

/// `KEY_SPEC_THREAD_KEYRING` of linux/keyctl.h.
const THREAD_KEYRING: libc::c_long = -1;
/// `KEYCTL_UNLINK` of linux/keyctl.h.
const UNLINK: libc::c_long = 9;

/// A key of type `user` in the calling thread's keyring, unlinked when dropped.
#[derive(Debug)]
pub struct ThreadKey {
    serial: libc::c_long,
    /// Bound to the thread that made it.
    thread: PhantomData<*const ()>,
}

impl ThreadKey {
    /// Adds a key of type `user` called `description` that holds `payload` (at most 32767 bytes).
    ///
    /// # Errors
    /// The kernel's refusal: no keyrings, quota, a payload that is empty or too long; `Malformed`
    /// for a description with a NUL.
    pub fn add(description: &str, payload: &[u8]) -> Result<Self> {
        let call = || format!("add_key(user, {description}, {} bytes, thread)", payload.len());
        let Ok(name) = CString::new(description) else {
            return Err(Error::malformed(call(), "the description holds a NUL"));
        };
        // SAFETY: both strings are NUL-terminated and the payload is valid for the length given;
        // the kernel copies all three before it returns.
        let serial = unsafe {
            libc::syscall(
                libc::SYS_add_key,
                c"user".as_ptr(),
                name.as_ptr(),
                payload.as_ptr(),
                payload.len(),
                THREAD_KEYRING,
            )
        };
        if serial < 0 {
            return Err(Error::last(call()));
        }
        Ok(Self { serial, thread: PhantomData })
    }

    /// Takes the key out of the keyring and says whether that worked.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn unlink(self) -> Result<()> {
        let serial = self.serial;
        std::mem::forget(self);
        unlink(serial)
    }
}

impl Drop for ThreadKey {
    fn drop(&mut self) {
        // Dropped only where another error is already on its way out, and the keyring dies with
        // its thread: there is nobody left to tell.
        drop(unlink(self.serial));
    }
}

fn unlink(serial: libc::c_long) -> Result<()> {
    // SAFETY: KEYCTL_UNLINK takes two serial numbers and no address.
    let answer = unsafe { libc::syscall(libc::SYS_keyctl, UNLINK, serial, THREAD_KEYRING) };
    if answer < 0 {
        return Err(Error::last(format!("keyctl(KEYCTL_UNLINK, {serial}, thread)")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_in_the_keyring_until_it_is_unlinked() {
        let key = ThreadKey::add("hallmark:test-key", b"payload").unwrap();
        let serial = key.serial;
        key.unlink().unwrap();
        assert_eq!(unlink(serial).unwrap_err().kind(), crate::ErrorKind::NotFound);
    }

    #[test]
    fn a_key_goes_when_it_is_dropped() {
        let key = ThreadKey::add("hallmark:test-drop", b"payload").unwrap();
        let serial = key.serial;
        drop(key);
        assert_eq!(unlink(serial).unwrap_err().kind(), crate::ErrorKind::NotFound);
    }

    #[test]
    fn a_description_with_a_nul_is_refused() {
        assert!(ThreadKey::add("a\0b", b"x").is_err());
    }
}
