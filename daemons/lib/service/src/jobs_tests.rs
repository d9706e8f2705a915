// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;
use zbus::fdo;

/// Records what would be said on the bus.
#[derive(Debug, Clone)]
struct Recorder(tokio::sync::mpsc::UnboundedSender<String>);

impl Publish for Recorder {
    async fn added(&self, job: Arc<Job>) -> zbus::Result<OwnedObjectPath> {
        self.0.send(format!("new {} {}", job.kind, job.subject)).unwrap();
        OwnedObjectPath::try_from(format!("/job/{}", job.id))
    }
    async fn changed(&self, job: &Job) -> zbus::Result<()> {
        self.0.send(format!("stage {}", job.view().stage)).unwrap();
        Ok(())
    }
    async fn removed(&self, job: &Job, outcome: Outcome) -> zbus::Result<()> {
        self.0.send(format!("{} {}", outcome.word(), job.view().error.1)).unwrap();
        Ok(())
    }
}

async fn last_word<W>(timeout: u64, cancel: bool, work: impl FnOnce(Context) -> W) -> String
where
    W: Future<Output = Result<(), JobError<fdo::Error>>> + Send + 'static,
{
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let jobs = Jobs::new(Recorder(sender));
    let new = NewJob { kind: "k", subject: "s", action: "a", timeout: Duration::from_millis(timeout) };
    let path = jobs
        .run(new, |context| {
            if cancel {
                context.job.cancel();
            }
            work(context)
        })
        .await
        .unwrap();
    assert_eq!(path.as_str(), "/job/1");
    assert_eq!(receiver.recv().await.unwrap(), "new k s");
    loop {
        let word = receiver.recv().await.unwrap();
        if !word.starts_with("stage") {
            return word.trim().to_owned();
        }
    }
}

#[tokio::test]
async fn jobs_end_in_four_ways() {
    let done = last_word(5000, false, |c| async move {
        c.stage("working", 0.5);
        Ok(())
    });
    assert_eq!(done.await, "done");
    let failed = last_word(5000, false, |_| async { Err(fdo::Error::Failed("no room".into()).into()) });
    assert!(failed.await.starts_with("failed"));
    let canceled = last_word(5000, true, |c| async move {
        c.canceled().await;
        assert!(c.is_canceled());
        Err(JobError::Canceled)
    });
    assert_eq!(canceled.await, "canceled");
    let timeout = last_word(10, false, |_| std::future::pending());
    assert!(timeout.await.starts_with("timeout"));
}

#[tokio::test]
async fn jobs_are_limited_and_places_come_back() {
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let jobs = Jobs::new(Recorder(sender));
    let new = NewJob { kind: "k", subject: "s", action: "a", timeout: Duration::from_secs(60) };
    let (stop, _) = watch::channel(false);
    for _ in 0..JOBS_MAX {
        let mut stopped = stop.subscribe();
        let work = async move {
            stopped.wait_for(|s| *s).await.map(drop).map_err(|e| fdo::Error::Failed(e.to_string()))?;
            Ok::<_, JobError<fdo::Error>>(())
        };
        jobs.run(new, |_| work).await.unwrap();
    }
    let refused = jobs.run(new, |_| async { Ok::<_, JobError<fdo::Error>>(()) }).await;
    assert!(refused.unwrap_err().message.contains("256"));
    stop.send_replace(true);
    let mut ended = 0;
    while ended < JOBS_MAX {
        ended += usize::from(receiver.recv().await.unwrap().starts_with("done"));
    }
    tokio::task::yield_now().await;
    assert!(jobs.running() < JOBS_MAX);
}

mod published {
    use super::*;
    use futures_util::StreamExt;
    use std::os::unix::net::UnixStream;
    use zbus::connection::Builder;

    crate::job_object!("org.dstack.example1.Job", "org.dstack.example1.Manager", "/org/dstack/example1");

    async fn pair() -> (zbus::Connection, zbus::Connection) {
        let (server, client) = UnixStream::pair().unwrap();
        let server = Builder::unix_stream(server).server(zbus::Guid::generate()).p2p().build();
        let client = Builder::unix_stream(client).p2p().build();
        let (server, client) = tokio::join!(server, client);
        (server.unwrap(), client.unwrap())
    }

    #[tokio::test]
    async fn a_job_appears_changes_and_goes() {
        let (server, client) = pair().await;
        let mut messages = zbus::MessageStream::from(&client);
        let jobs = Jobs::new(JobPublisher::new(&server));
        let new = NewJob { kind: "create", subject: "x", action: "a", timeout: Duration::from_secs(5) };
        let work = |c: Context| async move {
            c.stage("copying", 0.5);
            Ok::<_, JobError<fdo::Error>>(())
        };
        let path = jobs.run(new, work).await.unwrap();
        assert_eq!(path.as_str(), "/org/dstack/example1/job/1");
        let mut seen = Vec::new();
        while !seen.iter().any(|s| s == "JobRemoved") {
            let message = messages.next().await.unwrap().unwrap();
            seen.extend(message.header().member().map(ToString::to_string));
        }
        assert_eq!(seen.first().map(String::as_str), Some("JobNew"));
        assert!(seen.iter().any(|s| s == "PropertiesChanged"), "{seen:?}");
    }
}
