// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use super::*;
use dstack_core::event_log::{self, Event, TRUSTED};
use dstack_core::ids::ComposeHash;
use dstack_core::spec::mr_config_id;
use dstack_quote_sim::collateral::Claims as Platform;
use dstack_quote_sim::pki::{self, TestRoot};
use dstack_quote_sim::quote::TdReport;
use dstack_ra_rpc::collateral::{Fetch, PlatformId};
use dstack_ra_rpc::peer::BoxFuture;
use std::sync::Arc;

/// Serves a test root's collateral.
struct Pccs(Arc<TestRoot>);

impl Fetch for Pccs {
    fn fetch(&self, _platform: PlatformId) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        let collateral = self.0.collateral(&Platform::up_to_date(SystemTime::now().into())).unwrap();
        Box::pin(async move { Ok(serde_json::to_vec(&collateral).unwrap()) })
    }
}

fn kms(k256: u8) -> Trusted {
    Trusted {
        version: 1,
        url: "https://kms.test:9043".into(),
        domain: "kms.test".into(),
        realm: "test:0011223344556677".into(),
        custody: "cvm".into(),
        ca_public_key: vec![1; 91],
        k256_public_key: [k256; 33],
        attested: false,
        trusted_at: 0,
    }
}

/// Quote and log of a key service's CVM over these root keys.
fn evidence(root: &TestRoot, found: &Trusted) -> (Vec<u8>, Vec<u8>) {
    let compose = ComposeHash::of(b"{}");
    let app = compose.app_id();
    let payloads: [&[u8]; 10] =
        [b"", app.as_bytes(), compose.as_bytes(), &[3; 20], b"", &[5; 32], &[6; 32], b"{}", b"ext4", b""];
    let events: Vec<Event> =
        TRUSTED.iter().zip(payloads).map(|(n, p)| Event::runtime(n, p).unwrap()).collect();
    let mut report = TdReport { report_data: report_data(found), ..TdReport::default() };
    report.rtmr[3] = event_log::replay(&events).unwrap()[3];
    report.mr_config_id.copy_from_slice(&hex::decode(mr_config_id(&compose)).unwrap());
    (root.quote(&report), serde_json::to_vec(&events).unwrap())
}

#[tokio::test]
async fn t15_p17_the_bootstrap_quote_is_verified_under_one_root_and_for_both_keys() {
    let stored = pki::generate(SystemTime::now().into()).unwrap();
    let root = Arc::new(TestRoot::load(&stored).unwrap());
    let cache = Cache::new(None, Pccs(Arc::clone(&root)));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let ours = Roots::test(root.certificate().to_vec());
    let (quote, log) = evidence(&root, &kms(2));
    verify_quote(&kms(2), &quote, &log, &ours, &cache, now).await.unwrap();
    let other_key = verify_quote(&kms(3), &quote, &log, &ours, &cache, now).await.unwrap_err();
    assert!(other_key.message.contains("does not bind the key"), "{other_key}");
    let intel = verify_quote(&kms(2), &quote, &log, &Roots::intel(), &cache, now).await.unwrap_err();
    assert!(intel.message.contains("does not stand under root intel"), "{intel}");
    let cut = verify_quote(&kms(2), &quote, b"[]", &ours, &cache, now).await.unwrap_err();
    assert!(cut.message.contains("refused"), "{cut}");
}

#[test]
fn t15_the_same_place_with_another_key_is_noticed() {
    let (known, mut found) = (kms(2), kms(2));
    assert!(!is_replaced(&known, &found));
    found.ca_public_key = vec![2; 91];
    assert!(is_replaced(&known, &found));
    found.url = "https://other.test:9043".into();
    assert!(is_replaced(&known, &found), "the same domain");
    found.domain = String::new();
    assert!(!is_replaced(&known, &found));
}
