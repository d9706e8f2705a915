// SPDX-License-Identifier: Apache-2.0
//! What timers ask the daemon for, with the outcome as exit status.

use dstack_service::api::certbot1::{Error as Refusal, ManagerProxy, Options};
use futures_util::StreamExt;
use std::error::Error;
use zbus::Connection;
use zbus::proxy::CacheProperties;

/// Asks the daemon on the system bus, and waits until it is done. A daemon that is not configured has nothing to do.
///
/// # Errors
/// What failed.
pub async fn run(what: &str) -> Result<(), Box<dyn Error>> {
    let connection = match std::env::var("DBUS_SYSTEM_BUS_ADDRESS") {
        Ok(address) => zbus::conn::Builder::address(address.as_str()).build().await?,
        Err(_) => Connection::system().await?,
    };
    let manager = ManagerProxy::builder(&connection).cache_properties(CacheProperties::No).build().await?;
    // Before the call, so that no end is missed.
    let mut ended = manager.receive_job_removed().await?;
    let asked = match what {
        "renew" => manager.renew("", Options::new()).await,
        "rehearse" => manager.rehearse(Options::new()).await,
        other => return Err(format!("nothing is called {other:?}; ask for renew or rehearse").into()),
    };
    let path = match asked {
        Err(Refusal::NotConfigured(why)) => {
            tracing::info!("{why}");
            return Ok(());
        }
        other => other?,
    };
    while let Some(removed) = ended.next().await {
        let args = removed.args()?;
        if *args.job() == path {
            return match args.result().as_str() {
                "done" => Ok(()),
                result => Err(format!("{what}: {result}; see: journalctl -u dstack-certbot").into()),
            };
        }
    }
    Err("the daemon has ended; see: journalctl -u dstack-certbot".into())
}
