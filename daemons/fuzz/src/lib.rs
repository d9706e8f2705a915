// SPDX-License-Identifier: Apache-2.0
//! One fuzz target per parser.
//!
//! A target takes any bytes and panics when a property of its parser breaks. The same functions run in two ways: a
//! short smoke run over mutated samples in every `cargo nextest run`, and coverage-guided under libFuzzer
//! (`libfuzzer/README.md`).

pub mod bodies;
pub mod certbot;
pub mod ct;
pub mod evidence;
pub mod ingress;
pub mod measure;
pub mod wireguard;

use dstack_core::{
    boot, ccel, compose, config_disk, csr, env, env_signature, epoch, event_log, ext4, home, ids, image,
    kms_address, luks, quote_sim_wire, spec, upgrade,
};

/// A fuzz target: its name, the function, and well-formed samples to mutate.
#[derive(Clone, Copy)]
pub struct Target {
    /// Name, also of the libFuzzer program.
    pub name: &'static str,
    /// Panics when a property breaks.
    pub run: fn(&[u8]),
    /// Inputs that parse.
    pub samples: fn() -> Vec<Vec<u8>>,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target { name: "config_disk", run: config_disk, samples: config_disk_samples },
    Target { name: "app_compose", run: app_compose, samples: app_compose_samples },
    Target { name: "boot_line", run: boot_line, samples: boot_line_samples },
    Target { name: "home_packet", run: home_packet, samples: home_packet_samples },
    Target { name: "flow_frame", run: ingress::flow_frame, samples: ingress::flow_frame_samples },
    Target { name: "image_manifest", run: image_manifest, samples: image_samples },
    Target { name: "event_log", run: event_log, samples: event_log_samples },
    Target { name: "client_hello", run: ingress::client_hello, samples: ingress::client_hello_samples },
    Target { name: "http_head", run: ingress::http_head, samples: ingress::http_head_samples },
    Target { name: "sni", run: ingress::sni, samples: ingress::sni_samples },
    Target { name: "registrations", run: ingress::registrations, samples: ingress::registrations_samples },
    Target { name: "ccel", run: ccel, samples: ccel_samples },
    Target { name: "quote_sim_wire", run: quote_sim_wire, samples: quote_sim_wire_samples },
    Target { name: "env_signature", run: env_signature, samples: env_signature_samples },
    Target { name: "csr", run: csr, samples: csr_samples },
    Target { name: "upgrade", run: upgrade, samples: upgrade_samples },
    Target { name: "ids", run: ids, samples: id_samples },
    Target { name: "luks", run: luks, samples: luks_samples },
    Target { name: "ext4", run: ext4, samples: ext4_samples },
    Target { name: "epoch", run: epoch, samples: epoch_samples },
    Target { name: "kms_address", run: kms_address, samples: kms_address_samples },
    Target { name: "tdvf", run: measure::tdvf, samples: measure::tdvf_samples },
    Target { name: "uki", run: measure::uki, samples: measure::uki_samples },
    Target { name: "quote", run: evidence::quote, samples: evidence::quote_samples },
    Target { name: "evidence", run: evidence::evidence, samples: evidence::evidence_samples },
    Target { name: "collateral", run: evidence::collateral, samples: evidence::collateral_samples },
    Target { name: "certificate", run: evidence::certificate, samples: evidence::certificate_samples },
    Target { name: "encrypted_env", run: bodies::encrypted_env, samples: bodies::encrypted_env_samples },
    Target { name: "prpc_body", run: bodies::prpc_body, samples: bodies::prpc_body_samples },
    Target { name: "wireguard", run: wireguard::wireguard, samples: wireguard::wireguard_samples },
    Target { name: "acme_account", run: certbot::acme_account, samples: certbot::acme_account_samples },
    Target { name: "acme_directory", run: certbot::acme_directory, samples: certbot::acme_directory_samples },
    Target { name: "cert_name", run: certbot::cert_name, samples: certbot::cert_name_samples },
    Target { name: "cloudflare", run: certbot::cloudflare, samples: certbot::cloudflare_samples },
    Target { name: "dns_answer", run: certbot::dns_answer, samples: certbot::dns_answer_samples },
    Target {
        name: "wireguard_uapi",
        run: wireguard::wireguard_uapi,
        samples: wireguard::wireguard_uapi_samples,
    },
    Target { name: "ct_search", run: ct::ct_search, samples: ct::ct_search_samples },
    Target { name: "ct_certificate", run: ct::ct_certificate, samples: ct::ct_certificate_samples },
    Target { name: "ct_head", run: ct::ct_head, samples: ct::ct_head_samples },
    Target { name: "ct_proof", run: ct::ct_proof, samples: ct::ct_proof_samples },
    Target { name: "ct_entries", run: ct::ct_entries, samples: ct::ct_entries_samples },
    Target { name: "ct_leaf", run: ct::ct_leaf, samples: ct::ct_leaf_samples },
    Target { name: "ct_checkpoint", run: ct::ct_checkpoint, samples: ct::ct_checkpoint_samples },
    Target { name: "ct_tile", run: ct::ct_tile, samples: ct::ct_tile_samples },
    Target { name: "ct_domain", run: ct::ct_domain, samples: ct::ct_domain_samples },
    Target { name: "ct_state", run: ct::ct_state, samples: ct::ct_state_samples },
];

/// Whatever parses as a config disk is exactly what the writer makes of it.
pub fn config_disk(bytes: &[u8]) {
    if let Ok(files) = config_disk::parse(bytes) {
        let written = config_disk::write(&files).unwrap_or_default();
        assert_eq!(bytes.get(..written.len()), Some(written.as_slice()), "one encoding only");
    }
}

fn config_disk_samples() -> Vec<Vec<u8>> {
    let files = [
        (config_disk::File::AppCompose, b"{}".to_vec()),
        (config_disk::File::SysConfig, vec![b' '; 600]),
        (config_disk::File::UserConfig, Vec::new()),
    ];
    (0..=files.len())
        .filter_map(|n| config_disk::write(&files.iter().take(n).cloned().collect()).ok())
        .collect()
}

/// Whatever parses can stand in a request line, and is read back from its own text.
pub fn kms_address(bytes: &[u8]) {
    let Ok(url) = std::str::from_utf8(bytes) else { return };
    if let Some(address) = kms_address::Address::parse(url) {
        let path = address.base.bytes().all(|b| b.is_ascii_graphic());
        assert!(path && !address.host.is_empty() && address.port != 0, "{address:?}");
        let again = kms_address::Address::parse(&format!("https://{address}{}", address.base));
        assert!(again.is_some_and(|again| (again.host, again.port) == (address.host, address.port)));
    }
}

fn kms_address_samples() -> Vec<Vec<u8>> {
    ["https://kms.example", "https://[2001:db8::1]:9043/prpc", "https://192.0.2.7:8000/a/prpc/"]
        .map(|url| url.as_bytes().to_vec())
        .to_vec()
}

/// Whatever parses has a block size to divide by.
pub fn ext4(bytes: &[u8]) {
    if let Some(block) = ext4::Superblock::parse(bytes) {
        assert!((1024..=65_536).contains(&block.block_size), "{block:?}");
        let _ = (block.can_grow(0), block.can_grow(u64::MAX));
    }
}

fn ext4_samples() -> Vec<Vec<u8>> {
    let mut bytes = vec![0; ext4::SIZE];
    bytes.iter_mut().skip(0x38).zip([0x53, 0xef]).for_each(|(to, from)| *to = from);
    vec![bytes]
}

/// Whatever parses as the epoch of a disk is exactly what the writer makes of it.
pub fn epoch(bytes: &[u8]) {
    match epoch::Epoch::parse(bytes) {
        Ok(Some(epoch)) => assert_eq!(epoch.to_sector().as_slice(), bytes, "one form only"),
        Ok(None) => assert_eq!(bytes, [0; epoch::SIZE], "only zeros are none"),
        Err(_) => {}
    }
}

fn epoch_samples() -> Vec<Vec<u8>> {
    let epochs = [1, u64::MAX].map(|number| epoch::Epoch::new(number, &[7; 16]).ok());
    let sectors = epochs.into_iter().flatten().map(|epoch| epoch.to_sector().to_vec());
    sectors.chain([vec![0; epoch::SIZE]]).collect()
}

/// Whatever passes names the accepted cipher twice, and no other.
pub fn luks(bytes: &[u8]) {
    // A header area, or its JSON alone, which a fuzzer gets further into.
    let _ = luks::parse(bytes);
    if luks::check_json(bytes).is_ok() {
        let json: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
        for pointer in ["/segments/0/encryption", "/keyslots/0/area/encryption"] {
            let cipher = json.pointer(pointer).and_then(serde_json::Value::as_str);
            assert_eq!(cipher, Some(luks::CIPHER), "another cipher at {pointer}");
        }
    }
}

fn luks_samples() -> Vec<Vec<u8>> {
    let salt = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
    let derivation = format!(r#""hash":"sha256","iterations":1000,"salt":"{salt}""#);
    let json = format!(
        concat!(
            r#"{{"keyslots":{{"0":{{"type":"luks2","key_size":64,"#,
            r#""af":{{"type":"luks1","stripes":4000,"hash":"sha256"}},"#,
            r#""area":{{"type":"raw","offset":"32768","size":"258048","encryption":"aes-xts-plain64","key_size":64}},"#,
            r#""kdf":{{"type":"pbkdf2",{0}}}}}}},"tokens":{{}},"#,
            r#""segments":{{"0":{{"type":"crypt","offset":"2097152","size":"dynamic","iv_tweak":"0","#,
            r#""encryption":"aes-xts-plain64","sector_size":4096}}}},"#,
            r#""digests":{{"0":{{"type":"pbkdf2","keyslots":["0"],"segments":["0"],{0},"digest":"{1}"}}}},"#,
            r#""config":{{"json_size":"12288","keyslots_size":"1048576"}}}}"#,
        ),
        derivation, salt
    );
    vec![json.into_bytes()]
}

/// Whatever parses has something to run and a provider of keys.
pub fn app_compose(bytes: &[u8]) {
    if let Ok(app) = compose::AppCompose::parse(bytes) {
        let runnable = app.docker_compose_file.is_some() || app.bash_script.is_some();
        assert!(runnable && !app.name.is_empty(), "nothing to run");
        let _ = (app.key_provider(), app.wants_tproxy());
    }
}

fn app_compose_samples() -> Vec<Vec<u8>> {
    vec![
        br#"{"manifest_version":2,"name":"a","runner":"docker-compose","docker_compose_file":"services:\n  a:\n    image: b\n"}"#
            .to_vec(),
        br#"{"manifest_version":1,"name":"a","runner":"bash","bash_script":"true","features":["kms"],"key_provider_id":"3059"}"#
            .to_vec(),
    ]
}

/// A line that parses is printed as it was, and never longer than the limit.
pub fn boot_line(bytes: &[u8]) {
    if let Ok(Some(line)) = boot::Line::parse(bytes) {
        let text = line.to_string();
        assert_eq!(boot::Line::parse(text.as_bytes()), Ok(Some(line)), "{text}");
    }
}

fn boot_line_samples() -> Vec<Vec<u8>> {
    ["DSTACK 1", "STAGE docker", "PROGRESS 1 2", "ERROR compose-failed", "READY", "STOPPING"]
        .map(|line| line.as_bytes().to_vec())
        .to_vec()
}

/// A packet that parses can be sent again.
pub fn home_packet(bytes: &[u8]) {
    if let Ok(packet) = home::parse::<home::FromVm>(bytes) {
        let again = home::format(&packet).ok().and_then(|b| home::parse::<home::FromVm>(&b).ok());
        assert!(again.is_none_or(|a| a == packet), "packet changed");
    }
    let _ = home::parse::<home::ToVm>(bytes);
}

fn home_packet_samples() -> Vec<Vec<u8>> {
    [
        r#"{"type":"hello","protocol":1,"vm":"a","build":"1"}"#,
        r#"{"type":"status","phase":"booting","stage":"docker","progress":[1,2],"timeline":[["qemu",1]]}"#,
        r#"{"type":"connect","id":1,"port":8000}"#,
    ]
    .map(|packet| packet.as_bytes().to_vec())
    .to_vec()
}

/// The input is `metadata.json`, a NUL, and `sha256sum.txt`; every name in them stays inside the image's directory.
pub fn image_manifest(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |b| *b == 0);
    let (metadata, sums) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if let Ok(manifest) = image::Manifest::parse(metadata, sums) {
        let names = manifest.sums.keys().map(String::as_str).chain(manifest.metadata.files());
        assert!(names.into_iter().all(|n| !n.contains('/') && !n.starts_with('.')), "a path");
    }
}

fn image_samples() -> Vec<Vec<u8>> {
    let metadata = format!(
        r#"{{"name":"dstack","version":"1","uki":"u","root":"r","root_hash":"{}"}}"#,
        "ab".repeat(32)
    );
    let sums: String =
        ["metadata.json", "r", "u"].iter().map(|n| format!("{}  {n}\n", "cd".repeat(32))).collect();
    vec![[metadata.as_bytes(), b"\0", sums.as_bytes()].concat()]
}

/// Identifiers that parse are printed so that they parse to the same; names never hold a path.
pub fn ids(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(name) = text.parse::<ids::VmName>() {
        assert!(!name.as_str().contains(['/', '.', '@']), "{text:?}");
    }
    if let Ok(name) = text.parse::<ids::ImageName>() {
        assert!(!name.as_str().contains('/') && !name.as_str().starts_with('.'), "{text:?}");
    }
    if let Ok(id) = text.parse::<ids::AppId>() {
        assert_eq!(id.to_string().parse(), Ok(id));
    }
    let _ = (env::check(text, text), text.parse::<spec::Protocol>());
}

fn id_samples() -> Vec<Vec<u8>> {
    ["hello-1", "dstack-0.1.0", "3327603e03f5bd1f830812ca4a789277fc31f577", "API_KEY", "tcp"]
        .map(|id| id.as_bytes().to_vec())
        .to_vec()
}

/// A log that parses can be replayed, and its trusted prefix has exactly one reading.
pub fn event_log(bytes: &[u8]) {
    if let Ok(events) = event_log::parse(bytes) {
        assert!(event_log::replay(&events).is_ok(), "registers were checked");
        if let Ok(trusted) = event_log::Trusted::of(&events) {
            let again = serde_json::to_vec(&events).ok().and_then(|json| event_log::parse(&json).ok());
            assert_eq!(again.and_then(|e| event_log::Trusted::of(&e).ok()), Some(trusted), "read twice");
        }
    }
}

fn event_log_samples() -> Vec<Vec<u8>> {
    let payloads: [&[u8]; 10] =
        [b"", &[1; 20], &[2; 32], &[3; 20], b"", &[5; 32], &[6; 32], b"{}", b"ext4", b""];
    let events = event_log::TRUSTED.iter().zip(payloads);
    let events: Vec<_> =
        events.filter_map(|(name, payload)| event_log::Event::runtime(name, payload).ok()).collect();
    [7, 10].into_iter().filter_map(|n| serde_json::to_vec(events.get(..n)?).ok()).collect()
}

/// A request that parses is framed so that it parses to the same; replies have one reading, or a refusal.
pub fn quote_sim_wire(bytes: &[u8]) {
    if let Ok(request) = quote_sim_wire::parse_request(bytes) {
        let frame = quote_sim_wire::frame(&request).unwrap_or_default();
        let body = frame.get(4..).unwrap_or_default();
        assert_eq!(quote_sim_wire::parse_request(body), Ok(request), "request changed");
    }
    let quoted = quote_sim_wire::parse_reply::<quote_sim_wire::Quoted>(bytes);
    let _ = quote_sim_wire::parse_reply::<quote_sim_wire::Registers>(bytes);
    assert!(quoted.is_err() || bytes.len() <= quote_sim_wire::FRAME_MAX, "too large");
}

fn quote_sim_wire_samples() -> Vec<Vec<u8>> {
    let (data, digest) = ("01".repeat(64), "02".repeat(48));
    let mut samples = vec![
        format!(r#"{{"op":"quote","report_data":"{data}"}}"#),
        format!(r#"{{"op":"extend","digest":"{digest}"}}"#),
        r#"{"op":"registers"}"#.to_owned(),
        r#"{"error":"no such VM"}"#.to_owned(),
    ];
    samples.push(format!(r#"{{"quote":"{data}"}}"#));
    samples.into_iter().map(String::into_bytes).collect()
}

/// A firmware log that parses can be replayed, and holds no register that a TD does not have.
pub fn ccel(bytes: &[u8]) {
    if let Ok(events) = ccel::parse(bytes) {
        assert!(event_log::replay(&events).is_ok(), "registers were checked");
        assert!(events.len() <= event_log::EVENTS_MAX && events.iter().all(|e| e.event.is_empty()), "form");
    }
}

fn ccel_samples() -> Vec<Vec<u8>> {
    let data = [&b"Spec ID Event03\0"[..], &[0; 8], &[1, 0, 0, 0, 0x0c, 0, 48, 0], &[0]].concat();
    let start = [&[1, 0, 0, 0, 3, 0, 0, 0][..], &[0; 20], &[33, 0, 0, 0], &data].concat();
    let event =
        [&[2, 0, 0, 0, 1, 0, 0, 0x80, 1, 0, 0, 0, 0x0c, 0][..], &[7; 48], &[2, 0, 0, 0], b"ab"].concat();
    vec![start.clone(), [start.as_slice(), &event, &event, &[0xff; 16]].concat()]
}

/// A signature file that parses is written so that it parses to the same.
pub fn env_signature(bytes: &[u8]) {
    if let Ok(file) = env_signature::EnvSignature::parse(bytes) {
        assert_eq!(env_signature::EnvSignature::parse(&file.to_bytes()).ok(), Some(file), "changed");
    }
}

fn env_signature_samples() -> Vec<Vec<u8>> {
    vec![env_signature::EnvSignature { seq: 7, signature: [5; 64] }.to_bytes()]
}

/// A certificate request that parses has one encoding, and names nobody of the infrastructure.
pub fn csr(bytes: &[u8]) {
    if let Ok(csr) = csr::Csr::parse(bytes) {
        assert_eq!(csr.encode().as_deref(), Ok(bytes), "one encoding only");
        assert!(!csr.config.subject_alt_names.iter().any(|name| csr::is_reserved(name)), "a reserved name");
    }
}

fn csr_samples() -> Vec<Vec<u8>> {
    let config = csr::Config {
        org_name: Some("Org".to_owned()),
        subject: "app".to_owned(),
        subject_alt_names: vec!["a.example.com".to_owned(), "::1".to_owned()],
        usage_server_auth: true,
        not_after: Some(1_900_000_000),
        ..csr::Config::default()
    };
    let full = csr::Csr { public_key: vec![1; 91], config, quote: vec![2; 300], event_log: b"[]".to_vec() };
    [full, csr::Csr::default()].iter().filter_map(|csr| csr.encode().ok()).collect()
}

/// A statement has one encoding as bytes, and survives as JSON.
pub fn upgrade(bytes: &[u8]) {
    if let Ok(statement) = upgrade::Statement::from_bytes(bytes) {
        assert_eq!(statement.to_bytes(), bytes, "one encoding only");
    }
    if let Ok(signed) = upgrade::Signed::parse(bytes) {
        let again = serde_json::to_vec(&signed).ok().and_then(|json| upgrade::Signed::parse(&json).ok());
        assert_eq!(again.as_ref().map(|a| &a.statement), Some(&signed.statement), "statement changed");
    }
}

fn upgrade_samples() -> Vec<Vec<u8>> {
    let statement = upgrade::Statement {
        app_id: ids::AppId::from([1; 20]),
        compose_hash: ids::ComposeHash::from([2; 32]),
        seq: 2,
        not_after: 0,
        revoke_below: 1,
    };
    let signatures = vec![upgrade::Signature { key: ids::SignerKey::from([3; 32]), signature: [4; 64] }];
    let signed =
        upgrade::Signed { statement: statement.clone(), signatures, first_compose: Some("{}".to_owned()) };
    std::iter::once(statement.to_bytes()).chain(serde_json::to_vec(&signed).ok()).collect()
}
