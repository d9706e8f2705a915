// SPDX-License-Identifier: Apache-2.0
//! Following a job to its end, or a VM to a state.

use crate::client::Client;
use crate::errors::{Exit, Failure};
use crate::events::{self, Event, Events};
use crate::output::Ui;
use crate::progress::Progress;
use dstack_core::boot;
use dstack_service::api::teepod1::{JobProxy, VmProxy};
use std::collections::HashMap;
use std::time::Duration;
use zbus::{OwnedObjectPath, OwnedVariant};

/// How long a restart of teepod may take.
const RESTART_TIME: Duration = Duration::from_secs(15);

/// How long after the guest's word the key service's may come.
const LATE: Duration = Duration::from_secs(2);

/// How following ended without a failure of the job itself.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The job is done.
    Done,
    /// teepod went away meanwhile; the job is lost, its VM is not.
    Lost,
}

/// A job, and the VM it works on.
#[derive(Debug)]
pub struct Work<'a> {
    /// The job.
    pub job: &'a OwnedObjectPath,
    /// The VM.
    pub vm: Option<&'a OwnedObjectPath>,
    /// The VM's app, whose key service may have something to say.
    pub app: Option<&'a str>,
    /// What goes on when the user stops waiting, and how to wait again.
    pub on_interrupt: String,
}

/// Follows a job to its end, showing its stages. Ctrl-C ends the waiting, never the job.
///
/// # Errors
/// The job's error; [`Exit::Timeout`] when the job took too long, [`Exit::Interrupted`] after Ctrl-C.
pub async fn follow(
    client: &Client,
    events: &mut Events,
    work: &Work<'_>,
    progress: &mut Progress,
) -> Result<End, Failure> {
    show_now(client, work, progress).await;
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    let (mut error, mut denied) = (None, None);
    let end = loop {
        let event = tokio::select! {
            _ = &mut interrupted => break Err(interrupt(&work.on_interrupt)),
            event = events.next() => event,
        };
        match event {
            Ok(Event::JobRemoved { job, result }) if job == *work.job => break end_of(&result, error),
            Ok(Event::Changed { path, values }) if path == *work.job => {
                error = events::error(&values).or(error);
                show(progress, &values);
            }
            Ok(Event::Changed { path, values }) if Some(&path) == work.vm => {
                if let Some(said) = events::text(&values, "BootError").filter(|s| is_final(s)) {
                    break Err(boot_failed(said));
                }
                show(progress, &values);
            }
            Ok(Event::KeyDenied { app, reason }) if Some(app.as_str()) == work.app => {
                // Said at once: some guests go on asking, and the operator can help.
                if denied.as_ref() != Some(&reason) {
                    progress.say(&reason);
                }
                denied = Some(reason);
            }
            Ok(Event::Gone) => break Ok(End::Lost),
            Ok(_) => {}
            Err(failure) => break Err(failure),
        }
    };
    let end = explained(end, denied, events, work).await;
    progress.finish();
    end
}

/// A failure for want of keys, with the key service's own sentence, which may come a moment later: it is said by another
/// daemon.
async fn explained(
    end: Result<End, Failure>,
    denied: Option<String>,
    events: &mut Events,
    work: &Work<'_>,
) -> Result<End, Failure> {
    let Err(failure) = end else { return end };
    if !failure.message.contains(boot::Failure::KeysRefused.sentence()) {
        return Err(failure);
    }
    let reason = match denied {
        Some(reason) => Some(reason),
        None => tokio::time::timeout(LATE, denial(events, work)).await.ok().flatten(),
    };
    let elsewhere = "see why on the key service's host: journalctl -u dstack-kms -n 50";
    Err(failure.hint(reason.unwrap_or_else(|| elsewhere.to_owned())))
}

async fn denial(events: &mut Events, work: &Work<'_>) -> Option<String> {
    loop {
        match events.next().await.ok()? {
            Event::KeyDenied { app, reason } if Some(app.as_str()) == work.app => return Some(reason),
            _ => {}
        }
    }
}

/// Whether a guest says that its boot has failed. The VM stays up for a while then, so that its logs can be read, and its
/// job with it. What the host says of an end is told by the job, and may be said of a run before.
fn is_final(boot_error: &str) -> bool {
    let waiting = boot::Failure::KeysUnreachable;
    boot::Failure::ALL.iter().any(|failure| *failure != waiting && failure.sentence() == boot_error)
}

fn boot_failed(said: &str) -> Failure {
    Failure::of_name("org.dstack.teepod1.BootFailed", said)
}

/// Shows the stage the job had before its first signal; a job that is over already says so by a signal.
async fn show_now(client: &Client, work: &Work<'_>, progress: &mut Progress) {
    let builder = JobProxy::builder(&client.connection).path(work.job.clone());
    let Ok(job) = builder.cache_properties(zbus::proxy::CacheProperties::No).build().await else { return };
    if let Ok(stage) = job.stage().await {
        progress.job_stage(&stage, None);
    }
}

/// The guest's own progress, or the job's stage.
fn show(progress: &mut Progress, values: &HashMap<String, OwnedVariant>) {
    let fraction = events::number(values, "Progress");
    match events::text(values, "BootProgress") {
        Some(words) => progress.guest_stage(words, fraction),
        None => progress.job_stage(events::text(values, "Stage").unwrap_or_default(), fraction),
    }
}

fn end_of(result: &str, error: Option<(String, String)>) -> Result<End, Failure> {
    match (result, error) {
        ("done", _) => Ok(End::Done),
        (_, Some((name, sentence))) if !name.is_empty() => Err(Failure::of_name(&name, &sentence)),
        ("timeout", error) => {
            Err(Failure::with(Exit::Timeout, error.map_or_else(|| "it took too long".to_owned(), |e| e.1)))
        }
        ("canceled", _) => Err(Failure::new("somebody canceled it")),
        (_, Some((_, sentence))) => Err(Failure::new(sentence)),
        (_, None) => Err(Failure::new("it failed").hint("see why: journalctl -u dstack-teepod -n 50")),
    }
}

fn interrupt(what_goes_on: &str) -> Failure {
    Failure::with(Exit::Interrupted, what_goes_on)
}

/// Waits until a VM is in a state.
///
/// # Errors
/// When the VM fails while `running` is awaited, is removed, or `timeout` passes.
pub async fn wait_state(
    client: &Client,
    name: &str,
    wanted: &str,
    timeout: Option<Duration>,
    ui: &Ui,
) -> Result<(), Failure> {
    let mut progress = Progress::new(ui);
    let waiting = wait_quietly(client, name, wanted, &mut progress);
    let interrupted = tokio::signal::ctrl_c();
    let result = tokio::select! {
        result = waiting => result,
        _ = interrupted => Err(interrupt(&format!("waiting for {name} was interrupted; the VM goes on"))),
        () = expires(timeout) => Err(Failure::with(Exit::Timeout, format!("VM {name} is not {wanted} yet"))
            .hint(format!("see what it does: dstackctl vm show {name}"))),
    };
    progress.finish();
    result
}

async fn expires(timeout: Option<Duration>) {
    match timeout {
        Some(timeout) => tokio::time::sleep(timeout).await,
        None => std::future::pending().await,
    }
}

async fn wait_quietly(
    client: &Client,
    name: &str,
    wanted: &str,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let mut events = Events::subscribe(client).await?;
    let vm = match client.vm(name).await {
        Err(failure) if failure.exit == Exit::Failed => {
            returned(&mut events).await?;
            client.vm(name).await?
        }
        other => other?,
    };
    loop {
        if arrived(&vm, name, wanted, progress).await? {
            return Ok(());
        }
        loop {
            match events.next().await? {
                Event::Changed { path, .. } if path.as_str() == vm.inner().path().as_str() => break,
                Event::VmRemoved(path) if path.as_str() == vm.inner().path().as_str() => {
                    return Err(Failure::with(Exit::NotFound, format!("VM {name} was removed")));
                }
                Event::Gone => {
                    returned(&mut events).await?;
                    break;
                }
                _ => {}
            }
        }
    }
}

/// Waits until teepod, which is being restarted, is on the bus again. If it is not for a while, the next call starts
/// it or says why that is not possible.
async fn returned(events: &mut Events) -> Result<(), Failure> {
    let back = async {
        while events.next().await? != Event::Back {}
        Ok(())
    };
    tokio::time::timeout(RESTART_TIME, back).await.unwrap_or(Ok(()))
}

async fn arrived(
    vm: &VmProxy<'_>,
    name: &str,
    wanted: &str,
    progress: &mut Progress,
) -> Result<bool, Failure> {
    let state = vm.state().await?;
    // A VM that failed does not run either.
    if state == wanted || (wanted == "stopped" && state == "failed") {
        return Ok(true);
    }
    let reason = vm.boot_error().await.unwrap_or_default();
    if wanted == "running" && (state == "failed" || is_final(&reason)) {
        let reason = if reason.is_empty() { "it ended" } else { &reason };
        return Err(Failure::new(format!("VM {name} failed: {reason}"))
            .hint(format!("see why: dstackctl vm logs {name}")));
    }
    let stage = vm.boot_progress().await.unwrap_or_default();
    progress.stage(if stage.is_empty() { &state } else { &stage }, None);
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends() {
        let error = |name: &str| Some((name.to_owned(), "why".to_owned()));
        for (result, error, expected) in [
            ("done", None, Ok(End::Done)),
            ("failed", error("org.dstack.teepod1.BootFailed"), Err(Exit::Failed)),
            ("failed", error("org.dstack.teepod1.NoSuchVm"), Err(Exit::NotFound)),
            ("failed", None, Err(Exit::Failed)),
            ("timeout", error(""), Err(Exit::Timeout)),
            ("timeout", None, Err(Exit::Timeout)),
            ("canceled", None, Err(Exit::Failed)),
            ("whatever", None, Err(Exit::Failed)),
        ] {
            assert_eq!(end_of(result, error).map_err(|f| f.exit), expected, "{result}");
        }
    }
}
