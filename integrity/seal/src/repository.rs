//! Repository globs: which repositories a seal is meant for, and which a least serial covers.
//!
//! A glob is a repository name, host and path, in which `*` stands for any run of characters without `/` and `**`
//! for any run at all. There is nothing else: no `?`, no classes, no escape (a repository name needs none).
//!
//! Two globs are compared by whether *some* repository matches both ([`RepositoryGlob::meets`]): a seal for
//! `registry.example/**` must not escape the least serial of `registry.example/app`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// Bytes of the longest glob: an OCI repository name has at most 255.
const LONGEST: usize = 255;
const FORM: &str = "1 to 255 of the characters a-z 0-9 . _ - : / and the wildcards * and **";

/// A pattern of repositories, such as `registry.example/app` or `registry.example/team/*`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RepositoryGlob(String);

/// One step of a glob: a character, or a run of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    One(u8),
    /// `*`: any run without `/`.
    Segment,
    /// `**`: any run.
    Any,
}

impl RepositoryGlob {
    /// The glob as it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a repository name (no wildcards in it) is one of this pattern's.
    #[must_use]
    pub fn matches(&self, repository: &str) -> bool {
        let name: Vec<Step> = repository.bytes().map(Step::One).collect();
        name.len() <= LONGEST && meet(&steps(&self.0), &name)
    }

    /// Whether some repository matches both.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        meet(&steps(&self.0), &steps(&other.0))
    }
}

impl fmt::Display for RepositoryGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RepositoryGlob {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for RepositoryGlob {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        let allowed = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-:/*".contains(&byte)
        };
        if text.is_empty()
            || text.len() > LONGEST
            || !text.bytes().all(allowed)
            || text.contains("***")
        {
            let shown: String = text.chars().take(LONGEST).collect();
            return Err(Error::new(
                ErrorKind::Malformed,
                "repository glob",
                format_args!("{shown:?}"),
                FORM,
            ));
        }
        Ok(Self(text))
    }
}

impl From<RepositoryGlob> for String {
    fn from(glob: RepositoryGlob) -> Self {
        glob.0
    }
}

fn steps(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::with_capacity(text.len());
    for byte in text.bytes() {
        match (byte, steps.last_mut()) {
            (b'*', Some(last @ Step::Segment)) => *last = Step::Any,
            (b'*', _) => steps.push(Step::Segment),
            _ => steps.push(Step::One(byte)),
        }
    }
    steps
}

/// Whether one character can be taken by both steps.
fn share(a: Step, b: Step) -> bool {
    match (a, b) {
        (Step::One(a), Step::One(b)) => a == b,
        (Step::One(byte), Step::Segment) | (Step::Segment, Step::One(byte)) => byte != b'/',
        _ => true,
    }
}

/// Walks the product of both patterns, row by row: at most `(a + 1) × (b + 1)` positions.
fn meet(a: &[Step], b: &[Step]) -> bool {
    let width = b.len().saturating_add(1);
    let mut row = vec![false; width];
    let mut below = vec![false; width];
    if let Some(first) = row.first_mut() {
        *first = true;
    }
    for step in a.iter().copied().map(Some).chain([None]) {
        for column in 0..width {
            if !row.get(column).copied().unwrap_or(false) {
                continue;
            }
            let other = b.get(column).copied();
            advance(step, other, column, (&mut row, &mut below));
        }
        if step.is_none() {
            break;
        }
        std::mem::swap(&mut row, &mut below);
        below.fill(false);
    }
    row.last().copied().unwrap_or(false)
}

/// Marks what can be reached from `(step, other)`: in `row` without leaving `step`, in `below` by leaving it.
fn advance(
    step: Option<Step>,
    other: Option<Step>,
    column: usize,
    (row, below): (&mut [bool], &mut [bool]),
) {
    let run = |step: Option<Step>| matches!(step, Some(Step::Segment | Step::Any));
    let right = column.saturating_add(1);
    let both = matches!((step, other), (Some(a), Some(b)) if share(a, b));
    // a run may be left at any time, or take a character that the other side moves past
    if run(step) || (both && run(other)) {
        mark(below, column);
    }
    if run(other) || (both && run(step)) {
        mark(row, right);
    }
    if both && !run(step) && !run(other) {
        mark(below, right);
    }
}

fn mark(row: &mut [bool], column: usize) {
    if let Some(cell) = row.get_mut(column) {
        *cell = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn glob(text: &str) -> RepositoryGlob {
        text.parse().unwrap()
    }

    #[test]
    fn a_star_stays_within_a_segment_and_two_do_not() {
        for (pattern, name, expected) in [
            ("registry.example/app", "registry.example/app", true),
            ("registry.example/app", "registry.example/app2", false),
            ("registry.example/team/*", "registry.example/team/a", true),
            ("registry.example/team/*", "registry.example/team/", true),
            ("registry.example/team/*", "registry.example/team/a/b", false),
            ("registry.example/**", "registry.example/team/a/b", true),
            ("registry.example/**", "registry.example", false),
            ("*/app", "registry.example/app", true),
            ("*/app", "registry.example/team/app", false),
            ("**/app", "registry.example/team/app", true),
            ("**", "", true),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "a1b/c", false),
            ("localhost:5000/x", "localhost:5000/x", true),
        ] {
            assert_eq!(glob(pattern).matches(name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn globs_meet_where_one_repository_could_match_both() {
        for (a, b, expected) in [
            ("r.example/app", "r.example/app", true),
            ("r.example/*", "r.example/app", true),
            ("r.example/**", "*/app", true),
            ("**", "r.example/team/*", true),
            ("r.example/a*", "r.example/*b", true),
            ("r.example/a*", "r.example/b*", false),
            ("r.example/*", "r.example/team/*", false),
            ("r.example/**", "r.example/team/*", true),
            ("*x", "*y", false),
            ("a*", "*a", true),
        ] {
            assert_eq!(glob(a).meets(&glob(b)), expected, "{a} {b}");
            assert_eq!(glob(b).meets(&glob(a)), expected, "{b} {a}");
        }
    }

    #[test]
    fn other_characters_are_refused() {
        let long = "a".repeat(256);
        for text in ["", "A", "a b", "a?", "a\n", "***", "ä", long.as_str()] {
            assert_eq!(
                text.parse::<RepositoryGlob>().unwrap_err().kind(),
                ErrorKind::Malformed,
                "{text}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn a_name_meets_what_matches_it(pattern in "[a/*]{1,8}", name in "[a/]{1,8}") {
            if let Ok(pattern) = pattern.parse::<RepositoryGlob>() {
                proptest::prop_assert_eq!(pattern.matches(&name), plain(pattern.as_str().as_bytes(), name.as_bytes()));
                proptest::prop_assert_eq!(pattern.meets(&glob(&name)), pattern.matches(&name));
            }
        }
    }

    /// The definition, by trying every split.
    fn plain(pattern: &[u8], name: &[u8]) -> bool {
        let (rest, crosses) = match pattern {
            [b'*', b'*', rest @ ..] => (rest, true),
            [b'*', rest @ ..] => (rest, false),
            [byte, rest @ ..] => return name.first() == Some(byte) && plain(rest, &name[1..]),
            [] => return name.is_empty(),
        };
        (0..=name.len())
            .any(|taken| (crosses || !name[..taken].contains(&b'/')) && plain(rest, &name[taken..]))
    }
}
