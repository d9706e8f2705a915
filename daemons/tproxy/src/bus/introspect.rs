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
    let (connection, _peer) = cli::pair().await?;
    let units = Arc::new(Systemd::new(connection.clone()));
    let (control, _words) =
        Control::new(Directories::default(), units, Arc::new(HostCertbot::new(connection.clone())));
    Ok(cli::node(&[&Manager::new(None, control, &connection)]))
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
            name: "org.dstack.tproxy1",
            user: "dstack-tproxy",
            actions: &crate::bus::actions::ALL,
            interfaces: ["Manager"].into_iter().zip(xml).collect(),
        }
        .check();
        assert!(describe("/org/dstack/other").is_none());
    }
}
