//! Invariants: every profile is compiled or refused, without a panic; the kernel takes what was compiled; and it answers each
//! call as a plain reading of the profile, rule after rule, does.
//!
//! The input is a program for making a profile, not the profile's text: mutations of text hardly ever name a system call.
#![no_main]

use hallmark_runtime::seccomp::plain;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

const NAMES: [&str; 16] = [
    "read", "write", "openat", "clone", "clone3", "socket", "socketcall", "ipc", "personality", "mmap", "mmap2", "ioctl",
    "getcpu", "time", "futex_time64", "no_such_call",
];
const ACTIONS: [&str; 9] = [
    "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP", "SCMP_ACT_TRACE",
    "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_KILL_THREAD",
];
const OPERATORS: [&str; 7] = [
    "SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_LE", "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_MASKED_EQ",
];
const ARCHES: [&str; 4] = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_ARM"];

/// Bytes of the input, and zeros behind its end.
struct Bytes<'a>(std::slice::Iter<'a, u8>);

impl Bytes<'_> {
    fn byte(&mut self) -> usize {
        self.0.next().copied().map_or(0, usize::from)
    }

    fn one<'t>(&mut self, of: &[&'t str]) -> &'t str {
        of[self.byte() % of.len()]
    }

    /// A number of few or of many bits.
    fn number(&mut self) -> u64 {
        let shift = self.byte() % 64;
        u64::try_from(self.byte()).expect("a byte").rotate_left(u32::try_from(shift).expect("small"))
    }

    fn rule(&mut self) -> Value {
        let names: Vec<&str> = (0..=self.byte() % 3).map(|_| self.one(&NAMES)).collect();
        let args: Vec<Value> = (0..self.byte() % 4)
            .map(|_| {
                json!({"index": self.byte() % 6, "op": self.one(&OPERATORS), "value": self.number(),
                    "valueTwo": self.number()})
            })
            .collect();
        let mut rule = json!({"names": names, "action": self.one(&ACTIONS), "args": args});
        if self.byte() % 2 == 1 {
            rule["errnoRet"] = json!(self.byte());
        }
        rule
    }

    fn profile(&mut self) -> Value {
        let architectures: Vec<&str> = (0..self.byte() % 5).map(|_| self.one(&ARCHES)).collect();
        let default = self.one(&ACTIONS);
        let rules: Vec<Value> = (0..self.byte() % 12).map(|_| self.rule()).collect();
        json!({"defaultAction": default, "architectures": architectures, "syscalls": rules})
    }
}

fuzz_target!(|input: &[u8]| {
    let mut bytes = Bytes(input.iter());
    let seed = std::array::from_fn(|_| bytes.number());
    let profile = serde_json::from_value(bytes.profile()).expect("a profile by its schema");
    plain::compare(&profile, seed);
});
