//! A device policy as an eBPF program of type `CGROUP_DEVICE`.
//!
//! The kernel hands over `{ access << 16 | kind, major, minor }` and takes 1 for yes, 0 for no:
//!
//! ```text
//! r2 = kind   r3 = access   r4 = major   r5 = minor
//! for each exception:   any test fails ─► next exception
//!     r2 != kind · access not covered (default deny) or not touched (default allow) · r4 != major · r5 != minor
//!     return the opposite of the default
//! return the default
//! ```
//!
//! Source: include/uapi/linux/bpf.h, `struct bpf_cgroup_dev_ctx`; Documentation/bpf/standardization/instruction-set.rst.

use hallmark_sys::bpf::Instruction;

use super::devices::{Access, Device, Policy, Verdict};

const LOAD_WORD: u8 = 0x61;
const AND_IMM: u8 = 0x54;
const SHIFT_RIGHT_IMM: u8 = 0x74;
const MOVE_REG: u8 = 0xbc;
const MOVE_IMM: u8 = 0xb7;
const JUMP_NOT_EQUAL_IMM: u8 = 0x56;
const JUMP_NOT_EQUAL_REG: u8 = 0x5e;
const JUMP_EQUAL_IMM: u8 = 0x16;
const EXIT: u8 = 0x95;

const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
/// The context is not read any more once the tests begin.
const SCRATCH: u8 = 1;

/// Assembles `policy`. At most 10 instructions an exception.
pub(super) fn assemble(policy: &Policy) -> Vec<Instruction> {
    let mut program = vec![
        with_reg(LOAD_WORD, KIND, CONTEXT, 0),
        with_imm(AND_IMM, KIND, 0xffff),
        with_reg(LOAD_WORD, ACCESS, CONTEXT, 0),
        with_imm(SHIFT_RIGHT_IMM, ACCESS, 16),
        with_reg(LOAD_WORD, MAJOR, CONTEXT, 4),
        with_reg(LOAD_WORD, MINOR, CONTEXT, 8),
    ];
    for (device, access) in &policy.exceptions {
        program.extend(exception(policy.default, device, *access));
    }
    program.extend(answer(policy.default));
    program
}

/// The program that denies one device in every access, and nothing else.
pub(super) fn assemble_denial(device: Device) -> Vec<Instruction> {
    assemble(&Policy { default: Verdict::Allow, exceptions: [(device, Access::ALL)].into() })
}

fn exception(default: Verdict, device: &Device, access: Access) -> Vec<Instruction> {
    // where a test jumps is known when the length is: 0 for now
    let mut block = vec![with_imm(JUMP_NOT_EQUAL_IMM, KIND, device.kind as u32)];
    if access != Access::ALL {
        block.push(with_reg(MOVE_REG, SCRATCH, ACCESS, 0));
        block.push(with_imm(AND_IMM, SCRATCH, u32::from(access.bits())));
        block.push(match default {
            Verdict::Deny => with_reg(JUMP_NOT_EQUAL_REG, SCRATCH, ACCESS, 0),
            Verdict::Allow => with_imm(JUMP_EQUAL_IMM, SCRATCH, 0),
        });
    }
    if let Some(major) = device.major {
        block.push(with_imm(JUMP_NOT_EQUAL_IMM, MAJOR, major));
    }
    if let Some(minor) = device.minor {
        block.push(with_imm(JUMP_NOT_EQUAL_IMM, MINOR, minor));
    }
    block.extend(answer(default.opposite()));
    for (to_next, instruction) in (0_i16..).zip(block.iter_mut().rev()) {
        if matches!(instruction.code, JUMP_NOT_EQUAL_IMM | JUMP_NOT_EQUAL_REG | JUMP_EQUAL_IMM) {
            instruction.off = to_next;
        }
    }
    block
}

fn answer(verdict: Verdict) -> [Instruction; 2] {
    let value = match verdict {
        Verdict::Allow => 1,
        Verdict::Deny => 0,
    };
    [with_imm(MOVE_IMM, 0, value), with_imm(EXIT, 0, 0)]
}

fn with_imm(code: u8, register: u8, value: u32) -> Instruction {
    Instruction { code, registers: register, off: 0, imm: value.cast_signed() }
}

fn with_reg(code: u8, to: u8, from: u8, off: i16) -> Instruction {
    Instruction { code, registers: to | from << 4, off, imm: 0 }
}

#[cfg(test)]
mod tests {
    use super::super::devices::{DeviceRule, Kind};
    use super::*;

    /// Runs a program as the kernel would; panics on what its verifier refuses (unknown code, read of an unset
    /// register, a jump backwards or out of the program).
    fn run(program: &[Instruction], kind: Kind, (major, minor): (u32, u32), access: Access) -> u32 {
        let context = [u32::from(access.bits()) << 16 | kind as u32, major, minor];
        let mut registers: [Option<u32>; 10] = [None; 10];
        let mut at = 0;
        loop {
            let Instruction { code, registers: pair, off, imm } = program[at];
            let (to, from) = (usize::from(pair & 15), usize::from(pair >> 4));
            let value = imm.cast_unsigned();
            let read = |register: usize| registers[register].expect("unset register");
            at += 1;
            let result = match code {
                LOAD_WORD if from == 1 => context[usize::try_from(off).unwrap() / 4],
                AND_IMM => read(to) & value,
                SHIFT_RIGHT_IMM => read(to) >> value,
                MOVE_REG => read(from),
                MOVE_IMM => value,
                EXIT => return registers[0].expect("no answer"),
                test => {
                    let holds = match test {
                        JUMP_NOT_EQUAL_IMM => read(to) != value,
                        JUMP_NOT_EQUAL_REG => read(to) != read(from),
                        JUMP_EQUAL_IMM => read(to) == value,
                        other => panic!("unknown code {other:#x}"),
                    };
                    at += usize::try_from(off).expect("backwards") * usize::from(holds);
                    continue;
                }
            };
            registers[to] = Some(result);
        }
    }

    /// Every access, over all numbers that the rules name and their neighbours, answers as the policy does.
    fn agrees(policy: &Policy) {
        let program = assemble(policy);
        let numbers = |of: fn(&Device) -> Option<u32>| {
            let mut all: Vec<u32> = policy.exceptions.keys().filter_map(of).collect();
            all.extend(all.clone().iter().flat_map(|n| [n.wrapping_sub(1), n.wrapping_add(1)]));
            all.extend([0, 1, u32::MAX]);
            all
        };
        let kinds = [Kind::Block, Kind::Char];
        for major in numbers(|device| device.major) {
            for minor in numbers(|device| device.minor) {
                for (kind, access) in kinds.iter().flat_map(|k| every_access().map(|a| (*k, a))) {
                    let expected =
                        u32::from(policy.judge(kind, (major, minor), access) == Verdict::Allow);
                    let found = run(&program, kind, (major, minor), access);
                    assert_eq!(found, expected, "{kind:?} {major}:{minor} {access} of {policy:?}");
                }
            }
        }
    }

    fn every_access() -> [Access; 7] {
        ["m", "r", "w", "rw", "rm", "wm", "rwm"].map(|text| Access::parse(text).unwrap())
    }

    #[test]
    fn containers_default_rules_agree() {
        let policy = Policy::new(&[
            DeviceRule::parse("deny a *:* rwm"),
            DeviceRule::parse("allow c 10:229 rw"),
            DeviceRule::parse("allow b 8:* r"),
        ])
        .unwrap();
        agrees(&policy);
    }

    #[test]
    fn privileged_rules_with_denials_agree() {
        let policy = Policy::new(&[
            DeviceRule::parse("allow a *:* rwm"),
            DeviceRule::parse("deny c 10:236 rwm"),
            DeviceRule::parse("deny b *:7 w"),
            DeviceRule::parse("deny c 4294967295:* rm"),
        ])
        .unwrap();
        agrees(&policy);
    }

    #[test]
    fn an_empty_policy_denies_all_but_the_common_devices() {
        let policy = Policy::new(&[]).unwrap();
        agrees(&policy);
        assert!(assemble(&policy).len() < 100);
    }

    #[test]
    fn the_denial_denies_one_device_only() {
        let control = Device { major: Some(10), minor: Some(236), kind: Kind::Char };
        let program = assemble_denial(control);
        for access in every_access() {
            assert_eq!(run(&program, Kind::Char, (10, 236), access), 0);
            for (kind, at) in
                [(Kind::Block, (10, 236)), (Kind::Char, (10, 235)), (Kind::Char, (1, 3))]
            {
                assert_eq!(run(&program, kind, at, access), 1);
            }
        }
        assert_eq!(program.len(), 13);
    }
}
