// SPDX-License-Identifier: Apache-2.0
//! Long calls: anything over a second is a job with a stage, progress, and `Cancel()`.
//!
//! The engine gets a [`Context`] to report to and to learn of cancellation; [`crate::job_object!`] makes the daemon's
//! D-Bus object and its [`Publish`] implementation; [`Jobs::run`] ties both together.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use zbus::OwnedObjectPath;

use crate::errors::Fdo;

/// Most jobs at a time.
pub const JOBS_MAX: usize = 256;

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It did what it should.
    Done,
    /// Somebody canceled it, and it left nothing behind.
    Canceled,
    /// It failed; see its error.
    Failed,
    /// It took longer than it may.
    Timeout,
}

impl Outcome {
    /// The word in `JobRemoved`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Canceled => "canceled",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
        }
    }
}

/// What can be seen of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// What it is doing, in words.
    pub stage: String,
    /// From 0 to 1; negative when unknown.
    pub progress: f64,
    /// D-Bus error name and sentence once it failed; empty before.
    pub error: (String, String),
    /// Set when it ended.
    pub outcome: Option<Outcome>,
}

/// A job that runs or has just ended.
#[derive(Debug)]
pub struct Job {
    /// Number, unique while the daemon runs.
    pub id: u32,
    /// What it does, e.g. `create-vm`.
    pub kind: &'static str,
    /// What it works on, e.g. a VM's name.
    pub subject: String,
    /// polkit action that allows to cancel it.
    pub action: &'static str,
    view: watch::Sender<View>,
    cancel: watch::Sender<bool>,
}

impl Job {
    /// What can be seen of it now.
    #[must_use]
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Follows what can be seen of it.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    /// Asks it to end as soon as it can do so cleanly.
    pub fn cancel(&self) {
        self.cancel.send_replace(true);
    }
}

/// The engine's side of a job.
#[derive(Debug, Clone)]
pub struct Context {
    job: Arc<Job>,
}

impl Context {
    /// A context that nobody watches, for calls made inside the daemon.
    #[must_use]
    pub fn detached(kind: &'static str, subject: &str) -> Self {
        Self { job: Arc::new(new_job(0, kind, subject, "")) }
    }

    /// Says what the job does now. `progress` is from 0 to 1, negative when unknown.
    pub fn stage(&self, stage: impl Into<String>, progress: f64) {
        let stage = stage.into();
        self.job.view.send_if_modified(|view| {
            let changed = view.stage != stage || (view.progress - progress).abs() > 0.005;
            if changed {
                (view.stage, view.progress) = (stage, progress);
            }
            changed
        });
    }

    /// Resolves when somebody cancels the job.
    pub async fn canceled(&self) {
        let mut cancel = self.job.cancel.subscribe();
        // The sender lives in the job that we hold, so this only ends by a cancel.
        if cancel.wait_for(|c| *c).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether somebody has canceled the job.
    #[must_use]
    pub fn is_canceled(&self) -> bool {
        *self.job.cancel.borrow()
    }
}

/// How a job's work ends when it is not done.
#[derive(Debug)]
pub enum JobError<E> {
    /// It stopped because of a cancel.
    Canceled,
    /// It failed.
    Failed(E),
}

impl<E> From<E> for JobError<E> {
    fn from(error: E) -> Self {
        Self::Failed(error)
    }
}

/// Puts a job on the bus and takes it off again.
pub trait Publish: Send + Sync + 'static {
    /// Exports the job and says `JobNew`.
    fn added(&self, job: Arc<Job>) -> impl Future<Output = zbus::Result<OwnedObjectPath>> + Send;
    /// Tells of changed properties.
    fn changed(&self, job: &Job) -> impl Future<Output = zbus::Result<()>> + Send;
    /// Says `JobRemoved` and removes the object.
    fn removed(&self, job: &Job, outcome: Outcome) -> impl Future<Output = zbus::Result<()>> + Send;
}

/// All running jobs of a daemon.
#[derive(Debug)]
pub struct Jobs<P> {
    publisher: Arc<P>,
    next: AtomicU32,
    running: Arc<Mutex<BTreeSet<u32>>>,
}

impl<P: Publish> Jobs<P> {
    /// No jobs yet.
    pub fn new(publisher: P) -> Self {
        Self { publisher: Arc::new(publisher), next: AtomicU32::new(1), running: Arc::default() }
    }

    /// Number of running jobs.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Starts `work` as a job and returns its object path; the object is there before this returns.
    ///
    /// # Errors
    /// `LimitsExceeded` when [`JOBS_MAX`] jobs run, `Failed` when the object cannot be exported.
    pub async fn run<F, W, E>(&self, new: NewJob<'_>, work: F) -> Result<OwnedObjectPath, Fdo>
    where
        F: FnOnce(Context) -> W,
        W: Future<Output = Result<(), JobError<E>>> + Send + 'static,
        E: zbus::DBusError + std::fmt::Display + Send + 'static,
    {
        let job =
            Arc::new(new_job(self.next.fetch_add(1, Ordering::Relaxed), new.kind, new.subject, new.action));
        let slot = Slot::take(&self.running, job.id).ok_or_else(|| {
            Fdo::limits_exceeded(format!("{JOBS_MAX} jobs run already; wait for some to end"))
        })?;
        let failed = |e| Fdo::failed(format!("cannot export the job: {e}"));
        let path = self.publisher.added(Arc::clone(&job)).await.map_err(failed)?;
        let work = work(Context { job: Arc::clone(&job) });
        tokio::spawn(drive(Arc::clone(&self.publisher), job, slot, new.timeout, work));
        Ok(path)
    }
}

/// A place among the running jobs, given back when the job is gone.
struct Slot(Arc<Mutex<BTreeSet<u32>>>, u32);

impl Slot {
    fn take(running: &Arc<Mutex<BTreeSet<u32>>>, id: u32) -> Option<Self> {
        let mut set = running.lock().unwrap_or_else(PoisonError::into_inner);
        (set.len() < JOBS_MAX).then(|| {
            set.insert(id);
            Self(Arc::clone(running), id)
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

/// What a new job is called and how long it may take.
#[derive(Debug, Clone, Copy)]
pub struct NewJob<'a> {
    /// What it does, e.g. `create-vm`.
    pub kind: &'static str,
    /// What it works on.
    pub subject: &'a str,
    /// polkit action that allows to cancel it.
    pub action: &'static str,
    /// Longest time it may take.
    pub timeout: Duration,
}

fn new_job(id: u32, kind: &'static str, subject: &str, action: &'static str) -> Job {
    let view = View { stage: String::new(), progress: -1.0, error: Default::default(), outcome: None };
    Job {
        id,
        kind,
        subject: subject.to_owned(),
        action,
        view: watch::Sender::new(view),
        cancel: watch::Sender::new(false),
    }
}

/// Runs the work while telling of every change, then takes the job off the bus.
///
/// The work is a task of its own: were it only polled between reports, it could hold a lock of the connection while a
/// report waits for the same lock, for ever.
async fn drive<P, W, E>(publisher: Arc<P>, job: Arc<Job>, slot: Slot, timeout: Duration, work: W)
where
    P: Publish,
    W: Future<Output = Result<(), JobError<E>>> + Send + 'static,
    E: zbus::DBusError + std::fmt::Display + Send + 'static,
{
    let mut changes = job.watch();
    let mut work = tokio::spawn(tokio::time::timeout(timeout, work));
    let result = loop {
        tokio::select! {
            result = &mut work => break result,
            Ok(()) = changes.changed() => report(publisher.changed(&job).await, &job),
        }
    };
    let (outcome, error) = match result {
        Ok(Ok(Ok(()))) => (Outcome::Done, Default::default()),
        Ok(Ok(Err(JobError::Canceled))) => (Outcome::Canceled, Default::default()),
        Ok(Ok(Err(JobError::Failed(error)))) => {
            (Outcome::Failed, (error.name().to_string(), error.to_string()))
        }
        Ok(Err(_)) => {
            (Outcome::Timeout, (String::new(), format!("took longer than {} s", timeout.as_secs())))
        }
        Err(error) => {
            (Outcome::Failed, (String::new(), format!("internal error, please report it: {error}")))
        }
    };
    if !error.1.is_empty() {
        tracing::warn!(DSTACK_JOB = job.id, "{} {}: {}", job.kind, job.subject, error.1);
    }
    job.view.send_modify(|view| (view.error, view.outcome) = (error, Some(outcome)));
    report(publisher.changed(&job).await, &job);
    report(publisher.removed(&job, outcome).await, &job);
    drop(slot);
}

fn report(result: zbus::Result<()>, job: &Job) {
    if let Err(error) = result {
        tracing::warn!(DSTACK_JOB = job.id, "cannot tell the bus about job {}: {error}", job.id);
    }
}

/// Declares the D-Bus object of a daemon's jobs and its [`Publish`].
///
/// `job_object!("org.dstack.teepod1")` gives `JobObject` (interface `org.dstack.teepod1.Job`) and
/// `JobPublisher::new(&connection)`, which exports it at `/org/dstack/teepod1/job/<id>` and emits `JobNew` and
/// `JobRemoved` of `org.dstack.teepod1.Manager`.
#[macro_export]
macro_rules! job_object {
    ($job:literal, $manager:literal, $path:literal) => {
        /// A job on the bus.
        #[derive(Debug)]
        pub struct JobObject(::std::sync::Arc<$crate::jobs::Job>, $crate::access::Gate);

        #[zbus::interface(name = $job)]
        impl JobObject {
            /// Ends the job as soon as it can be ended cleanly.
            async fn cancel(&self, #[zbus(header)] call: zbus::message::Header<'_>) -> zbus::fdo::Result<()> {
                let details = [("verb", "cancel"), ("job", self.0.kind), ("vm", self.0.subject.as_str())];
                let denied = |e: $crate::errors::Fdo| zbus::fdo::Error::AccessDenied(e.message);
                self.1.check(&call, self.0.action, &details).await.map_err(denied)?;
                self.0.cancel();
                Ok(())
            }

            /// Number of the job.
            #[zbus(property(emits_changed_signal = "const"))]
            fn id(&self) -> u32 {
                self.0.id
            }

            /// What it does.
            #[zbus(property(emits_changed_signal = "const"))]
            fn kind(&self) -> String {
                self.0.kind.to_owned()
            }

            /// What it works on.
            #[zbus(property(emits_changed_signal = "const"))]
            fn subject(&self) -> String {
                self.0.subject.clone()
            }

            /// What it is doing, in words.
            #[zbus(property)]
            fn stage(&self) -> String {
                self.0.view().stage
            }

            /// From 0 to 1; negative when unknown.
            #[zbus(property)]
            fn progress(&self) -> f64 {
                self.0.view().progress
            }

            /// Error name and sentence of a job that failed.
            #[zbus(property)]
            fn error(&self) -> (String, String) {
                self.0.view().error
            }
        }

        /// Puts jobs on the bus.
        #[derive(Debug)]
        pub struct JobPublisher {
            connection: zbus::Connection,
            gate: $crate::access::Gate,
        }

        impl JobPublisher {
            /// Publishes over this connection.
            #[must_use]
            pub fn new(connection: &zbus::Connection) -> Self {
                Self { connection: connection.clone(), gate: $crate::access::Gate::new(connection) }
            }

            fn path(job: &$crate::jobs::Job) -> zbus::Result<zbus::OwnedObjectPath> {
                zbus::OwnedObjectPath::try_from(format!(concat!($path, "/job/{}"), job.id))
            }
        }

        impl $crate::jobs::Publish for JobPublisher {
            async fn added(
                &self,
                job: ::std::sync::Arc<$crate::jobs::Job>,
            ) -> zbus::Result<zbus::OwnedObjectPath> {
                let (path, id) = (Self::path(&job)?, job.id);
                self.connection.object_server().at(&path, JobObject(job, self.gate.clone())).await?;
                self.connection.emit_signal(None::<&str>, $path, $manager, "JobNew", &(id, &path)).await?;
                Ok(path)
            }

            async fn changed(&self, job: &$crate::jobs::Job) -> zbus::Result<()> {
                let object =
                    self.connection.object_server().interface::<_, JobObject>(Self::path(job)?).await?;
                let (object, emitter) = (object.get().await, object.signal_emitter().clone());
                object.stage_changed(&emitter).await?;
                object.progress_changed(&emitter).await?;
                if !job.view().error.1.is_empty() {
                    object.error_changed(&emitter).await?;
                }
                Ok(())
            }

            async fn removed(
                &self,
                job: &$crate::jobs::Job,
                outcome: $crate::jobs::Outcome,
            ) -> zbus::Result<()> {
                let path = Self::path(job)?;
                let body = (job.id, &path, outcome.word());
                self.connection.emit_signal(None::<&str>, $path, $manager, "JobRemoved", &body).await?;
                self.connection.object_server().remove::<JobObject, _>(&path).await?;
                Ok(())
            }
        }
    };
}

#[cfg(test)]
#[path = "jobs_tests.rs"]
mod tests;
