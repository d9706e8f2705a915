// SPDX-License-Identifier: Apache-2.0
//! Man pages of D-Bus interfaces: a hand-written page with the members filled in from the XML, so that none is missing.

use crate::introspection::{Interface, Kind, Member};
use std::fmt::Write;

/// The line of a page that the interfaces replace.
pub const MARK: &str = ".\\\" INTERFACES";

/// The page with its interfaces.
///
/// # Errors
/// When the page has no mark, or a member has no documentation.
pub fn fill(page: &str, interfaces: &[Interface]) -> crate::Result<String> {
    let (head, tail) = page.split_once(MARK).ok_or_else(|| format!("the page has no line {MARK:?}"))?;
    let mut text = head.to_owned();
    for interface in interfaces {
        let missing = interface.members.iter().find(|m| m.doc.is_empty());
        if let Some(member) = missing {
            return Err(format!("{}.{} has no documentation", interface.name, member.name));
        }
        let _ = writeln!(text, ".SH INTERFACE {}", escape(&interface.name));
        for (kind, title) in
            [(Kind::Method, "Methods"), (Kind::Signal, "Signals"), (Kind::Property, "Properties")]
        {
            section(&mut text, interface, kind, title);
        }
    }
    text.push_str(tail.trim_start_matches('\n'));
    Ok(text)
}

fn section(text: &mut String, interface: &Interface, kind: Kind, title: &str) {
    let members: Vec<&Member> = interface.members.iter().filter(|m| m.kind == kind).collect();
    if members.is_empty() {
        return;
    }
    let _ = writeln!(text, ".SS {title}");
    for member in members {
        let _ = writeln!(text, ".TP\n{}\n{}", signature(member), escape(&member.doc));
    }
}

/// The member as one line: `\fBName\fR(s name) -> o job`.
fn signature(member: &Member) -> String {
    let name = escape(&member.name);
    let list = |out: bool| {
        let args = member.args.iter().filter(|a| a.out == out);
        args.map(|a| format!("{} \\fI{}\\fR", escape(&a.signature), escape(&a.name)))
            .collect::<Vec<_>>()
            .join(", ")
    };
    match member.kind {
        Kind::Property => {
            let emits = match member.emits.as_str() {
                "const" => ", constant",
                "false" => ", changes without a signal",
                "invalidates" => ", says only that it changed",
                _ => ", says when it changes",
            };
            format!("\\fB{name}\\fR {} ({}{emits})", escape(&member.signature), member.access)
        }
        Kind::Method if member.args.iter().any(|a| a.out) => {
            format!("\\fB{name}\\fR({}) \\(-> {}", list(false), list(true))
        }
        _ => format!("\\fB{name}\\fR({})", list(false)),
    }
}

/// Text that roff takes as it is.
pub fn escape(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-");
    // Markdown's code marks, as the XML has them, become bold.
    let mut out = String::new();
    for (index, part) in escaped.split('`').enumerate() {
        match index {
            0 => {}
            _ if index % 2 == 1 => out.push_str("\\fB"),
            _ => out.push_str("\\fR"),
        }
        out.push_str(part);
    }
    if out.starts_with(['.', '\'']) { format!("\\&{out}") } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::introspection::parse;

    fn root() -> std::path::PathBuf {
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    #[test]
    fn every_member_of_every_interface_has_a_paragraph() {
        for entry in std::fs::read_dir(root().join("dbus/interfaces")).unwrap() {
            let path = entry.unwrap().path();
            for interface in parse(&std::fs::read_to_string(&path).unwrap()) {
                assert!(!interface.members.is_empty(), "{}", path.display());
                for member in &interface.members {
                    assert!(!member.doc.is_empty(), "{}.{}", interface.name, member.name);
                }
            }
        }
    }

    #[test]
    fn a_member_without_documentation_is_refused() {
        let xml = "<interface name=\"a.B\">\n<method name=\"C\">\n</method>\n</interface>";
        let error = fill(&format!("x\n{MARK}\n"), &parse(xml)).unwrap_err();
        assert!(error.contains("a.B.C"), "{error}");
        assert!(fill("no mark", &[]).is_err());
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(escape("a-b `c` \\"), "a\\-b \\fBc\\fR \\e");
        assert_eq!(escape(".x"), "\\&.x");
    }
}
