//! JSON with line breaks, and nothing else changed.

/// Breaks what does not fit a line after each field.
pub fn pretty(json: &str) -> String {
    broken(json, 0)
}

fn broken(json: &str, indent: usize) -> String {
    if !json.starts_with('{') || (indent > 0 && json.len() + indent < 90) {
        return json.to_owned();
    }
    let pad = " ".repeat(indent + 2);
    let fields: Vec<String> = fields(&json[1..json.len() - 1])
        .into_iter()
        .map(|(name, value)| format!("{pad}{name}: {}", broken(value, indent + 2)))
        .collect();
    format!("{{\n{}\n{}}}", fields.join(",\n"), " ".repeat(indent))
}

/// Splits an object's inside at the commas and colons that are its own.
fn fields(inside: &str) -> Vec<(&str, &str)> {
    let (mut fields, mut from, mut colon) = (Vec::new(), 0, None);
    let (mut depth, mut quoted, mut escaped) = (0, false, false);
    for (at, c) in inside.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            _ if quoted => {}
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            ':' if depth == 0 && colon.is_none() => colon = Some(at),
            ',' if depth == 0 => {
                let colon = colon.take().unwrap_or(at);
                fields.push((&inside[from..colon], &inside[colon + 1..at]));
                from = at + 1;
            }
            _ => {}
        }
    }
    if let Some(colon) = colon {
        fields.push((&inside[from..colon], &inside[colon + 1..]));
    }
    fields
}
