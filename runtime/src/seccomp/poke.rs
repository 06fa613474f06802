//! The filter that goes with `PR_SET_MDWE`: no process writes to another's memory by ptrace.
//!
//! IPE judges the file that a mapping comes from, and MDWE keeps a process from making its own mappings writable and
//! executable. PTRACE_POKETEXT asks neither: it forces its way through a read-only mapping of a verified program and
//! leaves foreign code in it. A debugger that sets breakpoints needs the same call and gets EPERM.
//!
//! `/proc/PID/mem` is the other such way, and no filter sees it: kernels close it by `proc_mem.force_override=never`.
//!
//! Source: include/uapi/linux/ptrace.h; kernel/ptrace.c (`generic_ptrace_pokedata` uses FOLL_FORCE).

use oci_spec::runtime::LinuxSeccomp;

use super::{Filter, compile};

/// PTRACE_POKETEXT is 4 and PTRACE_POKEDATA 5 on every architecture; EPERM is 1. Architectures of other machines are
/// passed over, and one that is not named would be killed.
const PROFILE: &str = r#"{
    "defaultAction": "SCMP_ACT_ALLOW",
    "flags": ["SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
    "architectures": [
        "SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"
    ],
    "syscalls": [
        {"names": ["ptrace"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
         "args": [{"index": 0, "value": 4, "op": "SCMP_CMP_EQ"}]},
        {"names": ["ptrace"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
         "args": [{"index": 0, "value": 5, "op": "SCMP_CMP_EQ"}]}
    ]
}"#;

/// Compiles the filter.
///
/// # Errors
/// None on a machine that this crate knows.
pub(crate) fn deny_poke() -> crate::Result<Filter> {
    let profile: LinuxSeccomp = serde_json::from_str(PROFILE)?;
    Ok(compile(&profile)?)
}

#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests {
    use super::super::cases::{AUDIT_I386, AUDIT_X86_64};
    use super::super::interpret::{Call, check, run};
    use super::*;

    const ALLOW: u32 = 0x7fff_0000;
    const EPERM: u32 = 0x0005_0001;

    #[test]
    fn only_poking_is_denied_on_every_architecture() {
        let filter = deny_poke().unwrap();
        check(filter.program());
        let answer = |arch, number, request| {
            let call = Call { number, arch, args: [request, 1, 2, 3, 0, 0] };
            run(filter.program(), &call).0
        };
        // ptrace of x86_64, x32 and i386
        for (arch, number) in [(AUDIT_X86_64, 101), (AUDIT_X86_64, 521 | 1 << 30), (AUDIT_I386, 26)]
        {
            for request in 0..0x20_u64 {
                let expected = if matches!(request, 4 | 5) { EPERM } else { ALLOW };
                assert_eq!(answer(arch, number, request), expected, "{number} {request}");
            }
            assert_eq!(answer(arch, number, 0x4206), ALLOW);
        }
        for number in (0..600).filter(|number| *number != 101) {
            assert_eq!(answer(AUDIT_X86_64, number, 4), ALLOW, "{number}");
        }
    }

    /// The kernel takes it, and other programs go on as before.
    #[test]
    fn the_kernel_takes_it() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let installed = std::thread::spawn(|| {
            deny_poke().unwrap().install().unwrap();
            let ran = std::process::Command::new("sh").args(["-c", "exit 7"]).status().unwrap();
            (std::fs::read_to_string("/proc/thread-self/status").unwrap(), ran.code())
        });
        let (status, code) = installed.join().unwrap();
        assert!(status.contains("Seccomp:\t2\n"), "{status}");
        assert_eq!(code, Some(7));
    }
}
