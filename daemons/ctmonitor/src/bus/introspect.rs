// SPDX-License-Identifier: Apache-2.0
//! `--bus-introspect`: the XML of each kind of object, without a bus.

use super::job::JobObject;
use super::manager::Manager;
use dstack_service::cli;
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
    let (connection, _peer) = cli::pair().await?;
    let (manager, _changes) = Manager::new(None, &connection);
    let job = manager.example().await?;
    let job = connection.object_server().interface::<_, JobObject>(job).await?;
    let job = job.get().await;
    let interface: &dyn Interface = if kind == 0 { &manager } else { &*job };
    Ok(cli::node(&[interface]))
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
            name: "org.dstack.ctmonitor1",
            user: "dstack-ct-monitor",
            actions: &crate::bus::actions::ALL,
            interfaces: ["Manager", "Job"].into_iter().zip(xml).collect(),
        }
        .check();
        assert!(describe("/org/dstack/other").is_none());
    }
}
