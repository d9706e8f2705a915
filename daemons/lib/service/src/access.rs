// SPDX-License-Identifier: Apache-2.0
//! Who may do what: polkit, per verb and per object.
//!
//! Root passes. Everybody else is judged by polkit for an action id with details such as `vm` and `verb`, so that the
//! operator's rules can match a single VM. The user is asked only when the message allows it.

use crate::errors::Fdo;
use std::collections::HashMap;
use zbus::message::{Flags, Header};
use zbus::{Connection, fdo::DBusProxy};
use zbus_polkit::policykit1::{AuthorityProxy, CheckAuthorizationFlags, Subject};

/// Asks polkit.
#[derive(Debug, Clone)]
pub struct Gate {
    connection: Connection,
}

impl Gate {
    /// A gate that asks over this connection.
    #[must_use]
    pub fn new(connection: &Connection) -> Self {
        Self { connection: connection.clone() }
    }

    /// Passes when the sender of `call` may do `action` with these details.
    ///
    /// # Errors
    /// `AccessDenied`, or `InteractiveAuthorizationRequired` when authenticating would help; without polkit, only root
    /// passes.
    pub async fn check(&self, call: &Header<'_>, action: &str, details: &[(&str, &str)]) -> Result<(), Fdo> {
        let sender = call.sender().ok_or_else(|| Fdo::access_denied("the caller has no bus name"))?;
        let unknown =
            |e: &dyn std::fmt::Display| Fdo::access_denied(format!("cannot tell who is calling: {e}"));
        let bus = DBusProxy::new(&self.connection).await.map_err(|e| unknown(&e))?;
        if bus.get_connection_unix_user(sender.into()).await.map_err(|e| unknown(&e))? == 0 {
            return Ok(());
        }
        self.ask(call, action, details).await
    }

    async fn ask(&self, call: &Header<'_>, action: &str, details: &[(&str, &str)]) -> Result<(), Fdo> {
        let refuse = |e: &dyn std::fmt::Display| {
            Fdo::access_denied(format!(
                "polkit cannot be asked about {action}, so only root may do this: {e}"
            ))
        };
        let authority = AuthorityProxy::new(&self.connection).await.map_err(|e| refuse(&e))?;
        let subject = Subject::new_for_message_header(call).map_err(|e| refuse(&e))?;
        let details: HashMap<&str, &str> = details.iter().copied().collect();
        let interactive = call.primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH);
        let flags = if interactive {
            CheckAuthorizationFlags::ALLOW_USER_INTERACTION
        } else {
            CheckAuthorizationFlags::empty()
        };
        let verdict = authority
            .check_authorization(&subject, action, &details, flags, "")
            .await
            .map_err(|e| refuse(&e))?;
        match (verdict.is_authorized, verdict.is_challenge) {
            (true, _) => Ok(()),
            (false, true) => Err(Fdo::interactive_required(format!(
                "interactive authentication is needed for {action}; run as root, join group dstack-admin, or use an interactive terminal"
            ))),
            (false, false) => Err(Fdo::access_denied(format!(
                "Access denied: polkit does not allow {action}; run as root or join group dstack-admin"
            ))),
        }
    }
}
