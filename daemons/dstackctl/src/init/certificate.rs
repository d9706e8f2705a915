// SPDX-License-Identifier: Apache-2.0
//! The certificate that dstack-certbot orders.

use super::files::Root;
use crate::client::Client;
use crate::doctor::Check;
use crate::errors::{Exit, Failure};
use crate::events::{error as job_error, number, text};
use crate::progress::Progress;
use futures_util::StreamExt;
use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::time::Duration;
use zbus::{MatchRule, Message, MessageStream, OwnedObjectPath, OwnedVariant, Variant};

const BUS: &str = "org.dstack.certbot1";
const PATH: &str = "/org/dstack/certbot1";
const MANAGER: &str = "org.dstack.certbot1.Manager";
/// The chain that is served, as certbot keeps it.
const LIVE: &str = "/var/lib/dstack/certbot/live/cert.pem";
/// DNS, the authority and its queue together; certbot's own limits are shorter.
const PATIENCE: Duration = Duration::from_secs(900);
/// Signals that may queue up while the call is under way.
const QUEUE: Option<NonZeroUsize> = NonZeroUsize::new(256);
const WHY: &str = "see why: systemctl status dstack-certbot; journalctl -u dstack-certbot -n 50; then run `dstackctl init` \
                   again: it goes on from here";

/// Whether certbot has a certificate for `*.DOMAIN`. Whether it is to be renewed is certbot's business.
///
/// # Errors
/// When there is a file that cannot be read.
pub fn is_there(root: &Root, name: &str) -> Result<bool, Failure> {
    let path = root.real(LIVE);
    match std::fs::read(&path) {
        Ok(pem) => Ok(is_for(&pem, name)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        // Who is not root only looks.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(crate::places::cannot("read", &path, &error)),
    }
}

/// Whether the first certificate of a chain is for all names below a domain.
fn is_for(pem: &[u8], name: &str) -> bool {
    let example = format!("x.{}", name.trim_start_matches("*."));
    let (Ok(der), Ok(server)) = (CertificateDer::from_pem_slice(pem), ServerName::try_from(example)) else {
        return false;
    };
    ParsedCertificate::try_from(&der).is_ok_and(|parsed| verify_server_name(&parsed, &server).is_ok())
}

/// What doctor says of it.
#[must_use]
pub fn check(root: &Root, name: &str) -> Check {
    const NAME: &str = "certificate";
    match is_there(root, name) {
        Ok(true) => Check::good(NAME, format!("certbot has one for {name}")),
        Ok(false) => Check::warning(NAME, format!("certbot has none for {name} yet"), WHY),
        Err(failure) => Check::bad(NAME, failure.message, WHY),
    }
}

/// Has the certificate ordered, and waits until it is there.
///
/// # Errors
/// certbot's own sentence, with what to do.
pub async fn order(client: &Client, name: &str, progress: &mut Progress) -> Result<(), Failure> {
    let rule = MatchRule::builder().msg_type(zbus::message::Type::Signal).sender(BUS).path_namespace(PATH);
    let rule = rule.build()?;
    let mut signals = MessageStream::for_match_rule(rule, &client.connection, QUEUE).await?;
    let domain = name.trim_start_matches("*.");
    // There is none yet, and whoever asks has mended something: only the authority's own pauses count.
    let options: HashMap<&str, Variant<'_>> = HashMap::from([("force", Variant::from(true))]);
    let reply =
        client.connection.call_method(Some(BUS), PATH, Some(MANAGER), "Renew", &(domain, options)).await;
    let reply = reply.map_err(|e| because(domain, Failure::from(e)))?;
    let job: OwnedObjectPath = reply.body().deserialize()?;
    let ended = tokio::time::timeout(PATIENCE, follow(&mut signals, &job, progress)).await;
    let late =
        || Failure::with(Exit::Timeout, format!("it takes longer than {} minutes", PATIENCE.as_secs() / 60));
    ended.unwrap_or_else(|_| Err(late())).map_err(|failure| because(domain, failure))
}

fn because(domain: &str, failure: Failure) -> Failure {
    let message = format!("no certificate for *.{domain}: {}", failure.message);
    Failure { message, hint: Some(WHY.to_owned()), ..failure }
}

async fn follow(
    signals: &mut MessageStream,
    job: &OwnedObjectPath,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let mut error = None;
    while let Some(message) = signals.next().await {
        let message = message?;
        match ended(&message, job) {
            Some(result) if result == "done" => return Ok(()),
            Some(result) => {
                let (name, sentence): (String, String) = error.unwrap_or_default();
                let sentence =
                    if sentence.is_empty() { format!("the job ended as {result}") } else { sentence };
                return Err(Failure::of_name(&name, &sentence));
            }
            None => {}
        }
        if let Some(values) = changed(&message, job) {
            error = job_error(&values).or(error);
            progress.stage(text(&values, "Stage").unwrap_or_default(), number(&values, "Progress"));
        }
    }
    Err(Failure::new("the bus has closed the connection"))
}

/// How the job ended, when a signal says so.
fn ended(message: &Message, job: &OwnedObjectPath) -> Option<String> {
    let header = message.header();
    if header.member()?.as_str() != "JobRemoved" {
        return None;
    }
    let (_, ended, result): (u32, OwnedObjectPath, String) = message.body().deserialize().ok()?;
    (ended == *job).then_some(result)
}

fn changed(message: &Message, job: &OwnedObjectPath) -> Option<HashMap<String, OwnedVariant>> {
    let header = message.header();
    if header.member()?.as_str() != "PropertiesChanged" || header.path()?.as_str() != job.as_str() {
        return None;
    }
    let (_, values, _): (String, HashMap<String, OwnedVariant>, Vec<String>) =
        message.body().deserialize().ok()?;
    Some(values)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};

    #[test]
    fn a_certificate_is_for_the_domain_or_not() {
        let pem = |name: &str| {
            let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
        };
        for (name, expected) in
            [("*.apps.test", true), ("apps.test", false), ("*.other.test", false), ("x.y.apps.test", false)]
        {
            assert_eq!(is_for(pem(name).as_bytes(), "*.apps.test"), expected, "{name}");
        }
        assert!(!is_for(b"nothing", "*.apps.test"));
        let directory = tempfile::tempdir().unwrap();
        let root = Root::below(directory.path());
        assert!(!is_there(&root, "*.apps.test").unwrap());
        root.write(LIVE, pem("*.apps.test").as_bytes(), 0o644).unwrap();
        assert!(is_there(&root, "*.apps.test").unwrap());
        assert!(check(&root, "*.other.test").remedy.is_some());
    }
}
