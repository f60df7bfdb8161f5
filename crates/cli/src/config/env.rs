//! `${NAME}` and `${NAME:-default}` inside strings; `$${` is a plain `${`.

/// Why a string could not be filled in.
#[derive(Debug, PartialEq, Eq)]
pub enum EnvError {
    /// The variable is not set and has no default.
    Unset(String),
    /// A `${` that is not `${NAME}` or `${NAME:-default}`.
    Malformed,
}

/// Fills in the variables of one string. A variable that is set but empty takes its default, if there
/// is one, as in a shell.
pub fn substitute(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, EnvError> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, from) = rest.split_at(at);
        if let Some(plain) = before.strip_suffix('$') {
            out.push_str(plain);
            out.push_str("${");
            rest = &from[2..];
            continue;
        }
        out.push_str(before);
        let (inside, after) = from[2..].split_once('}').ok_or(EnvError::Malformed)?;
        out.push_str(&value(inside, env)?);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

fn value(inside: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, EnvError> {
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(word) || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(EnvError::Malformed);
    }
    match (env(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(EnvError::Unset(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(text: &str) -> Result<String, EnvError> {
        substitute(text, &|name| match name {
            "HOST" => Some("db".into()),
            "EMPTY" => Some(String::new()),
            _ => None,
        })
    }

    #[test]
    fn fills_in_variables_and_defaults() {
        let cases = [
            ("plain", "plain"),
            ("a${HOST}b${HOST}", "adbbdb"),
            ("${MISSING:-local}", "local"),
            ("${EMPTY:-local}", "local"),
            ("${EMPTY}", ""),
            ("${MISSING:-}", ""),
            ("${MISSING:-a:-b}", "a:-b"),
            ("$${HOST} $HOST $", "${HOST} $HOST $"),
        ];
        for (text, filled) in cases {
            assert_eq!(fill(text).as_deref(), Ok(filled), "{text}");
        }
    }

    #[test]
    fn refuses_what_it_cannot_fill_in() {
        assert_eq!(fill("${MISSING}"), Err(EnvError::Unset("MISSING".into())));
        for text in ["${", "${}", "${a b}", "${1A}", "x${HOST", "${:-x}"] {
            assert_eq!(fill(text), Err(EnvError::Malformed), "{text}");
        }
    }
}
