//! A session keyring of the container's own, so that it cannot search the one of whoever started it.

use std::ffi::CString;

use rustix::io::Errno;

use super::{Common, Init, Keyring, label};
use crate::error::{Context, Result};
use crate::spec::{Kind, Plan};

/// A new container's: unless the caller wants its own inherited.
pub(super) fn join(init: &Init<'_>) -> Result<()> {
    match init.keyring {
        Keyring::New => join_of(&init.common, init.plan),
        Keyring::Inherited => Ok(()),
    }
}

/// Joins `_ses.<id>`, labelled like the process, and lets the container search it.
pub(super) fn join_of(common: &Common<'_>, plan: &Plan) -> Result<()> {
    label::with_key_label(common, || {
        let name = format!("_ses.{}", common.id);
        let name =
            CString::new(name).map_err(std::io::Error::from).context(|| "session keyring")?;
        // as runc: what was there stays, plus "search" for other users in a user namespace, else for the user
        let search = if plan.namespaces.contains(Kind::User) { 0x8 } else { 0x8_0000 };
        match hallmark_sys::process::join_session_keyring(&name, u32::MAX, search) {
            Ok(()) => Ok(()),
            // a kernel without keyrings has none to be inherited either
            Err(error) if error.errno() == Some(Errno::NOSYS) => Ok(()),
            Err(error) => Err(error).context(|| "unable to join session keyring"),
        }
    })
}
