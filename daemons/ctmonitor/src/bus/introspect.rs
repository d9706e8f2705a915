// SPDX-License-Identifier: Apache-2.0
//! `--bus-introspect`: the XML of each kind of object, without a bus.

use super::job::JobObject;
use super::manager::Manager;
use dstack_service::cli;
use zbus::Connection;
use zbus::object_server::Interface;

/// The paths that `--bus-introspect` knows; jobs have one object each below theirs.
pub const PATHS: [&str; 2] = ["/org/dstack/ctmonitor1", "/org/dstack/ctmonitor1/job"];

/// The XML of the objects at a path.
#[must_use]
pub fn describe(path: &str) -> Option<String> {
    let kind = PATHS.iter().position(|known| *known == path)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(document(kind)).map_err(|error| eprintln!("{error}")).ok()
}

async fn document(kind: usize) -> Result<String, Box<dyn std::error::Error>> {
    let (connection, _peer) = connection().await?;
    let (manager, _changes) = Manager::new(None, &connection);
    let job = manager.example().await?;
    let job = connection.object_server().interface::<_, JobObject>(job).await?;
    let job = job.get().await;
    let interface: &dyn Interface = if kind == 0 { &manager } else { &*job };
    Ok(cli::node(&[interface]))
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

    const FILES: [&str; 2] = ["org.dstack.ctmonitor1.Manager.xml", "org.dstack.ctmonitor1.Job.xml"];

    /// With `DSTACK_WRITE_XML=1` the files are written instead.
    #[test]
    fn the_shipped_xml_is_what_the_daemon_says() {
        for (path, file) in PATHS.into_iter().zip(FILES) {
            let xml = format!("{}\n", describe(path).unwrap());
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dbus/interfaces").join(file);
            if std::env::var_os("DSTACK_WRITE_XML").is_some() {
                std::fs::write(&file, &xml).unwrap();
            }
            assert_eq!(std::fs::read_to_string(&file).unwrap(), xml, "{}: write it again", file.display());
        }
        assert!(describe("/org/dstack/other").is_none());
    }

    /// The bus policy and polkit know every member and action, and no other.
    #[test]
    fn policy_and_actions_match_the_interface() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let policy = std::fs::read_to_string(root.join("dbus/org.dstack.ctmonitor1.conf")).unwrap();
        let mut count = 0;
        for (path, interface) in PATHS.into_iter().zip(["Manager", "Job"]) {
            let xml = describe(path).unwrap();
            for method in xml.split("<method name=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
                let line =
                    format!("send_interface=\"org.dstack.ctmonitor1.{interface}\" send_member=\"{method}\"");
                assert!(policy.contains(&line), "{line}");
                count += 1;
            }
        }
        assert_eq!(policy.matches("send_interface=\"org.dstack.ctmonitor1.").count(), count);
        let actions = std::fs::read_to_string(root.join("polkit/org.dstack.ctmonitor1.policy")).unwrap();
        for action in crate::bus::actions::ALL {
            assert!(actions.contains(&format!("<action id=\"{action}\">")), "{action}");
        }
        let owner =
            "<annotate key=\"org.freedesktop.policykit.owner\">unix-user:dstack-ct-monitor</annotate>";
        for what in ["<action id=", owner] {
            assert_eq!(actions.matches(what).count(), crate::bus::actions::ALL.len(), "{what}");
        }
    }
}
