//! containerd's filters, as far as snapshots are asked: `selector[,selector…]`, all of which must hold.
//!
//! A selector is a field (`name`, `parent`, `kind`, `labels.<name>`, `labels."<name>"`), alone (present and not empty)
//! or with `==value`, `!=value` or `~=expression`; a value is bare or in double quotes with `\"` and `\\`, an
//! expression in slashes or bars as well. Expressions are RE2's, matched anywhere, in time linear in what they are held
//! against (the crate `regex`, which tracing-subscriber brings in any case); how large a compiled one gets is bounded.
//!
//! Source: containerd `pkg/filters/parser.go`, `core/snapshots/storage/bolt.go` (`adaptSnapshot`).

use regex::{Regex, RegexBuilder};

use crate::error::{Error, Result};
use crate::store::Snapshot;

/// Bytes of a filter.
const MAX_FILTER: usize = 16 << 10;
/// Bytes of a compiled expression.
const MAX_EXPRESSION: usize = 1 << 20;

/// Several filters: a snapshot passes that passes any, and every snapshot passes none at all.
#[derive(Debug)]
pub(crate) struct Filters(Vec<Vec<Selector>>);

#[derive(Debug)]
struct Selector {
    field: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

impl Filters {
    /// Parses what a List request holds.
    pub(crate) fn parse(filters: &[String]) -> Result<Self> {
        let parsed: Result<Vec<_>> = filters
            .iter()
            .map(|text| {
                let refused = |why| Error::Filter { text: text.chars().take(200).collect(), why };
                if text.len() > MAX_FILTER {
                    return Err(refused("longer than 16384 bytes"));
                }
                Parser { rest: text }.filter().map_err(refused)
            })
            .collect();
        Ok(Self(parsed?))
    }

    /// Whether a snapshot passes.
    pub(crate) fn pass(&self, name: &str, snapshot: &Snapshot) -> bool {
        let holds = |selector: &Selector| selector.holds(name, snapshot);
        self.0.is_empty() || self.0.iter().any(|selectors| selectors.iter().all(holds))
    }
}

impl Selector {
    fn holds(&self, name: &str, snapshot: &Snapshot) -> bool {
        let value = self.value(name, snapshot);
        match &self.test {
            Test::Present => value.is_some_and(|value| !value.is_empty()),
            Test::Equal(wanted) => value.is_some_and(|value| value == *wanted),
            Test::NotEqual(wanted) => value.is_none_or(|value| value != *wanted),
            Test::Matches(expression) => value.is_some_and(|value| expression.is_match(&value)),
        }
    }

    fn value(&self, name: &str, snapshot: &Snapshot) -> Option<String> {
        let (first, rest) = self.field.split_first()?;
        match (first.as_str(), rest) {
            ("name", []) => Some(name.to_owned()),
            ("parent", []) => snapshot.parent.clone(),
            ("kind", []) => Some(snapshot.kind.to_string()),
            ("labels", rest) => snapshot.labels.get(&rest.join(".")).cloned(),
            _ => None,
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
}

type Parsed<T> = std::result::Result<T, &'static str>;

impl Parser<'_> {
    fn filter(&mut self) -> Parsed<Vec<Selector>> {
        let mut selectors = Vec::new();
        while !self.rest.is_empty() {
            selectors.push(self.selector()?);
            if !self.take(",") && !self.rest.is_empty() {
                return Err("expected a comma or the end");
            }
        }
        Ok(selectors)
    }

    fn selector(&mut self) -> Parsed<Selector> {
        let mut field = vec![self.word(".,=!~")?];
        while self.take(".") {
            field.push(self.word(".,=!~")?);
        }
        let test = if self.take("==") {
            Test::Equal(self.word(",")?)
        } else if self.take("!=") {
            Test::NotEqual(self.word(",")?)
        } else if self.take("~=") {
            Test::Matches(self.expression()?)
        } else {
            Test::Present
        };
        Ok(Selector { field, test })
    }

    fn expression(&mut self) -> Parsed<Regex> {
        let text = if self.take("/") {
            self.quoted('/')?
        } else if self.take("|") {
            self.quoted('|')?
        } else {
            self.word(",")?
        };
        RegexBuilder::new(&text)
            .size_limit(MAX_EXPRESSION)
            .dfa_size_limit(MAX_EXPRESSION)
            .build()
            .or(Err("not a regular expression, or too large a one"))
    }

    fn take(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// A quoted text, or everything before one of `ends`.
    fn word(&mut self, ends: &str) -> Parsed<String> {
        if self.take("\"") {
            return self.quoted('"');
        }
        let end = self.rest.find(|char| ends.contains(char)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at_checked(end).ok_or("cut inside a character")?;
        self.rest = rest;
        if word.is_empty() { Err("a field or a value is empty") } else { Ok(word.to_owned()) }
    }

    /// What stands before the closing `quote`. In an expression's quotes a backslash is the expression's own, but
    /// before the quote.
    fn quoted(&mut self, quote: char) -> Parsed<String> {
        let mut word = String::new();
        let mut chars = self.rest.chars();
        loop {
            match chars.next() {
                Some(char) if char == quote => {
                    self.rest = chars.as_str();
                    return Ok(word);
                }
                Some('\\') => match chars.next() {
                    Some(char) if char == quote => word.push(char),
                    Some('\\') if quote == '"' => word.push('\\'),
                    Some(char) if quote != '"' => word.extend(['\\', char]),
                    _ => return Err("only \\\" and \\\\ may be escaped"),
                },
                Some(char) => word.push(char),
                None => return Err("a quote is not closed"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::store::{Kind, Labels};

    const NAME: &str = "default/4/sha256:aa";

    fn passes(filters: &[&str]) -> bool {
        let now = SystemTime::UNIX_EPOCH;
        let labels: Labels =
            [("containerd.io/snapshot.ref".to_owned(), "sha256:aa".to_owned())].into();
        let parent = Some("default/3/sha256:bb".to_owned());
        let snapshot = Snapshot {
            id: 1,
            kind: Kind::Committed,
            parent,
            labels,
            created: now,
            updated: now,
            layer: None,
        };
        let filters: Vec<String> = filters.iter().map(|text| (*text).to_owned()).collect();
        Filters::parse(&filters).unwrap().pass(NAME, &snapshot)
    }

    #[test]
    fn what_containerd_asks_is_understood() {
        // the look-up after AlreadyExists, word for word
        let asked =
            "labels.\"containerd.io/snapshot.ref\"==sha256:aa,parent==\"default/3/sha256:bb\"";
        assert!(passes(&[asked]));
        assert!(passes(&[]));
        assert!(passes(&["kind==active", "kind==committed"]));
        assert!(passes(&["name==default/4/sha256:aa"]));
        assert!(passes(&["labels.\"containerd.io/snapshot.ref\""]));
        assert!(passes(&["labels.other!=x"]));
        for expression in
            ["name~=sha256", "name~=^default/.*a$", r"name~=/4\/sha256:\w+/", r#"name~="/\\d/s""#]
        {
            assert!(passes(&[expression]), "{expression}");
        }
        assert!(passes(&["kind~=|active\\|committed|,parent~=bb"]));
        for other in [
            "labels.\"containerd.io/snapshot.ref\"==sha256:ab",
            "kind==view",
            "name~=^sha256",
            "labels.other~=.*",
            "name~=/4\\/sha256:b/",
            "kind==committed,parent==x",
            "labels.other",
            "unknown==x",
        ] {
            assert!(!passes(&[other]), "{other}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let long = format!("name=={}", "x".repeat(MAX_FILTER));
        for text in [
            long.as_str(),
            "name~=",
            "name~=(",
            "name~=/x",
            "name~=/x/y",
            "name~=(((a{1,500}){1,500}){1,500})",
            "name==",
            "==x",
            "name==\"x",
            "name==\"\\n\"",
            "name=x",
            "\"name\"x",
            "name.,",
        ] {
            assert!(Filters::parse(&[text.to_owned()]).is_err(), "{text}");
        }
    }
}
