// SPDX-License-Identifier: Apache-2.0
//! The lines a guest sends about its boot, over vsock port [`crate::limits::BOOT_STATUS_PORT`].
//!
//! The host connects, the guest greets and then sends what has happened so far and what happens next:
//!
//! ```text
//! DSTACK 1
//! STAGE docker
//! PROGRESS 3 7
//! INSTANCE 3327603e03f5bd1f830812ca4a789277fc31f577
//! WAITING keys-unreachable
//! ERROR compose-failed
//! READY
//! STOPPING
//! ```
//!
//! Only codes and numbers travel (trust rule T18): a compromised or careless app cannot leak through its boot, and the
//! host prints sentences of its own. Unknown words are skipped, so that guests may be newer than hosts.

use crate::ids::InstanceId;
use crate::limits::BOOT_LINE_MAX;
use std::fmt;

/// Version of the protocol in the greeting.
pub const VERSION: u32 = 1;

macro_rules! codes {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $code:literal, $sentence:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$vdoc])* #[doc = $sentence] $variant,)* }

        impl $name {
            /// Every code there is.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The word on the wire.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self { $(Self::$variant => $code),* }
            }

            /// The fixed sentence for people.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence),* }
            }

            /// The code of a word, if this version knows it.
            #[must_use]
            pub fn from_code(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|c| c.code() == word)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(self.code()) }
        }
    };
}

codes! {
    /// How far the guest's boot has come, in order.
    Stage {
        Config = "config", "reading the config disk";
        Measure = "measure", "measuring the app";
        Keys = "keys", "requesting app keys";
        Disk = "disk", "preparing the data disk";
        Network = "network", "setting up the network";
        Docker = "docker", "starting Docker";
        Login = "login", "logging in to the registry";
        PreLaunch = "pre-launch", "running the pre-launch script";
        Pull = "pull", "pulling images";
        App = "app", "starting containers";
        Script = "script", "running the main script";
    }
}

codes! {
    /// Why a guest's boot failed.
    Failure {
        ConfigMissing = "config-missing", "the config disk is missing or not readable";
        ConfigInvalid = "config-invalid", "the config disk is not a well-formed tar of the known files";
        ComposeInvalid = "compose-invalid", "app-compose.json is not valid, or asks for what this guest image does not have, such as authenticated time; see `dstackctl deploy --dry-run` and the journal of the VM";
        AppIdMismatch = "app-id-mismatch", "the app id does not belong to this compose file, and no kms is there to vouch for it";
        TeeMissing = "tee-missing", "this VM has no TEE that answers: on a host without TDX install dstack-testroot, on one with it use a guest image with the TDX driver";
        LaunchMismatch = "launch-mismatch", "the app is not the one that the VM was launched with; restart the VM";
        KeysForeign = "keys-foreign", "no key service was found that is the one this app pins with key_provider_id; check kms_urls of the host";
        KeysRealm = "keys-realm", "the key service belongs to another realm than this VM: real and simulated TEEs do not mix";
        KeysRefused = "keys-refused", "the key service refused the app keys";
        KeysUnreachable = "keys-unreachable", "the key service cannot be reached; the guest keeps trying";
        KeysUnsupported = "keys-unsupported", "this guest image has no key provider but \"none\"; set key_provider to \"none\" or use a newer image";
        EnvInvalid = "env-invalid", "the encrypted environment cannot be decrypted, is not signed as the app asks, or has a reserved name";
        DiskFailed = "disk-failed", "the data disk cannot be prepared; see the console log of the VM";
        DiskForeign = "disk-foreign", "the data disk belongs to another instance or is damaged; it was left untouched";
        DiskRolledBack = "disk-rolled-back", "the data disk is older than the key service knows; it was left untouched";
        DiskSuperseded = "disk-superseded", "another boot of this instance has begun, and only one may go on; stop the other one, or start this VM again";
        DockerFailed = "docker-failed", "Docker did not start";
        LoginFailed = "login-failed", "the registry refused the login; check docker_config and its token";
        PullFailed = "pull-failed", "an image could not be pulled; check its name, the registry, and the network";
        PreLaunchFailed = "pre-launch-failed", "the pre-launch script failed";
        ComposeFailed = "compose-failed", "docker compose could not start the containers";
        ScriptFailed = "script-failed", "the main script failed";
        Internal = "internal", "a step of the boot failed; see the console log of the VM";
    }
}

/// One line of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// `DSTACK <version>`: the first line.
    Hello(u32),
    /// `STAGE <code>`: a stage begins.
    Stage(Stage),
    /// `PROGRESS <done> <total>` within the stage.
    Progress {
        /// Units done.
        done: u32,
        /// Units in all.
        total: u32,
    },
    /// `INSTANCE <40 hex>`: the instance id the guest has.
    Instance(InstanceId),
    /// `WAITING <code>`: the boot cannot go on for this reason, and keeps trying.
    Waiting(Failure),
    /// `ERROR <code>`: the boot failed.
    Error(Failure),
    /// `READY`: the app is up.
    Ready,
    /// `STOPPING`: the guest shuts down in order.
    Stopping,
}

/// A line that is not of this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Longer than [`BOOT_LINE_MAX`] bytes.
    #[error("line is longer than {BOOT_LINE_MAX} bytes")]
    TooLong,
    /// A known word with wrong arguments.
    #[error("malformed line")]
    Malformed,
}

impl Line {
    /// Parses one line without its line end; `Ok(None)` for words this version does not know.
    ///
    /// # Errors
    /// [`LineError`] when the line is too long, not ASCII, or a known word has wrong arguments.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, LineError> {
        if bytes.len() > BOOT_LINE_MAX {
            return Err(LineError::TooLong);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| LineError::Malformed)?;
        let words: Vec<&str> = text.split(' ').collect();
        let number = |word: &str| word.parse::<u32>().map_err(|_| LineError::Malformed);
        Ok(match words.as_slice() {
            ["DSTACK", version] => Some(Self::Hello(number(version)?)),
            ["STAGE", code] => Stage::from_code(code).map(Self::Stage),
            ["PROGRESS", done, total] => Some(Self::Progress { done: number(done)?, total: number(total)? }),
            ["INSTANCE", id] => Some(Self::Instance(id.parse().map_err(|_| LineError::Malformed)?)),
            ["WAITING", code] => Failure::from_code(code).map(Self::Waiting),
            ["ERROR", code] => Some(Self::Error(Failure::from_code(code).unwrap_or(Failure::Internal))),
            ["READY"] => Some(Self::Ready),
            ["STOPPING"] => Some(Self::Stopping),
            [
                "DSTACK" | "STAGE" | "PROGRESS" | "INSTANCE" | "WAITING" | "ERROR" | "READY" | "STOPPING",
                ..,
            ] => {
                return Err(LineError::Malformed);
            }
            _ => None,
        })
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hello(version) => write!(f, "DSTACK {version}"),
            Self::Stage(stage) => write!(f, "STAGE {stage}"),
            Self::Progress { done, total } => write!(f, "PROGRESS {done} {total}"),
            Self::Instance(id) => write!(f, "INSTANCE {id}"),
            Self::Waiting(failure) => write!(f, "WAITING {failure}"),
            Self::Error(failure) => write!(f, "ERROR {failure}"),
            Self::Ready => f.write_str("READY"),
            Self::Stopping => f.write_str("STOPPING"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_line_survives_its_own_text() {
        let id = InstanceId::from([7; 20]);
        let mut lines = vec![Line::Hello(1), Line::Progress { done: 3, total: 7 }, Line::Instance(id)];
        lines.extend([Line::Ready, Line::Stopping]);
        lines.extend(Stage::ALL.iter().map(|s| Line::Stage(*s)));
        lines.extend(Failure::ALL.iter().flat_map(|f| [Line::Error(*f), Line::Waiting(*f)]));
        for line in lines {
            assert_eq!(Line::parse(line.to_string().as_bytes()), Ok(Some(line)));
        }
    }

    #[test]
    fn t18_only_codes_reach_the_host() {
        assert_eq!(Line::parse(b"STAGE rm -rf"), Err(LineError::Malformed));
        assert_eq!(Line::parse(b"STAGE secret"), Ok(None));
        assert_eq!(Line::parse(b"ERROR secret"), Ok(Some(Line::Error(Failure::Internal))));
        assert_eq!(Line::parse(b"WAITING secret"), Ok(None));
        assert_eq!(Line::parse(b"NEWER thing"), Ok(None));
        assert_eq!(Line::parse(b"READY now"), Err(LineError::Malformed));
        assert_eq!(Line::parse(b"PROGRESS -1 2"), Err(LineError::Malformed));
        assert_eq!(Line::parse(&[0xff; 4]), Err(LineError::Malformed));
        assert_eq!(Line::parse(&[b'A'; BOOT_LINE_MAX + 1]), Err(LineError::TooLong));
    }
}
