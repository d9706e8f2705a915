// SPDX-License-Identifier: Apache-2.0
//! `vm logs`, `logs --console`: the host's journal of a VM, with boot stages and the sanitized console.

use crate::cli::Range;
use crate::client::Client;
use crate::errors::{Exit, Failure};
use crate::output::Ui;
use crate::quantity::parse_time;
use dstack_core::ids::VmName;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::json;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use systemd::journal::{Journal, OpenOptions};

/// How long one wait for new records lasts before standard output is looked at again.
const WAIT: Duration = Duration::from_secs(1);

/// Prints the journal of a VM; with `follow`, until Ctrl-C.
///
/// # Errors
/// When there is no such VM, or the journal may not be read.
pub async fn run(client: &Client, name: &str, range: &Range, ui: &Ui) -> Result<(), Failure> {
    client.needs_local("vm logs")?;
    let name = match client.vm(name).await {
        Ok(vm) => vm.name().await?,
        // The journal outlives VMs.
        Err(failure) if failure.exit == Exit::NotFound && !range.follow => name.to_owned(),
        Err(failure) => return Err(failure),
    };
    let name: VmName = name.parse().map_err(|e: dstack_core::ids::IdError| Failure::usage(e.to_string()))?;
    let wanted = Wanted::new(range)?;
    let ui = *ui;
    let printed = tokio::task::spawn_blocking(move || print(&name, &wanted, &ui));
    tokio::select! {
        result = printed => result.map_err(|e| Failure::new(format!("reading the journal failed: {e}")))?,
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

/// Which records.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    since: Option<u64>,
    until: Option<u64>,
    tail: Option<u64>,
    follow: bool,
}

impl Wanted {
    fn new(range: &Range) -> Result<Self, Failure> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let micros = |text: &Option<String>| -> Result<Option<u64>, Failure> {
            let seconds = text.as_deref().map(|t| parse_time(t, now)).transpose().map_err(Failure::usage)?;
            Ok(seconds.map(|s| s.saturating_mul(1_000_000)))
        };
        let (since, until) = (micros(&range.since)?, micros(&range.until)?);
        let tail = range.tail.or((range.follow && since.is_none()).then_some(20));
        Ok(Self { since, until, tail, follow: range.follow })
    }
}

fn unreadable(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(format!("cannot read the journal: {error}"))
        .hint("run it with sudo, or join the group: adduser $USER systemd-journal")
}

fn print(name: &VmName, wanted: &Wanted, ui: &Ui) -> Result<(), Failure> {
    let mut journal = open(name).map_err(|e| unreadable(&e))?;
    seek(&mut journal, wanted).map_err(|e| unreadable(&e))?;
    let printed = drain(&mut journal, wanted, ui)?;
    if !printed && !wanted.follow {
        let none = format!("there are no records of {} that you may read", name.unit());
        return Err(unreadable(&none));
    }
    if !wanted.follow {
        return Ok(());
    }
    loop {
        journal.wait(Some(WAIT)).map_err(|e| unreadable(&e))?;
        drain(&mut journal, wanted, ui)?;
    }
}

/// The journal, narrowed to what the unit says and what systemd says of it.
fn open(name: &VmName) -> systemd::Result<Journal> {
    let mut journal = OpenOptions::default().system(true).current_user(true).local_only(true).open()?;
    let unit = name.unit();
    journal.match_add("_SYSTEMD_UNIT", unit.as_str())?;
    journal.match_or()?;
    journal.match_add("_PID", "1")?.match_add("UNIT", unit.as_str())?;
    Ok(journal)
}

fn seek(journal: &mut Journal, wanted: &Wanted) -> systemd::Result<()> {
    match (wanted.since, wanted.tail) {
        (Some(since), None) => journal.seek_realtime_usec(since),
        (_, Some(lines)) => {
            match wanted.until {
                Some(until) => journal.seek_realtime_usec(until.saturating_add(1))?,
                None => journal.seek_tail()?,
            }
            // One more than wanted, since reading begins with a step forward; fewer means the beginning.
            let back = journal.previous_skip(lines.saturating_add(1))? as u64;
            if back <= lines { journal.seek_head() } else { Ok(()) }
        }
        (None, None) => journal.seek_head(),
    }
}

/// Prints all records there are now; whether there was one.
fn drain(journal: &mut Journal, wanted: &Wanted, ui: &Ui) -> Result<bool, Failure> {
    let mut any = false;
    while journal.next().map_err(|e| unreadable(&e))? > 0 {
        let time = journal.timestamp_usec().map_err(|e| unreadable(&e))?;
        if wanted.until.is_some_and(|until| time > until) {
            break;
        }
        if wanted.since.is_some_and(|since| time < since) {
            continue;
        }
        let field = journal.get_data("MESSAGE").map_err(|e| unreadable(&e))?;
        let message = String::from_utf8_lossy(field.as_ref().and_then(|f| f.value()).unwrap_or_default());
        ui_line(ui, time, &message)?;
        any = true;
    }
    Ok(any)
}

fn ui_line(ui: &Ui, micros: u64, message: &str) -> Result<(), Failure> {
    let stamp = Timestamp::from_microsecond(micros.cast_signed()).unwrap_or_default();
    if ui.json {
        return ui.json(&json!({"time": stamp.to_string(), "message": message}));
    }
    ui.text(&format!("{} {}\n", local(stamp), printable(message)))
}

/// The time of day at this place, as `journalctl` says it.
fn local(stamp: Timestamp) -> String {
    stamp.to_zoned(TimeZone::system()).strftime("%b %d %H:%M:%S").to_string()
}

/// A guest's text must not steer the terminal.
fn printable(message: &str) -> String {
    message.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_terminal_is_not_steered() {
        assert_eq!(printable("a\u{1b}[2Jb\tc"), "a\u{fffd}[2Jb\tc");
    }

    #[test]
    fn following_begins_with_a_few_lines() {
        let range = Range { follow: true, ..Range::default() };
        assert_eq!(Wanted::new(&range).map(|w| w.tail), Ok(Some(20)));
        let range = Range { follow: true, since: Some("10m".into()), ..Range::default() };
        assert_eq!(Wanted::new(&range).map(|w| w.tail), Ok(None));
        let range = Range { since: Some("soon".into()), ..Range::default() };
        assert_eq!(Wanted::new(&range).map_err(|f| f.exit).err(), Some(Exit::Usage));
    }
}
