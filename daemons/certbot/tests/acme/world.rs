// SPDX-License-Identifier: Apache-2.0
//! An authority, a DNS server, and an engine between them.

use crate::servers::{SECRET, free_port, kdig, knot, pebble};
use dstack_certbot::assemble::{self, CLOUDFLARE, EAB, TSIG};
use dstack_certbot::certificate::Leaf;
use dstack_certbot::engine::{Engine, EngineError, Observer, Outcome, Parts, Silent};
use dstack_certbot::settings::{Input, Settings};
use dstack_testing::process::Process;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The account's key of an external account, base64url.
pub const EXTERNAL: (&str, &str) =
    ("kid-1", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W");

/// In records of somebody else.
pub const OTHER: &str = "other.example";

pub struct World {
    pub dir: tempfile::TempDir,
    pub dns: u16,
    pub url: String,
    _knot: Process,
    pub pebble: Process,
}

impl World {
    pub fn new() -> Self {
        Self::with(&[], None)
    }

    pub fn with(env: &[(&str, &str)], external: Option<(&str, &str)>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let dns = free_port();
        let knot = knot(dir.path(), dns);
        let (pebble, url) = pebble(dir.path(), dns, env, external);
        Self { dir, dns, url, _knot: knot, pebble }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Settings for `*.apps.example.test` and `apps.example.test`; `more` goes before the tables, `tables` after.
    pub fn toml(&self, more: &str, tables: &str) -> String {
        let (url, roots, dns) = (&self.url, self.path("roots.pem").display().to_string(), self.dns);
        format!(
            "acme_url = \"{url}\"\nacme_root = \"{roots}\"\nissuer = \"ca.test\"\nrenew_timeout = 30\n{more}\n\
             [dns]\nprovider = \"rfc2136\"\n[dns.rfc2136]\nserver = \"127.0.0.1:{dns}\"\nkey_name = \"dstack\"\n\
             [propagation]\ntimeout = 5\nservers = [\"127.0.0.1:{dns}\"]\n\
             [[certificate]]\nnames = [\"*.apps.example.test\", \"apps.example.test\"]\n{tables}"
        )
    }

    pub fn engine(&self) -> Engine {
        engine(&self.toml("", ""), &self.path("work"))
    }

    /// What the world shows after a run that went well: one live pair, the two CAA records, and nothing left over.
    pub fn check(&self, engine: &Engine) -> Leaf {
        let leaf = engine.live("").unwrap().expect("there is a live certificate").leaf;
        let names: Vec<String> = leaf.names.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["apps.example.test", "*.apps.example.test"]);
        let account = engine.account_uri().unwrap().expect("there is an account");
        let value = format!("\"ca.test;validationmethods=dns-01;accounturi={account}\"");
        let expected = ["issue", "issuewild"].map(|tag| format!("0 {tag} {value}"));
        let mut shown = kdig(self.dns, "apps.example.test", "CAA");
        shown.retain(|record| !record.contains(OTHER));
        assert_eq!(shown, expected, "no guard is left");
        assert_eq!(
            kdig(self.dns, "_acme-challenge.apps.example.test", "TXT"),
            [] as [&str; 0],
            "no TXT record is left"
        );
        let mut left = std::fs::read_dir(self.path("work"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect::<Vec<_>>();
        left.sort();
        left.retain(|name| {
            name != "renewal.json" && name != "rehearsal" && name != "rehearsal.json" && name != "domains"
        });
        assert_eq!(left, ["backup", "caa.json", "credentials.json", "live", "lock"]);
        for backup in std::fs::read_dir(self.path("work/backup")).unwrap() {
            let backup = backup.unwrap().path();
            assert!(
                backup.join("cert.pem").exists() && backup.join("key.pem").exists(),
                "{}: half a certificate",
                backup.display()
            );
        }
        leaf
    }
}

pub fn settings(toml: &str) -> Settings {
    Settings::from_input(toml::from_str::<Input>(toml).unwrap()).unwrap().unwrap()
}

pub fn engine(toml: &str, workdir: &Path) -> Engine {
    Engine::new(parts(settings(toml), workdir))
}

pub fn parts(settings: Settings, workdir: &Path) -> Parts {
    let secrets = |name: &str| {
        let secret = match name {
            TSIG => SECRET,
            CLOUDFLARE => crate::cloudflare::TOKEN,
            EAB => EXTERNAL.1,
            _ => return Ok(None),
        };
        Ok(Some(Zeroizing::new(secret.as_bytes().to_vec())))
    };
    assemble::parts(settings, workdir, &secrets).unwrap()
}

/// Brings the only certificate to what it is to be.
pub async fn maintain(engine: &Engine, forced: bool) -> Result<Outcome, EngineError> {
    maintain_seen(engine, forced, &Silent).await
}

pub async fn maintain_seen(
    engine: &Engine,
    forced: bool,
    observer: &dyn Observer,
) -> Result<Outcome, EngineError> {
    let turn = engine.turn().await?;
    let wanted = engine.select("")?.remove(0);
    engine.maintain(&turn, &wanted, forced, observer).await
}
