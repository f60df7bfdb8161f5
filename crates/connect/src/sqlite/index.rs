//! Taking a `CREATE INDEX` statement apart: SQLite keeps expressions and conditions of indexes as text only.

/// The terms and the condition of an index, as text.
#[derive(Debug, PartialEq, Eq)]
pub struct IndexText {
    /// What is between the parentheses, split at commas, without a last `ASC` or `DESC`.
    pub terms: Vec<String>,
    /// What follows `WHERE`.
    pub condition: Option<String>,
}

/// Takes a statement apart; `None` when it is not a `CREATE INDEX`.
pub fn parse(sql: &str) -> Option<IndexText> {
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
                terms.push(term(sql, tokens.get(first..at)?)?);
                first = at + 1;
            }
            _ => {}
        }
        if depth == 0 {
            terms.push(term(sql, tokens.get(first..at)?)?);
            return Some(IndexText { terms, condition: condition(sql, tokens.get(at + 1..)?)? });
        }
    }
    None
}

fn term(sql: &str, tokens: &[Token]) -> Option<String> {
    let last = tokens.last()?.text(sql);
    let ordered = last.eq_ignore_ascii_case("asc") || last.eq_ignore_ascii_case("desc");
    span(sql, if ordered { tokens.split_last()?.1 } else { tokens })
}

fn condition(sql: &str, tokens: &[Token]) -> Option<Option<String>> {
    match tokens.split_first() {
        None => Some(None),
        Some((word, rest)) if word.text(sql).eq_ignore_ascii_case("where") => span(sql, rest).map(Some),
        Some(_) => None,
    }
}

/// The text of tokens, one space between them: comments are gone.
fn span(sql: &str, tokens: &[Token]) -> Option<String> {
    let words: Vec<&str> = tokens.iter().map(|token| token.text(sql)).collect();
    (!words.is_empty()).then(|| words.join(" "))
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

    fn read(sql: &str) -> (Vec<String>, Option<String>) {
        let text = parse(sql).unwrap();
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
            assert_eq!(parse(sql), None, "{sql}");
        }
    }
}
