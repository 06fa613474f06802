//! Values as people write them: the part of GVariant's text form that runc takes in annotations.
//!
//! `true`, `7`, `-1.5`, `'text'`, `"text"`, `['a', 'b']`, and with a type in front: `uint64 7`, `@t 7`, `@as []`.
//! A number without a type is an int32, or a double if it has a point. Dictionaries, tuples and variants are not taken.
//!
//! Source: GLib, "GVariant Text Format".

use super::value::Value;

/// The words for types and what they are to D-Bus.
const WORDS: &[(&str, &str)] = &[
    ("boolean", "b"),
    ("byte", "y"),
    ("int16", "n"),
    ("uint16", "q"),
    ("int32", "i"),
    ("uint32", "u"),
    ("int64", "x"),
    ("uint64", "t"),
    ("double", "d"),
    ("string", "s"),
    ("objectpath", "o"),
    ("signature", "g"),
];

/// Parses one value. `None` if the text is none, or one of a kind that is not taken.
pub(crate) fn parse(text: &str) -> Option<Value> {
    let mut rest = text.trim();
    let value = value(&mut rest, None)?;
    rest.trim_start().is_empty().then_some(value)
}

fn value(rest: &mut &str, wanted: Option<&str>) -> Option<Value> {
    *rest = rest.trim_start();
    match rest.chars().next()? {
        '@' => {
            let (signature, after) = rest[1..].split_once(char::is_whitespace)?;
            *rest = after;
            let array_of = signature.strip_prefix('a').unwrap_or(signature);
            let known = WORDS.iter().any(|(_, known)| *known == array_of);
            if known { value(rest, Some(signature)) } else { None }
        }
        '[' => array(rest, wanted),
        '\'' | '"' => {
            let text = quoted(rest)?;
            match wanted.unwrap_or("s") {
                "s" => Some(Value::Text(text)),
                "o" => Some(Value::ObjectPath(text)),
                "g" => Some(Value::Signature(text)),
                _ => None,
            }
        }
        _ => word(rest, wanted),
    }
}

fn word(rest: &mut &str, wanted: Option<&str>) -> Option<Value> {
    let end = rest.find(|c: char| c.is_whitespace() || ",]".contains(c)).unwrap_or(rest.len());
    let (word, after) = rest.split_at(end);
    *rest = after;
    if let Some((_, signature)) = WORDS.iter().find(|(name, _)| *name == word) {
        return value(rest, Some(signature));
    }
    match (word, wanted) {
        ("true", None | Some("b")) => Some(Value::Bool(true)),
        ("false", None | Some("b")) => Some(Value::Bool(false)),
        (number, None) if number.contains(['.', 'e']) => number.parse().ok().map(Value::Double),
        (number, None | Some("i")) => integer(number).map(Value::Int32),
        (number, Some("y")) => integer(number).map(Value::Byte),
        (number, Some("n")) => integer(number).map(Value::Int16),
        (number, Some("q")) => integer(number).map(Value::Uint16),
        (number, Some("u")) => integer(number).map(Value::Uint32),
        (number, Some("x")) => integer(number).map(Value::Int64),
        (number, Some("t")) => integer(number).map(Value::Uint64),
        (number, Some("d")) => number.parse().ok().map(Value::Double),
        _ => None,
    }
}

/// A whole number, decimal or `0x…`.
fn integer<N: TryFrom<i128>>(text: &str) -> Option<N> {
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    let digits = digits.strip_prefix('+').unwrap_or(digits);
    let number = match digits.strip_prefix("0x") {
        Some(digits) => i128::from(u64::from_str_radix(digits, 16).ok()?),
        None => i128::from(digits.parse::<u64>().ok()?),
    };
    N::try_from(sign * number).ok()
}

fn array(rest: &mut &str, wanted: Option<&str>) -> Option<Value> {
    let mut element = match wanted {
        Some(signature) => Some(signature.strip_prefix('a')?.to_owned()),
        None => None,
    };
    *rest = rest[1..].trim_start();
    let mut values: Vec<Value> = Vec::new();
    while !rest.starts_with(']') {
        if rest.starts_with('[') {
            return None;
        }
        let next = value(rest, element.as_deref())?;
        let signature = next.signature();
        if element.get_or_insert_with(|| signature.clone()) != &signature {
            return None;
        }
        values.push(next);
        *rest = rest.trim_start();
        match rest.strip_prefix(',') {
            Some(after) => *rest = after.trim_start(),
            None if rest.starts_with(']') => {}
            None => return None,
        }
    }
    *rest = &rest[1..];
    Some(Value::Array(element?, values))
}

/// The text between quotes; a backslash takes the character behind it as it is, or is a newline or tab.
fn quoted(rest: &mut &str) -> Option<String> {
    let mut characters = rest.char_indices();
    let (_, quote) = characters.next()?;
    let mut text = String::new();
    while let Some((at, character)) = characters.next() {
        match character {
            end if end == quote => {
                *rest = &rest[at + end.len_utf8()..];
                return Some(text);
            }
            '\\' => text.push(match characters.next()?.1 {
                'n' => '\n',
                't' => '\t',
                other => other,
            }),
            '\0' => return None,
            other => text.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_what_their_words_say() {
        let texts = |list: &[&str]| {
            Value::Array("s".to_owned(), list.iter().map(|text| Value::text(*text)).collect())
        };
        for (text, expected) in [
            ("true", Value::Bool(true)),
            (" 7 ", Value::Int32(7)),
            ("-0x10", Value::Int32(-16)),
            ("1.5", Value::Double(1.5)),
            ("uint64 18446744073709551615", Value::Uint64(u64::MAX)),
            ("@t 7", Value::Uint64(7)),
            ("byte 255", Value::Byte(255)),
            ("'inactive-or-failed'", Value::text("inactive-or-failed")),
            (r#""a\"b\n""#, Value::text("a\"b\n")),
            ("['crio.service', \"b\"]", texts(&["crio.service", "b"])),
            ("@as []", texts(&[])),
            (
                "[uint32 1, 2]",
                Value::Array("u".to_owned(), vec![Value::Uint32(1), Value::Uint32(2)]),
            ),
            ("objectpath '/a'", Value::ObjectPath("/a".to_owned())),
        ] {
            assert_eq!(parse(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for text in [
            "",
            "[",
            "]",
            "[]",
            "[1, 'a']",
            "[[1]]",
            "'open",
            "7 8",
            "2147483648",
            "byte 256",
            "uint64 -1",
            "nonsense",
            "@",
            "@t",
            "@a{sv} {}",
            "<1>",
            "{'a': 1}",
            "(1, 2)",
            "'a",
            "@s 7",
            "uint64",
            "[1,",
            "\\",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
