// SPDX-License-Identifier: Apache-2.0
//! The operator's registry, owners' statements (trust rule T8), and reading the release log (T23).

use super::{Engine, app_id, invalid};
use crate::decide::{HashName, Owners};
use crate::release_log::Entry;
use dstack_core::ids::AppId;
use dstack_core::upgrade::{Signature, Signed, Statement};
use dstack_keys::{ed25519, sign};
use dstack_rpc::kms::{GetReleaseLogResponse, SubmitUpgradeRequest};
use dstack_service::api::kms1::{Error, UpgradeRow};
use dstack_service::logging::message_id;

/// Who signed a statement.
enum Signer<'a> {
    /// One of these claims to.
    Named(&'a [Signature]),
    /// Any of the app's keys may have.
    Any([u8; 64]),
}

impl Engine {
    /// Lets the operator allow a compose hash.
    ///
    /// # Errors
    /// `InvalidArgument`, `OwnerDecides`, `StateUnreadable`, `NoSpace`.
    pub fn allow_upgrade(&self, app: &str, hash: &str) -> Result<(), Error> {
        let (app, hash) = (app_id(app)?, hash.parse::<HashName>().map_err(invalid)?);
        self.0.registry.allow(&app, hash)?;
        tracing::info!(
            MESSAGE_ID = message_id::UPGRADE_ALLOWED,
            DSTACK_APP = app.to_string(),
            "compose hash {hash} is allowed for app {app}"
        );
        Ok(())
    }

    /// Takes that back.
    ///
    /// # Errors
    /// `InvalidArgument`, `NoSuchUpgrade`, `StateUnreadable`.
    pub fn revoke_upgrade(&self, app: &str, hash: &str) -> Result<(), Error> {
        let (app, hash) = (app_id(app)?, hash.parse::<HashName>().map_err(invalid)?);
        self.0.registry.revoke(&app, hash)?;
        tracing::info!(
            MESSAGE_ID = message_id::UPGRADE_ALLOWED,
            DSTACK_APP = app.to_string(),
            "compose hash {hash} is revoked for app {app}"
        );
        Ok(())
    }

    /// What is allowed for an app.
    ///
    /// # Errors
    /// `InvalidArgument`, `StateUnreadable`.
    pub fn list_upgrades(&self, app: &str) -> Result<Vec<UpgradeRow>, Error> {
        let app = app_id(app)?;
        let known = self.0.registry.known(&app)?;
        let mut rows = Vec::new();
        let first = !known.revoked.iter().any(|r| r.is_first_of(&app)) && known.revoke_below() == 0;
        if first {
            rows.push((app.to_string(), "first".to_owned(), 0));
        }
        if !matches!(known.owners, Owners::Keys(_)) {
            rows.extend(known.allowed.iter().map(|name| (name.to_string(), "operator".to_owned(), 0)));
        }
        let signed = known.statements.iter();
        rows.extend(signed.map(|s| (s.compose_hash.to_string(), "owner".to_owned(), s.seq)));
        rows.extend(known.revoked.iter().map(|name| (name.to_string(), "revoked".to_owned(), 0)));
        Ok(rows)
    }

    /// Takes an owner's statement as JSON.
    ///
    /// # Errors
    /// `InvalidArgument`, `StatementRefused`.
    pub fn submit_json(&self, json: &str) -> Result<(), Error> {
        let signed = Signed::parse(json.as_bytes()).map_err(invalid)?;
        let first = signed.first_compose.as_deref().map(str::as_bytes);
        self.submit(signed.statement, first, &Signer::Named(&signed.signatures))
    }

    /// Whether the app of a statement (JSON) is one that this service has to do with already.
    ///
    /// # Errors
    /// `InvalidArgument`, `StateUnreadable`.
    pub fn knows_app_of(&self, json: &str) -> Result<bool, Error> {
        let signed = Signed::parse(json.as_bytes()).map_err(invalid)?;
        self.knows(&signed.statement.app_id)
    }

    /// Anybody can make an app and sign for it, so a stranger's statements about unknown apps would fill the disk.
    fn knows(&self, app: &AppId) -> Result<bool, Error> {
        Ok(self.log().has(app) || self.0.registry.known(app)?.owners != Owners::Unknown)
    }

    /// Takes an owner's statement as bytes, from anybody, about an app that has got keys here.
    ///
    /// # Errors
    /// `InvalidArgument`, `StatementRefused`.
    pub fn submit_bytes(&self, request: &SubmitUpgradeRequest) -> Result<(), Error> {
        let statement = Statement::from_bytes(&request.statement).map_err(invalid)?;
        if !self.knows(&statement.app_id)? {
            return Err(Error::StatementRefused(format!(
                "app {} has never asked this key service for keys; start it once, or submit the statement on the key \
                 service's own host",
                statement.app_id
            )));
        }
        let signature = request.signature.as_slice().try_into();
        let signature = signature.map_err(|_| invalid("an Ed25519 signature has 64 bytes"))?;
        let first = Some(request.first_compose.as_slice()).filter(|c| !c.is_empty());
        self.submit(statement, first, &Signer::Any(signature))
    }

    fn submit(&self, statement: Statement, first: Option<&[u8]>, signer: &Signer<'_>) -> Result<(), Error> {
        let app = statement.app_id;
        let owners = match first {
            Some(compose) => self.0.registry.owners(&app, compose)?,
            None => self.0.registry.known(&app)?.owners,
        };
        let keys = match owners {
            Owners::Keys(keys) => keys,
            Owners::Operator => {
                return Err(Error::StatementRefused(format!(
                    "app {app} names no upgrade_keys in its first compose file, so this service's operator decides: \
                     dstackctl kms allow-upgrade {app} {}",
                    statement.compose_hash
                )));
            }
            Owners::Unknown => {
                return Err(Error::StatementRefused(format!(
                    "this key service has not seen the first compose file of app {app}; submit the statement together \
                     with it (first_compose)"
                )));
            }
        };
        let message = statement.to_bytes();
        let by = |key, signature| ed25519::verify(key, &message, signature).unwrap_or(false);
        let good = match signer {
            Signer::Named(all) => all.iter().any(|s| keys.contains(&s.key) && by(&s.key, &s.signature)),
            Signer::Any(signature) => keys.iter().any(|key| by(key, signature)),
        };
        if !good {
            return Err(Error::StatementRefused(format!(
                "the statement is not signed by one of the upgrade_keys of app {app}"
            )));
        }
        let (hash, seq) = (statement.compose_hash, statement.seq);
        if let Some(compose) = first {
            self.0.registry.learn(&app, compose)?;
        }
        self.0.registry.submit(statement)?;
        tracing::info!(
            MESSAGE_ID = message_id::UPGRADE_ALLOWED,
            DSTACK_APP = app.to_string(),
            "the owner of app {app} allows compose hash {hash} by statement {seq}"
        );
        Ok(())
    }

    /// The releases and denials of an app, with the signed head of the whole log.
    ///
    /// # Errors
    /// `NotBootstrapped`, `StateUnreadable`.
    pub fn release_log(&self, app: &AppId, after: u64, limit: u32) -> Result<GetReleaseLogResponse, Error> {
        let authority = self.authority()?;
        let head = self.log().head();
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let (entries, more) = self.log().of_app(app, after, limit)?;
        let message = sign::release_head_message(head.seq, &head.hash);
        let signature = sign::sign(&authority.roots().k256, &message).map_err(super::internal)?;
        Ok(GetReleaseLogResponse {
            entries,
            head_seq: head.seq,
            head_hash: head.hash.to_vec(),
            head_signature: signature.to_vec(),
            more,
        })
    }

    /// The same, parsed, for the bus: with each entry its hash.
    ///
    /// # Errors
    /// As [`Self::release_log`].
    pub fn releases(&self, app: &str, after: u64, limit: u32) -> Result<Vec<(Entry, String)>, Error> {
        let lines = self.release_log(&app_id(app)?, after, limit)?.entries;
        let parse = |line: String| {
            let entry = serde_json::from_str(&line).map_err(super::internal)?;
            Ok((entry, hex::encode(crate::release_log::line_hash(line.as_bytes()))))
        };
        lines.into_iter().map(parse).collect()
    }
}
