//! Attributes that a security module keeps of the calling thread, set without /proc.
//!
//! A process that has joined a container's namespaces holds no descriptor of the host's procfs any more, and the
//! container's own is not to be trusted with a label.
//!
//! Source: Linux 6.8 `security/lsm_syscalls.c`, <linux/lsm.h>, Documentation/userspace-api/lsm.rst.

use crate::{Error, Result};

/// `__NR_lsm_set_self_attr`, the same on every architecture.
const SET_SELF_ATTR: libc::c_long = 460;
/// `struct lsm_ctx` before its text: module, flags, length of all, length of the text.
const HEADER: usize = 4 * size_of::<u64>();

/// Whose attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Module {
    /// `LSM_ID_SELINUX`.
    Selinux,
    /// `LSM_ID_APPARMOR`.
    AppArmor,
}

/// Which attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attribute {
    /// `LSM_ATTR_EXEC`: of the program that is executed next.
    Exec,
    /// `LSM_ATTR_KEYCREATE`: of keys made from now on.
    KeyCreate,
}

/// Gives the calling thread `value` as `attribute` of `module`, in the words that the file in /proc/thread-self/attr
/// takes; a single NUL takes an attribute of SELinux away.
///
/// # Errors
/// EOPNOTSUPP if the module is not active, EINVAL for a value that it does not know, EACCES if its policy says no.
pub fn set_own(module: Module, attribute: Attribute, value: &str) -> Result<()> {
    let call = || format!("lsm_set_self_attr({attribute:?}, {module:?}, {value:?})");
    let context = context(module, value);
    let Ok(size) = u32::try_from(context.len()) else {
        return Err(Error::malformed(call(), "the value is longer than any label"));
    };
    let attribute: libc::c_uint = match attribute {
        Attribute::Exec => 101,
        Attribute::KeyCreate => 103,
    };
    // SAFETY: `context` is valid for `size` bytes, which the kernel copies before it looks at them.
    let answer = unsafe { libc::syscall(SET_SELF_ATTR, attribute, context.as_ptr(), size, 0_u32) };
    if answer == 0 { Ok(()) } else { Err(Error::last(call())) }
}

/// A `struct lsm_ctx`.
fn context(module: Module, value: &str) -> Vec<u8> {
    let module: u64 = match module {
        Module::Selinux => 101,
        Module::AppArmor => 104,
    };
    let text = value.len() as u64;
    let header = [module, 0, HEADER as u64 + text, text];
    let mut bytes: Vec<u8> = header.iter().flat_map(|field| field.to_ne_bytes()).collect();
    bytes.extend_from_slice(value.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_says_how_long_it_is() {
        let bytes = context(Module::Selinux, "a:b:c:s0");
        assert_eq!(bytes.len(), HEADER + 8);
        assert_eq!(bytes[16..24], 40_u64.to_ne_bytes());
        assert_eq!(bytes[24..32], 8_u64.to_ne_bytes());
        assert_eq!(&bytes[HEADER..], b"a:b:c:s0");
    }

    #[test]
    fn a_module_that_is_not_active_is_an_error() {
        let active = std::fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
        let known = std::fs::read_to_string("/proc/filesystems").unwrap();
        if active.contains("selinux") || known.contains("selinuxfs") {
            #[expect(clippy::print_stdout, reason = "a skipped test says so")]
            {
                println!("skipped: needs a kernel without SELinux");
            }
            return;
        }
        let error = set_own(Module::Selinux, Attribute::Exec, "a:b:c:s0").unwrap_err();
        assert_eq!(error.errno(), Some(rustix::io::Errno::OPNOTSUPP), "{error}");
    }
}
