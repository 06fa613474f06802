//! A profile read the plain way, one rule after another, for comparing with what was compiled from it.
//!
//! It shares with the compiler the tables of system calls and the meaning of a rule's words, and nothing of how numbers are
//! found: no names in a map, no segments, no tree, no jumps.

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall};

use super::action::Action;
use super::arch::{self, Abi, Width};
use super::interpret::{self, Call};

/// Compiles `profile`, checks the program as the kernel does, and compares its answers to calls made of `seed`.
pub fn compare(profile: &LinuxSeccomp, seed: [u64; 6]) {
    let Ok(filter) = super::compile(profile) else { return };
    interpret::check(filter.program());
    let wanted = arch::wanted(profile.architectures().as_deref().unwrap_or_default());
    for abi in wanted.iter().flat_map(|(_, abis)| abis) {
        let calls: Vec<(u32, &str)> = abi.table().collect();
        let at = usize::try_from(seed[0]).unwrap_or(0) % calls.len();
        let named = calls.iter().filter(|(_, name)| mentions(profile, name).next().is_some());
        for &(number, name) in named.chain(&calls[at..=at]) {
            for call in argument_sets(profile, name, seed).map(|args| Call {
                number,
                arch: abi.audit().0,
                args,
            }) {
                let expected = expected(profile, *abi, name, &call);
                let (found, _) = interpret::run(filter.program(), &call);
                assert_eq!(
                    Some(found),
                    expected.map(|action| action.0).or(Some(found)),
                    "{name} {call:?}"
                );
            }
        }
    }
    // an architecture that is not wanted
    let (found, _) =
        interpret::run(filter.program(), &Call { number: 0, arch: 0xdead_beef, args: seed });
    assert_eq!(found, Action::KILL_THREAD.0);
}

fn mentions<'a>(profile: &'a LinuxSeccomp, name: &str) -> impl Iterator<Item = &'a LinuxSyscall> {
    let listed = profile.syscalls().as_deref().unwrap_or_default();
    listed.iter().filter(move |rule| rule.names().iter().any(|one| one == name))
}

/// The seed, and for each condition of the rules its value and its neighbours.
fn argument_sets(
    profile: &LinuxSeccomp,
    name: &str,
    seed: [u64; 6],
) -> impl Iterator<Item = [u64; 6]> {
    let conditions =
        mentions(profile, name).flat_map(|rule| rule.args().as_deref().unwrap_or_default());
    let mut sets = vec![seed];
    for arg in conditions {
        let near = [arg.value(), arg.value_two().unwrap_or(0), arg.value() ^ (1 << 32)];
        for value in
            near.into_iter().flat_map(|value| [value, value.wrapping_add(1), value.wrapping_sub(1)])
        {
            let mut set = *sets.last().unwrap_or(&seed);
            if let Some(slot) = set.get_mut(arg.index()) {
                *slot = value;
            }
            sets.push(set);
        }
    }
    sets.into_iter()
}

/// What the profile says of a call that the architecture knows: one newer than all that it names is not there; `None` where another call's sub-calls have a say.
fn expected(profile: &LinuxSeccomp, abi: Abi, name: &str, call: &Call) -> Option<Action> {
    if abi.multiplexed().any(|(_, other)| other.number == call.number) {
        return None;
    }
    let default = Action::new(profile.default_action(), profile.default_errno_ret());
    if mentions(profile, name).next().is_none() && !default.lets_through() {
        let named = abi.table().filter(|(_, name)| mentions(profile, name).next().is_some());
        let highest = named.map(|(number, _)| number).max().unwrap_or(0);
        if highest != 0 && call.number > highest {
            return Some(Action::ENOSYS);
        }
    }
    let rules: Vec<&LinuxSyscall> = mentions(profile, name)
        .filter(|rule| Action::new(rule.action(), rule.errno_ret()) != default)
        .collect();
    let action = |rule: &&LinuxSyscall| Action::new(rule.action(), rule.errno_ret());
    let args = |rule: &LinuxSyscall| rule.args().clone().unwrap_or_default();
    if let Some(always) = rules.iter().find(|rule| args(rule).is_empty()) {
        return Some(action(always));
    }
    let meets = |rule: &&&LinuxSyscall| {
        let args = args(rule);
        let mut indices: Vec<usize> = args.iter().map(LinuxSeccompArg::index).collect();
        indices.sort_unstable();
        let twice = indices.windows(2).any(|pair| pair[0] == pair[1]);
        let mut each = args.iter().map(|arg| holds(arg, abi.width(), call));
        // runc makes one rule of each condition then
        if twice { each.any(|holds| holds) } else { each.all(|holds| holds) }
    };
    Some(rules.iter().find(meets).map_or(default, action))
}

fn holds(arg: &LinuxSeccompArg, width: Width, call: &Call) -> bool {
    let cut = |value: u64| match width {
        Width::Bits64 => value,
        Width::Bits32 => value & u64::from(u32::MAX),
    };
    let (found, value) = (cut(call.args[arg.index()]), cut(arg.value()));
    match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => found != value,
        LinuxSeccompOperator::ScmpCmpLt => found < value,
        LinuxSeccompOperator::ScmpCmpLe => found <= value,
        LinuxSeccompOperator::ScmpCmpEq => found == value,
        LinuxSeccompOperator::ScmpCmpGe => found >= value,
        LinuxSeccompOperator::ScmpCmpGt => found > value,
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            found & value == cut(arg.value_two().unwrap_or(0)) & value
        }
    }
}
