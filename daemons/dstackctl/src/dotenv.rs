// SPDX-License-Identifier: Apache-2.0
//! `.env` files, read as docker compose reads them. Pure.
//!
//! `NAME=VALUE` lines with optional `export`; `#` begins a comment, after a value only behind a space. Single quotes take
//! everything as it is and may hold several lines; double quotes too, with `\n \r \t \\ \" \$`. `$NAME` and `${NAME}`,
//! with `:-` `-` `:+` `+` `:?` `?`, stand for earlier lines and the environment, outside of single quotes. A name alone
//! takes its value from the environment.
//!
//! Where compose would put an empty text for a variable that is not set, this is an error: a secret that silently became
//! empty is worse. No error carries a part of a line, since any part may be of a secret.

use dstack_keys::env::Variables;
use zeroize::Zeroizing;

/// Deepest nesting of `${A:-${B:-…}}`.
const DEPTH_MAX: usize = 8;

/// What is wrong, and on which line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DotenvError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong, without any of the text.
    pub what: String,
}

impl std::fmt::Display for DotenvError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for DotenvError {}

/// Reads variables of the environment.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Parses a file. A later line of the same name wins.
///
/// # Errors
/// [`DotenvError`].
pub fn parse(text: &str, environment: Lookup<'_>) -> Result<Variables, DotenvError> {
    let mut reader = Reader {
        rest: text.strip_prefix('\u{feff}').unwrap_or(text),
        line: 1,
        variables: Variables::new(),
        environment,
    };
    while reader.skip_to_entry() {
        reader.entry()?;
    }
    Ok(reader.variables)
}

struct Reader<'a> {
    rest: &'a str,
    line: usize,
    variables: Variables,
    environment: Lookup<'a>,
}

impl<'a> Reader<'a> {
    fn fail<T>(&self, what: impl Into<String>) -> Result<T, DotenvError> {
        Err(DotenvError { line: self.line, what: what.into() })
    }

    /// Takes `length` bytes.
    fn take(&mut self, length: usize) -> &'a str {
        let (head, tail) = self.rest.split_at_checked(length).unwrap_or((self.rest, ""));
        self.line += head.matches('\n').count();
        self.rest = tail;
        head
    }

    fn skip(&mut self, what: impl Fn(char) -> bool) {
        let end = self.rest.find(|c| !what(c)).unwrap_or(self.rest.len());
        self.take(end);
    }

    /// Passes blank lines and comments; whether an entry follows.
    fn skip_to_entry(&mut self) -> bool {
        loop {
            self.skip(char::is_whitespace);
            if !self.rest.starts_with('#') {
                return !self.rest.is_empty();
            }
            self.skip(|c| c != '\n');
        }
    }

    fn entry(&mut self) -> Result<(), DotenvError> {
        if let Some(rest) = self.rest.strip_prefix("export").filter(|r| r.starts_with([' ', '\t'])) {
            self.rest = rest.trim_start_matches([' ', '\t']);
        }
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(self.rest.len());
        let name = self.take(end).to_owned();
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            return self.fail("the name must be of letters, digits and '_', not beginning with a digit");
        }
        self.skip(|c| c == ' ' || c == '\t');
        let value = match self.rest.chars().next() {
            Some('=') => {
                self.take(1);
                self.value()?
            }
            None | Some('\n' | '\r' | '#') => self.inherited(&name)?,
            Some(_) => return self.fail("is not NAME=VALUE"),
        };
        self.variables.insert(name, value);
        Ok(())
    }

    /// The value of a line that is a name alone. The name may be a piece of a secret, so it is not told.
    fn inherited(&self, name: &str) -> Result<Zeroizing<String>, DotenvError> {
        match (self.environment)(name) {
            Some(value) => Ok(Zeroizing::new(value)),
            None => self.fail("is a name without '=', and the environment has no such variable"),
        }
    }

    fn value(&mut self) -> Result<Zeroizing<String>, DotenvError> {
        self.skip(|c| c == ' ' || c == '\t');
        match self.rest.chars().next() {
            Some('\'') => {
                let raw = self.quoted('\'')?;
                Ok(Zeroizing::new(raw.replace("\\'", "'")))
            }
            Some('"') => {
                let raw = self.quoted('"')?;
                self.expand(raw, true, 0)
            }
            _ => {
                let end = self.rest.find('\n').unwrap_or(self.rest.len());
                let raw = without_comment(self.take(end)).trim_end();
                self.expand(raw, false, 0)
            }
        }
    }

    /// What is between quotes; only a comment may follow on the line.
    fn quoted(&mut self, quote: char) -> Result<&'a str, DotenvError> {
        let body = self.rest.get(1..).unwrap_or_default();
        let Some(end) = closing(body, quote) else { return self.fail("the quote is never closed") };
        self.take(1);
        let raw = self.take(end);
        self.take(1);
        self.skip(|c| c == ' ' || c == '\t' || c == '\r');
        match self.rest.chars().next() {
            None | Some('\n' | '#') => {
                self.skip(|c| c != '\n');
                Ok(raw)
            }
            Some(_) => self.fail("something follows the closing quote"),
        }
    }

    /// Puts in variables and, in double quotes, escapes.
    fn expand(&self, raw: &str, escapes: bool, depth: usize) -> Result<Zeroizing<String>, DotenvError> {
        if depth > DEPTH_MAX {
            return self.fail("${…} is nested too deeply");
        }
        let mut out = Zeroizing::new(String::with_capacity(raw.len()));
        let mut rest = raw;
        while let Some(at) = rest.find(['$', '\\']) {
            let (plain, special) = rest.split_at_checked(at).unwrap_or((rest, ""));
            out.push_str(plain);
            rest = if special.starts_with('\\') {
                escaped(special, escapes, &mut out)
            } else {
                self.variable(special, &mut out, escapes, depth)?
            };
        }
        out.push_str(rest);
        Ok(out)
    }

    /// Puts in the variable that `text` begins with; gives what follows it.
    fn variable<'t>(
        &self,
        text: &'t str,
        out: &mut String,
        escapes: bool,
        depth: usize,
    ) -> Result<&'t str, DotenvError> {
        let body = text.get(1..).unwrap_or_default();
        if let Some(rest) = body.strip_prefix('$') {
            out.push('$');
            return Ok(rest);
        }
        if let Some(braced) = body.strip_prefix('{') {
            let Some(end) = closing_brace(braced) else { return self.fail("${ is never closed") };
            let (inside, rest) = braced.split_at_checked(end).unwrap_or((braced, ""));
            out.push_str(&self.braced(inside, escapes, depth)?);
            return Ok(rest.get(1..).unwrap_or_default());
        }
        let (name, rest) = split_name(body);
        if name.is_empty() {
            out.push('$');
        } else {
            let Some(value) = self.known(name) else { return self.unset() };
            out.push_str(&value);
        }
        Ok(rest)
    }

    fn braced(&self, inside: &str, escapes: bool, depth: usize) -> Result<Zeroizing<String>, DotenvError> {
        let (name, rest) = split_name(inside);
        let (colon, rest) = rest.strip_prefix(':').map_or((false, rest), |r| (true, r));
        let mut chars = rest.chars();
        let operator = chars.next();
        let word = chars.as_str();
        if name.is_empty() || (colon && operator.is_none()) {
            return self.fail("${…} names no variable");
        }
        let value = self.known(name).filter(|v| !colon || !v.is_empty());
        match (operator, value) {
            (None | Some('-' | '?'), Some(value)) => Ok(value),
            (None | Some('?'), None) => self.unset(),
            (Some('-'), None) | (Some('+'), Some(_)) => self.expand(word, escapes, depth + 1),
            (Some('+'), None) => Ok(Zeroizing::default()),
            (Some(_), _) => self.fail("${…} is not one of ${A} ${A:-b} ${A-b} ${A:+b} ${A+b} ${A:?b} ${A?b}"),
        }
    }

    fn known(&self, name: &str) -> Option<Zeroizing<String>> {
        self.variables.get(name).cloned().or_else(|| (self.environment)(name).map(Zeroizing::new))
    }

    fn unset<T>(&self) -> Result<T, DotenvError> {
        self.fail(
            "a $ stands for a variable that is not set; put the value into single quotes to take $ as it is",
        )
    }
}

/// Puts in what a backslash means; gives what follows. Unknown escapes stay as they are.
fn escaped<'t>(text: &'t str, escapes: bool, out: &mut String) -> &'t str {
    let mut chars = text.get(1..).unwrap_or_default().chars();
    match chars.next().filter(|_| escapes) {
        Some('n') => out.push('\n'),
        Some('r') => out.push('\r'),
        Some('t') => out.push('\t'),
        Some(c @ ('\\' | '"' | '$')) => out.push(c),
        _ => {
            out.push('\\');
            return text.get(1..).unwrap_or_default();
        }
    }
    chars.as_str()
}

/// A line up to a `#` behind white space.
fn without_comment(line: &str) -> &str {
    let mut space = true;
    for (at, c) in line.char_indices() {
        if c == '#' && space {
            return line.get(..at).unwrap_or(line);
        }
        space = c.is_whitespace();
    }
    line
}

/// Where the quote closes; a backslash hides the character after it.
fn closing(text: &str, quote: char) -> Option<usize> {
    let mut hidden = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if hidden => hidden = false,
            // In single quotes a backslash means only itself, except before the quote.
            '\\' if quote == '"' || text.get(at + 1..).is_some_and(|t| t.starts_with(quote)) => hidden = true,
            c if c == quote => return Some(at),
            _ => {}
        }
    }
    None
}

/// Where the brace closes that was opened before `text`.
fn closing_brace(text: &str) -> Option<usize> {
    let mut open = 1_usize;
    for (at, c) in text.char_indices() {
        match c {
            '{' => open += 1,
            '}' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Some(at);
        }
    }
    None
}

/// A variable's name and what follows it.
fn split_name(text: &str) -> (&str, &str) {
    let digit = text.starts_with(|c: char| c.is_ascii_digit());
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    text.split_at_checked(if digit { 0 } else { end }).unwrap_or((text, ""))
}

#[cfg(test)]
#[path = "dotenv_tests.rs"]
mod tests;
