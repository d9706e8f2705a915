// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing;
use serde_json::json;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const NOW: u64 = 1_800_000_000;

fn sample() -> Inputs {
    testing::inputs(&testing::files(testing::compose(&json!({})), &[]))
}

#[test]
fn t24_every_boot_has_other_keys_and_says_so() {
    let inputs = sample();
    let (one, two) = (BootKeys::ephemeral(&inputs, NOW).unwrap(), BootKeys::ephemeral(&inputs, NOW).unwrap());
    assert_ne!((&one.app.k256_key, &one.app.ca_key), (&two.app.k256_key, &two.app.ca_key));
    assert!(matches!(one.disk(&inputs), DiskKey::Ephemeral));
    assert_eq!((one.app.provider, one.app.provider_id.as_str()), (Provider::None, ""));
    let ca = pem::parse(&one.app.ca_cert).unwrap();
    let text = String::from_utf8_lossy(ca.contents());
    assert!(text.contains("dstack ephemeral app CA (no key service)"), "every chain from it is marked");
    let scalar = one.app.ca_key.as_ref().unwrap();
    let public = derive::p256(scalar).unwrap().public_key_to_der().unwrap();
    assert_eq!(dstack_ra_tls::certificate::parse(ca.contents()).unwrap().public_key, public);
}

#[test]
fn p03_kept_keys_are_for_their_owner_alone_and_come_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::at(dir.path(), Path::new("/"));
    assert!(BootKeys::kept(&layout).unwrap().is_none());
    let mut keys = BootKeys::ephemeral(&sample(), NOW).unwrap();
    (keys.disk, keys.env) = (Some(Secret::from([1; 32])), Some(Secret::from([2; 32])));
    keys.keep(&layout).unwrap();
    assert_eq!(layout.boot_keys().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(BootKeys::kept(&layout).unwrap().unwrap(), keys);
    fs::write(layout.boot_keys(), b"{}").unwrap();
    assert!(matches!(BootKeys::kept(&layout), Err(KeysError::Damaged)), "damaged is not absent");
    BootKeys::forget(&layout).unwrap();
    BootKeys::forget(&layout).unwrap();
    assert!(BootKeys::kept(&layout).unwrap().is_none());
}

#[test]
fn t13_a_disk_belongs_to_its_instance() {
    let inputs = sample();
    let mut keys = BootKeys::ephemeral(&inputs, NOW).unwrap();
    keys.disk = Some(Secret::from([1; 32]));
    let label = |inputs: &Inputs| match keys.disk(inputs) {
        DiskKey::Persistent { label, .. } => label,
        DiskKey::Ephemeral => String::new(),
    };
    assert_eq!(label(&inputs), format!("dstack-{}", inputs.instance_id.unwrap()));
    let shared = Inputs { instance_id: None, ..sample() };
    assert_eq!(label(&shared), format!("dstack-{}", shared.app_id));
}
