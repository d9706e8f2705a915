// SPDX-License-Identifier: Apache-2.0
//! `--bus-introspect`: the XML of the manager, without a bus.

use super::manager::Manager;
use crate::engine::{Engine, Parts};
use crate::onboard::OnHost;
use crate::settings::{Input, Settings};
use crate::vault::HostVault;
use crate::webhook::Nobody;
use dstack_ra_rpc::Verifier;
use dstack_ra_rpc::collateral::{Cache, Offline};
use dstack_ra_tls::{Policy, Roots};
use dstack_service::api::kms1::PATH;
use dstack_service::cli;
use dstack_service::config::Directories;
use std::path::{Path, PathBuf};
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
    let directory = scratch()?;
    let parts = Parts {
        settings: Settings::from_input(Input::default())?,
        directories: Directories::default(),
        state: directory.clone(),
        verifier: Arc::new(Verifier::new(Roots::intel(), Policy::default(), Cache::new(None, Offline))),
        vault: Arc::new(HostVault::new(&directory, &connection)?),
        webhook: Arc::new(Nobody),
        attest: Arc::new(OnHost),
    };
    let opened = Engine::open(parts);
    std::fs::remove_dir_all(&directory)?;
    Ok(cli::node(&[&Manager::new(opened?.0, &connection)]))
}

/// An engine needs a directory; this one lives for a moment.
fn scratch() -> std::io::Result<PathBuf> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(std::io::Error::other)?;
    let directory = Path::new(&std::env::temp_dir()).join(format!("dstack-kms-{}", hex::encode(random)));
    std::fs::create_dir(&directory).map(|()| directory)
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
            name: "org.dstack.kms1",
            user: "dstack-kms",
            actions: &crate::bus::actions::ALL,
            interfaces: ["Manager"].into_iter().zip(xml).collect(),
        }
        .check();
        assert!(describe("/org/dstack/other").is_none());
    }
}
