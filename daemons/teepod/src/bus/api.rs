// SPDX-License-Identifier: Apache-2.0
//! The verbs, shared by the manager and the objects: permission, then the engine.

use super::actions;
use super::export::Exporter;
use super::job::JobPublisher;
use crate::engine::Engine;
use crate::engine::vm::Vm;
use dstack_service::access::Gate;
use dstack_service::api::teepod1::Error;
use dstack_service::errors::Fdo;
use dstack_service::jobs::{Context, JobError, Jobs, NewJob};
use dstack_service::logging::message_id;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use zbus::message::Header;
use zbus::{Connection, OwnedObjectPath};

/// What a job may take beyond the time that its VM may take.
const SLACK: Duration = Duration::from_secs(120);
const IMPORT_TIMEOUT: Duration = Duration::from_secs(3600);

/// Everything that the objects on the bus need.
#[derive(Debug)]
pub struct Api {
    /// The engine.
    pub engine: Engine,
    /// Who may do what.
    pub gate: Gate,
    /// Objects of VMs.
    pub exporter: Exporter,
    jobs: Jobs<JobPublisher>,
}

impl Api {
    /// The API over this connection.
    #[must_use]
    pub fn new(engine: Engine, connection: &Connection) -> Self {
        Self {
            engine,
            gate: Gate::new(connection),
            exporter: Exporter::new(connection),
            jobs: Jobs::new(JobPublisher::new(connection)),
        }
    }

    /// Asks whether the caller may do this to that VM or image.
    ///
    /// # Errors
    /// `AccessDenied` or `InteractiveAuthorizationRequired`.
    pub async fn allow(&self, call: &Header<'_>, action: &str, object: &str) -> Result<(), Fdo> {
        let verb = call.member().map(|m| m.as_str().to_owned()).unwrap_or_default();
        let vm = self.engine.get(object).ok();
        let name = vm.as_ref().map_or(object, |vm| vm.name.as_str());
        let app = vm.as_ref().map(|vm| vm.record().spec.app_id.to_string()).unwrap_or_default();
        let verdict = self.gate.check(call, action, &[("vm", name), ("app", &app), ("verb", &verb)]).await;
        if let Err(refused) = &verdict {
            let sender = call.sender().map(|s| s.as_str().to_owned()).unwrap_or_default();
            tracing::info!(
                MESSAGE_ID = message_id::ACCESS_DENIED,
                DSTACK_VM = name,
                "{verb} of {name:?} by {sender} was refused: {refused}"
            );
        }
        verdict
    }

    async fn job<F, W>(&self, new: NewJob<'_>, work: F) -> Result<OwnedObjectPath, Error>
    where
        F: FnOnce(Context) -> W,
        W: Future<Output = Result<(), JobError<Error>>> + Send + 'static,
    {
        Ok(self.jobs.run(new, work).await?)
    }

    fn boot_timeout(&self) -> Duration {
        let settings = self.engine.settings();
        settings.boot_timeout + settings.stop_timeout + SLACK
    }

    fn stop_timeout(&self) -> Duration {
        self.engine.settings().stop_timeout + SLACK
    }

    /// Starts a VM, or only ends the job when it is not to start.
    pub(super) async fn created(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        start: bool,
    ) -> Result<OwnedObjectPath, Error> {
        let (api, vm) = (Arc::clone(self), Arc::clone(vm));
        let name = vm.name.clone();
        let new = NewJob {
            kind: "create-vm",
            subject: name.as_str(),
            action: actions::MANAGE_VMS,
            timeout: self.boot_timeout(),
        };
        self.job(
            new,
            |context| async move { if start { api.engine.start(&vm, &context).await } else { Ok(()) } },
        )
        .await
    }

    /// Starts a VM.
    ///
    /// # Errors
    /// When the caller may not, or there is no such VM; the job tells of the rest.
    pub async fn start(self: &Arc<Self>, call: &Header<'_>, name: &str) -> Result<OwnedObjectPath, Error> {
        self.allow(call, actions::MANAGE_VMS, name).await?;
        let (api, vm) = (Arc::clone(self), self.engine.get(name)?);
        let subject = vm.name.clone();
        let new = NewJob {
            kind: "start-vm",
            subject: subject.as_str(),
            action: actions::MANAGE_VMS,
            timeout: self.boot_timeout(),
        };
        self.job(new, |context| async move { api.engine.start(&vm, &context).await }).await
    }

    /// Shuts a VM down in order.
    ///
    /// # Errors
    /// As [`Api::start`].
    pub async fn stop(self: &Arc<Self>, call: &Header<'_>, name: &str) -> Result<OwnedObjectPath, Error> {
        self.allow(call, actions::MANAGE_VMS, name).await?;
        let (api, vm) = (Arc::clone(self), self.engine.get(name)?);
        let subject = vm.name.clone();
        let new = NewJob {
            kind: "stop-vm",
            subject: subject.as_str(),
            action: actions::MANAGE_VMS,
            timeout: self.stop_timeout(),
        };
        self.job(new, |context| async move { api.engine.stop(&vm, &context).await }).await
    }

    /// Stops, then starts a VM.
    ///
    /// # Errors
    /// As [`Api::start`].
    pub async fn restart(self: &Arc<Self>, call: &Header<'_>, name: &str) -> Result<OwnedObjectPath, Error> {
        self.allow(call, actions::MANAGE_VMS, name).await?;
        let (api, vm) = (Arc::clone(self), self.engine.get(name)?);
        let subject = vm.name.clone();
        let new = NewJob {
            kind: "restart-vm",
            subject: subject.as_str(),
            action: actions::MANAGE_VMS,
            timeout: self.boot_timeout(),
        };
        self.job(new, |context| async move { api.engine.restart(&vm, &context).await }).await
    }

    /// Ends a VM at once.
    ///
    /// # Errors
    /// As [`Api::start`], or `UnitFailed`.
    pub async fn kill(&self, call: &Header<'_>, name: &str) -> Result<(), Error> {
        self.allow(call, actions::KILL_VMS, name).await?;
        self.engine.kill(&self.engine.get(name)?).await
    }

    /// Removes a stopped VM with its disk.
    ///
    /// # Errors
    /// As [`Api::start`], or `VmRunning`.
    pub async fn remove(self: &Arc<Self>, call: &Header<'_>, name: &str) -> Result<OwnedObjectPath, Error> {
        self.allow(call, actions::REMOVE_VMS, name).await?;
        let (api, vm) = (Arc::clone(self), self.engine.get(name)?);
        self.engine.check_down(&vm)?;
        let subject = vm.name.clone();
        let new = NewJob {
            kind: "remove-vm",
            subject: subject.as_str(),
            action: actions::REMOVE_VMS,
            timeout: self.stop_timeout(),
        };
        self.job(new, |context| async move { api.engine.remove(&vm, &context).await }).await
    }

    /// Imports the image in an open directory.
    ///
    /// # Errors
    /// As [`Api::start`].
    pub(super) async fn import(
        self: &Arc<Self>,
        directory: std::os::fd::OwnedFd,
    ) -> Result<OwnedObjectPath, Error> {
        let api = Arc::clone(self);
        let new = NewJob {
            kind: "import-image",
            subject: "",
            action: actions::MANAGE_IMAGES,
            timeout: IMPORT_TIMEOUT,
        };
        self.job(new, |context| async move { api.engine.import_image(directory, &context).await }).await
    }

    /// A job that never ends, whose object can be described.
    pub(super) async fn example(&self) -> Result<OwnedObjectPath, Error> {
        let new = NewJob { kind: "example", subject: "", action: "", timeout: SLACK };
        self.job(new, |_| std::future::pending()).await
    }
}
