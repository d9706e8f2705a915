// SPDX-License-Identifier: Apache-2.0
//! The ends of systemd's jobs.
//!
//! One task reads `JobRemoved` and waits for nothing else. A signal stream per call would stop the whole connection: its
//! queue fills while its owner awaits the reply to `StartUnit`, zbus then reads nothing more, and the reply is behind it.

use dstack_service::api::systemd1::ManagerProxy;
use futures_util::StreamExt;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;
use zbus::OwnedObjectPath;

/// Waits for systemd's jobs by their object path.
#[derive(Debug, Clone, Default)]
pub struct UnitJobs(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    /// Calls whose job is not known yet.
    calls: usize,
    /// Results that came before the reply which names their job; kept while there are calls.
    early: HashMap<OwnedObjectPath, String>,
    waiting: HashMap<OwnedObjectPath, oneshot::Sender<String>>,
}

/// A call that is about to return a job.
#[derive(Debug)]
pub struct Call(UnitJobs);

impl UnitJobs {
    /// Begins to read the ends of jobs, until the connection is lost.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn follow(&self, manager: &ManagerProxy<'static>) -> zbus::Result<()> {
        let mut ended = manager.receive_job_removed().await?;
        let this = self.clone();
        tokio::spawn(async move {
            while let Some(signal) = ended.next().await {
                if let Ok(args) = signal.args() {
                    this.ended(&args.job, &args.result);
                }
            }
            // Whoever waits learns by the dropped senders that nothing comes any more.
            this.table().waiting.clear();
        });
        Ok(())
    }

    /// To be taken before the call that makes a job, so that one which ends at once is not missed.
    #[must_use]
    pub fn call(&self) -> Call {
        self.table().calls += 1;
        Call(self.clone())
    }

    fn ended(&self, job: &OwnedObjectPath, result: &str) {
        let mut table = self.table();
        if let Some(waiter) = table.waiting.remove(job) {
            // Nobody may be waiting any more.
            let _ = waiter.send(result.to_owned());
        } else if table.calls > 0 {
            table.early.insert(job.clone(), result.to_owned());
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Call {
    /// The result of the job that the call returned: `done canceled timeout failed dependency skipped`.
    #[must_use]
    pub fn returned(self, job: OwnedObjectPath) -> oneshot::Receiver<String> {
        let (sender, receiver) = oneshot::channel();
        let mut table = self.0.table();
        if let Some(result) = table.early.remove(&job) {
            let _ = sender.send(result);
        } else {
            table.waiting.insert(job, sender);
        }
        drop(table);
        receiver
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut table = self.0.table();
        table.calls = table.calls.saturating_sub(1);
        if table.calls == 0 {
            table.early.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(n: u32) -> OwnedObjectPath {
        OwnedObjectPath::try_from(format!("/org/freedesktop/systemd1/job/{n}")).unwrap()
    }

    #[tokio::test]
    async fn results_before_and_after_the_reply_arrive() {
        let jobs = UnitJobs::default();
        let (early, late) = (jobs.call(), jobs.call());
        jobs.ended(&path(1), "done");
        assert_eq!(early.returned(path(1)).await.unwrap(), "done");
        let waiting = late.returned(path(2));
        jobs.ended(&path(2), "failed");
        assert_eq!(waiting.await.unwrap(), "failed");
        assert!(jobs.table().early.is_empty() && jobs.table().waiting.is_empty());
    }

    #[test]
    fn jobs_of_others_are_not_kept() {
        let jobs = UnitJobs::default();
        jobs.ended(&path(1), "done");
        assert!(jobs.table().early.is_empty());
        let call = jobs.call();
        jobs.ended(&path(2), "done");
        drop(call);
        assert!(jobs.table().early.is_empty());
    }
}
