//! Aligned text.

use std::fmt::Write;

/// Rows of cells; columns are as wide as their widest cell, the last one is not padded.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
    right: &'static [usize],
}

impl Table {
    /// A table whose columns `right` are aligned to the right.
    pub fn right(right: &'static [usize]) -> Self {
        Self {
            rows: Vec::new(),
            right,
        }
    }

    /// Adds a row.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        let cells = cells.into_iter().map(|cell| printable(&cell.into()));
        self.rows.push(cells.collect());
    }

    /// The text, every line indented by `indent`.
    pub fn render(&self, indent: usize) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(indent);
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                // Writing to a `String` cannot fail.
                let _ = match self.right.contains(&column) {
                    true => write!(line, "{cell:>width$}  "),
                    false => write!(line, "{cell:<width$}  "),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Words, joined by `gap`, in lines of at most `width` characters, each line indented.
pub fn wrap<S: AsRef<str>>(
    words: impl IntoIterator<Item = S>,
    gap: &str,
    indent: usize,
    width: usize,
) -> String {
    let mut text = String::new();
    let mut column = 0;
    for word in words {
        let word = printable(word.as_ref());
        let length = word.chars().count();
        if column > 0 && column + gap.len() + length > width {
            text.push('\n');
            column = 0;
        }
        let before = match column {
            0 => " ".repeat(indent),
            _ => gap.to_owned(),
        };
        column += before.len() + length;
        text.push_str(&before);
        text.push_str(&word);
    }
    if column > 0 {
        text.push('\n');
    }
    text
}

/// Text from a file without what a terminal would take for a command, on one line.
pub fn printable(text: &str) -> String {
    escaped(text, "")
}

/// As [`printable`], but line ends and tabs stay.
pub fn printable_lines(text: &str) -> String {
    escaped(text, "\n\t")
}

fn escaped(text: &str, kept: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() && !kept.contains(c) {
            true => clean.extend(c.escape_default()),
            false => clean.push(c),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_columns_align_and_lines_have_no_trailing_space() {
        let mut table = Table::right(&[1]);
        table.row(["a", "7", "x"]);
        table.row(["long", "1234", ""]);
        table.row(["only"]);
        assert_eq!(table.render(2), "  a        7  x\n  long  1234\n  only\n");
    }

    #[test]
    fn wrap_breaks_between_words_only() {
        let words = ["aa", "bb", "cc", "ddddddddddddd"];
        assert_eq!(wrap(words, "  ", 1, 7), " aa  bb\n cc\n ddddddddddddd\n");
        assert_eq!(wrap(words, " ", 0, 8), "aa bb cc\nddddddddddddd\n");
        assert_eq!(wrap([""; 0], " ", 4, 8), "");
    }

    #[test]
    fn printable_text_cannot_command_a_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\nü"), "a\\u{1b}[2Jb\\nü");
        assert_eq!(printable_lines("a\u{7}\tb\r\n"), "a\\u{7}\tb\\r\n");
    }
}
