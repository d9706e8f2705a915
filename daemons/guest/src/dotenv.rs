// SPDX-License-Identifier: Apache-2.0
//! Values as `docker compose --env-file` reads them back without loss.
//!
//! Text formats for environments have eaten variables before (P05: a trailing backslash, a quote, a newline). Of the
//! forms that compose's reader knows, double quotes with octal escapes is the one that can say every value: `\0NNN` is
//! one ASCII character, `\$` a dollar sign that starts no reference, and other characters stand for themselves. Seen
//! with compose 2.26 for every character below U+0100, newlines, quotes, and 100,000 characters.
//!
//! The process environment would be lossless too, but there a value could steer compose itself (T10).

use crate::inputs::Env;
use std::fmt::Write;

/// The file of `env`, one line for each variable.
#[must_use]
pub fn render(env: &Env) -> String {
    let mut out = String::new();
    for (name, value) in env {
        out.push_str(name);
        out.push_str("=\"");
        value.chars().for_each(|c| escape(&mut out, c));
        out.push_str("\"\n");
    }
    out
}

fn escape(out: &mut String, c: char) {
    match c {
        '$' => out.push_str("\\$"),
        c if !c.is_ascii() || c.is_ascii_alphanumeric() || "_-./:@,=+".contains(c) => out.push(c),
        c => {
            // Writing to a String cannot fail.
            let _ = write!(out, "\\0{:03o}", u32::from(c));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What compose's reader does with the inside of double quotes: octal escapes, then `$` references.
    fn read_back(text: &str) -> Env {
        let unquote = |line: &str| {
            let (name, quoted) = line.split_once("=\"").unwrap_or_default();
            let inside = quoted.strip_suffix('"').unwrap_or_default();
            let mut chars = inside.chars();
            let mut value = String::new();
            while let Some(c) = chars.next() {
                match c {
                    '\\' if chars.as_str().starts_with('$') => value.extend(chars.next()),
                    '\\' => {
                        let octal: String = chars.by_ref().take(4).collect();
                        value.extend(u32::from_str_radix(&octal, 8).ok().and_then(char::from_u32));
                    }
                    '"' | '$' | '\n' => value.push_str("<broken>"),
                    c => value.push(c),
                }
            }
            (name.to_owned(), value)
        };
        text.lines().map(unquote).collect()
    }

    #[test]
    fn p05_no_value_can_break_the_format() {
        let all: String = (1..256).filter_map(char::from_u32).collect();
        let values = [
            "",
            "\\",
            "a\\",
            "\\\\",
            "$A",
            "${A}",
            "$$",
            "\\$",
            "\"",
            "'",
            "'\"'",
            "x\nB=evil",
            "\r\n\t",
            "#x",
            " lead",
            "trail ",
            "\\n",
            "\\0134",
            "é漢😀",
            "`id`",
            "export X",
            &all,
        ];
        let env: Env =
            values.iter().enumerate().map(|(n, v)| (format!("V{n:02}"), (*v).to_owned())).collect();
        let text = render(&env);
        assert_eq!(text.lines().count(), values.len());
        assert_eq!(read_back(&text), env);
    }
}
