// SPDX-License-Identifier: Apache-2.0
//! Where the root keys are kept: the one seam between custody `host` and, later, a key service in a CVM.
//!
//! On a host they are a credential that systemd decrypts for each start. This process is not root and cannot seal, so
//! it leaves the record in its private runtime directory, in memory, and has a root oneshot seal it. The credential's
//! file appears whole or not at all; that is the moment of the bootstrap.

use crate::record::{Record, RecordError};
use dstack_ra_rpc::peer::BoxFuture;
use dstack_ra_tls::certificate::Custody;
use dstack_service::api::systemd1::ManagerProxy;
use dstack_service::credentials::{self, CredentialError};
use dstack_service::state::{self, StateError};
use futures_util::StreamExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zbus::Connection;

/// Name of the credential.
pub const CREDENTIAL: &str = "kmsroot";
/// File in the runtime directory that waits to be sealed.
pub const UNSEALED: &str = "kmsroot.new";
/// The unit that seals.
pub const SEAL_UNIT: &str = "dstack-kms-seal.service";
/// Time for the unit.
const SEAL_TIMEOUT: Duration = Duration::from_secs(60);

/// Why the keys cannot be loaded or sealed.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The credential is there and cannot be read.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// What is sealed is not a record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The record cannot be handed to the unit.
    #[error(transparent)]
    State(#[from] StateError),
    /// The unit did not seal it.
    #[error("{0}")]
    Unit(String),
}

/// Keeps the root keys.
pub trait Vault: std::fmt::Debug + Send + Sync + 'static {
    /// Who can get at keys that are made here.
    fn custody(&self) -> Custody;

    /// What an earlier run sealed.
    ///
    /// # Errors
    /// When it is there and cannot be used; that is never taken for absent.
    fn load(&self) -> Result<Option<Record>, VaultError>;

    /// Seals a record, once: the whole of it is kept when this returns `Ok`.
    fn seal<'a>(&'a self, record: &'a Record) -> BoxFuture<'a, Result<(), VaultError>>;
}

const ALREADY_SUBSCRIBED: &str = "org.freedesktop.systemd1.AlreadySubscribed";

/// A credential of systemd on this host.
#[derive(Debug)]
pub struct HostVault {
    runtime: PathBuf,
    connection: Connection,
}

impl HostVault {
    /// The vault with this runtime directory; what a killed daemon left there is removed.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn new(runtime: &Path, connection: &Connection) -> std::io::Result<Self> {
        let this = Self { runtime: runtime.to_owned(), connection: connection.clone() };
        state::sweep(runtime)?;
        this.clear()?;
        Ok(this)
    }

    fn clear(&self) -> std::io::Result<()> {
        match std::fs::remove_file(self.runtime.join(UNSEALED)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Starts the unit and waits for its end.
    async fn run_unit(&self) -> Result<(), VaultError> {
        let failed = |error: zbus::Error| VaultError::Unit(format!("{SEAL_UNIT} cannot be started: {error}"));
        let manager = ManagerProxy::new(&self.connection).await.map_err(failed)?;
        match manager.subscribe().await {
            // An earlier attempt of this process.
            Err(zbus::Error::MethodError(name, ..)) if name.as_str() == ALREADY_SUBSCRIBED => {}
            other => other.map_err(failed)?,
        }
        let mut ended = manager.receive_job_removed().await.map_err(failed)?;
        let job = manager.start_unit(SEAL_UNIT, "replace").await.map_err(failed)?;
        let result = async {
            while let Some(signal) = ended.next().await {
                if let Ok(args) = signal.args()
                    && args.job == job
                {
                    return args.result.clone();
                }
            }
            "lost".to_owned()
        };
        match tokio::time::timeout(SEAL_TIMEOUT, result).await.as_deref() {
            Ok("done") => Ok(()),
            Ok(_) => Err(VaultError::Unit(format!(
                "{SEAL_UNIT} failed; see `journalctl -u {SEAL_UNIT}`; if root keys were sealed before, \
                 `systemctl restart dstack-kms` loads them"
            ))),
            Err(_) => Err(VaultError::Unit(format!(
                "{SEAL_UNIT} did not end within {} s; see `systemctl status {SEAL_UNIT}`",
                SEAL_TIMEOUT.as_secs()
            ))),
        }
    }
}

impl Vault for HostVault {
    fn custody(&self) -> Custody {
        Custody::Host
    }

    fn load(&self) -> Result<Option<Record>, VaultError> {
        let sealed = credentials::read_optional(CREDENTIAL)?;
        Ok(sealed.map(|bytes| Record::parse(&bytes)).transpose()?)
    }

    fn seal<'a>(&'a self, record: &'a Record) -> BoxFuture<'a, Result<(), VaultError>> {
        Box::pin(async move {
            state::replace(&self.runtime.join(UNSEALED), &record.to_bytes(), 0o600)?;
            let sealed = self.run_unit().await;
            // It lies in memory (/run) and is of no use any more, whatever came of it.
            if let Err(error) = self.clear() {
                tracing::warn!("{}: cannot be removed: {error}", self.runtime.join(UNSEALED).display());
            }
            sealed
        })
    }
}
