// SPDX-License-Identifier: Apache-2.0
//! What timers ask the daemon for, with the outcome as exit status.

use dstack_service::api::certbot1::{Error as Refusal, ManagerProxy, NAME, Options};
use dstack_service::asking::{self, AskError};
use std::error::Error;
use zbus::names::OwnedUniqueName;
use zbus::proxy::CacheProperties;
use zbus::{Connection, OwnedObjectPath};

/// Asks the daemon on the system bus, and waits until it is done; once more when it restarts meanwhile: what was begun is
/// gone on with. A daemon that is not configured has nothing to do.
///
/// # Errors
/// What failed.
pub async fn run(what: &str) -> Result<(), Box<dyn Error>> {
    if !["renew", "rehearse"].contains(&what) {
        return Err(format!("nothing is called {what:?}; ask for renew or rehearse").into());
    }
    let connection = match std::env::var("DBUS_SYSTEM_BUS_ADDRESS") {
        Ok(address) => zbus::conn::Builder::address(address.as_str()).build().await?,
        Err(_) => Connection::system().await?,
    };
    match asking::ask(&connection, NAME, |owner| start(&connection, owner, what)).await {
        Ok(result) if result == "done" => Ok(()),
        Ok(result) => Err(format!("{what}: {result}; see: journalctl -u dstack-certbot").into()),
        Err(AskError::Refused(Refusal::NotConfigured(why))) => {
            tracing::info!("{why}");
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

async fn start(
    connection: &Connection,
    owner: OwnedUniqueName,
    what: &str,
) -> Result<OwnedObjectPath, Refusal> {
    let manager = ManagerProxy::builder(connection).destination(owner);
    let manager = manager.cache_properties(CacheProperties::No).build().await?;
    match what {
        "renew" => manager.renew("", Options::new()).await,
        _ => manager.rehearse(Options::new()).await,
    }
}
