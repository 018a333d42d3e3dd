//! What templates written for Python expect: how values print, JSON as
//! `json.dumps` writes it, dates as `strftime` does.

use std::fmt::Write as _;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, Output};

/// Deepest nesting of a value that is printed.
const MAX_DEPTH: usize = 128;

fn invalid(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

/// An error and its causes in one line.
pub(super) fn describe(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

/// Prints a value as Python's `str` does.
pub(super) fn write(out: &mut Output<'_>, value: &Value) -> Result<(), Error> {
    let failed = |_| Error::new(ErrorKind::WriteFailure, "could not write");
    match value.kind() {
        ValueKind::Undefined => Ok(()),
        ValueKind::String => out
            .write_str(value.as_str().unwrap_or_default())
            .map_err(failed),
        _ => {
            let mut text = String::new();
            repr(value, &mut text, 0)?;
            out.write_str(&text).map_err(failed)
        }
    }
}

/// Python's `repr`.
fn repr(value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(invalid("a value is nested too deeply"));
    }
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => number(value, out),
        ValueKind::String => quote(value.as_str().unwrap_or_default(), out),
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                repr(&key, out, depth + 1)?;
                out.push_str(": ");
                repr(&value.get_item(&key)?, out, depth + 1)?;
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (i, item) in value.try_iter()?.enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                repr(&item, out, depth + 1)?;
            }
            out.push(']');
        }
        _ => {
            let _ = write!(out, "{value}");
        }
    }
    Ok(())
}

fn quote(text: &str, out: &mut String) {
    let mark = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(mark);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == mark => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push(mark);
}

/// A number as Python prints it: the shortest decimal that reads back, with an
/// exponent below 10⁻⁴ and from 10¹⁶ on.
fn number(value: &Value, out: &mut String) {
    let float = (!value.is_integer()).then(|| f64::try_from(value.clone()));
    let Some(Ok(float)) = float else {
        let _ = write!(out, "{value}");
        return;
    };
    if !float.is_finite() {
        let name = if float.is_nan() {
            "nan"
        } else if float > 0.0 {
            "inf"
        } else {
            "-inf"
        };
        return out.push_str(name);
    }
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..16).contains(&exponent) {
        let _ = write!(out, "{float:?}");
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        let _ = write!(out, "{digits}e{sign}{:02}", exponent.abs());
    }
}

/// `json.dumps(value, ensure_ascii=False, indent=…)`.
pub(super) fn to_json(value: Value, options: Kwargs) -> Result<Value, Error> {
    let separators: Option<Vec<String>> = options.get("separators")?;
    let indent: Option<usize> = options.get("indent")?;
    let style = Json {
        indent: indent.map(|n| n.min(16)),
        ensure_ascii: options
            .get::<Option<bool>>("ensure_ascii")?
            .unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        separators: match separators.as_deref() {
            None if indent.is_some() => [",".to_owned(), ": ".to_owned()],
            None => [", ".to_owned(), ": ".to_owned()],
            Some([item, key]) => [item.clone(), key.clone()],
            Some(_) => return Err(invalid("tojson: separators must be two")),
        },
    };
    options.assert_all_used()?;
    let mut out = String::new();
    style.write(&value, &mut out, 0)?;
    Ok(Value::from(out))
}

struct Json {
    indent: Option<usize>,
    ensure_ascii: bool,
    sort_keys: bool,
    separators: [String; 2],
}

impl Json {
    fn write(&self, value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(invalid("tojson: nested too deeply"));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => number(value, out),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out)?,
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.items(out, ['{', '}'], depth, keys.into_iter(), |key, out| {
                    match key.as_str() {
                        Some(text) => self.string(text, out)?,
                        None => self.string(&key.to_string(), out)?,
                    }
                    out.push_str(&self.separators[1]);
                    self.write(&value.get_item(key)?, out, depth + 1)
                })?;
            }
            ValueKind::Seq | ValueKind::Iterable => {
                self.items(out, ['[', ']'], depth, value.try_iter()?, |item, out| {
                    self.write(item, out, depth + 1)
                })?;
            }
            other => return Err(invalid(format!("tojson: a value of type {other}"))),
        }
        Ok(())
    }

    fn items(
        &self,
        out: &mut String,
        [open, close]: [char; 2],
        depth: usize,
        items: impl Iterator<Item = Value>,
        write: impl Fn(&Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let line = |out: &mut String, depth: usize| {
            if let Some(indent) = self.indent {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', indent * depth));
            }
        };
        out.push(open);
        let mut is_empty = true;
        for item in items {
            if !is_empty {
                out.push_str(&self.separators[0]);
            }
            is_empty = false;
            line(out, depth + 1);
            write(&item, out)?;
        }
        if !is_empty {
            line(out, depth);
        }
        out.push(close);
        Ok(())
    }

    fn string(&self, text: &str, out: &mut String) -> Result<(), Error> {
        let json = serde_json::to_string(text).map_err(|e| invalid(e.to_string()))?;
        if !self.ensure_ascii {
            out.push_str(&json);
            return Ok(());
        }
        for c in json.chars() {
            if c.is_ascii() {
                out.push(c);
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
        Ok(())
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];

/// `strftime` of a moment, in UTC and English.
pub(super) fn strftime(unix_s: u64, format: &str) -> Result<String, Error> {
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute) = (second / 3_600, second / 60 % 60);
    let hour_12 = (hour + 11) % 12 + 1;
    let month_name = MONTHS[usize::try_from(month - 1).unwrap_or_default() % 12];
    let day_name = DAYS[usize::try_from(days % 7).unwrap_or_default()];
    let of_year = days - days_before(year) + 1;
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut code = chars.next();
        let is_bare = code == Some('-');
        if is_bare {
            code = chars.next();
        }
        let two = |n: u64| {
            if is_bare {
                n.to_string()
            } else {
                format!("{n:02}")
            }
        };
        let text = match code {
            Some('Y') => year.to_string(),
            Some('y') => two(year % 100),
            Some('m') => two(month),
            Some('d') => two(day),
            Some('e') => format!("{day:2}"),
            Some('H') => two(hour),
            Some('I') => two(hour_12),
            Some('M') => two(minute),
            Some('S') => two(second % 60),
            Some('p') => (if hour < 12 { "AM" } else { "PM" }).to_owned(),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name[..3].to_owned(),
            Some('j') if is_bare => of_year.to_string(),
            Some('j') => format!("{of_year:03}"),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{:02}", second % 60),
            Some('Z') => "UTC".to_owned(),
            Some('%') => "%".to_owned(),
            other => {
                let code = other.map(String::from).unwrap_or_default();
                return Err(invalid(format!("strftime_now: %{code} is not supported")));
            }
        };
        out.push_str(&text);
    }
    Ok(out)
}

/// Year, month and day of a day since 1970-01-01, in the Gregorian calendar
/// (Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

/// Days from 1970-01-01 to the first of January of `year`.
fn days_before(year: u64) -> u64 {
    let y = year - 1;
    365 * y + y / 4 - y / 100 + y / 400 - 719_162
}
