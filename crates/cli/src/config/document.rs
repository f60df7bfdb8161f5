//! The file as a tree of values that know where they stand.

use std::borrow::Cow;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::env::{EnvError, substitute};
use super::problem::Problem;

/// The text of a config, for telling lines.
#[derive(Clone, Copy)]
pub struct Lines<'i>(pub &'i str);

impl Lines<'_> {
    /// The line, from 1, that the span begins on.
    pub fn of(self, span: &Range<usize>) -> Option<usize> {
        let before = self.0.as_bytes().get(..span.start)?;
        Some(before.iter().filter(|byte| **byte == b'\n').count() + 1)
    }
}

/// Reads the text; every syntax error is a problem.
pub fn parse(text: &str) -> Result<DeTable<'_>, Vec<Problem>> {
    let (root, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(root.into_inner());
    }
    let problem = |error: &toml::de::Error| {
        let line = error.span().and_then(|span| Lines(text).of(&span));
        Problem::new("", line, format!("this is not TOML: {}", error.message()))
    };
    // One slip often makes the parser stumble again right behind it.
    let mut problems: Vec<Problem> = errors.iter().map(problem).collect();
    problems.dedup_by_key(|problem| problem.line);
    Err(problems)
}

/// Fills in the environment's variables in every string of `value`.
pub fn fill_in(
    path: &str,
    value: &mut Spanned<DeValue<'_>>,
    lines: Lines<'_>,
    env: &dyn Fn(&str) -> Option<String>,
    problems: &mut Vec<Problem>,
) {
    let line = lines.of(&value.span());
    match value.get_mut() {
        DeValue::String(text) if text.contains("${") => match substitute(text, env) {
            Ok(filled) => *text = Cow::Owned(filled),
            Err(error) => problems.push(env_problem(path, line, error)),
        },
        DeValue::Array(items) => {
            for (at, item) in items.iter_mut().enumerate() {
                fill_in(&format!("{path}[{at}]"), item, lines, env, problems);
            }
        }
        DeValue::Table(table) => {
            for (key, value) in table.iter_mut() {
                fill_in(&join(path, key.get_ref()), value, lines, env, problems);
            }
        }
        _ => {}
    }
}

fn env_problem(path: &str, line: Option<usize>, error: EnvError) -> Problem {
    match error {
        EnvError::Unset(name) => {
            Problem::new(path, line, format!("the environment variable {name} is not set"))
                .hint(format!("set it, or give a default: ${{{name}:-value}}"))
        }
        EnvError::Malformed => Problem::new(path, line, "\"${\" does not begin a variable")
            .hint("write ${NAME} or ${NAME:-default}; a plain ${ is written $${"),
    }
}

/// `path.key`, with quotes where the key needs them.
pub fn join(path: &str, key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let key = if !key.is_empty() && key.chars().all(bare) {
        Cow::Borrowed(key)
    } else {
        Cow::Owned(format!("\"{key}\""))
    };
    if path.is_empty() { key.into_owned() } else { format!("{path}.{key}") }
}

/// The path of the key or value that has exactly this span.
pub fn path_of(path: &str, value: &Spanned<DeValue<'_>>, span: &Range<usize>) -> Option<String> {
    if value.span() == *span {
        return Some(path.to_owned());
    }
    match value.get_ref() {
        DeValue::Array(items) => in_array(path, items, span),
        DeValue::Table(table) => table.iter().find_map(|(key, value)| {
            let path = join(path, key.get_ref());
            if key.span() == *span { Some(path) } else { path_of(&path, value, span) }
        }),
        _ => None,
    }
}

fn in_array(path: &str, items: &DeArray<'_>, span: &Range<usize>) -> Option<String> {
    items.iter().enumerate().find_map(|(at, item)| path_of(&format!("{path}[{at}]"), item, span))
}

/// Takes the key called `name` out of the table that has it at this span, or in the table that has this
/// span; says where it was.
pub fn take_key(
    value: &mut Spanned<DeValue<'_>>,
    span: &Range<usize>,
    name: &str,
) -> Option<(Range<usize>, String)> {
    take(String::new(), value, span, name)
}

fn take(
    path: String,
    value: &mut Spanned<DeValue<'_>>,
    span: &Range<usize>,
    name: &str,
) -> Option<(Range<usize>, String)> {
    let whole = value.span() == *span;
    match value.get_mut() {
        DeValue::Table(table) => {
            let here = |key: &Spanned<Cow<'_, str>>| key.get_ref() == name && (whole || key.span() == *span);
            if let Some(key) = table.keys().find(|key| here(key)).cloned() {
                table.remove(name);
                return Some((key.span(), path));
            }
            table.iter_mut().find_map(|(key, value)| take(join(&path, key.get_ref()), value, span, name))
        }
        DeValue::Array(items) => {
            let mut items = items.iter_mut().enumerate();
            items.find_map(|(at, item)| take(format!("{path}[{at}]"), item, span, name))
        }
        _ => None,
    }
}
