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
    let (connection, _peer) = cli::pair().await?;
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
    use dstack_testing::interface::Service;

    #[test]
    fn shipped_files_are_those_of_the_interfaces() {
        let xml = PATHS.map(|path| describe(path).unwrap());
        Service {
            name: "org.dstack.teepod1",
            user: "dstack-teepod",
            actions: &crate::bus::actions::ALL,
            interfaces: ["Manager", "Vm", "Job"].into_iter().zip(xml).collect(),
        }
        .check();
        assert!(describe("/org/dstack/other").is_none());
    }
}
