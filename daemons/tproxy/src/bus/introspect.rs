// SPDX-License-Identifier: Apache-2.0
//! `--bus-introspect`: the XML of the manager, without a bus.

use super::manager::Manager;
use crate::certbot::HostCertbot;
use crate::control::Control;
use crate::units::Systemd;
use dstack_service::api::tproxy1::PATH;
use dstack_service::cli;
use dstack_service::config::Directories;
use std::sync::Arc;
use zbus::Connection;

/// The paths that `--bus-introspect` knows.
pub const PATHS: [&str; 1] = [PATH];

/// The XML of the objects at a path.
#[must_use]
pub fn describe(path: &str) -> Option<String> {
    if path != PATH {
        return None;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(document()).map_err(|error| eprintln!("{error}")).ok()
}

async fn document() -> Result<String, Box<dyn std::error::Error>> {
    let (connection, _peer) = connection().await?;
    let units = Arc::new(Systemd::new(connection.clone()));
    let (control, _words) =
        Control::new(Directories::default(), units, Arc::new(HostCertbot::new(connection.clone())));
    Ok(cli::node(&[&Manager::new(None, control, &connection)]))
}

/// Two ends of one connection, since objects need one.
async fn connection() -> Result<(Connection, Connection), Box<dyn std::error::Error>> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    let server = zbus::conn::Builder::unix_stream(ours).server(zbus::Guid::generate()).p2p();
    let client = zbus::conn::Builder::unix_stream(theirs).p2p();
    let (server, client) = tokio::try_join!(server.build(), client.build())?;
    Ok((server, client))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::path::Path;

    /// With `DSTACK_WRITE_XML=1` the file is written instead.
    #[test]
    fn the_shipped_xml_is_what_the_daemon_says() {
        let xml = format!("{}\n", describe(PATH).unwrap());
        let file = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../dbus/interfaces/org.dstack.tproxy1.Manager.xml");
        if std::env::var_os("DSTACK_WRITE_XML").is_some() {
            std::fs::write(&file, &xml).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), xml, "{}: write it again", file.display());
        assert!(describe("/org/dstack/other").is_none());
    }

    /// The bus policy and polkit know every member and action, and no other.
    #[test]
    fn policy_and_actions_match_the_interface() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let policy = std::fs::read_to_string(root.join("dbus/org.dstack.tproxy1.conf")).unwrap();
        let xml = describe(PATH).unwrap();
        let methods = || xml.split("<method name=\"").skip(1).filter_map(|rest| rest.split('"').next());
        for method in methods() {
            let line = format!("send_interface=\"org.dstack.tproxy1.Manager\" send_member=\"{method}\"");
            assert!(policy.contains(&line), "{line}");
        }
        assert_eq!(policy.matches("send_interface=\"org.dstack.tproxy1.").count(), methods().count());
        let actions = std::fs::read_to_string(root.join("polkit/org.dstack.tproxy1.policy")).unwrap();
        for action in crate::bus::actions::ALL {
            assert!(actions.contains(&format!("<action id=\"{action}\">")), "{action}");
        }
        let owner = "<annotate key=\"org.freedesktop.policykit.owner\">unix-user:dstack-tproxy</annotate>";
        for what in ["<action id=", owner] {
            assert_eq!(actions.matches(what).count(), crate::bus::actions::ALL.len(), "{what}");
        }
    }
}
