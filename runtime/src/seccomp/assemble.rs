//! Classic BPF written from its end: every jump goes forward, so what it leads to is already there.
//!
//! Tests jump over at most 255 instructions; a longer way goes over an unconditional jump, put in unasked.
//!
//! Source: Documentation/networking/filter.rst; include/uapi/linux/seccomp.h, `struct seccomp_data`:
//! `{ int nr; u32 arch; u64 instruction_pointer; u64 args[6]; }`, little endian.

use hallmark_sys::seccomp::Instruction;

use super::action::Action;
use super::arch::{AuditArch, Width};
use super::rule::{Answer, Condition, Rule, Segment, Test};

pub(super) const LOAD: u16 = 0x20;
pub(super) const AND: u16 = 0x54;
pub(super) const JUMP: u16 = 0x05;
pub(super) const JUMP_EQUAL: u16 = 0x15;
pub(super) const JUMP_GREATER: u16 = 0x25;
pub(super) const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
pub(super) const RETURN: u16 = 0x06;

const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// A program in the making, last instruction first.
#[derive(Debug)]
pub(super) struct Assembler(Vec<Instruction>);

/// A place to jump to: how many instructions lie from it to the program's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark(usize);

/// An argument: where its lower half lies, and whether the upper one behind it counts.
#[derive(Debug, Clone, Copy)]
struct Halves {
    at: u32,
    width: Width,
}

impl Assembler {
    /// A program that ends with `action`, for architectures that nothing put before it takes.
    pub(super) fn ending_with(action: Action) -> Self {
        let mut code = Self(Vec::with_capacity(1024));
        code.ret(action);
        code
    }

    /// Puts before all the rest: if the architecture is `audit`, answer by `segments`.
    pub(super) fn prepend_arch(&mut self, audit: AuditArch, segments: &[Segment]) {
        let others = self.here();
        self.tree(segments);
        self.statement(LOAD, NUMBER);
        let own = self.here();
        self.test(JUMP_EQUAL, audit.0, own, others);
    }

    /// The program, first instruction first.
    pub(super) fn finish(mut self) -> Vec<Instruction> {
        self.statement(LOAD, ARCH);
        self.0.reverse();
        self.0
    }

    /// A balanced tree over the number in the accumulator: log2 of the segments' count tests, then the answer.
    fn tree(&mut self, segments: &[Segment]) {
        match segments {
            [] => {}
            [only] => self.answer(&only.answer),
            _ => {
                let (low, high) = segments.split_at(segments.len() / 2);
                self.tree(high);
                let above = self.here();
                self.tree(low);
                let below = self.here();
                // not empty: half of two or more
                let pivot = high.first().map_or(0, |segment| segment.start);
                self.test(JUMP_GREATER_OR_EQUAL, pivot, above, below);
            }
        }
    }

    fn answer(&mut self, answer: &Answer) {
        match answer {
            Answer::Fixed(action) => self.ret(*action),
            Answer::Tested { rules, default, width } => {
                self.ret(*default);
                for rule in rules.iter().rev() {
                    self.rule(rule, *width);
                }
            }
        }
    }

    /// Returns the rule's action if its conditions hold; else goes on to what follows.
    fn rule(&mut self, rule: &Rule, width: Width) {
        let next = self.here();
        self.ret(rule.action);
        for condition in rule.conditions.iter().rev() {
            let holds = self.here();
            self.condition(condition, width, holds, next);
        }
    }

    fn condition(&mut self, condition: &Condition, width: Width, holds: Mark, fails: Mark) {
        let halves = Halves { at: ARGUMENTS + 8 * u32::from(condition.argument), width };
        let (straight, inverted) = ((holds, fails), (fails, holds));
        let all = u64::MAX;
        match condition.test {
            Test::Equal(value) => self.equal(halves, (all, value), straight),
            Test::NotEqual(value) => self.equal(halves, (all, value), inverted),
            Test::MaskedEqual { mask, value } => self.equal(halves, (mask, value), straight),
            Test::Greater(value) => self.above(halves, (JUMP_GREATER, value), straight),
            Test::LessOrEqual(value) => self.above(halves, (JUMP_GREATER, value), inverted),
            Test::GreaterOrEqual(value) => {
                self.above(halves, (JUMP_GREATER_OR_EQUAL, value), straight);
            }
            Test::Less(value) => self.above(halves, (JUMP_GREATER_OR_EQUAL, value), inverted),
        }
    }

    /// `argument & mask == value`, lower half last.
    fn equal(&mut self, argument: Halves, (mask, value): (u64, u64), (yes, no): (Mark, Mark)) {
        let Halves { at, width } = argument;
        self.equal_half(at, (lower(mask), lower(value)), (yes, no));
        if width == Width::Bits64 && upper(mask) != 0 {
            let rest = self.here();
            self.equal_half(at + 4, (upper(mask), upper(value)), (rest, no));
        }
    }

    fn equal_half(&mut self, at: u32, (mask, value): (u32, u32), (yes, no): (Mark, Mark)) {
        self.test(JUMP_EQUAL, value, yes, no);
        if mask != u32::MAX {
            self.statement(AND, mask);
        }
        self.statement(LOAD, at);
    }

    /// `argument > value`, or `>=`: by the upper half if it differs, else by the lower one.
    fn above(&mut self, argument: Halves, (test, value): (u16, u64), (yes, no): (Mark, Mark)) {
        let Halves { at, width } = argument;
        self.test(test, lower(value), yes, no);
        self.statement(LOAD, at);
        if width == Width::Bits64 {
            let rest = self.here();
            self.test(JUMP_EQUAL, upper(value), rest, no);
            let not_above = self.here();
            self.test(JUMP_GREATER, upper(value), yes, not_above);
            self.statement(LOAD, at + 4);
        }
    }

    fn here(&self) -> Mark {
        Mark(self.0.len())
    }

    fn ret(&mut self, action: Action) {
        self.statement(RETURN, action.0);
    }

    fn statement(&mut self, code: u16, k: u32) {
        self.0.push(Instruction { code, jt: 0, jf: 0, k });
    }

    fn test(&mut self, code: u16, k: u32, yes: Mark, no: Mark) {
        let no = self.near(no);
        let yes = self.near(yes);
        let over = |mark: Mark| u8::try_from(self.0.len() - mark.0).unwrap_or(u8::MAX);
        let (jt, jf) = (over(yes), over(no));
        self.0.push(Instruction { code, jt, jf, k });
    }

    /// `mark`, or a jump to it right here if a test could not reach it, one more such jump in between included.
    fn near(&mut self, mark: Mark) -> Mark {
        let over = self.0.len() - mark.0;
        if over < usize::from(u8::MAX) {
            return mark;
        }
        // longer than any program that the kernel takes, which `compile` refuses
        self.statement(JUMP, u32::try_from(over).unwrap_or(u32::MAX));
        self.here()
    }
}

fn upper(value: u64) -> u32 {
    u32::try_from(value >> 32).unwrap_or(u32::MAX)
}

fn lower(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).unwrap_or(u32::MAX)
}
