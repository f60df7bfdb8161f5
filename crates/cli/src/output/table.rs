//! Aligned tables.

use super::{Colour, one_line, paint};

/// A cell: what it says, on one line, and in which colour.
#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    colour: Option<Colour>,
}

impl Cell {
    /// A cell in a colour.
    pub fn coloured(text: impl AsRef<str>, colour: Colour) -> Self {
        Self { text: one_line(text.as_ref()), colour: Some(colour) }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: one_line(text.as_ref()), colour: None }
    }
}

/// A table under construction. A heading that begins with `>` aligns its column to the right.
#[derive(Debug)]
pub struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table with these columns.
    pub fn new(headings: &[&'static str]) -> Self {
        Self { headings: headings.to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.rows.push(cells.to_vec());
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as text, without a newline at its end.
    pub fn render(&self, coloured: bool) -> String {
        let headings: Vec<Cell> = self.headings.iter().map(|heading| heading_cell(heading)).collect();
        let right: Vec<bool> = self.headings.iter().map(|heading| heading.starts_with('>')).collect();
        let mut widths = vec![0; headings.len()];
        for row in self.rows.iter().chain([&headings]) {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.chars().count());
            }
        }
        let mut lines = vec![render_row(&headings, &widths, &right, coloured)];
        lines.extend(self.rows.iter().map(|row| render_row(row, &widths, &right, coloured)));
        lines.join("\n")
    }
}

fn heading_cell(heading: &str) -> Cell {
    Cell::coloured(heading.trim_start_matches('>').to_uppercase(), Colour::Dim)
}

fn render_row(row: &[Cell], widths: &[usize], right: &[bool], coloured: bool) -> String {
    let mut line = String::new();
    for ((cell, width), right) in row.iter().zip(widths).zip(right) {
        if !line.is_empty() {
            line.push_str("  ");
        }
        let padding = " ".repeat(width.saturating_sub(cell.text.chars().count()));
        let text = match cell.colour {
            Some(colour) => paint(&cell.text, colour, coloured),
            None => cell.text.clone(),
        };
        if *right {
            line.push_str(&padding);
            line.push_str(&text);
        } else {
            line.push_str(&text);
            line.push_str(&padding);
        }
    }
    line.truncate(line.trim_end().len());
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["name", ">events"]);
        table.row(["orders".into(), "5".into()]);
        table.row([Cell::coloured("x", Colour::Red), "12,345".into()]);
        assert_eq!(table.render(false), "NAME    EVENTS\norders       5\nx       12,345");
        assert!(table.render(true).contains("\x1b[31mx\x1b[0m       12,345"));
    }
}
