// SPDX-License-Identifier: Apache-2.0
//! A plan, and how it ended, for people. Pure.

use super::diff::diff;
use super::plan::Step;
use crate::doctor::{Check, Status};
use crate::output::{Tone, Ui};
use crate::provider::{custody_words, realm_words};
use crate::realm::{Thought, instead};

/// Checks of what init sets up; of others only what is broken counts.
const OURS: [&str; 5] = ["key service", "key address", "ingress", "certificate", "unit"];

/// The realm of keys that are to be made, and what is to be thought of it.
type Realm<'a> = Option<&'a (String, Thought)>;

/// Files as differences, then commands in their order.
#[must_use]
pub fn plan(steps: &[Step], realm: Realm<'_>, ui: &Ui) -> String {
    let mut text = String::new();
    for step in steps {
        text += &file(step, ui);
    }
    if !text.is_empty() {
        text.push('\n');
    }
    for step in steps {
        match step {
            Step::Write { .. } | Step::Remove { .. } | Step::Note(_) | Step::Done => {}
            _ => text += &format!("{}\n", command(step, realm, ui)),
        }
    }
    text
}

fn file(step: &Step, ui: &Ui) -> String {
    let (path, old, new) = match step {
        Step::Write { path, text, old } => (path, old.as_deref(), Some(text.as_str())),
        Step::Remove { path, old } => (path, Some(old.as_str()), None),
        _ => return String::new(),
    };
    let name = |text: Option<&str>| if text.is_some() { *path } else { "/dev/null" };
    let mut shown = format!("--- {}\n+++ {}\n", name(old), name(new));
    for (sign, line) in diff(old.unwrap_or_default(), new.unwrap_or_default()) {
        let tone = match sign {
            '+' => Tone::Good,
            '-' => Tone::Bad,
            _ => Tone::Faint,
        };
        shown += &format!("{}\n", ui.paint(tone, format!("{sign}{line}").trim_end()));
    }
    shown
}

fn command(step: &Step, realm: Realm<'_>, ui: &Ui) -> String {
    let command = format!("  {}", step.command());
    match (step, realm) {
        (Step::Bootstrap(_), Some((label, thought))) => format!(
            "{command}\n    makes the root keys, once and for good:\n    {}\n    {}{}",
            realm_words(label),
            custody_words("host"),
            doubt(label, thought, ui)
        ),
        (Step::Stop(_), _) => format!("{command}\n    since a port changes: connections end, VMs go on"),
        _ => command,
    }
}

fn doubt(label: &str, thought: &Thought, ui: &Ui) -> String {
    let (what, remedy) = match thought {
        Thought::Good => return String::new(),
        Thought::Doubt(doubt) => ((*doubt).to_owned(), instead(label)),
        Thought::Contrary(failure) => (failure.message.clone(), failure.hint.clone().unwrap_or_default()),
    };
    format!("\n    {}\n    -> {remedy}", ui.paint(Tone::Bad, &format!("but: {what}")))
}

/// The one line to fix, if there is one: what is broken first, then what init has set up and does not work yet.
#[must_use]
pub fn to_fix(checks: &[Check]) -> Option<String> {
    let broken = checks.iter().find(|c| c.status == Status::Bad);
    let unready = || checks.iter().find(|c| c.status == Status::Warning && OURS.contains(&c.name));
    let check = broken.or_else(unready)?;
    let remedy = check.remedy.as_deref().map(|r| format!(" -> {r}")).unwrap_or_default();
    Some(format!("{}: {}{remedy}", check.name, check.message))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Ui = Ui { json: false, color: false, width: None, animated: false };

    #[test]
    fn what_is_broken_is_said_before_what_is_not_ready() {
        let (good, other) = (Check::good("QEMU", "x"), Check::warning("clock", "c", "r"));
        let unready = Check::warning("ingress", "no certificate", "get one");
        let broken = Check::bad("firmware", "missing", "apt install ovmf");
        assert_eq!(to_fix(&[good.clone(), other.clone()]), None);
        let failed = Check::warning("unit", "dstack-vm@x.service has failed", "see");
        assert!(to_fix(&[good.clone(), failed]).is_some(), "nothing is green while a unit has failed");
        assert_eq!(
            to_fix(&[other, unready.clone()]).unwrap_or_default(),
            "ingress: no certificate -> get one"
        );
        assert_eq!(
            to_fix(&[unready, broken, good]).unwrap_or_default(),
            "firmware: missing -> apt install ovmf"
        );
    }

    #[test]
    fn t04_realm_and_custody_are_said_before_keys_are_made() {
        let realm = ("test:00".to_owned(), Thought::Good);
        let text = plan(&[Step::Bootstrap("kms.a.b".into())], Some(&realm), &PLAIN);
        assert!(!text.contains("but:"), "{text}");
        for part in
            ["dstackctl kms bootstrap kms.a.b", "nothing is protected", "owner can derive every app's keys"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn t04_keys_of_no_use_here_are_said_to_be_so_in_the_plan() {
        let realm = ("intel".to_owned(), crate::realm::think("intel", false, None));
        let text = plan(&[Step::Bootstrap("kms.a.b".into())], Some(&realm), &PLAIN);
        for part in ["but: this machine has no TDX", "apt install dstack-testroot", "--realm intel"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn files_are_shown_as_they_change() {
        let write = |old: Option<&str>| Step::Write {
            path: "/f",
            text: "a\nb\n".into(),
            old: old.map(str::to_owned),
        };
        assert_eq!(plan(&[write(None)], None, &PLAIN), "--- /dev/null\n+++ /f\n+a\n+b\n\n");
        assert_eq!(plan(&[write(Some("a\n"))], None, &PLAIN), "--- /f\n+++ /f\n a\n+b\n\n");
        let remove = Step::Remove { path: "/f", old: "a\n".into() };
        assert_eq!(plan(&[remove], None, &PLAIN), "--- /f\n+++ /dev/null\n-a\n\n");
    }
}
