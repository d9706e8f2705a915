// SPDX-License-Identifier: Apache-2.0
//! The epochs of data disks: whether a boot may go on with the disk that its host gave it (trust rule T13).
//!
//! What is recorded in the release log is there before the change is kept, and the change before the caller learns of it;
//! a kill in between leaves a boot that asks again.

use super::keys::{no_evidence, refused};
use super::{Engine, app_id, invalid, summary};
use crate::authority::Authority;
use crate::epoch::{Found, Record, Refusal};
use crate::epoch_files::FilesError;
use crate::release_log::{Event, Kind};
use axum::http::StatusCode;
use dstack_core::epoch::Epoch;
use dstack_core::event_log::{Milestone, Trusted};
use dstack_core::ids::InstanceId;
use dstack_ra_rpc::Peer;
use dstack_ra_tls::Verdict;
use dstack_rpc::RpcError;
use dstack_rpc::disk::{DiskEpochRequest, DiskEpochResponse};
use dstack_service::api::kms1::Error;
use dstack_service::logging::message_id;

/// A boot that may have its app's keys.
struct Caller<'a> {
    boot: &'a Trusted,
    verdict: &'a Verdict,
    instance: InstanceId,
}

/// What a boot asks.
enum Step {
    /// Which epoch to write.
    Begin { disk: Option<Epoch>, fresh: bool, warn: bool },
    /// To go on.
    Commit(Epoch),
}

impl Step {
    fn of(request: &DiskEpochRequest) -> Result<Self, String> {
        match (&request.begin, &request.commit) {
            (Some(begin), None) => {
                let disk = begin.disk.as_ref().map(Epoch::try_from).transpose().map_err(|e| e.to_string())?;
                Ok(Self::Begin { disk, fresh: begin.fresh, warn: begin.warn })
            }
            (None, Some(epoch)) => Epoch::try_from(epoch).map(Self::Commit).map_err(|e| e.to_string()),
            _ => Err("DiskEpoch takes exactly one of begin and commit".to_owned()),
        }
    }
}

/// Two boots of one instance at the same moment; the guest asks again.
const BUSY: &str = "another boot of this instance begins at this moment";

/// What ends a step.
enum Stop {
    /// The disk, or another boot.
    Refused(Refusal),
    /// This service's own state.
    Failed(String),
}

impl From<FilesError> for Stop {
    fn from(error: FilesError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Engine {
    /// Forgets disks of instances that have begun long ago and never went on. A failure is told, and tried again.
    pub async fn sweep_disks(&self) {
        let (this, now) = (self.clone(), std::time::SystemTime::now());
        match tokio::task::spawn_blocking(move || this.0.epochs.sweep(now)).await {
            Ok(Ok(0)) => {}
            Ok(Ok(count)) => {
                tracing::info!("{count} instances that never went on from their first boot are forgotten")
            }
            Ok(Err(error)) => tracing::error!("{error}; instances that never went on are not forgotten"),
            Err(error) => tracing::error!("{error}"),
        }
    }

    /// One step of a boot with its disk, at the moment at which keys may be asked for (T7).
    ///
    /// # Errors
    /// 403 when the boot may not have keys, 409 when its disk is older or another boot has begun, 421 when this service
    /// keeps no epochs, 400 and 503 otherwise.
    pub async fn disk_epoch(
        &self,
        peer: &Peer,
        request: &DiskEpochRequest,
    ) -> Result<DiskEpochResponse, RpcError> {
        let authority = self.authority().map_err(refused)?;
        let verdict = peer.verdict.as_ref().ok_or_else(no_evidence)?;
        let boot = verdict.boot.as_ref().ok_or_else(no_evidence)?;
        if authority.record().onboarded {
            return Err(misdirected());
        }
        let instance = match self.may_ask(&authority, verdict, boot) {
            Ok(instance) => instance,
            Err(reason) => {
                self.deny(boot, verdict, &reason).await;
                return Err(RpcError::forbidden(reason));
            }
        };
        let caller = Caller { boot, verdict, instance };
        let outcome = match Step::of(request).map_err(RpcError::failed)? {
            Step::Begin { disk, fresh, warn } => self.begin_epoch(&caller, disk, fresh, warn).await,
            Step::Commit(epoch) => self.commit_epoch(&caller, epoch).await,
        };
        match outcome {
            Ok(response) => Ok(response),
            Err(Stop::Refused(refusal)) => Err(self.refuse_disk(&caller, refusal).await),
            Err(Stop::Failed(reason)) => {
                tracing::error!("the epoch of a data disk cannot be kept: {reason}");
                Err(RpcError { status: StatusCode::SERVICE_UNAVAILABLE, message: reason })
            }
        }
    }

    fn may_ask(
        &self,
        authority: &Authority,
        verdict: &Verdict,
        boot: &Trusted,
    ) -> Result<InstanceId, String> {
        if !verdict.passed() {
            return Err(verdict.reasons());
        }
        if boot.milestone != Milestone::KeysWanted {
            return Err("a disk's epoch is for a boot that has started nothing yet".to_owned());
        }
        self.decide(authority, boot)?;
        boot.instance_id
            .ok_or_else(|| "rollback protection needs an instance id; remove no_instance_id".to_owned())
    }

    async fn begin_epoch(
        &self,
        caller: &Caller<'_>,
        disk: Option<Epoch>,
        fresh: bool,
        warn: bool,
    ) -> Result<DiskEpochResponse, Stop> {
        let mut token = [0; 16];
        let random = getrandom::fill(&mut token);
        random.map_err(|_| Stop::Failed("no random bytes from the kernel".to_owned()))?;
        let (app, instance) = (&caller.boot.app_id, &caller.instance);
        let (_, _, found) = self.0.epochs.known(app, instance)?.begin(disk, warn, &token)?;
        let warning = match found {
            Found::Older(older) => self.warn_of(caller, older).await?,
            _ => String::new(),
        };
        let pending = self.0.epochs.change(app, instance, |known| {
            let (next, pending, now) = known.begin(disk, warn, &token)?;
            // Between the look and the change another boot may have begun; what was recorded must be what is.
            if now == found { Ok((Some(next), pending)) } else { Err(Stop::Failed(BUSY.to_owned())) }
        })?;
        let kind = if fresh { "an empty" } else { "its" };
        tracing::info!(
            DSTACK_APP = app.to_string(),
            DSTACK_INSTANCE = instance.to_string(),
            "instance {instance} begins {pending} with {kind} data disk ({found:?})"
        );
        Ok(DiskEpochResponse { epoch: Some(pending.into()), warning })
    }

    /// The boot goes on with an older disk, since its app asks for that; everybody can see it.
    async fn warn_of(&self, caller: &Caller<'_>, older: Refusal) -> Result<String, Stop> {
        let (app, instance) = (caller.boot.app_id, caller.instance);
        let reason = older.to_string();
        let event = self.event(Kind::DiskOlder, caller.boot, summary(caller.verdict, None), &reason);
        self.0.log.record(event).await.map_err(|e| Stop::Failed(e.to_string()))?;
        tracing::warn!(
            MESSAGE_ID = message_id::DISK_OLDER,
            DSTACK_APP = app.to_string(),
            DSTACK_INSTANCE = instance.to_string(),
            "instance {instance} of app {app} goes on with an older data disk: {reason}"
        );
        Ok(reason)
    }

    async fn commit_epoch(&self, caller: &Caller<'_>, epoch: Epoch) -> Result<DiskEpochResponse, Stop> {
        let (app, instance) = (&caller.boot.app_id, &caller.instance);
        if self.0.epochs.known(app, instance)?.commit(epoch)?.is_some() {
            let verdict = summary(caller.verdict, None);
            let event = self.event(Kind::DiskEpoch, caller.boot, verdict, &epoch.to_string());
            self.0.log.record(event).await.map_err(|e| Stop::Failed(e.to_string()))?;
        }
        self.0.epochs.change(app, instance, |known| Ok::<_, Stop>((known.commit(epoch)?, ())))?;
        Ok(DiskEpochResponse::default())
    }

    async fn refuse_disk(&self, caller: &Caller<'_>, refusal: Refusal) -> RpcError {
        let (app, instance) = (caller.boot.app_id, caller.instance);
        let reason = match refusal {
            Refusal::Older { .. } | Refusal::Unknown(_) => format!(
                "{refusal}; if you have put back a backup on purpose: dstackctl kms forget-disk {app} {instance}"
            ),
            Refusal::Superseded | Refusal::Exhausted => refusal.to_string(),
        };
        let said = format!("the data disk of instance {instance} was refused");
        self.deny_as(message_id::DISK_REFUSED, &said, caller.boot, caller.verdict, &reason).await;
        RpcError { status: StatusCode::CONFLICT, message: reason }
    }

    /// Takes whatever disk an instance has at its next boot: its operator has put back a backup.
    ///
    /// # Errors
    /// `InvalidArgument`, `NotBootstrapped`, `StateUnreadable`, `NoSpace`.
    pub async fn forget_disk(&self, app: &str, instance: &str) -> Result<(), Error> {
        let (app, instance) = (app_id(app)?, instance.parse::<InstanceId>().map_err(invalid)?);
        if self.authority()?.record().onboarded {
            return Err(invalid(misdirected().message));
        }
        let event = Event {
            time: self.now(),
            kind: Kind::DiskForgotten,
            app: Some(app),
            instance: Some(instance),
            compose_hash: None,
            verdict: String::new(),
            reason: "the operator lets any data disk pass once".to_owned(),
        };
        self.0.log.record(event).await?;
        self.0
            .epochs
            .change(&app, &instance, |known: &Record| Ok::<_, FilesError>((Some(known.forget()), ())))?;
        tracing::warn!(
            MESSAGE_ID = message_id::DISK_FORGOTTEN,
            DSTACK_APP = app.to_string(),
            DSTACK_INSTANCE = instance.to_string(),
            "the next boot of instance {instance} of app {app} may have any data disk"
        );
        Ok(())
    }
}

/// Two services that keep epochs apart could each be told what the other must not hear.
fn misdirected() -> RpcError {
    let message = "this key service has its root keys from another one and keeps no epochs of data disks; those of an app \
                   are kept by the key service that was bootstrapped";
    RpcError { status: StatusCode::MISDIRECTED_REQUEST, message: message.to_owned() }
}
