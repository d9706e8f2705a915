// SPDX-License-Identifier: Apache-2.0
//! `--bus-introspect`: the XML of each kind of object, without a bus.

use super::api::Api;
use super::job::JobObject;
use super::manager::Manager;
use super::vm::VmObject;
use crate::engine::vm::Vm;
use crate::engine::{Engine, Parts};
use crate::host::ThisHost;
use crate::settings::{Input, Settings};
use crate::systemd::Systemd;
use crate::vm::Record;
use dstack_core::ids::ComposeHash;
use dstack_core::spec::VmSpec;
use dstack_service::cli;
use std::path::PathBuf;
use std::sync::Arc;
use zbus::Connection;
use zbus::object_server::Interface;

/// The paths that `--bus-introspect` knows; VMs and jobs have one object each below theirs.
pub const PATHS: [&str; 3] = ["/org/dstack/teepod1", "/org/dstack/teepod1/vm", "/org/dstack/teepod1/job"];

/// The XML of the objects at a path.
#[must_use]
pub fn describe(path: &str) -> Option<String> {
    let kind = PATHS.iter().position(|known| *known == path)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(document(kind)).map_err(|error| tracing::error!("{error}")).ok()
}

async fn document(kind: usize) -> Result<String, Box<dyn std::error::Error>> {
    let (connection, _peer) = connection().await?;
    let parts = Parts {
        settings: Settings::from_input(Input::default())?,
        state: PathBuf::new(),
        units: Arc::new(Systemd::deaf(&connection).await?),
        host: Arc::new(ThisHost),
    };
    let api = Arc::new(Api::new(Engine::new(parts).0, &connection));
    let vm = VmObject::new(Arc::clone(&api), Arc::new(Vm::new(example()?)));
    let job = api.example().await?;
    let server = connection.object_server();
    let job = server.interface::<_, JobObject>(job).await?;
    let job = job.get().await;
    let manager = Manager::new(api);
    let interface: &dyn Interface = match kind {
        0 => &manager,
        1 => &vm,
        _ => &*job,
    };
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

fn example() -> Result<Record, Box<dyn std::error::Error>> {
    let hash = ComposeHash::of(b"{}");
    let spec = VmSpec {
        id: uuid::Uuid::nil(),
        name: "example".parse()?,
        app_id: hash.app_id(),
        compose_hash: hash,
        image: "example".parse()?,
        vcpus: 1,
        memory: 1 << 30,
        disk: 1 << 30,
        ports: Vec::new(),
        autostart: false,
        created_at: 0,
    };
    Ok(Record { spec, cid: 0, start_pending: false, removing: false, seed: None })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::path::Path;

    /// With `DSTACK_WRITE_XML=1` the files are written instead.
    #[test]
    fn the_shipped_xml_is_what_the_daemon_says() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dbus/interfaces");
        for (path, name) in PATHS.into_iter().zip(["Manager", "Vm", "Job"]) {
            let xml = format!("{}\n", describe(path).unwrap());
            let file = root.join(format!("org.dstack.teepod1.{name}.xml"));
            if std::env::var_os("DSTACK_WRITE_XML").is_some() {
                std::fs::write(&file, &xml).unwrap();
            }
            assert_eq!(std::fs::read_to_string(&file).unwrap(), xml, "{}: write it again", file.display());
        }
        assert!(describe("/org/dstack/other").is_none());
    }

    /// The bus policy and polkit know every member and action, and no other.
    #[test]
    fn policy_and_actions_match_the_interfaces() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let policy = std::fs::read_to_string(root.join("dbus/org.dstack.teepod1.conf")).unwrap();
        let mut members = 0;
        for (path, name) in PATHS.into_iter().zip(["Manager", "Vm", "Job"]) {
            let xml = describe(path).unwrap();
            for method in xml.split("<method name=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
                let line = format!("send_interface=\"org.dstack.teepod1.{name}\" send_member=\"{method}\"");
                assert!(policy.contains(&line), "{line}");
                members += 1;
            }
        }
        assert_eq!(policy.matches("send_interface=\"org.dstack.teepod1.").count(), members);
        let actions = std::fs::read_to_string(root.join("polkit/org.dstack.teepod1.policy")).unwrap();
        for action in crate::bus::actions::ALL {
            assert!(actions.contains(&format!("<action id=\"{action}\">")), "{action}");
        }
        let owner = "<annotate key=\"org.freedesktop.policykit.owner\">unix-user:dstack-teepod</annotate>";
        for what in ["<action id=", owner] {
            assert_eq!(actions.matches(what).count(), crate::bus::actions::ALL.len(), "{what}");
        }
    }
}
