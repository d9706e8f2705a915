// SPDX-License-Identifier: Apache-2.0
//! Logs go to the journal with fields of their own, or to standard error where there is no journal.
//!
//! Fields in capitals (`MESSAGE_ID`, `DSTACK_VM`, `DSTACK_APP`, `DSTACK_JOB`) reach the journal under those names; the
//! texts of the message ids are in the catalog `dstack.catalog`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::{Context, Filter, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// Message ids of records that people act on; each has an entry in the catalog.
pub mod message_id {
    /// A VM's app is up.
    pub const VM_READY: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5e01";
    /// A VM's boot failed.
    pub const VM_BOOT_FAILED: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5e02";
    /// A VM's record cannot be read.
    pub const STATE_UNREADABLE: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5e03";
    /// A VM ended by itself.
    pub const VM_ENDED: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5e04";
    /// A running VM was adopted after a restart of teepod.
    pub const VM_ADOPTED: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5e05";
    /// A caller was refused.
    pub const ACCESS_DENIED: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5e06";
    /// The platform was probed.
    pub const PLATFORM: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5e07";
    /// An app's keys were released.
    pub const KEYS_RELEASED: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5e20";
    /// An app's keys were refused.
    pub const KEYS_DENIED: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5e21";
    /// A key service got its root keys.
    pub const KMS_BOOTSTRAPPED: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5e22";
    /// The root keys went to another key service.
    pub const KMS_ONBOARDED: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5e23";
    /// A key service has keys that it must not use.
    pub const KMS_REFUSED: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5e24";
    /// A compose file was allowed or revoked.
    pub const UPGRADE_ALLOWED: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5e25";
    /// A data disk is older than the key service knows, and its boot was ended.
    pub const DISK_REFUSED: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5e2a";
    /// A data disk is older than the key service knows, and its boot goes on.
    pub const DISK_OLDER: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5e2b";
    /// The next boot of an instance may have any data disk.
    pub const DISK_FORGOTTEN: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5e2c";
    /// The release log ended in an unfinished line.
    pub const RELEASE_LOG_REPAIRED: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5e26";
    /// An instance will be refused its keys.
    pub const KEYS_FORECAST: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5e28";
    /// An instance of an app is registered with the ingress.
    pub const INSTANCE_REGISTERED: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5e40";
    /// Two machines run with one identity.
    pub const INSTANCE_CLONED: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5e41";
    /// A certificate is new.
    pub const CERTIFICATE_CHANGED: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5ea0";
    /// A certificate could not be renewed.
    pub const RENEWAL_FAILED: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5ea1";
    /// A rehearsal of a renewal has failed.
    pub const REHEARSAL_FAILED: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5ea2";
    /// A unit of the certificates has failed.
    pub const CERTIFICATE_UNIT_FAILED: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5ea3";
    /// A certificate was issued for a key that nobody of ours has.
    pub const CT_UNKNOWN_KEY: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5e60";
    /// A certificate that may be for our names cannot be read.
    pub const CT_UNREADABLE: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5e61";
    /// A log of certificates breaks its promise.
    pub const CT_LOG_LIES: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5e62";
    /// Certificates could not be looked at for too long.
    pub const CT_BLIND: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5e63";
}

/// The level in force; `LogControl1` changes it while the daemon runs.
#[derive(Debug, Clone)]
pub struct LevelHandle(Arc<AtomicU8>);

/// syslog's names, most severe first; the index is the number that is stored.
const LEVELS: [(&str, Level); 8] = [
    ("emerg", Level::ERROR),
    ("alert", Level::ERROR),
    ("crit", Level::ERROR),
    ("err", Level::ERROR),
    ("warning", Level::WARN),
    ("notice", Level::INFO),
    ("info", Level::INFO),
    ("debug", Level::DEBUG),
];

impl Default for LevelHandle {
    fn default() -> Self {
        Self(Arc::new(AtomicU8::new(6)))
    }
}

impl LevelHandle {
    /// syslog's name of the level in force.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.entry().0
    }

    /// Sets the level by syslog's name; `false` when there is no such level.
    #[must_use]
    pub fn set(&self, name: &str) -> bool {
        let found = LEVELS.iter().position(|(n, _)| *n == name).and_then(|p| u8::try_from(p).ok());
        found.map(|index| self.0.store(index, Ordering::Relaxed)).is_some()
    }

    fn entry(&self) -> (&'static str, Level) {
        let index = usize::from(self.0.load(Ordering::Relaxed));
        LEVELS.get(index).copied().unwrap_or(("info", Level::INFO))
    }

    fn allows(&self, metadata: &tracing::Metadata<'_>) -> bool {
        let own = metadata.target().starts_with("dstack");
        // Libraries are heard from warnings on, unless somebody debugs.
        let level = self.entry().1;
        let limit = if own || level >= Level::DEBUG { level } else { level.min(Level::WARN) };
        *metadata.level() <= limit
    }
}

impl<S> Filter<S> for LevelHandle {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.allows(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        // The level may rise later, and hints are cached.
        Some(LevelFilter::DEBUG)
    }
}

/// Sets up logging for the process under this syslog identifier.
///
/// Call it once, first thing in `main`.
#[must_use]
pub fn init(identifier: &str) -> LevelHandle {
    let level = LevelHandle::default();
    let journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
    let registry = tracing_subscriber::registry();
    match journal {
        Some(layer) => {
            let layer = layer.with_syslog_identifier(identifier.to_owned()).with_field_prefix(None);
            registry.with(layer.with_filter(level.clone())).init();
        }
        None => registry.with(stderr_layer().with_filter(level.clone())).init(),
    }
    level
}

fn stderr_layer<S>() -> impl Layer<S>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false).without_time()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_syslogs_names() {
        let level = LevelHandle::default();
        assert_eq!(level.name(), "info");
        for (name, _) in LEVELS {
            assert!(level.set(name));
            assert_eq!(level.name(), name);
        }
        assert!(!level.set("loud"));
        assert_eq!(level.name(), "debug");
    }
}
