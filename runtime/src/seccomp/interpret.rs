//! The kernel's view of a filter, for tests: checks a program as `seccomp_check_filter` does, and runs it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests and fuzz targets stop at the first thing that is not as it should be"
)]

use hallmark_sys::seccomp::{Instruction, MAX_INSTRUCTIONS};

use super::assemble::{AND, JUMP, JUMP_EQUAL, JUMP_GREATER, JUMP_GREATER_OR_EQUAL, LOAD, RETURN};

const JUMP_SET: u16 = 0x45;

/// `struct seccomp_data`, without the instruction pointer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    pub(super) number: u32,
    pub(super) arch: u32,
    pub(super) args: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        let argument = |at: u32| self.args[usize::try_from((at - 16) / 8).unwrap()];
        match offset {
            0 => self.number,
            4 => self.arch,
            at if at % 8 == 0 => (argument(at) & u64::from(u32::MAX)).try_into().unwrap(),
            at => (argument(at) >> 32).try_into().unwrap(),
        }
    }
}

/// Panics on what the kernel refuses: length, unknown codes, jumps out of the program, loads beside the data, an end
/// without return.
pub(super) fn check(program: &[Instruction]) {
    assert!((1..=MAX_INSTRUCTIONS).contains(&program.len()));
    assert_eq!(program.last().unwrap().code, RETURN);
    for (at, one) in program.iter().enumerate() {
        let left = program.len() - at - 1;
        match one.code {
            LOAD => assert!(one.k % 4 == 0 && one.k < 64),
            JUMP => assert!(usize::try_from(one.k).unwrap() < left, "{at}: {one:?}"),
            JUMP_EQUAL | JUMP_GREATER | JUMP_GREATER_OR_EQUAL | JUMP_SET => {
                assert!(usize::from(one.jt.max(one.jf)) < left, "{at}: {one:?}");
            }
            AND | RETURN => {}
            other => panic!("{at}: unknown code {other:#x}"),
        }
    }
}

/// What the program answers for `call`, and after how many instructions.
pub(super) fn run(program: &[Instruction], call: &Call) -> (u32, usize) {
    let (mut at, mut value, mut steps) = (0, 0_u32, 0);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        steps += 1;
        let holds = match code {
            LOAD => {
                value = call.word(k);
                continue;
            }
            AND => {
                value &= k;
                continue;
            }
            JUMP => {
                at += usize::try_from(k).unwrap();
                continue;
            }
            RETURN => return (k, steps),
            JUMP_EQUAL => value == k,
            JUMP_GREATER => value > k,
            JUMP_GREATER_OR_EQUAL => value >= k,
            JUMP_SET => value & k != 0,
            other => panic!("unknown code {other:#x}"),
        };
        at += usize::from(if holds { jt } else { jf });
    }
}
