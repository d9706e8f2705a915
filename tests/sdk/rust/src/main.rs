// SPDX-License-Identifier: Apache-2.0
//! Every method of the published crate against a running agent: `sdk-rust DSTACK_SOCKET TAPPD_SOCKET`.

use anyhow::{Context, Result, ensure};
use dstack_sdk::dstack_client::{DstackClient, TlsKeyConfig};
use dstack_sdk::ethereum::to_account;
use dstack_sdk::tappd_client::TappdClient;

#[tokio::main]
async fn main() -> Result<()> {
    let mut sockets = std::env::args().skip(1);
    let mut next = || sockets.next().context("usage: sdk-rust DSTACK_SOCKET TAPPD_SOCKET");
    newer(&DstackClient::new(Some(&next()?))).await.context("DstackClient")?;
    older(&TappdClient::new(Some(&next()?))).await.context("TappdClient")?;
    println!("rust: all methods answered");
    Ok(())
}

async fn newer(client: &DstackClient) -> Result<()> {
    let info = client.info().await.context("info")?;
    ensure!(info.app_id.len() == 40 && info.tcb_info.rtmr3.len() == 96, "{info:?}");
    ensure!(info.tcb_info.os_image_hash == info.os_image_hash && !info.vm_config.is_empty(), "{info:?}");
    let version = client.version().await.context("version")?;
    ensure!(!version.version.is_empty());

    let key = client.get_key(Some("wallet/eth".into()), Some("mainnet".into())).await.context("get_key")?;
    ensure!(key.decode_key()?.len() == 32 && key.decode_signature_chain()?.len() == 2);
    let account = to_account(&key).map_err(|e| anyhow::anyhow!("{e}")).context("ethereum")?;
    ensure!(account.address().to_string().starts_with("0x"));

    client.emit_event("sdk-rust".into(), b"payload".to_vec()).await.context("emit_event")?;
    ensure!(client.emit_event("system-ready".into(), Vec::new()).await.is_err(), "a reserved name");
    let quote = client.get_quote(b"report".to_vec()).await.context("get_quote")?;
    ensure!(quote.decode_quote()?.len() > 1000 && quote.report_data.starts_with(&hex::encode("report")));
    ensure!(quote.decode_event_log()?.iter().any(|event| event.event == "sdk-rust"));
    let after = client.info().await?;
    ensure!(quote.replay_rtmrs()?.get(&3) == Some(&after.tcb_info.rtmr3), "the log gives RTMR3");
    let attestation = client.attest(b"report".to_vec()).await.context("attest")?;
    ensure!(attestation.decode_attestation()?.len() > 1000);

    let wish = TlsKeyConfig::builder()
        .subject("app.example.com")
        .alt_names(vec!["app.example.com".into()])
        .usage_ra_tls(true)
        .usage_client_auth(true)
        .build();
    let tls = client.get_tls_key(wish).await.context("get_tls_key")?;
    ensure!(tls.key.starts_with("-----BEGIN PRIVATE KEY-----") && tls.certificate_chain.len() >= 2);

    for (algorithm, data) in
        [("ed25519", vec![1, 2, 3]), ("secp256k1", vec![1, 2, 3]), ("secp256k1_prehashed", vec![7; 32])]
    {
        let signed = client.sign(algorithm, data.clone()).await.context(algorithm)?;
        ensure!(signed.decode_signature_chain()?.first() == Some(&signed.decode_signature()?));
        let (signature, key) = (signed.decode_signature()?, signed.decode_public_key()?);
        ensure!(client.verify(algorithm, data, signature.clone(), key.clone()).await?.valid, "{algorithm}");
        ensure!(!client.verify(algorithm, vec![9; 32], signature, key).await?.valid, "{algorithm}");
    }
    Ok(())
}

async fn older(client: &TappdClient) -> Result<()> {
    let info = client.info().await.context("info")?;
    ensure!(info.app_id.len() == 40 && info.tcb_info.mrtd.len() == 96, "{info:?}");
    let key = client.derive_key("my/path").await.context("derive_key")?;
    let same = client.derive_key_with_subject("my/path", "other").await.context("with_subject")?;
    ensure!(key.decode_key()? == same.decode_key()? && key.certificate_chain.len() >= 2);
    let names = Some(vec!["a.example.com".to_owned()]);
    let named = client.derive_key_with_subject_and_alt_names("my/path", Some("s"), names).await;
    ensure!(named.context("with_alt_names")?.decode_key()?.len() == 32);
    let quote = client.get_quote(vec![7; 64]).await.context("get_quote")?;
    ensure!(quote.decode_quote()?.len() > 1000 && quote.hash_algorithm.as_deref() == Some("raw"));
    let [rtmr3] = [quote.replay_rtmrs()?.remove(&3)];
    ensure!(rtmr3.as_deref() == Some(client.info().await?.tcb_info.rtmr3.as_str()), "the log gives RTMR3");
    ensure!(!quote.decode_event_log()?.is_empty());
    Ok(())
}
