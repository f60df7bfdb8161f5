//! Taking `CREATE INDEX` and `CREATE TABLE` statements apart: SQLite keeps expressions and conditions as text
//! only.
//!
//! What is taken out of a statement of the schema is to run in a trigger. There `"x"` is a string for some
//! connections only, while in the schema it is one for all, where no column is called so: it is written `'x'`.

use super::layout::literal;

/// The terms and the condition of an index, as text.
#[derive(Debug, PartialEq, Eq)]
pub struct IndexText {
    /// What is between the parentheses, split at commas, without a last `ASC` or `DESC`.
    pub terms: Vec<String>,
    /// What follows `WHERE`.
    pub condition: Option<String>,
}

/// What names something: not a string, even in double quotes.
pub type IsName<'a> = &'a dyn Fn(&str) -> bool;

/// Takes a statement apart; `None` when it is not a `CREATE INDEX`.
pub fn parse(sql: &str, is_name: IsName<'_>) -> Option<IndexText> {
    let tokens = tokens(sql);
    let open = tokens.iter().position(|token| token.text(sql) == "(")?;
    let mut depth = 0_usize;
    let mut terms = Vec::new();
    let mut first = open + 1;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.text(sql) {
            "(" => depth += 1,
            ")" => depth = depth.checked_sub(1)?,
            "," if depth == 1 => {
                terms.push(term(sql, tokens.get(first..at)?, is_name)?);
                first = at + 1;
            }
            _ => {}
        }
        if depth == 0 {
            terms.push(term(sql, tokens.get(first..at)?, is_name)?);
            return Some(IndexText { terms, condition: condition(sql, tokens.get(at + 1..)?, is_name)? });
        }
    }
    None
}

/// The conditions of the `CHECK`s in a `CREATE TABLE`.
pub fn checks(sql: &str, is_name: IsName<'_>) -> Vec<String> {
    let tokens = tokens(sql);
    let word = |at: usize| tokens.get(at).map_or("", |token: &Token| token.text(sql));
    let begins =
        (0..tokens.len()).filter(|&at| word(at).eq_ignore_ascii_case("check") && word(at + 1) == "(");
    let condition = |at: usize| {
        let inside = tokens.get(at + 2..)?;
        let mut depth = 1_usize;
        let end = inside.iter().position(|token| {
            depth = match token.text(sql) {
                "(" => depth + 1,
                ")" => depth - 1,
                _ => depth,
            };
            depth == 0
        })?;
        span(sql, inside.get(..end)?, is_name)
    };
    begins.filter_map(condition).collect()
}

/// An expression with no comments and no strings in double quotes.
pub fn expression(sql: &str, is_name: IsName<'_>) -> String {
    span(sql, &tokens(sql), is_name).unwrap_or_default()
}

/// Whether an expression has a word that `is` tells.
pub fn has_name(sql: &str, is: IsName<'_>) -> bool {
    let last = |token: &Token| unquoted(token.text(sql).rsplit('.').next().unwrap_or_default());
    tokens(sql).iter().any(|token| is(&last(token)))
}

fn term(sql: &str, tokens: &[Token], is_name: IsName<'_>) -> Option<String> {
    let last = tokens.last()?.text(sql);
    let ordered = last.eq_ignore_ascii_case("asc") || last.eq_ignore_ascii_case("desc");
    span(sql, if ordered { tokens.split_last()?.1 } else { tokens }, is_name)
}

fn condition(sql: &str, tokens: &[Token], is_name: IsName<'_>) -> Option<Option<String>> {
    match tokens.split_first() {
        None => Some(None),
        Some((word, rest)) if word.text(sql).eq_ignore_ascii_case("where") => {
            span(sql, rest, is_name).map(Some)
        }
        Some(_) => None,
    }
}

/// The text of tokens, one space between them: comments are gone.
fn span(sql: &str, tokens: &[Token], is_name: IsName<'_>) -> Option<String> {
    let word = |at: usize| tokens.get(at).map_or("", |token| token.text(sql));
    let words = (0..tokens.len()).map(|at| {
        let (text, next) = (word(at), word(at + 1));
        let before = at.checked_sub(1).map_or("", word);
        let named = next.starts_with('.') || next == "(" || before.ends_with('.');
        let named = named || before.eq_ignore_ascii_case("collate") || before.eq_ignore_ascii_case("as");
        match text.starts_with('"') && !named && !is_name(&unquoted(text)) {
            true => literal(&unquoted(text)),
            false => text.to_owned(),
        }
    });
    (!tokens.is_empty()).then(|| words.collect::<Vec<_>>().join(" "))
}

/// What a quoted name says.
fn unquoted(text: &str) -> String {
    let inside = |quote: char| text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    for quote in ['"', '`'] {
        if let Some(inside) = inside(quote) {
            return inside.replace(&format!("{quote}{quote}"), &quote.to_string());
        }
    }
    text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text).to_owned()
}

#[derive(Debug, Clone, Copy)]
struct Token {
    start: usize,
    end: usize,
}

impl Token {
    fn text<'a>(&self, sql: &'a str) -> &'a str {
        sql.get(self.start..self.end).unwrap_or("")
    }
}

/// Names, literals and operators; comments and spaces are left out.
fn tokens(sql: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut start = 0;
    while let Some(rest) = sql.get(start..).filter(|rest| !rest.is_empty()) {
        let length = token_length(rest);
        let blank = rest.starts_with(char::is_whitespace) || rest.starts_with("--") || rest.starts_with("/*");
        if !blank {
            tokens.push(Token { start, end: start + length });
        }
        start += length;
    }
    tokens
}

fn token_length(rest: &str) -> usize {
    let upto = |end: &str, from: usize| {
        rest.get(from..).and_then(|rest| rest.find(end)).map_or(rest.len(), |at| from + at + end.len())
    };
    let while_true = |test: fn(char) -> bool| rest.find(|c| !test(c)).unwrap_or(rest.len());
    let is_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$' | '.') || !c.is_ascii();
    match rest.chars().next() {
        // A blob literal is a word and a string; a space between them would change its meaning.
        Some('x' | 'X') if rest.get(1..2) == Some("'") => upto("'", 2),
        Some(c) if is_word(c) => while_true(is_word),
        Some(c) if c.is_whitespace() => while_true(char::is_whitespace),
        Some('-') if rest.starts_with("--") => upto("\n", 2),
        Some('/') if rest.starts_with("/*") => upto("*/", 2),
        Some('[') => upto("]", 1),
        Some(quote @ ('\'' | '"' | '`')) => quoted_length(rest, quote),
        Some('(' | ')' | ',' | ';') => 1,
        Some(c) => {
            let operator = |c: char| "<>=!|&+-*/%~".contains(c);
            if operator(c) { operator_length(rest) } else { c.len_utf8() }
        }
        None => 0,
    }
}

fn operator_length(rest: &str) -> usize {
    const LONG: [&str; 11] = ["->>", "->", "||", "<<", ">>", "<=", ">=", "<>", "!=", "==", "&&"];
    LONG.iter().find(|operator| rest.starts_with(**operator)).map_or(1, |operator| operator.len())
}

fn quoted_length(rest: &str, quote: char) -> usize {
    let mut chars = rest.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if c == quote && chars.next_if(|(_, next)| *next == quote).is_none() {
            return at + 1;
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: IsName<'_> =
        &|name| ["a", "b \"c", "t", "Kind"].iter().any(|n| n.eq_ignore_ascii_case(name));

    fn read(sql: &str) -> (Vec<String>, Option<String>) {
        let text = parse(sql, COLUMNS).unwrap();
        (text.terms, text.condition)
    }

    #[test]
    fn terms_and_conditions() {
        let sql = "CREATE UNIQUE INDEX IF NOT EXISTS \"odd (name\" ON t(lower(a, 'x,)y') DESC, \"b \"\"c\" asc,d) \
                   WHERE deleted IS NULL and a->>'x' <> 'it''s' -- why";
        let (terms, condition) = read(sql);
        assert_eq!(terms, ["lower ( a , 'x,)y' )", "\"b \"\"c\"", "d"]);
        assert_eq!(condition.as_deref(), Some("deleted IS NULL and a ->> 'x' <> 'it''s'"));
    }

    #[test]
    fn comments_and_blobs() {
        let (terms, condition) = read("create index i on t /* ( */ (a || x'00', [b c]\n-- end)\n)");
        assert_eq!(terms, ["a || x'00'", "[b c]"]);
        assert_eq!(condition, None);
    }

    #[test]
    fn nonsense_is_refused() {
        for sql in ["", "create index", "create index i on t(a", "create index i on t()", "i (a) then"] {
            assert_eq!(parse(sql, COLUMNS), None, "{sql}");
        }
    }

    #[test]
    fn strings_in_double_quotes_are_strings_in_triggers_too() {
        let sql = "create index i on t(json_extract(a, \"$.k\") collate \"nocase\", \"lower\"(\"kind\")) \
                   where \"s\".\"kind\" = \"it's\" and s.\"x\" = cast(a as \"text\") and \"t\" <> [u]";
        let (terms, condition) = read(sql);
        assert_eq!(terms, ["json_extract ( a , '$.k' ) collate \"nocase\"", "\"lower\" ( \"kind\" )"]);
        let expected = "\"s\" . \"kind\" = 'it''s' and s. \"x\" = cast ( a as \"text\" ) and \"t\" <> [u]";
        assert_eq!(condition.as_deref(), Some(expected));
        assert_eq!(expression("\"a\" || \"z\" -- why", COLUMNS), "\"a\" || 'z'");
    }

    #[test]
    fn checks_of_a_table() {
        let sql =
            "create table t(a check(json_valid(a)) /* check(b) */, \"check\" text check ((a) in (\"x\", 2)),
                   constraint c CHECK (t.kind <> 'check(a)'))";
        let expected = ["json_valid ( a )", "( a ) in ( 'x' , 2 )", "t.kind <> 'check(a)'"];
        assert_eq!(checks(sql, COLUMNS), expected);
        assert_eq!(checks("create table t(a check", COLUMNS), [""; 0]);
    }

    #[test]
    fn names_are_found_however_they_are_written() {
        for text in ["Kind > 0", "t.kind", "t . [kind]", "\"t\".\"KIND\"", "lower(`kind`)"] {
            assert!(has_name(text, &|name| name.eq_ignore_ascii_case("kind")), "{text}");
        }
        assert!(!has_name("'kind' || kinds", &|name| name.eq_ignore_ascii_case("kind")));
    }
}
