// SPDX-License-Identifier: Apache-2.0
//! `logs`: what an app's containers say, from the guest's agent.

use crate::cli::{Global, Logs, Range};
use crate::client::Client;
use crate::errors::{Exit, Failure};
use crate::journal;
use crate::output::{Ui, note};
use crate::quantity::parse_time;
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

/// Carries out `logs`.
///
/// # Errors
/// When the guest does not answer, or the app keeps its logs.
pub async fn run(args: &Logs, global: &Global, ui: &Ui) -> Result<(), Failure> {
    let client = Client::open(global).await?;
    if args.console {
        return journal::run(&client, &args.name, &args.range, ui).await;
    }
    match &args.container {
        None => list(&client, &args.name, ui).await,
        Some(container) => show(&client, &args.name, container, &args.range, ui).await,
    }
}

/// The answer of the guest API's `ListContainers`.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    containers: Vec<Container>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(default)]
#[derive(Default)]
struct Container {
    id: String,
    names: Vec<String>,
    image: String,
    state: String,
    status: String,
}

async fn list(client: &Client, name: &str, ui: &Ui) -> Result<(), Failure> {
    let json: String = client.change("CallGuest", &(name, "ListContainers")).await?;
    let answer: Answer = serde_json::from_str(&json)
        .map_err(|e| Failure::new(format!("the guest of {name} sent no list of containers: {e}")))?;
    if ui.json {
        return ui.json(&answer.containers);
    }
    if answer.containers.is_empty() {
        note(&format!("{name} has no containers yet; see its boot: dstackctl vm logs {name}"));
        return Ok(());
    }
    let rows = answer.containers.into_iter().map(|c| {
        let names: Vec<&str> = c.names.iter().map(|n| n.trim_start_matches('/')).collect();
        [names.join(","), c.state, c.image, c.status].iter().map(|t| safe(t).into()).collect()
    });
    ui.text(&ui.table(&["CONTAINER", "STATE", "IMAGE", "STATUS"], rows.collect()))
}

/// The guest is not trusted with the terminal.
fn safe(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

async fn show(client: &Client, name: &str, container: &str, range: &Range, ui: &Ui) -> Result<(), Failure> {
    client.needs_local("logs")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let query = query(range, ui, now).map_err(Failure::usage)?;
    let fd: zbus::OwnedFd = client.change("OpenLogs", &(name, container, query)).await?;
    let copied = copy(OwnedFd::from(fd), ui);
    let refused = tokio::select! {
        result = copied => result.map_err(|e| Failure::new(format!("the log of {container} broke: {e}")))?,
        _ = tokio::signal::ctrl_c(), if range.follow => None,
    };
    match refused {
        None => Ok(()),
        Some(error) => Err(refusal(&error, name)),
    }
}

/// What the guest agent says instead of a log.
fn refusal(error: &str, name: &str) -> Failure {
    let message = format!("the guest of {name} says: {}", safe(error));
    if error.starts_with("no container") {
        return Failure::with(Exit::NotFound, message)
            .hint(format!("list its containers: dstackctl logs {name}"));
    }
    Failure::new(message)
}

/// The query of `/logs/<container>`, in the guest agent's words.
fn query(range: &Range, ui: &Ui, now: u64) -> Result<String, String> {
    let mut parts = vec!["text=true".to_owned()];
    if !ui.json {
        parts.push("bare=true".to_owned());
    }
    if ui.width.is_none() {
        // Into a file or pipe every line goes as it was written.
        parts.push("ansi=true".to_owned());
    }
    for (key, value) in [("since", &range.since), ("until", &range.until)] {
        if let Some(text) = value {
            parts.push(format!("{key}={}", parse_time(text, now)?));
        }
    }
    // Without a number the guest agent gives the last 1,000 lines only.
    parts.push(range.tail.map_or("tail=all".to_owned(), |lines| format!("tail={lines}")));
    if range.follow {
        parts.push("follow=true".to_owned());
    }
    if range.timestamps {
        parts.push("timestamps=true".to_owned());
    }
    Ok(parts.join("&"))
}

/// Most bytes of an answer that is an error and no log.
const ERROR_MAX: usize = 4096;
/// How such an answer begins.
const ERROR_HEAD: &[u8] = br#"{"error":"#;

/// Copies the stream to standard output, byte for byte when that is no terminal. The guest agent's error, if that is
/// all it sends, is returned instead.
async fn copy(fd: OwnedFd, ui: &Ui) -> std::io::Result<Option<String>> {
    let stream = StdUnixStream::from(fd);
    stream.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(stream)?;
    let mut buffer = vec![0; 64 * 1024];
    let mut held = Some(Vec::new());
    loop {
        let length = stream.read(&mut buffer).await?;
        let bytes = buffer.get_mut(..length).unwrap_or_default();
        let ended = bytes.is_empty();
        let mut ready = match held.take() {
            None => bytes.to_vec(),
            Some(mut begun) => {
                begun.extend_from_slice(bytes);
                if !ended && may_be_error(&begun) {
                    held = Some(begun);
                    continue;
                }
                match error_of(&begun).filter(|_| ended) {
                    Some(error) => return Ok(Some(error)),
                    None => begun,
                }
            }
        };
        let open = print(&mut ready, ui)?;
        if ended || !open {
            return Ok(None);
        }
    }
}

/// Whether this may become an error: those have no line end, which every line of a log has.
fn may_be_error(begun: &[u8]) -> bool {
    let length = begun.len().min(ERROR_HEAD.len());
    begun.len() < ERROR_MAX && !begun.contains(&b'\n') && begun.get(..length) == ERROR_HEAD.get(..length)
}

fn error_of(answer: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Refused {
        error: String,
    }
    if !may_be_error(answer) {
        return None;
    }
    serde_json::from_slice::<Refused>(answer).ok().map(|r| r.error)
}

/// Prints a piece; whether there is still somebody to read it.
fn print(bytes: &mut [u8], ui: &Ui) -> std::io::Result<bool> {
    if ui.width.is_some() {
        bytes.iter_mut().filter(|b| steers(**b)).for_each(|b| *b = b'?');
    }
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        other => other.map(|()| true),
    }
}

/// A control byte that a terminal would obey; colours go with it, but so does the harm.
const fn steers(byte: u8) -> bool {
    byte.is_ascii_control() && !matches!(byte, b'\n' | b'\t' | b'\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let range = Range {
            follow: true,
            since: Some("10m".into()),
            until: Some("2000".into()),
            tail: Some(5),
            timestamps: true,
        };
        let ui = Ui { json: false, color: false, width: Some(80), animated: false };
        let expected = "text=true&bare=true&since=400&until=2000&tail=5&follow=true&timestamps=true";
        assert_eq!(query(&range, &ui, 1000), Ok(expected.to_owned()));
        let pipe = Ui { json: true, width: None, ..ui };
        assert_eq!(query(&Range::default(), &pipe, 0), Ok("text=true&ansi=true&tail=all".to_owned()));
        assert!(query(&Range { until: Some("x".into()), ..Range::default() }, &ui, 0).is_err());
    }

    #[test]
    fn answers_of_older_and_newer_guests_are_read() {
        let json = r#"{"containers":[{"id":"1","names":["/web"],"state":"running","new":1}]}"#;
        let answer: Answer = serde_json::from_str(json).unwrap_or(Answer { containers: vec![] });
        assert_eq!(answer.containers.first().map(|c| c.names.clone()), Some(vec!["/web".to_owned()]));
    }

    #[test]
    fn errors_are_told_from_lines() {
        assert_eq!(error_of(br#"{"error":"no container \"x\""}"#), Some("no container \"x\"".to_owned()));
        for line in ["{\"error\":\"x\"}\n", "", "error", "{\"error\":", "{\"errors\":1}"] {
            assert_eq!(error_of(line.as_bytes()), None, "{line:?}");
        }
        assert!(may_be_error(b"") && may_be_error(b"{\"err") && !may_be_error(b"counter"));
        assert_eq!(refusal("no container \"x\"", "a").exit, Exit::NotFound);
        assert_eq!(refusal("logs are private", "a").exit, Exit::Failed);
    }

    #[test]
    fn the_terminal_is_not_steered() {
        assert!(steers(0x1b) && steers(0) && !steers(b'\n') && !steers(0xc3));
        assert_eq!(safe("a\u{1b}b"), "a\u{fffd}b");
    }
}
