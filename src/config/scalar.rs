//! Types of plain YAML scalars, exactly as APISIX's YAML library (lyaml, YAML 1.1) has them.
//!
//! `yes`, `on` and `TRUE` are booleans, `0123` is octal, `1:30` is ninety, `1_000` a thousand, and
//! an empty scalar or `~` is null; `y` and `n` are strings.

use super::document::Value;

/// The value of the plain (unquoted, untagged) scalar `text`.
pub fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => {
            return Value::Bool(true);
        }
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        ".nan" | ".NaN" | ".NAN" => return Value::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => {
            return Value::Float(f64::INFINITY);
        }
        "-.inf" | "-.Inf" | "-.INF" => return Value::Float(f64::NEG_INFINITY),
        _ => {}
    }
    number(text).unwrap_or_else(|| Value::String(text.to_string()))
}

/// The number that `text` stands for in YAML 1.1, if any.
fn number(text: &str) -> Option<Value> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        b'0'..=b'9' | b'.' | b'_' => (false, text),
        _ => return None,
    };
    let unsigned = octal(digits)
        .or_else(|| decimal(digits))
        .or_else(|| float(digits))
        .or_else(|| radix(digits, "0x", 16, 1))
        .or_else(|| radix(digits, "0b", 2, 2))
        .or_else(|| sexagesimal(digits))?;
    Some(match unsigned {
        Value::Int(value) if negative => Value::Int(-value),
        Value::Float(value) if negative => Value::Float(-value),
        other => other,
    })
}

/// An integer from `digits` (no sign, no underscores); a float when it does not fit.
fn integer(digits: &str, radix: u32) -> Value {
    match i64::from_str_radix(digits, radix) {
        Ok(value) => Value::Int(value),
        Err(_) if radix == 10 => Value::Float(digits.parse().unwrap_or(f64::INFINITY)),
        Err(_) => Value::Float(digits.chars().fold(0.0, |sum, digit| {
            sum * f64::from(radix) + f64::from(digit.to_digit(radix).unwrap_or(0))
        })),
    }
}

/// `0123`: a zero, then at least one octal digit.
fn octal(text: &str) -> Option<Value> {
    let rest = text.strip_prefix('0')?.trim_start_matches('_');
    let digits = without_underscores(rest, |c| matches!(c, '0'..='7'))?;
    Some(integer(&digits, 8))
}

/// `123`, `1_000`; also `089`, which cannot be octal.
fn decimal(text: &str) -> Option<Value> {
    let rest = text.trim_start_matches('_');
    let digits = without_underscores(rest, |c| c.is_ascii_digit())?;
    Some(integer(&digits, 10))
}

/// `0x1F` and `0b1010`; the binary form needs two digits.
fn radix(text: &str, prefix: &str, radix: u32, least: usize) -> Option<Value> {
    let rest = text.strip_prefix(prefix)?.trim_start_matches('_');
    if rest.len() < least {
        return None;
    }
    let digits = without_underscores(rest, |c| c.is_digit(radix))?;
    Some(integer(&digits, radix))
}

/// `1.5`, `1e3`, `.5`, `1.`.
fn float(text: &str) -> Option<Value> {
    if !text.contains(['.', 'e', 'E']) {
        return None;
    }
    let digits: String = text.chars().filter(|c| *c != '_').collect();
    // Rust reads "inf" and "infinity" as numbers too.
    let begins_well = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    if !begins_well {
        return None;
    }
    digits.parse().ok().map(Value::Float)
}

/// `1:30` and `1:30.5`: base sixty.
fn sexagesimal(text: &str) -> Option<Value> {
    let (whole, fraction) = match text.find('.') {
        Some(dot) => (&text[..dot], Some(&text[dot..])),
        None => (text, None),
    };
    let mut places = whole.split(':');
    let first = places.next()?;
    let second = places.next()?;
    let small = |place: &str| {
        place.len() == 1
            || (place.len() == 2
                && place.as_bytes()[0].is_ascii_digit()
                && place.as_bytes()[0] < b'6')
    };
    let numeric = |place: &str| place.bytes().all(|b| b.is_ascii_digit());
    if first.is_empty() || !numeric(first) || !numeric(second) {
        return None;
    }
    // After the second place anything of digits and colons follows in lyaml.
    if !(small(second) || (second.len() > 2 && small(&second[..2]))) || second.is_empty() {
        return None;
    }
    let mut sum = 0f64;
    for place in whole.split(':') {
        if !numeric(place) {
            return None;
        }
        if !place.is_empty() {
            sum = sum * 60.0 + place.parse::<f64>().ok()?;
        }
    }
    match fraction {
        None if sum < 9e15 => Some(Value::Int(sum as i64)),
        None => Some(Value::Float(sum)),
        Some(fraction) => {
            if fraction.len() < 2 || !numeric(&fraction[1..]) {
                return None;
            }
            Some(Value::Float(sum + fraction.parse::<f64>().ok()?))
        }
    }
}

/// `text` without underscores, when it begins with a digit and consists of digits and underscores.
fn without_underscores(text: &str, digit: impl Fn(char) -> bool) -> Option<String> {
    if !text.starts_with(&digit) || !text.chars().all(|c| digit(c) || c == '_') {
        return None;
    }
    Some(text.chars().filter(|c| *c != '_').collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use Value::{Bool, Float, Int, Null};

    fn string(text: &str) -> Value {
        Value::String(text.to_string())
    }

    #[test]
    fn booleans_in_three_casings() {
        for text in [
            "true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON",
        ] {
            assert_eq!(plain(text), Bool(true), "{text}");
        }
        for text in [
            "false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF",
        ] {
            assert_eq!(plain(text), Bool(false), "{text}");
        }
        for text in ["y", "n", "Y", "N", "tRue", "oN", "yEs"] {
            assert_eq!(plain(text), string(text), "{text}");
        }
    }

    #[test]
    fn nulls() {
        for text in ["", "~", "null", "Null", "NULL"] {
            assert_eq!(plain(text), Null, "{text}");
        }
        assert_eq!(plain("nULL"), string("nULL"));
    }

    #[test]
    fn integers_in_every_base() {
        for (text, value) in [
            ("0", 0),
            ("1883", 1883),
            ("+7", 7),
            ("-7", -7),
            ("1_000", 1000),
            ("0123", 83),
            ("-010", -8),
            ("0_7", 7),
            ("00", 0),
            ("089", 89),
            ("0x1F", 31),
            ("0xff_ff", 65535),
            ("0b1010", 10),
            ("1:30", 90),
            ("190:20:30", 685_230),
            ("-1:30", -90),
        ] {
            assert_eq!(plain(text), Int(value), "{text}");
        }
        assert_eq!(plain("9223372036854775808"), Float(9223372036854775808.0));
    }

    #[test]
    fn floats() {
        for (text, value) in [
            ("1.5", 1.5),
            ("-1.5", -1.5),
            (".5", 0.5),
            ("1.", 1.0),
            ("1e3", 1000.0),
            ("1_000.5", 1000.5),
            ("1:30.5", 90.5),
            (".inf", f64::INFINITY),
            ("-.INF", f64::NEG_INFINITY),
        ] {
            assert_eq!(plain(text), Float(value), "{text}");
        }
        assert!(matches!(plain(".nan"), Float(value) if value.is_nan()));
    }

    #[test]
    fn what_only_looks_like_a_number() {
        for text in [
            "127.0.0.1",
            "127.0.0.1:1883",
            "::1",
            "1:60",
            "1:",
            ":30",
            "0b1",
            "0x",
            "-",
            "+",
            ".",
            "1.2.3",
            "inf",
            "nan",
            "-inf",
            "infinity",
            "1e",
            "e3",
            "10s",
            "2000-2100",
            "_",
            "--1",
            "1:30:",
            "a:1",
            "0o17",
            "1,000",
        ] {
            if text == "1:30:" {
                // lyaml lets colons trail.
                assert_eq!(plain(text), Int(90));
                continue;
            }
            assert_eq!(plain(text), string(text), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in ".*") {
            let _ = plain(&text);
        }

        #[test]
        fn every_integer_reads_back(value in proptest::num::i64::ANY) {
            let Int(read) = plain(&value.to_string()) else {
                // -2^63 has no positive counterpart and reads as a float.
                proptest::prop_assert_eq!(value, i64::MIN);
                return Ok(());
            };
            proptest::prop_assert_eq!(read, value);
        }
    }
}
