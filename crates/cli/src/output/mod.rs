//! What the commands print: tables, figures and events for people, JSON for programs.

pub mod event;
pub mod human;
pub mod table;

use std::io::{self, IsTerminal, Write};

use headwater_core::{Error, Kind, Result};
use serde::Serialize;

/// A colour of the terminal's own palette.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// As it should be.
    Green,
    /// Look here.
    Yellow,
    /// Wrong.
    Red,
    /// A name.
    Cyan,
    /// Beside the point.
    Dim,
    /// A heading.
    Bold,
}

/// Whether stdout is a terminal that takes colour (and nobody set `NO_COLOR`).
pub fn coloured() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    io::stdout().is_terminal()
        && !set("NO_COLOR")
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// The text in a colour, where `coloured`.
pub fn paint(text: &str, colour: Colour, coloured: bool) -> String {
    let code = match colour {
        Colour::Green => "32",
        Colour::Yellow => "33",
        Colour::Red => "31",
        Colour::Cyan => "36",
        Colour::Dim => "2",
        Colour::Bold => "1",
    };
    if coloured { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Control characters of what others wrote must not reach the terminal.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The same of what may have several lines.
pub fn lines(text: &str) -> String {
    text.lines().map(one_line).collect::<Vec<_>>().join("\n")
}

/// How many columns a line may have; `None` when nobody looks at them.
pub fn width() -> Option<usize> {
    if !io::stdout().is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok();
    Some(size.map_or(0, |size| usize::from(size.ws_col))).filter(|width| *width > 0).or(Some(100))
}

/// Prints a line to stdout. A reader that went away is an error that [`is_broken_pipe`] knows.
pub fn line(text: impl AsRef<str>) -> Result<()> {
    let mut out = io::stdout().lock();
    let done = out.write_all(text.as_ref().as_bytes()).and_then(|()| out.write_all(b"\n"));
    done.and_then(|()| out.flush())
        .map_err(|error| Error::new(Kind::Internal, "writing to standard output").because(error))
}

/// Prints a value as one line of JSON.
pub fn json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(value)
        .map_err(|error| Error::new(Kind::Internal, "writing JSON").because(error))?;
    line(text)
}

/// Whether the error is that whoever read stdout stopped reading: `headwater tail | head`.
pub fn is_broken_pipe(error: &Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}
