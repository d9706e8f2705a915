// SPDX-License-Identifier: Apache-2.0
//! The certificate of the ingress comes from certbot, and changes without a reload.

use crate::world::{PATIENCE, World};
use dstack_core::flow::{self, FromFlow, ToFlow};
use dstack_service::api::certbot1::{Error, NAME, PATH};
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use std::io::{Read, Seek, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use zbus::object_server::SignalEmitter;
use zbus::{Connection, OwnedFd, interface};

type Live = Arc<Mutex<Option<(String, String, Vec<u8>)>>>;

/// A certbot that has what the test gives it.
struct Certbot {
    live: Live,
    connection: Connection,
}

struct Manager(Live);

fn file(text: &str) -> OwnedFd {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.rewind().unwrap();
    OwnedFd::from(std::os::fd::OwnedFd::from(file))
}

#[interface(name = "org.dstack.certbot1.Manager")]
impl Manager {
    fn get_certificate(&self, domain: String) -> Result<(OwnedFd, OwnedFd), Error> {
        if domain != "apps.example.com" {
            return Err(Error::NoCertificate(format!("none of {domain}")));
        }
        let live = self.0.lock().unwrap();
        let (chain, key, _) = live.as_ref().ok_or_else(|| Error::NoCertificate("none yet".into()))?;
        Ok((file(chain), file(key)))
    }

    fn historical_keys(&self, domain: String) -> Result<Vec<Vec<u8>>, Error> {
        assert_eq!(domain, "");
        Ok(self.0.lock().unwrap().iter().map(|(_, _, key)| key.clone()).collect())
    }

    #[zbus(property)]
    fn account_uri(&self) -> String {
        "https://ca.example/acct/1".to_owned()
    }

    #[zbus(signal)]
    async fn certificate_changed(
        emitter: &SignalEmitter<'_>,
        domain: &str,
        public_key: &[u8],
    ) -> zbus::Result<()>;
}

impl Certbot {
    async fn new(address: &str) -> Self {
        let live = Live::default();
        let connection = zbus::conn::Builder::address(address)
            .serve_at(PATH, Manager(Arc::clone(&live)))
            .name(NAME)
            .build()
            .await
            .unwrap();
        Self { live, connection }
    }

    /// Gets a certificate, and says so; gives its chain.
    async fn renew(&self) -> String {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["*.apps.example.com".to_owned()]).unwrap();
        let chain = params.self_signed(&key).unwrap().pem();
        let public = key.subject_public_key_info();
        *self.live.lock().unwrap() = Some((chain.clone(), key.serialize_pem(), public.clone()));
        let object = self.connection.object_server().interface::<_, Manager>(PATH).await.unwrap();
        Manager::certificate_changed(object.signal_emitter(), "apps.example.com", &public).await.unwrap();
        chain
    }
}

/// A data plane that only listens.
struct Plane(UnixStream, flow::Decoder);

impl Plane {
    fn connect(world: &World) -> Self {
        let mut stream = UnixStream::connect(world.path("flow.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let hello = FromFlow::Hello { version: flow::PROTOCOL, generation: 1, pid: 1 };
        stream.write_all(&flow::format(&hello).unwrap()).unwrap();
        Self(stream, flow::Decoder::default())
    }

    /// The next chain that it is told to show.
    fn chain(&mut self) -> String {
        loop {
            while let Some(body) = self.1.next_frame().unwrap() {
                if let flow::Parsed::Known(ToFlow::Certificates(all)) = flow::parse(body).unwrap() {
                    assert_eq!(all[0].names, ["*.apps.example.com"]);
                    return all[0].chain.clone();
                }
            }
            let mut piece = [0; 4096];
            let read = self.0.read(&mut piece).unwrap();
            assert!(read > 0, "it hung up");
            self.1.push(&piece[..read]);
        }
    }
}

async fn chain_of(mut plane: Plane) -> (Plane, String) {
    tokio::task::spawn_blocking(move || {
        let chain = plane.chain();
        (plane, chain)
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_shown_without_a_restart() {
    let mut world = World::stopped(true).await;
    world.configure("");
    let certbot = Certbot::new(&world.address).await;
    world.start().await;
    world.until_started().await;
    let status = world.manager.status().await.unwrap();
    assert!(status.contains("passthrough only") && status.contains("apps.example.com"), "{status}");
    let plane = Plane::connect(&world);
    let first = certbot.renew().await;
    let (plane, shown) = chain_of(plane).await;
    assert_eq!(shown, first);
    let second = certbot.renew().await;
    let (_plane, shown) = chain_of(plane).await;
    assert!(shown == second && first != second);
    assert_eq!(world.systemd.said(), ["start dstack-tproxy-flow@1.service"], "no data plane was replaced");
    let status = world.manager.status().await.unwrap();
    assert!(!status.contains("passthrough only"), "{status}");
    // A restart asks again, and a reload keeps it.
    world.kill().await;
    let plane = Plane::connect(&world);
    world.start().await;
    let (_plane, shown) = chain_of(plane).await;
    assert_eq!(shown, second);
    world.manager.reload().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_goes_on_without_an_answer_of_certbot() {
    let mut world = World::stopped(true).await;
    world.configure("");
    let certbot = Certbot::new(&world.address).await;
    world.start().await;
    world.until_started().await;
    world.manager.reload().await.unwrap();
    let status = world.manager.status().await.unwrap();
    assert!(status.contains("passthrough only: no certificate of certbot"), "{status}");
    let plane = Plane::connect(&world);
    let first = certbot.renew().await;
    assert_eq!(chain_of(plane).await.1, first);
    *certbot.live.lock().unwrap() = None;
    world.manager.reload().await.unwrap();
    assert_eq!(chain_of(Plane::connect(&world)).await.1, first, "what was shown goes on being shown");
    let said = world.systemd.said();
    assert!(said.contains(&"start dstack-tproxy-flow@3.service".to_owned()), "{said:?}");
    // Another name's certificate is not what was shown.
    world.configure("[certbot]\ndomain='other.example.com'");
    let refused = world.manager.reload().await;
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(world.systemd.said(), said, "nothing was replaced");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_appear_wait_for_a_reload() {
    let mut world = World::stopped(true).await;
    world.configure("");
    let certbot = Certbot::new(&world.address).await;
    world.start().await;
    world.until_started().await;
    let plane = Plane::connect(&world);
    let first = certbot.renew().await;
    let (plane, shown) = chain_of(plane).await;
    assert_eq!(shown, first);
    world.certificate();
    let second = certbot.renew().await;
    let (plane, shown) = chain_of(plane).await;
    assert_eq!(shown, second, "certbot is still listened to");
    world.manager.reload().await.unwrap();
    let of_files = std::fs::read_to_string(world.path("cert.pem")).unwrap();
    assert_eq!(chain_of(plane).await.1, of_files);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_the_operator_win_unless_certbot_is_named() {
    let mut world = World::stopped(true).await;
    let certbot = Certbot::new(&world.address).await;
    let of_certbot = certbot.renew().await;
    world.certificate();
    let of_files = std::fs::read_to_string(world.path("cert.pem")).unwrap();
    for (more, expected) in [("", &of_files), ("[certbot]\ndomain='*.apps.example.com'", &of_certbot)] {
        world.configure(more);
        let plane = Plane::connect(&world);
        world.start().await;
        assert_eq!(chain_of(plane).await.1, *expected, "{more}");
        world.kill().await;
    }
}
