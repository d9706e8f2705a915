// SPDX-License-Identifier: Apache-2.0
//! Certificates for apps.

use crate::keys::{COMPOSE, other_compose};
use crate::world::{Boot, READY, Setup, WANTS, World, reason};
use dstack_core::csr::{Config, Csr, GATEWAY_SUBJECT};
use dstack_kms::engine::SIGNINGS_MAX;
use dstack_ra_tls::certificate::{self, Usage};
use dstack_rpc::kms::{SignCertRequest, SignCertResponse};

fn wishes() -> Config {
    Config {
        subject: "a.example.org".into(),
        subject_alt_names: vec!["a.example.org".into(), "192.0.2.1".into()],
        usage_server_auth: true,
        ext_quote: true,
        ..Config::default()
    }
}

async fn sign(world: &World, boot: &Boot, request: &SignCertRequest) -> Result<SignCertResponse, String> {
    match world.call(Some(&boot.identity()), "SignCert", request).await {
        Ok(response) => Ok(response),
        Err(error) => Err(error.to_string()),
    }
}

#[tokio::test]
async fn p22_a_certificate_says_what_the_verdict_says() {
    let world = World::new().await;
    let boot = Boot::of(COMPOSE, READY);
    let request = boot.csr(wishes());
    let chain = sign(&world, &boot, &request).await.unwrap().certificate_chain;
    let der: Vec<Vec<u8>> = chain.iter().map(|c| pem::parse(c).unwrap().into_contents()).collect();
    let leaf = certificate::parse(&der[0]).unwrap();
    assert_eq!((leaf.app_id, leaf.usage), (Some(boot.app), Some(Usage::AppCustom)));
    let csr = Csr::parse(&request.csr).unwrap();
    assert_eq!((leaf.public_key, leaf.quote), (csr.public_key, Some(csr.quote)));
    assert_eq!(certificate::parse(&der[1]).unwrap().usage, Some(Usage::AppCa));
    assert_eq!(
        certificate::parse(&der[2]).unwrap().public_key,
        world.engine.authority().unwrap().public_key()
    );
    // A caller without a certificate can ask, too: the request brings its own evidence.
    let anonymous: SignCertResponse = world.call(None, "SignCert", &boot.csr(wishes())).await.unwrap();
    assert_eq!(anonymous.certificate_chain.len(), 3);
}

#[tokio::test]
async fn p24_evidence_is_live_and_of_one_app() {
    let world = World::new().await;
    let boot = Boot::of(COMPOSE, READY);
    let other = Boot::of(&other_compose(1), READY);
    let error = sign(&world, &other, &boot.csr(wishes())).await.unwrap_err();
    assert!(error.contains("another app"), "{error}");
    let mut unsigned = boot.csr(wishes());
    unsigned.signature = boot.csr(wishes()).signature;
    assert!(sign(&world, &boot, &unsigned).await.unwrap_err().contains("not signed by the key"));
    // A quote over another key is nobody's.
    let (mut mine, theirs) = (boot.csr(wishes()), Csr::parse(&boot.csr(wishes()).csr).unwrap());
    let swapped = Csr { quote: theirs.quote, ..Csr::parse(&mine.csr).unwrap() };
    mine.csr = swapped.encode().unwrap();
    assert!(sign(&world, &boot, &mine).await.is_err());
}

#[tokio::test]
async fn t07_certificates_are_for_a_boot_that_is_ready() {
    let world = World::new().await;
    let boot = Boot::of(COMPOSE, WANTS);
    let error = sign(&world, &boot, &boot.csr(wishes())).await.unwrap_err();
    assert!(error.contains("point at which"), "{error}");
}

#[tokio::test]
async fn t20_a_revoked_or_claimed_app_gets_no_certificate() {
    let world = World::new().await;
    let boot = Boot::of(COMPOSE, READY);
    let claimed = Boot::of(&other_compose(1), READY).claiming(boot.app);
    assert!(sign(&world, &claimed, &claimed.csr(wishes())).await.unwrap_err().contains("not allowed"));
    world.engine.revoke_upgrade(&boot.app.to_string(), &boot.hash().to_string()).unwrap();
    assert!(sign(&world, &boot, &boot.csr(wishes())).await.unwrap_err().contains("revoked"));
}

#[tokio::test]
async fn t20_names_of_the_infrastructure_are_not_for_apps() {
    let world = World::new().await;
    let boot = Boot::of(COMPOSE, READY);
    for name in ["kms.example.com", "a.kms.example.com"] {
        let config = Config { subject_alt_names: vec![name.into()], ..wishes() };
        // The encoder refuses reserved first labels itself, so only the domain of this service is left to try.
        let Ok(csr) = std::panic::catch_unwind(|| boot.csr(config)) else { continue };
        let error = reason(world.call::<_, SignCertResponse>(None, "SignCert", &csr).await);
        assert!(error.contains("not for apps"), "{error}");
    }
}

#[tokio::test]
async fn p15_requests_are_bounded() {
    let world = World::new().await;
    let request = SignCertRequest { csr: vec![0; 5 * 1024 * 1024], signature: Vec::new() };
    let error = reason(world.call::<_, SignCertResponse>(None, "SignCert", &request).await);
    assert!(error.contains("larger than") || error.contains("over the limit"), "{error}");
}

#[tokio::test]
async fn p15_an_app_does_not_fill_the_release_log_with_certificates() {
    let world = World::new().await;
    let boot = Boot::of(COMPOSE, READY);
    let request = boot.csr(Config { ext_quote: false, ..wishes() });
    let engine = &world.engine;
    for _ in 0..SIGNINGS_MAX {
        engine.sign_cert(None, &request).await.unwrap();
    }
    let refused = engine.sign_cert(None, &request).await.unwrap_err().to_string();
    assert!(refused.contains("within a minute"), "{refused}");
    let other = Boot::of(&other_compose(1), READY);
    assert!(engine.sign_cert(None, &other.csr(wishes())).await.is_ok(), "others are not held up");
    assert_eq!(engine.log().head().seq, u64::from(SIGNINGS_MAX) + 1);
}

#[tokio::test]
async fn t17_a_gateway_gets_a_certificate_of_its_role_and_no_other() {
    let world = World::new().await;
    let key = dstack_ra_tls::certificate::AttestedKey::generate().unwrap().public_key();
    let refused = world.engine.sign_gateway(&key).await.unwrap_err().to_string();
    assert!(refused.contains("gateway_app_id"), "no gateway is set: {refused}");
    let authority = world.engine.authority().unwrap();
    let app = [9; 20].into();
    let chain = authority.gateway(&app, &key, std::time::SystemTime::now()).unwrap();
    let leaf = certificate::parse(&chain[0]).unwrap();
    assert_eq!((leaf.usage, leaf.app_id), (Some(Usage::GatewayRpc), Some(app)));
    assert_eq!((leaf.public_key, leaf.quote), (key, None));
    assert_eq!(certificate::parse(&chain[1]).unwrap().public_key, authority.public_key());
    assert!(authority.gateway(&app, &[1; 91], std::time::SystemTime::now()).is_err());
}

#[tokio::test]
async fn t17_an_ingress_in_a_cvm_is_a_gateway_when_the_settings_name_its_app() {
    let boot = Boot::of(COMPOSE, READY);
    let asked = || Config { subject: GATEWAY_SUBJECT.into(), ..wishes() };
    let world = World::with(Setup { gateway: Some(boot.app), ..Setup::default() }).await;
    let leaf = async |config| {
        let chain = sign(&world, &boot, &boot.csr(config)).await.unwrap().certificate_chain;
        let claims = certificate::parse(pem::parse(&chain[0]).unwrap().contents()).unwrap();
        (claims.usage, claims.app_id, chain.len())
    };
    assert_eq!(leaf(asked()).await, (Some(Usage::GatewayRpc), Some(boot.app), 2));
    let (log, _) = world.engine.log().of_app(&boot.app, 0, 0).unwrap();
    assert!(format!("{log:?}").contains("role=gateway:rpc"), "t23: {log:?}");
    assert_eq!(leaf(wishes()).await.0, Some(Usage::AppCustom), "its other certificates are an app's");

    let other = Boot::of(&other_compose(1), READY);
    let refused = sign(&world, &other, &other.csr(asked())).await.unwrap_err();
    assert!(refused.contains("is not the gateway") && refused.contains("gateway_app_id"), "{refused}");
    let claimed = Boot::of(&other_compose(1), READY).claiming(boot.app);
    assert!(sign(&world, &claimed, &claimed.csr(asked())).await.is_err(), "an app id is a claim (T1)");
}
