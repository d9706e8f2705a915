// SPDX-License-Identifier: Apache-2.0
//! Registrations at a tproxy of the test, over real TLS, into an interface in memory.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
use super::*;
use crate::clock::Clock;
use crate::testing;
use axum::http::StatusCode;
use dstack_core::ids::AppId;
use dstack_ra_rpc::collateral::{Cache, Offline};
use dstack_ra_rpc::peer::BoxFuture;
use dstack_ra_rpc::tls::{client_config, server_config};
use dstack_ra_rpc::{Anchor, Identity, Rules, Server, Session, serve};
use dstack_ra_tls::certificate::{OID_APP_ID, OID_USAGE, Usage, extension};
use dstack_ra_tls::{Policy, Roots};
use dstack_rpc::tproxy::{
    AgentConfig, GatewayRegisterResponse, GatewayWireGuardConfig, RegisterCvmRequest, WireGuardPeer,
};
use dstack_rpc::{Call, Listener, RpcError, Service};
use dstack_wireguard::memory::Memory;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PublicKeyData,
};
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;
use time::OffsetDateTime;

const GATEWAY: [u8; 20] = [0xab; 20];
const NOW: u64 = 1_800_000_000;

/// A key service's authority.
struct Authority {
    key: KeyPair,
    params: CertificateParams,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        Self { key: KeyPair::generate().unwrap(), params }
    }

    /// A certificate for this usage and app, good for both sides.
    fn leaf(&self, usage: Usage, app: [u8; 20]) -> Identity {
        let (key, mut leaf) = (KeyPair::generate().unwrap(), CertificateParams::default());
        leaf.not_before = OffsetDateTime::now_utc() - time::Duration::hours(1);
        leaf.not_after = OffsetDateTime::now_utc() + time::Duration::hours(24);
        leaf.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        leaf.custom_extensions =
            vec![extension(&OID_USAGE, usage.text().as_bytes()), extension(&OID_APP_ID, &app)];
        let leaf = leaf.signed_by(&key, &Issuer::from_params(&self.params, &self.key)).unwrap();
        let root = self.params.self_signed(&self.key).unwrap();
        Identity::new(vec![leaf.der().to_vec(), root.der().to_vec()], Zeroizing::new(key.serialize_der()))
    }

    fn public_key(&self) -> Vec<u8> {
        self.key.subject_public_key_info()
    }
}

/// What a tproxy of the test answers; also what it was asked.
#[derive(Default)]
struct Desk {
    answer: Option<GatewayRegisterResponse>,
    refuse: Option<&'static str>,
    asked: Vec<RegisterCvmRequest>,
}

type Shared = Arc<Mutex<Desk>>;

struct Handler(Session, Shared);

impl Service for Handler {
    const NAMES: &'static [&'static str] = &["Gateway", "Tproxy"];

    async fn call(&self, call: Call) -> Result<Vec<u8>, RpcError> {
        assert_eq!((call.method.as_str(), self.0.peer()?.usage), ("RegisterCvm", Some(Usage::AppCustom)));
        let mut desk = self.1.lock().unwrap();
        desk.asked.push(call.args()?);
        match (desk.refuse, &desk.answer) {
            (Some(why), _) => Err(RpcError::forbidden(why)),
            (None, Some(answer)) => call.reply(answer),
            (None, None) => {
                Err(RpcError { status: StatusCode::SERVICE_UNAVAILABLE, ..RpcError::failed("starting") })
            }
        }
    }
}

/// A tproxy on loopback.
struct Tproxy {
    desk: Shared,
    address: Address,
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Tproxy {
    fn start(identity: &Identity, kms: &Authority) -> Self {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let rules = Rules::issued(Anchor::pinned(kms.public_key()), vec![Usage::AppCustom]);
        let roots = Roots::test_pem(testing::root_pem()).unwrap();
        let verifier = Arc::new(Verifier::new(roots, Policy::default(), Cache::new(None, Offline)));
        let server = Server::new(Arc::new(server_config(identity).unwrap()), verifier, rules);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = Address::parse(&format!("https://{}", listener.local_addr().unwrap())).unwrap();
        let desk = Shared::default();
        let shared = Arc::clone(&desk);
        let listener = Listener::Tcp(tokio::net::TcpListener::from_std(listener).unwrap());
        tokio::spawn(async move {
            let router = move |session: Session| {
                dstack_rpc::router("/prpc", Arc::new(Handler(session, Arc::clone(&shared))))
            };
            serve(listener, server, router, async { drop(stopped.await) }).await;
        });
        Self { desk, address, _stop: stop }
    }

    /// It registers from now on: with this key and these addresses.
    fn answers(&self, key: u8, client: &str, server: &str) {
        let pk = PublicKey::from([key; 32]).to_string();
        let server = WireGuardPeer { pk, ip: server.into(), endpoint: "192.0.2.1:51820".into() };
        let wg = GatewayWireGuardConfig { client_ip: client.into(), servers: vec![server] };
        let agent = AgentConfig { external_port: 443, domain: "app.example".into(), ..Default::default() };
        self.desk.lock().unwrap().answer = Some(GatewayRegisterResponse { wg: Some(wg), agent: Some(agent) });
    }

    fn asked(&self) -> usize {
        self.desk.lock().unwrap().asked.len()
    }
}

/// Shows the app's certificate.
#[derive(Debug)]
struct Shown(Arc<ClientConfig>);

impl Identify for Shown {
    fn identify(&self) -> BoxFuture<'_, Result<Arc<ClientConfig>, Miss>> {
        Box::pin(async { Ok(Arc::clone(&self.0)) })
    }
}

/// A guest with its runtime directory.
struct Guest {
    dir: tempfile::TempDir,
    handover: Handover,
    verifier: Verifier,
    shown: Shown,
    memory: Memory,
}

impl Guest {
    fn new(kms: &Authority, tproxies: &[&Tproxy]) -> Self {
        let identity = kms.leaf(Usage::AppCustom, [1; 20]);
        let handover = Handover {
            tproxies: tproxies.iter().map(|tproxy| tproxy.address.clone()).collect(),
            gateway: Some(AppId::from(GATEWAY)),
            kms: kms.public_key(),
            platform: "simulated".into(),
            allowed_ports: Some(vec![80, 8443]),
            proxy_protocol_ports: vec![8443],
        };
        Self {
            dir: tempfile::tempdir().unwrap(),
            handover,
            verifier: testing::verifier(&Clock::of_image()),
            shown: Shown(Arc::new(client_config(Some(&identity)).unwrap())),
            memory: Memory::default(),
        }
    }

    fn places(&self) -> Places {
        let own = self.dir.path().to_owned();
        Places { handover: own.join("network.json"), agent: own.join("dstack.sock"), own }
    }

    async fn refresh(&self, now: u64) -> Result<(), NetworkError> {
        let places = self.places();
        let (handover, verifier, wireguard) = (&self.handover, &self.verifier, &self.memory);
        Parts { places: &places, handover, verifier, identify: &self.shown, wireguard }.refresh(now).await
    }

    fn state(&self) -> State {
        State::read(&self.places().state())
    }

    /// Addresses and peers of the interface.
    fn interface(&self) -> (Vec<String>, Vec<u8>) {
        let shown = |interface: &mut dstack_wireguard::memory::Interface| {
            let addresses = interface.config.addresses.iter().map(ToString::to_string).collect();
            (addresses, interface.peers.keys().map(|key| key.as_bytes()[0]).collect())
        };
        self.memory.with(&tunnel::INTERFACE, shown).unwrap()
    }
}

#[tokio::test]
async fn a_registered_guest_has_a_tunnel_and_asks_again_only_when_it_breaks() {
    let kms = Authority::new();
    let tproxy = Tproxy::start(&kms.leaf(Usage::GatewayRpc, GATEWAY), &kms);
    tproxy.answers(7, "10.4.0.9", "10.4.0.1");
    let guest = Guest::new(&kms, &[&tproxy]);
    guest.refresh(NOW).await.unwrap();
    assert_eq!(guest.interface(), (vec!["10.4.0.9/32".to_owned()], vec![7]));
    let state = guest.state();
    assert_eq!((state.tunnels[0].domain.as_str(), state.tunnels[0].external_port), ("app.example", 443));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&guest.places().key()), mode(&guest.places().state())), (0o600, 0o644));
    // The key that was registered is the one of the interface, and of the whole boot.
    let private = guest.memory.with(&tunnel::INTERFACE, |i| i.config.private_key.clone()).unwrap();
    let public = derive::x25519_public(&Secret::from(*private.expose())).unwrap();
    let asked = tproxy.desk.lock().unwrap().asked[0].clone();
    let registered = asked.client_public_key;
    assert_eq!(registered, PublicKey::from(public).to_string());
    assert_eq!((asked.allowed_ports, asked.proxy_protocol_ports), (vec![80, 8443], vec![8443]));

    let server = PublicKey::from([7; 32]);
    guest.memory.handshake(&tunnel::INTERFACE, &server, NOW + 100).unwrap();
    guest.refresh(NOW + 200).await.unwrap();
    assert_eq!(tproxy.asked(), 1, "all is well");
    // The tproxy has another key and gives another address: no more handshakes with the old one.
    tproxy.answers(8, "10.4.0.10", "10.4.0.1");
    guest.refresh(NOW + 281).await.unwrap();
    assert_eq!((tproxy.asked(), guest.interface()), (2, (vec!["10.4.0.10/32".to_owned()], vec![8])));
    assert_eq!(tproxy.desk.lock().unwrap().asked[1].client_public_key, registered);
    // Somebody deleted the interface.
    guest.memory.delete(&tunnel::INTERFACE).await.unwrap();
    guest.refresh(NOW + 282).await.unwrap();
    assert_eq!((tproxy.asked(), guest.interface().1), (3, vec![8]));
}

#[tokio::test]
async fn t17_a_gateway_is_only_whom_the_apps_key_service_made_one() {
    let (kms, other) = (Authority::new(), Authority::new());
    for (who, identity) in [
        ("a key service", kms.leaf(Usage::KmsRpc, GATEWAY)),
        ("an app", kms.leaf(Usage::AppCustom, GATEWAY)),
        ("an app's authority", kms.leaf(Usage::AppCa, GATEWAY)),
        ("another gateway", kms.leaf(Usage::GatewayRpc, [0xac; 20])),
        ("another key service's gateway", other.leaf(Usage::GatewayRpc, GATEWAY)),
    ] {
        let tproxy = Tproxy::start(&identity, &kms);
        tproxy.answers(7, "10.4.0.9", "10.4.0.1");
        let guest = Guest::new(&kms, &[&tproxy]);
        let error = guest.refresh(NOW).await.unwrap_err();
        assert!(matches!(error, NetworkError::Unregistered), "{who}: {error}");
        assert_eq!(tproxy.asked(), 0, "{who} was told something");
        assert!(guest.memory.dump(&tunnel::INTERFACE).await.is_err(), "{who} got a tunnel");
    }
    let guest = Guest::new(&kms, &[]);
    assert!(matches!(guest.refresh(NOW).await, Err(NetworkError::NoAddress)));
    let handover = Handover { gateway: None, ..guest.handover.clone() };
    let nobody = Guest { handover, ..guest };
    assert!(matches!(nobody.refresh(NOW).await, Err(NetworkError::NoGateway)));
}

#[tokio::test]
async fn one_tproxy_of_several_is_enough_and_a_lost_one_keeps_its_tunnel() {
    let kms = Authority::new();
    let gateway = || kms.leaf(Usage::GatewayRpc, GATEWAY);
    let (one, two) = (Tproxy::start(&gateway(), &kms), Tproxy::start(&gateway(), &kms));
    two.answers(8, "10.5.0.9", "10.5.0.1");
    let guest = Guest::new(&kms, &[&one, &two]);
    guest.refresh(NOW).await.unwrap();
    assert_eq!(guest.interface().1, [8]);
    let name = one.address.to_string();
    assert_eq!(guest.state().missed.get(&name), Some(&register::MissKind::Unreachable));
    one.answers(7, "10.4.0.9", "10.4.0.1");
    guest.refresh(NOW + 1).await.unwrap();
    assert_eq!((guest.interface().1, guest.state().missed.len()), (vec![7, 8], 0));
    assert_eq!(two.asked(), 1, "only what is missing is asked for");
    // The first one is away again: what it gave stays, so that it can come back.
    one.desk.lock().unwrap().answer = None;
    guest.refresh(NOW + 500).await.unwrap();
    assert_eq!((guest.interface().1, one.asked()), (vec![7, 8], 3));
}

#[tokio::test]
async fn t18_what_is_kept_of_a_failure_is_its_kind() {
    let kms = Authority::new();
    let tproxy = Tproxy::start(&kms.leaf(Usage::GatewayRpc, GATEWAY), &kms);
    let guest = Guest::new(&kms, &[&tproxy]);
    for (refuse, answer, kind) in [
        (Some("words of a server"), None, register::MissKind::Refused),
        (None, Some(GatewayRegisterResponse::default()), register::MissKind::Answer),
        (None, None, register::MissKind::Unreachable),
    ] {
        {
            let mut desk = tproxy.desk.lock().unwrap();
            (desk.refuse, desk.answer) = (refuse, answer);
        }
        let mut state = State::default();
        let config = guest.shown.identify().await.unwrap();
        let places = guest.places();
        let (handover, verifier, wireguard) = (&guest.handover, &guest.verifier, &guest.memory);
        let parts = Parts { places: &places, handover, verifier, identify: &guest.shown, wireguard };
        let key = PublicKey::from([3; 32]);
        let miss =
            parts.register(&tproxy.address, config, AppId::from(GATEWAY), &key, NOW).await.unwrap_err();
        assert_eq!(miss.kind, kind, "{miss:?}");
        state.missed(&tproxy.address, &miss);
        state.write(&places.state()).unwrap();
        let kept = std::fs::read_to_string(places.state()).unwrap();
        assert!(!kept.contains("words") && !kind.sentence().contains("words"), "{kept}");
    }
}
