// SPDX-License-Identifier: Apache-2.0
//! Certificates of which one fails, and jobs.

use super::bus::Bus;
use dstack_service::api::certbot1::{CertificateRow, Error, NAME, OwnedOptions, PATH, Rehearsal};
use dstack_service::jobs::{JobError, Jobs, NewJob};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use zbus::{Connection, OwnedObjectPath, OwnedVariant, Variant, interface};

dstack_service::job_object!("org.dstack.certbot1.Job", "org.dstack.certbot1.Manager", "/org/dstack/certbot1");

/// What was called, and what the last rehearsal found.
#[derive(Debug, Clone, Default)]
pub struct Certbot {
    pub calls: Arc<Mutex<Vec<String>>>,
    pub problems: Arc<Mutex<Vec<String>>>,
    pub fails: bool,
    pub expired: bool,
    /// b.example failed a while ago, and waits: jobs have nothing to do with it.
    pub waits: bool,
    pub jobs: Option<Arc<Jobs<JobPublisher>>>,
}

fn row(domain: &str, state: &str, error: &str) -> CertificateRow {
    let values = [
        ("domain", Variant::from(domain.to_owned())),
        ("names", Variant::from(vec![format!("*.{domain}"), domain.to_owned()])),
        ("state", Variant::from(state.to_owned())),
        ("issuer", Variant::from("CN=Test".to_owned())),
        ("not_before", Variant::from(1_700_000_000_u64)),
        ("not_after", Variant::from(1_700_000_100_u64)),
        ("renewal", Variant::from(0_u64)),
        ("failures", Variant::from(u32::from(!error.is_empty()))),
        ("error", Variant::from(error.to_owned())),
        ("retry", Variant::from(0_u64)),
        ("public_key", Variant::from(vec![0x30_u8, 0x59])),
    ];
    values.into_iter().map(|(k, v)| (k.to_owned(), OwnedVariant::try_from(v).unwrap())).collect()
}

impl Certbot {
    pub async fn start(&mut self, bus: &Bus) -> Connection {
        let connection = zbus::conn::Builder::address(bus.address.as_str()).build().await.unwrap();
        self.jobs = Some(Arc::new(Jobs::new(JobPublisher::new(&connection))));
        connection.object_server().at(PATH, self.clone()).await.unwrap();
        connection.request_name(NAME).await.unwrap();
        connection
    }

    async fn job(&self, call: String) -> Result<OwnedObjectPath, Error> {
        self.calls.lock().unwrap().push(call);
        let new = NewJob { kind: "job", subject: "", action: "", timeout: Duration::from_secs(10) };
        let fails = self.fails;
        let work = move |context: dstack_service::jobs::Context| async move {
            context.stage("challenge: at every server", -1.0);
            match fails {
                true => Err(JobError::Failed(Error::DnsFailed("no zone has it".into()))),
                false => Ok(()),
            }
        };
        Ok(self.jobs.as_ref().unwrap().run(new, work).await?)
    }
}

#[interface(name = "org.dstack.certbot1.Manager")]
impl Certbot {
    fn list_certificates(&self) -> Vec<CertificateRow> {
        let (state, error) = match (self.expired, self.fails) {
            (true, _) => ("expired", ""),
            (false, true) => ("renewal-failed", "no zone has it"),
            (false, false) => ("valid", ""),
        };
        if self.waits {
            let mut late = row("b.example", "renewal-failed", "the token is refused");
            late.insert(
                "retry".to_owned(),
                OwnedVariant::try_from(Variant::from(1_700_003_600_u64)).unwrap(),
            );
            return vec![row("a.example", "valid", ""), late];
        }
        vec![row("a.example", "valid", ""), row("b.example", state, error)]
    }

    async fn renew(&self, domain: String, options: OwnedOptions) -> Result<OwnedObjectPath, Error> {
        if domain == "none.example" {
            return Err(Error::NoSuchCertificate("certbot.toml has no such certificate".into()));
        }
        let force = bool::try_from(options["force"].try_clone().unwrap()).unwrap();
        self.job(format!("renew {domain} {force}")).await
    }

    async fn rehearse(&self, _options: OwnedOptions) -> Result<OwnedObjectPath, Error> {
        self.job("rehearse".into()).await
    }

    async fn set_caa(&self, domain: String, _options: OwnedOptions) -> Result<OwnedObjectPath, Error> {
        self.job(format!("caa {domain}")).await
    }

    fn historical_keys(&self, _domain: String) -> Vec<Vec<u8>> {
        vec![vec![0x30, 0x01], vec![0x30, 0x59]]
    }

    #[zbus(property)]
    fn account_uri(&self) -> String {
        "https://ca.example/acct/1".to_owned()
    }

    #[zbus(property)]
    fn status(&self) -> String {
        "Misconfigured: certbot.toml: dns.provider".to_owned()
    }

    #[zbus(property)]
    fn authority(&self) -> String {
        "https://ca.example/dir".to_owned()
    }

    #[zbus(property)]
    fn last_rehearsal(&self) -> Rehearsal {
        (1_700_000_000, self.problems.lock().unwrap().clone())
    }
}
