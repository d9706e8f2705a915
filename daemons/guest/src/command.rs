// SPDX-License-Identifier: Apache-2.0
//! Programs that a step runs: a clean environment, secrets by standard input, output to the journal.

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use zeroize::Zeroizing;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Its name, looked up in the system's directories.
    pub name: &'static str,
    /// Its arguments. Never secrets: every process of the guest can read them (P02).
    pub args: Vec<String>,
    /// What it reads from standard input.
    pub input: Option<Secret>,
    /// Environment beside `PATH`.
    pub env: Vec<(String, String)>,
}

/// Bytes that are wiped after use and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(Zeroizing::new(text.to_owned()))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// Why a program did not do its work. Names the program, never its arguments.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It could not be started.
    #[error("cannot run {0}: {1}")]
    Start(&'static str, io::Error),
    /// It ended badly; its own words are in the journal.
    #[error("{0} failed: {1}")]
    Failed(&'static str, ExitStatus),
}

impl CommandError {
    /// The exit status, when the program had one.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        match self {
            Self::Start(..) => None,
            Self::Failed(_, status) => status.code(),
        }
    }
}

impl Program {
    /// `name` with `args`, without input.
    #[must_use]
    pub fn new(name: &'static str, args: &[&str]) -> Self {
        Self { name, args: args.iter().map(|a| (*a).to_owned()).collect(), input: None, env: Vec::new() }
    }

    /// The same, reading `secret`.
    #[must_use]
    pub fn input(mut self, secret: &str) -> Self {
        self.input = Some(secret.into());
        self
    }

    /// The process to start: it inherits no environment variable.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(self.name);
        command.args(&self.args).env_clear().env("PATH", PATH);
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        command.stdin(if self.input.is_some() { Stdio::piped() } else { Stdio::null() });
        command
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// [`CommandError`] when it cannot start or does not exit with 0.
    pub fn run(&self) -> Result<(), CommandError> {
        self.run_up_to(0)
    }

    /// [`Self::run`] for a program whose success has several exit statuses: 0 to `most`.
    ///
    /// # Errors
    /// [`CommandError`].
    pub fn run_up_to(&self, most: i32) -> Result<(), CommandError> {
        let start = |e| CommandError::Start(self.name, e);
        let mut child = dstack_sys::child::spawn(&mut self.command(), &[]).map_err(start)?;
        feed(&mut child, self.input.as_ref());
        let status = child.wait().map_err(start)?;
        if status.code().is_some_and(|code| (0..=most).contains(&code)) {
            Ok(())
        } else {
            Err(CommandError::Failed(self.name, status))
        }
    }
}

/// Writes the secret and closes the pipe. A child that does not read it has its own reason, told by its exit status.
pub fn feed(child: &mut std::process::Child, input: Option<&Secret>) {
    if let (Some(mut pipe), Some(secret)) = (child.stdin.take(), input) {
        let _ = pipe.write_all(secret.0.as_bytes());
    }
}

/// A path as an argument.
#[must_use]
pub fn arg(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn p02_input_is_read_and_never_shown() {
        let program = Program::new("grep", &["-qx", "hunter2"]).input("hunter2\n");
        assert!(!format!("{program:?}").contains("hunter2\\n"));
        program.run().unwrap();
    }

    #[test]
    fn t10_the_environment_is_clean() {
        let mut program = Program::new("sh", &[]);
        program.env = vec![("A".into(), "x y".into())];
        program.args =
            vec!["-c".into(), "test -z \"$CARGO_MANIFEST_DIR$HOME\" && test \"$A\" = 'x y'".into()];
        program.run().unwrap();
    }

    #[test]
    fn failures_name_the_program_only() {
        let error = Program::new("false", &["--key=secret"]).run().unwrap_err().to_string();
        assert!(error.starts_with("false failed") && !error.contains("secret"), "{error}");
        assert!(matches!(Program::new("no-such-program", &[]).run(), Err(CommandError::Start(..))));
        let two = Program::new("sh", &["-c", "exit 2"]);
        assert_eq!(two.run().unwrap_err().code(), Some(2));
        assert!(two.run_up_to(2).is_ok() && two.run_up_to(1).is_err());
    }
}
