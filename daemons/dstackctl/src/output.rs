// SPDX-License-Identifier: Apache-2.0
//! What a command prints: text and tables that fit the terminal, or JSON.

use crate::errors::{Exit, Failure};
use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use rustix::termios;
use serde::Serialize;
use std::io::{IsTerminal, Write};

/// Where and how output goes.
#[derive(Debug, Clone, Copy)]
pub struct Ui {
    /// JSON instead of text.
    pub json: bool,
    /// Colours on standard output.
    pub color: bool,
    /// Columns of standard output; `None` when it is no terminal, so that nothing is cut.
    pub width: Option<u16>,
    /// Whether progress may be drawn on standard error.
    pub animated: bool,
}

/// Colours by meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// Fine.
    Good,
    /// Look at it.
    Warning,
    /// Broken.
    Bad,
    /// Less important.
    Faint,
    /// As it is.
    Plain,
}

impl Ui {
    /// As the terminal, `NO_COLOR` and `TERM` say.
    #[must_use]
    pub fn detect(json: bool) -> Self {
        let (out, err) = (std::io::stdout(), std::io::stderr());
        let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|t| t == "dumb");
        let width = out.is_terminal().then(|| termios::tcgetwinsize(&out).ok().map(|s| s.ws_col)).flatten();
        Self {
            json,
            color: out.is_terminal() && !set("NO_COLOR") && !dumb,
            width: width.filter(|w| *w > 0),
            animated: err.is_terminal() && !dumb && !json,
        }
    }

    /// A text in the colour of its meaning.
    #[must_use]
    pub fn paint(&self, tone: Tone, text: &str) -> String {
        let code = match tone {
            _ if !self.color => return text.to_owned(),
            Tone::Good => "32",
            Tone::Warning => "33",
            Tone::Bad => "31",
            Tone::Faint => "2",
            Tone::Plain => return text.to_owned(),
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }

    /// A cell of a table, in the colour of its meaning.
    #[must_use]
    pub fn cell(tone: Tone, text: impl ToString) -> Cell {
        let cell = Cell::new(text.to_string());
        match tone {
            Tone::Good => cell.fg(Color::DarkGreen),
            Tone::Warning => cell.fg(Color::DarkYellow),
            Tone::Bad => cell.fg(Color::DarkRed),
            Tone::Faint => cell.add_attribute(Attribute::Dim),
            Tone::Plain => cell,
        }
    }

    /// An id, shortened where the terminal is too narrow for it; JSON and pipes get all of it.
    #[must_use]
    pub fn id(&self, id: &str) -> String {
        match id.get(..12) {
            Some(head) if self.width.is_some_and(|w| w < 120) => format!("{head}\u{2026}"),
            _ => id.to_owned(),
        }
    }

    /// Prints to standard output.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn text(&self, text: &str) -> Result<(), Failure> {
        write(text.as_bytes())
    }

    /// Prints a value as JSON on one line when nobody looks, indented on a terminal.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn json(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = if self.width.is_some() {
            serde_json::to_string_pretty(value)
        } else {
            serde_json::to_string(value)
        };
        let text = text.map_err(|e| Failure::new(format!("cannot write JSON: {e}")))?;
        write(format!("{text}\n").as_bytes())
    }

    /// A table without lines, as wide as its content but not wider than the terminal.
    #[must_use]
    pub fn table(&self, head: &[&str], rows: Vec<Vec<Cell>>) -> String {
        let mut table = Table::new();
        // Whether there is a terminal, and colours on it, is decided here alone.
        table.force_no_tty();
        if self.color {
            table.enforce_styling();
        }
        table.load_style(presets::NOTHING);
        match self.width {
            Some(width) => table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width),
            None => table.set_content_arrangement(ContentArrangement::Disabled),
        };
        if !head.is_empty() {
            table.set_header(head.to_vec());
        }
        table.add_rows(rows);
        table.column_iter_mut().for_each(|column| {
            column.set_padding((0, 2));
        });
        let trimmed = table.lines().map(|line| format!("{}\n", line.trim_end()));
        trimmed.collect()
    }
}

fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::with(Exit::Closed, "")),
        other => other.map_err(|e| Failure::new(format!("cannot write to standard output: {e}"))),
    }
}

/// Prints a note for people to standard error; not to be able to is no failure.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Prints a failure to standard error.
pub fn report(failure: &Failure) {
    if failure.exit == Exit::Closed {
        return;
    }
    note(&format!("dstackctl: {}", failure.message));
    if let Some(hint) = &failure.hint {
        note(&format!("  hint: {hint}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ui(width: Option<u16>) -> Ui {
        Ui { json: false, color: false, width, animated: false }
    }

    fn rows() -> Vec<Vec<Cell>> {
        let row = |[a, b, c]: [&str; 3]| vec![a.into(), Ui::cell(Tone::Good, b), c.into()];
        vec![
            row(["hello", "running", "3327603e03f5bd1f830812ca4a789277fc31f577"]),
            row(["b", "booting", "pulling images, which may take a while over this network"]),
        ]
    }

    #[test]
    fn a_table_fits_its_terminal() {
        for width in [40, 60, 80, 200] {
            let text = ui(Some(width)).table(&["NAME", "STATE", "WHAT"], rows());
            for line in text.lines() {
                assert!(line.chars().count() <= usize::from(width), "{width}: {line:?}");
            }
        }
    }

    #[test]
    fn nothing_is_cut_without_a_terminal() {
        let text = ui(None).table(&["NAME", "STATE", "WHAT"], rows());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines.first(), Some(&"NAME   STATE    WHAT"));
        assert_eq!(lines.get(1), Some(&"hello  running  3327603e03f5bd1f830812ca4a789277fc31f577"));
    }

    #[test]
    fn colours_do_not_move_columns() {
        let colored = Ui { color: true, ..ui(None) }.table(&["NAME", "STATE", "WHAT"], rows());
        assert!(colored.contains("\u{1b}["), "{colored:?}");
        let mut plain = String::new();
        for (index, part) in colored.split("\u{1b}[").enumerate() {
            plain.push_str(if index == 0 { part } else { part.split_once('m').map_or("", |p| p.1) });
        }
        let trimmed: Vec<&str> = plain.lines().map(str::trim_end).collect();
        assert_eq!(trimmed.join("\n"), ui(None).table(&["NAME", "STATE", "WHAT"], rows()).trim_end());
    }

    #[test]
    fn long_ids_are_shortened_on_narrow_terminals() {
        let id = "3327603e03f5bd1f830812ca4a789277fc31f577";
        assert_eq!(ui(Some(80)).id(id), "3327603e03f5\u{2026}");
        assert_eq!(ui(Some(160)).id(id), id);
        assert_eq!(ui(None).id(id), id);
    }

    #[test]
    fn colours_only_when_asked_for() {
        assert_eq!(ui(None).paint(Tone::Bad, "x"), "x");
        let colored = Ui { color: true, ..ui(None) };
        assert_eq!(colored.paint(Tone::Bad, "x"), "\u{1b}[31mx\u{1b}[0m");
        assert_eq!(colored.paint(Tone::Plain, "x"), "x");
    }
}
