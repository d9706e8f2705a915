// SPDX-License-Identifier: Apache-2.0
//! In a CVM the guest agent quotes the ACME account: whoever reads a CAA record with that account then knows that it is
//! used by measured code alone. On a host there is no agent, and nothing is quoted.

use dstack_rpc::client;
use dstack_rpc::dstack::{GetQuoteResponse, RawQuoteArgs};
use sha2::{Digest, Sha512};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;
use tokio::sync::Mutex;

/// What is hashed before the account's URI, with a `:` between.
pub const PREFIX: &str = "acme-account";
/// The agent's method.
const METHOD: &str = "/GetQuote";

/// What the quote of an account carries: SHA-512 of `acme-account:` and the URI.
#[must_use]
pub fn report_data(account_uri: &str) -> [u8; 64] {
    Sha512::new().chain_update(PREFIX).chain_update(":").chain_update(account_uri).finalize().into()
}

/// The last account that was quoted, since anybody may ask and a quote costs milliseconds of the TEE.
#[derive(Debug, Default)]
pub struct Quoted(Mutex<Option<(PathBuf, String, String)>>);

impl Quoted {
    /// The agent's answer about an account as JSON text (`quote`, `event_log`, `report_data`, `vm_config`); empty where
    /// there is no account, or no agent at this socket.
    ///
    /// # Errors
    /// A sentence, when there is an agent and it gives none.
    pub async fn of(&self, agent: &Path, account_uri: &str) -> Result<String, String> {
        if account_uri.is_empty() {
            return Ok(String::new());
        }
        let mut last = self.0.lock().await;
        if let Some((.., quote)) = last.as_ref().filter(|(at, uri, _)| at == agent && uri == account_uri) {
            return Ok(quote.clone());
        }
        let Some(stream) = connect(agent).await? else { return Ok(String::new()) };
        let quote = ask(stream, account_uri).await.map_err(|why| failed(agent, &why))?;
        *last = Some((agent.to_owned(), account_uri.to_owned(), quote.clone()));
        Ok(quote)
    }
}

fn failed(agent: &Path, why: &str) -> String {
    format!("the guest agent at {} does not quote the ACME account: {why}", agent.display())
}

async fn connect(agent: &Path) -> Result<Option<UnixStream>, String> {
    match UnixStream::connect(agent).await {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(agent, &error.to_string())),
    }
}

async fn ask(stream: UnixStream, account_uri: &str) -> Result<String, String> {
    let report_data = report_data(account_uri).to_vec();
    let args = RawQuoteArgs { report_data };
    let said: GetQuoteResponse = client::call(stream, METHOD, &args).await.map_err(|e| e.to_string())?;
    if said.report_data != args.report_data || said.quote.is_empty() {
        return Err("its quote is about something else".into());
    }
    serde_json::to_string(&said).map_err(|e| e.to_string())
}
