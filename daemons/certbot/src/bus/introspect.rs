// SPDX-License-Identifier: Apache-2.0
//! `--bus-introspect`: the XML of each kind of object, without a bus.

use super::job::JobObject;
use super::manager::Manager;
use crate::control::Control;
use dstack_service::api::certbot1::PATH;
use dstack_service::cli;
use dstack_service::config::Directories;
use std::path::PathBuf;

/// The paths that `--bus-introspect` knows; jobs have one object each below theirs.
pub const PATHS: [&str; 2] = [PATH, "/org/dstack/certbot1/job"];

/// The XML of the objects at a path.
#[must_use]
pub fn describe(path: &str) -> Option<String> {
    let kind = PATHS.iter().position(|known| *known == path)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(document(kind)).map_err(|error| eprintln!("{error}")).ok()
}

async fn document(kind: usize) -> Result<String, Box<dyn std::error::Error>> {
    let (connection, _peer) = cli::pair().await?;
    let manager = Manager::new(Control::empty(Directories::default(), PathBuf::new()), &connection).0;
    if kind == 0 {
        return Ok(cli::node(&[&manager]));
    }
    let path = manager.example().await?;
    let job = connection.object_server().interface::<_, JobObject>(path).await?;
    let job = job.get().await;
    Ok(cli::node(&[&*job]))
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
            name: "org.dstack.certbot1",
            user: "dstack-certbot",
            actions: &crate::bus::actions::ALL,
            interfaces: ["Manager", "Job"].into_iter().zip(xml).collect(),
        }
        .check();
        assert!(describe("/org/dstack/other").is_none());
    }
}
