//! A profile's rules, by system call number of each architecture.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};

use super::Error;
use super::action::Action;
use super::arch::{Abi, Width, strays};

/// A test on one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    /// 0 to 5.
    pub(super) argument: u8,
    pub(super) test: Test,
}

/// What an argument must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Test {
    Equal(u64),
    NotEqual(u64),
    Greater(u64),
    GreaterOrEqual(u64),
    Less(u64),
    LessOrEqual(u64),
    /// `argument & mask == value`
    MaskedEqual {
        mask: u64,
        value: u64,
    },
}

/// An action, and the conditions that must all hold for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) action: Action,
}

/// What happens to one system call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Fixed(Action),
    /// The first rule whose conditions hold, else the default.
    Tested {
        rules: Vec<Rule>,
        default: Action,
        width: Width,
    },
}

/// Numbers from `start` up to the next segment's, with one answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) start: u32,
    pub(super) answer: Answer,
}

/// A profile, checked, its rules found by name.
#[derive(Debug)]
pub(super) struct Profile<'a> {
    default: Action,
    rules: Vec<Rule>,
    /// The first entry for each name.
    by_name: HashMap<&'a str, usize>,
    entries: Vec<Entry>,
}

/// One mention of a name in the profile.
#[derive(Debug)]
struct Entry {
    /// Which of the rules it adds; none if they say what the default says.
    rules: Range<usize>,
    /// The next mention of the same name.
    next: Option<usize>,
}

impl<'a> Profile<'a> {
    pub(super) fn new(profile: &'a LinuxSeccomp) -> Result<Self, Error> {
        let notify = LinuxSeccompAction::ScmpActNotify;
        if profile.default_action() == notify {
            return Err(Error::NotifyByDefault);
        }
        let default = Action::new(profile.default_action(), profile.default_errno_ret());
        let listed = profile.syscalls().as_deref().unwrap_or_default();
        let count = listed.iter().map(|rule| rule.names().len()).sum();
        let mut new = Self {
            default,
            rules: Vec::with_capacity(listed.len()),
            by_name: HashMap::with_capacity(count),
            entries: Vec::with_capacity(count),
        };
        // backwards, so that each name leads to its first mention
        for listed in listed.iter().rev() {
            if listed.action() == notify && listed.names().iter().any(|name| name == "write") {
                return Err(Error::NotifyOnWrite);
            }
            let first = new.rules.len();
            new.rules.extend(fold(listed)?.into_iter().filter(|rule| rule.action != default));
            for name in listed.names().iter().rev() {
                let next = new.by_name.insert(name, new.entries.len());
                new.entries.push(Entry { rules: first..new.rules.len(), next });
            }
        }
        Ok(new)
    }

    /// The rules for `name`, in the profile's order; `None` if it does not name it.
    fn named(&self, name: &str) -> Option<impl Iterator<Item = &Rule>> {
        let first = self.entries.get(*self.by_name.get(name)?)?;
        let next = |entry: &&Entry| self.entries.get(entry.next?);
        let entries = std::iter::successors(Some(first), next);
        Some(entries.flat_map(|entry| &self.rules[entry.rules.clone()]))
    }

    /// The whole space of numbers of one audit architecture, cut where the answer changes.
    pub(super) fn segments(&self, abis: &[Abi]) -> Vec<Segment> {
        let mut background = vec![(0, self.default)];
        let mut points = Vec::new();
        for &(first, last) in strays(abis) {
            set(&mut background, (first, last), Action::KILL_THREAD);
        }
        for abi in abis {
            let named = self.answers(*abi);
            let highest = named.last().map_or(0, |(number, _)| *number);
            let unknown = abi.spaces().iter().filter(|(_, last)| highest < *last);
            // runc asks for a number above 0 before it puts its stub
            for &(first, last) in unknown.filter(|_| highest != 0 && !self.default.lets_through()) {
                set(&mut background, (first.max(highest + 1), last), Action::ENOSYS);
            }
            points.extend(named);
        }
        overlay(&background, points)
    }

    /// The calls of `abi` that the profile names, by number.
    fn answers(&self, abi: Abi) -> Vec<(u32, Answer)> {
        let mut inside: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
        for (name, other) in abi.multiplexed() {
            let rules = self.named(name).into_iter().flatten();
            let rules: Vec<Rule> = rules.map(|rule| rule.with_first_argument(other.call)).collect();
            if !rules.is_empty() {
                inside.entry(other.number).or_default().extend(rules);
            }
        }
        let answer = |rules: &mut dyn Iterator<Item = &Rule>| self.answer(rules, abi.width());
        let mut answers: Vec<(u32, Answer)> = abi
            .table()
            .filter_map(|(number, name)| {
                let through = inside.get(&number);
                let own = self.named(name);
                if own.is_none() && through.is_none() {
                    return None;
                }
                let through = through.into_iter().flatten();
                Some((number, answer(&mut through.chain(own.into_iter().flatten()))))
            })
            .collect();
        answers.sort_unstable_by_key(|(number, _)| *number);
        answers
    }

    fn answer(&self, rules: &mut dyn Iterator<Item = &Rule>, width: Width) -> Answer {
        let mut tested = Vec::new();
        for rule in rules {
            if rule.conditions.is_empty() {
                return Answer::Fixed(rule.action);
            }
            tested.push(rule.clone());
        }
        if tested.is_empty() {
            return Answer::Fixed(self.default);
        }
        Answer::Tested { rules: tested, default: self.default, width }
    }
}

impl Rule {
    /// The rule inside a call that takes the real call's number as its first argument, and pointers after it.
    fn with_first_argument(&self, call: u64) -> Self {
        let mut conditions = vec![Condition { argument: 0, test: Test::Equal(call) }];
        conditions.extend(self.conditions.iter().filter(|condition| condition.argument != 0));
        Self { conditions, action: self.action }
    }
}

/// The rules that one entry of the profile means for each of its names.
fn fold(listed: &LinuxSyscall) -> Result<Vec<Rule>, Error> {
    let action = Action::new(listed.action(), listed.errno_ret());
    let args = listed.args().as_deref().unwrap_or_default();
    let mut seen = [false; 6];
    let mut twice = false;
    let mut conditions = Vec::with_capacity(args.len());
    for arg in args {
        let Some(slot) = seen.get_mut(arg.index()) else {
            let syscall = listed.names().first().cloned().unwrap_or_default();
            return Err(Error::Argument { syscall, index: arg.index() });
        };
        twice |= std::mem::replace(slot, true);
        conditions.push(condition(arg));
    }
    Ok(if twice {
        conditions.into_iter().map(|one| Rule { conditions: vec![one], action }).collect()
    } else {
        vec![Rule { conditions, action }]
    })
}

fn condition(arg: &LinuxSeccompArg) -> Condition {
    let value = arg.value();
    let test = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => Test::NotEqual(value),
        LinuxSeccompOperator::ScmpCmpLt => Test::Less(value),
        LinuxSeccompOperator::ScmpCmpLe => Test::LessOrEqual(value),
        LinuxSeccompOperator::ScmpCmpEq => Test::Equal(value),
        LinuxSeccompOperator::ScmpCmpGe => Test::GreaterOrEqual(value),
        LinuxSeccompOperator::ScmpCmpGt => Test::Greater(value),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            Test::MaskedEqual { mask: value, value: arg.value_two().unwrap_or(0) & value }
        }
    };
    // `fold` has looked: 0 to 5
    Condition { argument: u8::try_from(arg.index()).unwrap_or(0), test }
}

/// Sets the action of the numbers `first..=last` in a list of where each action begins, ordered and from 0 on.
fn set(actions: &mut Vec<(u32, Action)>, (first, last): (u32, u32), action: Action) {
    let after = actions.iter().rev().find(|(start, _)| *start <= last.saturating_add(1));
    let after = after.map(|(_, action)| *action);
    let next = last.checked_add(1).zip(after);
    let from = actions.partition_point(|(start, _)| *start < first);
    let to = actions.partition_point(|(start, _)| next.is_none_or(|(next, _)| *start <= next));
    let new = std::iter::once((first, action)).chain(next);
    actions.splice(from..to, new);
}

/// Single numbers, ordered, laid over a background.
fn overlay(background: &[(u32, Action)], points: Vec<(u32, Answer)>) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::with_capacity(2 * points.len());
    let mut push = |start: u32, answer: Answer| {
        if segments.last().is_some_and(|last| last.start == start) {
            segments.pop();
        }
        if segments.last().is_none_or(|last| last.answer != answer) {
            segments.push(Segment { start, answer });
        }
    };
    let mut points = points.into_iter().peekable();
    for (at, (start, action)) in background.iter().enumerate() {
        push(*start, Answer::Fixed(*action));
        let end = background.get(at + 1).map_or(u32::MAX, |(next, _)| next - 1);
        while let Some((number, answer)) = points.next_if(|(number, _)| *number <= end) {
            push(number, answer);
            if number < end {
                push(number + 1, Answer::Fixed(*action));
            }
        }
    }
    segments
}
