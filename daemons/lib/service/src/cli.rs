// SPDX-License-Identifier: Apache-2.0
//! The three switches that every daemon has.

use std::io::Write;
use std::process::ExitCode;

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// Run the daemon.
    Run,
    /// Print the D-Bus XML of the object at this path (or `list` for the paths).
    Introspect(String),
    /// Print this text and end with success.
    Print(String),
    /// Print this text to standard error and end with failure.
    Refuse(String),
}

/// Parses a daemon's arguments (without the program name).
#[must_use]
pub fn parse(name: &str, about: &str, version: &str, args: impl Iterator<Item = String>) -> Request {
    let mut request = Request::Run;
    for arg in args {
        request = match arg.as_str() {
            "--help" | "-h" => Request::Print(help(name, about)),
            "--version" => Request::Print(format!("{name} {version}\n")),
            "--bus-introspect" => Request::Introspect("list".to_owned()),
            _ => match arg.strip_prefix("--bus-introspect=") {
                Some(path) => Request::Introspect(path.to_owned()),
                None => {
                    return Request::Refuse(format!("{name}: unknown argument {arg:?}; see {name} --help\n"));
                }
            },
        };
    }
    request
}

fn help(name: &str, about: &str) -> String {
    format!(
        "{name}: {about}\n\n\
         Started by systemd; see `systemctl status {name}` and {name}(8).\n\n\
         \x20 -h --help                  Show this help\n\
         \x20    --version               Show the version\n\
         \x20    --bus-introspect=PATH   Print the D-Bus interfaces of the object at PATH (\"list\" names the paths)\n"
    )
}

/// Carries out everything but [`Request::Run`]. `describe` gives the XML of a path, `paths` the known ones.
///
/// Returns `None` when the daemon is to run.
#[must_use]
pub fn answer(
    request: &Request,
    paths: &[&str],
    describe: impl Fn(&str) -> Option<String>,
) -> Option<ExitCode> {
    match request {
        Request::Run => None,
        Request::Print(text) => Some(say(text)),
        Request::Refuse(text) => {
            eprint!("{text}");
            Some(ExitCode::from(2))
        }
        Request::Introspect(path) if path == "list" => Some(say(&format!("{}\n", paths.join("\n")))),
        Request::Introspect(path) => match describe(path) {
            Some(xml) => Some(say(&format!("{xml}\n"))),
            None => {
                eprintln!("no object {path:?}; known are: {}", paths.join(" "));
                Some(ExitCode::from(2))
            }
        },
    }
}

/// Prints to standard output; a reader that has gone away is no failure.
fn say(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            eprintln!("cannot write: {error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Two ends of one connection, without a bus: an object to introspect needs one.
///
/// # Errors
/// When sockets are not to be had.
pub async fn pair() -> zbus::Result<(zbus::Connection, zbus::Connection)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    let server = zbus::conn::Builder::unix_stream(ours).server(zbus::Guid::generate()).p2p();
    let client = zbus::conn::Builder::unix_stream(theirs).p2p();
    tokio::try_join!(server.build(), client.build())
}

/// The XML document of one object, from its interfaces' `introspect_to_writer`.
#[must_use]
pub fn node(interfaces: &[&dyn zbus::object_server::Interface]) -> String {
    let mut xml = String::from(
        "<!DOCTYPE node PUBLIC \"-//freedesktop//DTD D-BUS Object Introspection 1.0//EN\"\n \
         \"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd\">\n<node>\n",
    );
    interfaces.iter().for_each(|i| i.introspect_to_writer(&mut xml, 2));
    xml.push_str("</node>");
    xml
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(args: &[&str]) -> Request {
        parse("dstack-x", "does x", "1.0", args.iter().map(|s| (*s).to_owned()))
    }

    #[test]
    fn switches() {
        assert_eq!(run(&[]), Request::Run);
        assert_eq!(run(&["--version"]), Request::Print("dstack-x 1.0\n".into()));
        assert_eq!(run(&["--bus-introspect=/a"]), Request::Introspect("/a".into()));
        assert!(matches!(run(&["-h"]), Request::Print(_)));
        assert!(matches!(run(&["--frob"]), Request::Refuse(t) if t.contains("--frob")));
    }
}
