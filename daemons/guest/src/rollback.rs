// SPDX-License-Identifier: Apache-2.0
//! Rollback protection (trust rule T13, known attack P07): the key service says whether the disk is the one that the
//! last boot of this instance left, while its evidence still ends at `host-inputs`.
//!
//! The disk is open; nothing on it was changed. Its first sector says the epoch of the boot before. The key service gives
//! the next one, it is written and flushed, and only after the commit the boot goes on. A kill between any two steps
//! leaves a disk that says the old epoch or the new one, and the next run begins again with either.

use crate::clock::Clock;
use crate::disk::Watch;
use crate::disk::opened::Sector;
use crate::kms::{self, Ask, KmsError};
use crate::layout::Layout;
use crate::measure::Measured;
use crate::outputs::{self, Output};
use crate::status::Status;
use dstack_core::boot::Failure;
use dstack_core::compose::Rollback;
use dstack_core::epoch::{Epoch, EpochError};
use dstack_rpc::disk::{BeginEpoch, DiskEpochRequest, DiskEpochResponse};
use std::io;
use zeroize::Zeroizing;

/// Why the boot may not go on with its disk.
#[derive(Debug, thiserror::Error)]
pub enum RollbackError {
    /// Its first sector is neither an epoch nor empty.
    #[error("the data disk was left untouched: {0}")]
    Damaged(#[from] EpochError),
    /// It is older than the key service knows.
    #[error("the data disk was left untouched: {0}")]
    Older(String),
    /// Another boot of this instance has begun.
    #[error("the key service lets another boot go on: {0}")]
    Superseded(String),
    /// The key service.
    #[error(transparent)]
    Kms(#[from] KmsError),
    /// The finding cannot be kept for the agent.
    #[error("cannot write below /run/dstack: {0}")]
    State(io::Error),
}

impl RollbackError {
    /// What the host is told.
    #[must_use]
    pub const fn failure(&self) -> Failure {
        match self {
            Self::Damaged(_) => Failure::DiskForeign,
            Self::Older(_) => Failure::DiskRolledBack,
            Self::Superseded(_) => Failure::DiskSuperseded,
            Self::Kms(error) => error.failure(),
            Self::State(_) => Failure::Internal,
        }
    }
}

/// The key service of a boot whose app asks for rollback protection.
#[derive(Debug)]
pub struct Epochs<'a> {
    /// What an older disk does.
    pub mode: Rollback,
    /// Whom to ask.
    pub ask: Ask<'a>,
    /// Makes the evidence.
    pub measured: &'a mut Measured,
    /// Tells the host while nobody can be reached.
    pub status: &'a Status,
}

impl Epochs<'_> {
    fn call(&mut self, request: &DiskEpochRequest) -> Result<DiskEpochResponse, KmsError> {
        let mut attest = |data: &[u8; 64]| self.measured.attest(data);
        let mut waiting = || self.status.waiting(Failure::KeysUnreachable);
        kms::call(&self.ask, "DiskEpoch", request, &mut attest, &mut waiting)
    }

    fn begin(&mut self, sector: &Sector, fresh: bool) -> Result<(Epoch, String), RollbackError> {
        let disk = Epoch::parse(sector)?.map(Into::into);
        let begin = BeginEpoch { disk, fresh, warn: self.mode == Rollback::Warn };
        let answer = match self.call(&DiskEpochRequest { begin: Some(begin), commit: None }) {
            Err(KmsError::Conflict(reason)) => return Err(RollbackError::Older(reason)),
            other => other?,
        };
        let epoch = answer.epoch.as_ref().and_then(|epoch| Epoch::try_from(epoch).ok());
        let epoch = epoch.ok_or_else(|| KmsError::Refused("its answer has no valid epoch".to_owned()))?;
        Ok((epoch, answer.warning))
    }

    fn commit(&mut self, epoch: Epoch) -> Result<(), RollbackError> {
        match self.call(&DiskEpochRequest { begin: None, commit: Some(epoch.into()) }) {
            Err(KmsError::Conflict(reason)) => Err(RollbackError::Superseded(reason)),
            other => Ok(other.map(drop)?),
        }
    }
}

/// Watches over the data disk of one boot.
#[derive(Debug)]
pub struct Guard<'a> {
    /// Where the finding is kept.
    pub layout: &'a Layout,
    /// Learns what is past.
    pub clock: &'a Clock,
    /// The key service; none where the app asks for no protection.
    pub epochs: Option<Epochs<'a>>,
    /// What was begun and is not committed.
    pending: Option<Epoch>,
    /// When the disk was last written, seconds since 1970.
    newest: u64,
}

impl<'a> Guard<'a> {
    /// A watch that has seen nothing yet.
    #[must_use]
    pub const fn new(layout: &'a Layout, clock: &'a Clock, epochs: Option<Epochs<'a>>) -> Self {
        Self { layout, clock, epochs, pending: None, newest: 0 }
    }
}

impl Watch for Guard<'_> {
    fn written(&mut self, time: u64) {
        self.newest = self.newest.max(time);
    }

    fn begin(&mut self, sector: &Sector, fresh: bool) -> Result<Option<Sector>, RollbackError> {
        let Some(epochs) = &mut self.epochs else { return Ok(None) };
        let (epoch, warning) = epochs.begin(sector, fresh)?;
        if warning.is_empty() {
            println!("this boot is {epoch} of its data disk");
        } else {
            println!("<4>this boot goes on with an older data disk, as its app allows: {warning}");
            // Kept before the disk is changed: a later run in this boot would find the disk in order.
            keep(self.layout, &warning).map_err(RollbackError::State)?;
        }
        self.pending = Some(epoch);
        Ok(Some(epoch.to_sector()))
    }

    fn commit(&mut self) -> Result<(), RollbackError> {
        if let (Some(epochs), Some(epoch)) = (&mut self.epochs, self.pending.take()) {
            epochs.commit(epoch)?;
        }
        // Not before: a disk of a time to come must not make the key service's certificate look expired.
        self.clock.raise(self.newest);
        Ok(())
    }
}

fn keep(layout: &Layout, warning: &str) -> io::Result<()> {
    let bytes = Zeroizing::new(warning.as_bytes().to_vec());
    outputs::write_all(layout, &[Output { path: layout.older_disk(), mode: 0o600, bytes }])
}

/// What `instance.json` says of it: `off` (the app asks for nothing), `last`, or `older`.
///
/// # Errors
/// When it cannot be known.
pub fn finding(layout: &Layout, mode: Option<Rollback>) -> io::Result<&'static str> {
    match (mode, layout.older_disk().try_exists()?) {
        (None, _) => Ok("off"),
        (Some(_), false) => Ok("last"),
        (Some(_), true) => Ok("older"),
    }
}
