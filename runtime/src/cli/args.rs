//! Command-line words as Go's `flag` reads them, because runc's callers write them so: `--name value`, `--name=value`,
//! one dash or two.

use crate::error::{Error, ErrorKind, Result};

/// One option of a command.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flag {
    /// The long name; how it is asked for.
    pub(super) name: &'static str,
    /// Another name, or the empty string.
    pub(super) short: &'static str,
    pub(super) takes: Takes,
    pub(super) help: &'static str,
}

/// Whether a word follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    Nothing,
    Value,
}

/// Whether options may follow the first word that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// No: the rest is another program's.
    Strict,
    Free,
    /// There are none: every word stays as it is.
    Unparsed,
}

/// A parsed command line.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    options: Vec<(&'static str, String)>,
    /// Words that are no options.
    pub(super) words: Vec<String>,
}

pub(super) fn parse(args: &[String], flags: &[Flag], order: Order) -> Result<Parsed> {
    let mut parsed = Parsed::default();
    if order == Order::Unparsed {
        parsed.words.extend_from_slice(args);
        return Ok(parsed);
    }
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--" {
            parsed.words.extend(args.cloned());
            break;
        }
        let Some(body) = arg
            .strip_prefix("--")
            .or_else(|| arg.strip_prefix('-'))
            .filter(|body| !body.is_empty())
        else {
            parsed.words.push(arg.clone());
            if order == Order::Strict {
                parsed.words.extend(args.cloned());
                break;
            }
            continue;
        };
        let (name, inline) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (body, None),
        };
        let flag = flags
            .iter()
            .find(|flag| flag.name == name || (!flag.short.is_empty() && flag.short == name));
        let flag = flag.ok_or_else(|| usage(format!("flag provided but not defined: -{name}")))?;
        let value = match (flag.takes, inline) {
            (Takes::Nothing, value) => boolean(name, value)?.to_string(),
            (Takes::Value, Some(value)) => value,
            (Takes::Value, None) => args
                .next()
                .cloned()
                .ok_or_else(|| usage(format!("flag needs an argument: -{name}")))?,
        };
        parsed.options.push((flag.name, value));
    }
    Ok(parsed)
}

fn boolean(name: &str, value: Option<String>) -> Result<bool> {
    match value.as_deref() {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(other) => Err(usage(format!("invalid boolean value {other:?} for -{name}"))),
    }
}

pub(super) fn usage(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, what)
}

impl Parsed {
    /// The last value; the empty string counts as not given.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        let found = self.options.iter().rev().find(|(option, _)| *option == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// Every value, in order.
    pub(super) fn values(&self, name: &str) -> Vec<String> {
        self.options
            .iter()
            .filter(|(option, _)| *option == name)
            .map(|(_, value)| value.clone())
            .collect()
    }

    /// `None` if the option was not given.
    pub(super) fn switch(&self, name: &str) -> Option<bool> {
        self.value(name).map(|value| value == "true")
    }

    pub(super) fn is_on(&self, name: &str) -> bool {
        self.switch(name) == Some(true)
    }

    /// The value as a number.
    pub(super) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>> {
        let parse = |value: &str| {
            value.parse().map_err(|_not_a_number: T::Err| {
                usage(format!("invalid value {value:?} for flag -{name}"))
            })
        };
        self.value(name).map(parse).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: [Flag; 2] = [
        Flag { name: "force", short: "f", takes: Takes::Nothing, help: "" },
        Flag { name: "root", short: "", takes: Takes::Value, help: "" },
    ];

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn every_spelling_is_read() {
        for text in ["--root /r -f id", "-root=/r --force id", "id --root=/r --f=true"] {
            let parsed = parse(&words(text), &FLAGS, Order::Free).unwrap();
            assert_eq!(parsed.value("root"), Some("/r"), "{text}");
            assert!(parsed.is_on("force"), "{text}");
            assert_eq!(parsed.words, ["id"], "{text}");
        }
    }

    #[test]
    fn another_programs_options_are_left_alone() {
        let parsed = parse(&words("-f id ls --root -x"), &FLAGS, Order::Strict).unwrap();
        assert_eq!(parsed.words, ["id", "ls", "--root", "-x"]);
        let parsed = parse(&words("id -- -f"), &FLAGS, Order::Free).unwrap();
        assert_eq!(parsed.words, ["id", "-f"]);
        let parsed = parse(&words("--nope -x id"), &FLAGS, Order::Unparsed).unwrap();
        assert_eq!(parsed.words, ["--nope", "-x", "id"]);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("--nope", "flag provided but not defined: -nope"),
            ("--root", "flag needs an argument: -root"),
            ("--force=maybe", "invalid boolean value \"maybe\" for -force"),
        ] {
            assert_eq!(parse(&words(text), &FLAGS, Order::Free).unwrap_err().to_string(), expected);
        }
    }
}
