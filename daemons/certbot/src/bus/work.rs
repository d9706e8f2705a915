// SPDX-License-Identifier: Apache-2.0
//! What jobs do.

use crate::engine::{Engine, EngineError, Observer, Outcome};
use dstack_service::api::certbot1::Error;
use dstack_service::jobs::{Context, JobError};
use dstack_service::logging::message_id;
use tokio::sync::mpsc;

/// What is told to whoever listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// A certificate is new, with this SubjectPublicKeyInfo.
    Changed(String, Vec<u8>),
    /// A certificate could not be renewed.
    Failed(String, String),
    /// A rehearsal has failed.
    Rehearsal(String),
}

/// Tells a job's stage.
struct Stage(Context);

impl Observer for Stage {
    fn step(&self, step: &'static str) {
        self.0.stage(step, -1.0);
    }
}

/// Ends what a job does when somebody cancels it. It can be cut off anywhere: the next run goes on from there.
async fn unless_canceled<T>(
    context: &Context,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, JobError<Error>> {
    tokio::select! {
        result = work => result.map_err(JobError::Failed),
        () = context.canceled() => Err(JobError::Canceled),
    }
}

/// Looks at certificates one after the other. One that fails does not keep the others from being looked at.
///
/// # Errors
/// With everything that failed.
pub async fn renew(
    context: Context,
    engine: Engine,
    domain: String,
    forced: bool,
    told: mpsc::UnboundedSender<Told>,
) -> Result<(), JobError<Error>> {
    let stage = Stage(context.clone());
    unless_canceled(&context, async {
        let turn = engine.turn().await?;
        let mut failed = Vec::new();
        for wanted in engine.select(&domain)? {
            match engine.maintain(&turn, &wanted, forced, &stage).await {
                Ok(Outcome::Fresh(_)) => {}
                Ok(Outcome::Renewed { public_key, .. }) => changed(&told, wanted.domain.as_str(), public_key),
                // It was told when it failed.
                Err(error @ (EngineError::TooEarly { .. } | EngineError::Quiet { .. }))
                    if domain.is_empty() =>
                {
                    tracing::info!("{}: {error}", wanted.domain)
                }
                Err(error) => {
                    tell_failure(&told, wanted.domain.as_str(), &error);
                    failed.push((wanted.domain.clone(), error));
                }
            }
        }
        outcome(failed)
    })
    .await
}

fn outcome(mut failed: Vec<(crate::names::DnsName, EngineError)>) -> Result<(), Error> {
    match failed.len() {
        0 => Ok(()),
        1 => Err(failed.remove(0).1.into()),
        count => {
            let each: Vec<String> =
                failed.iter().take(10).map(|(domain, error)| format!("{domain}: {error}")).collect();
            Err(Error::AuthorityFailed(format!("{count} certificates failed: {}", each.join("; "))))
        }
    }
}

fn changed(told: &mpsc::UnboundedSender<Told>, domain: &str, public_key: Vec<u8>) {
    tracing::info!(
        MESSAGE_ID = message_id::CERTIFICATE_CHANGED,
        DSTACK_DOMAIN = domain,
        DSTACK_PUBLIC_KEY = hex::encode(&public_key),
        "the certificate for {domain} is new"
    );
    // Without a bus nobody listens.
    let _ = told.send(Told::Changed(domain.to_owned(), public_key));
}

fn tell_failure(told: &mpsc::UnboundedSender<Told>, domain: &str, error: &EngineError) {
    tracing::error!(
        MESSAGE_ID = message_id::RENEWAL_FAILED,
        DSTACK_DOMAIN = domain,
        "the certificate for {domain} could not be brought up to date: {error}"
    );
    let _ = told.send(Told::Failed(domain.to_owned(), error.to_string()));
}

/// Rehearses for all certificates.
///
/// # Errors
/// With everything that was found.
pub async fn rehearse(
    context: Context,
    engine: Engine,
    told: mpsc::UnboundedSender<Told>,
) -> Result<(), JobError<Error>> {
    let stage = Stage(context.clone());
    unless_canceled(&context, async {
        let turn = engine.turn().await?;
        let rehearsed = engine.rehearse(&turn, &stage).await;
        if let Err(error) = &rehearsed {
            tracing::error!(
                MESSAGE_ID = message_id::REHEARSAL_FAILED,
                "the rehearsal of a renewal has failed: {error}"
            );
            let _ = told.send(Told::Rehearsal(error.to_string()));
        }
        Ok(rehearsed?)
    })
    .await
}

/// Writes CAA records.
///
/// # Errors
/// The first failure.
pub async fn set_caa(context: Context, engine: Engine, domain: String) -> Result<(), JobError<Error>> {
    let stage = Stage(context.clone());
    unless_canceled(&context, async {
        let turn = engine.turn().await?;
        for wanted in engine.select(&domain)? {
            engine.set_caa(&turn, &wanted, &stage).await?;
        }
        Ok(())
    })
    .await
}
