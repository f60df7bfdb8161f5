//! One section of the file into one adapter's config struct, with errors that help.

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::document::{Lines, join, path_of, take_key};
use super::problem::Problem;

/// Reads a section. Unknown keys are all reported; of other errors, the first.
pub fn read<T: DeserializeOwned>(
    path: &str,
    section: &Spanned<DeValue<'_>>,
    lines: Lines<'_>,
    problems: &mut Vec<Problem>,
) -> Option<T> {
    let mut section = section.clone();
    let mut clean = true;
    loop {
        match T::deserialize(ValueDeserializer::from(section.clone())) {
            Ok(config) => return clean.then_some(config),
            Err(error) => {
                clean = false;
                let unknown = unknown_key(path, &mut section, &error, lines);
                let done = unknown.is_none();
                problems.push(unknown.unwrap_or_else(|| explain(path, &section, &error, lines)));
                if done {
                    return None;
                }
            }
        }
    }
}

/// Takes an unknown key out of the section and says what may have been meant.
fn unknown_key(
    path: &str,
    section: &mut Spanned<DeValue<'_>>,
    error: &toml::de::Error,
    lines: Lines<'_>,
) -> Option<Problem> {
    let message = error.message().strip_prefix("unknown field `")?;
    let (name, known) = message.split_once('`')?;
    let (span, within) = take_key(section, &error.span()?, name)?;
    let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
    let path = if within.is_empty() { path.to_owned() } else { format!("{path}.{within}") };
    if super::TOP.contains(&name) && nearest(name, &known).is_none() {
        let problem = Problem::new(path, lines.of(&span), format!("\"{name}\" does not belong here"));
        return Some(problem.hint("it stands at the top of the file, above the first [section]"));
    }
    Some(unknown(&path, lines.of(&span), "key", name, &known))
}

/// Any other error, in an operator's words. Values are not repeated: they may hold secrets.
fn explain(path: &str, section: &Spanned<DeValue<'_>>, error: &toml::de::Error, lines: Lines<'_>) -> Problem {
    let span = error.span();
    let line = span.as_ref().and_then(|span| lines.of(span));
    let at = span.and_then(|span| path_of(path, section, &span)).unwrap_or_else(|| path.to_owned());
    let message = error.message();
    if let Some(key) = between(message, "missing field `", "`") {
        return Problem::new(at, line, format!("the key \"{key}\" is missing"));
    }
    if let Some((name, known)) =
        message.strip_prefix("unknown variant `").and_then(|rest| rest.split_once('`'))
    {
        let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
        return unknown(&at, line, "value", name, &known);
    }
    if message.starts_with("invalid value: integer") {
        return Problem::new(at, line, "the number is too small or too large");
    }
    if let Some((found, expected)) = message
        .strip_prefix("invalid type: ")
        .or_else(|| message.strip_prefix("invalid value: "))
        .and_then(|rest| rest.split_once(", expected "))
    {
        let found = found.split([' ', '`']).next().unwrap_or(found);
        return Problem::new(
            at,
            line,
            format!("expected {}, found {}", in_words(expected), found_in_words(found)),
        );
    }
    Problem::new(at, line, message)
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.strip_prefix(before)?.split_once(after).map(|(inside, _)| inside)
}

/// serde's words for types, in words that people use.
fn in_words(expected: &str) -> &str {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a number",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "a table",
        other if other.starts_with("struct ") || other.starts_with("internally tagged") => "a table",
        other => other,
    }
}

fn found_in_words(found: &str) -> &str {
    match found {
        "string" => "a string",
        "integer" => "a whole number",
        "floating" => "a number with a fraction",
        "boolean" => "true or false",
        "sequence" => "a list",
        "map" => "a table",
        other => other,
    }
}

/// An unknown key, section or kind, with the nearest known one.
pub fn unknown(path: &str, line: Option<usize>, what: &str, name: &str, known: &[&str]) -> Problem {
    let problem = |message: String| Problem::new(path, line, message);
    match nearest(name, known) {
        Some(near) => problem(format!("unknown {what} \"{name}\": did you mean \"{near}\"?")),
        None if known.is_empty() => problem(format!("unknown {what} \"{name}\": there is none to name")),
        None => {
            problem(format!("unknown {what} \"{name}\"")).hint(format!("there are: {}", known.join(", ")))
        }
    }
}

/// The known name that `name` is most probably a slip of.
pub fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let name = name.to_lowercase();
    let scored = known.iter().map(|known| (strsim::jaro_winkler(&name, &known.to_lowercase()), *known));
    scored.filter(|(score, _)| *score > 0.75).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, known)| known)
}

/// The tables of a section of sections (`[source.A]`, `[source.B]`), with their paths.
pub fn named<'a, 'i>(
    kind: &str,
    section: &'a Spanned<DeValue<'i>>,
    lines: Lines<'_>,
    problems: &mut Vec<Problem>,
) -> Vec<(&'a str, &'a Spanned<DeValue<'i>>)> {
    let table = table(kind, section, lines, problems);
    let entries = table.into_iter().flat_map(DeTable::iter);
    entries.map(|(name, value)| (name.get_ref().as_ref(), value)).collect()
}

/// The section as a table.
pub fn table<'a, 'i>(
    path: &str,
    section: &'a Spanned<DeValue<'i>>,
    lines: Lines<'_>,
    problems: &mut Vec<Problem>,
) -> Option<&'a DeTable<'i>> {
    match section.get_ref() {
        DeValue::Table(table) => Some(table),
        other => {
            let message = format!("expected a table, found {}", kind_of(other));
            problems.push(Problem::new(path, lines.of(&section.span()), message));
            None
        }
    }
}

fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// Takes the `kind` out of a section; the rest is for the adapter that it names.
pub fn take_kind<'i>(
    path: &str,
    section: &Spanned<DeValue<'i>>,
    known: &[&str],
    default: Option<&str>,
    lines: Lines<'_>,
    problems: &mut Vec<Problem>,
) -> Option<(String, Spanned<DeValue<'i>>)> {
    table(path, section, lines, problems)?;
    let mut rest = section.clone();
    let DeValue::Table(table) = rest.get_mut() else { return None };
    let line = lines.of(&section.span());
    let Some(value) = table.remove("kind") else {
        let Some(default) = default else {
            let problem = Problem::new(path, line, "the key \"kind\" is missing");
            problems.push(problem.hint(format!("kind is one of: {}", known.join(", "))));
            return None;
        };
        return Some((default.to_owned(), rest));
    };
    let line = lines.of(&value.span());
    let DeValue::String(kind) = value.get_ref() else {
        let message = format!("expected a string, found {}", kind_of(value.get_ref()));
        problems.push(Problem::new(join(path, "kind"), line, message));
        return None;
    };
    if !known.contains(&kind.as_ref()) {
        problems.push(unknown(path, line, "kind", kind, known));
        return None;
    }
    Some((kind.to_string(), rest))
}
