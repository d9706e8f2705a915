// SPDX-License-Identifier: Apache-2.0
//! The socket to data planes: what they are told, when, and who may listen.

use crate::world::{World, request};
use dstack_core::flow::{
    self, Certificate, Counters, Decoder, FromFlow, Parsed, Secret, Stats, Target, ToFlow,
};
use dstack_rpc::tproxy::RegisterCvmRequest;
use dstack_tproxy::names::{BoxFuture, Lookup, Names, Txt};
use dstack_tproxy::session::{Feed, Shared, config, serve};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::timeout;

const ID: &str = "0101010101010101010101010101010101010101";
const PATIENCE: Duration = Duration::from_secs(10);

/// Every `_dstack-app-address` leads to the same app.
#[derive(Debug)]
struct Zone;

impl Lookup for Zone {
    fn txt<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Txt, String>> {
        let values = name.starts_with("_dstack-app-address.www").then(|| format!("{ID}:443"));
        Box::pin(async { Ok(Txt { values: values.into_iter().collect(), ttl: 77 }) })
    }
}

struct Plane {
    stream: UnixStream,
    decoder: Decoder,
}

impl Plane {
    async fn connect(world: &World, generation: u64) -> Self {
        let stream = UnixStream::connect(world.path("flow.sock")).await.unwrap();
        let mut plane = Self { stream, decoder: Decoder::default() };
        plane.say(&FromFlow::Hello { version: flow::PROTOCOL, generation, pid: 1 }).await;
        plane
    }

    async fn say(&mut self, message: &FromFlow) {
        self.stream.write_all(&flow::format(message).unwrap()).await.unwrap();
    }

    async fn next(&mut self) -> ToFlow {
        timeout(PATIENCE, self.read()).await.expect("nothing came")
    }

    async fn read(&mut self) -> ToFlow {
        loop {
            if let Some(body) = self.decoder.next_frame().unwrap() {
                match flow::parse::<ToFlow>(body).unwrap() {
                    Parsed::Known(message) => return message,
                    Parsed::Unknown(kind) => panic!("{kind}"),
                }
            }
            let mut buffer = [0; 4096];
            let read = self.stream.read(&mut buffer).await.unwrap();
            assert_ne!(read, 0, "it was cut off");
            self.decoder.push(&buffer[..read]);
        }
    }

    async fn greeted(world: &World, generation: u64) -> (Self, Vec<ToFlow>) {
        let mut plane = Self::connect(world, generation).await;
        // Without a certificate nothing is said of certificates.
        let first = vec![plane.next().await, plane.next().await];
        (plane, first)
    }
}

fn start(world: &World, users: Vec<u32>) -> watch::Sender<Arc<Feed>> {
    let settings = world.engine.settings();
    let fed = Feed { config: config(&settings.proxy), certificates: Vec::new() };
    let (sender, feed) = watch::channel(Arc::new(fed));
    let listener = UnixListener::bind(world.path("flow.sock")).unwrap();
    let names = Names::new(Arc::new(Zone));
    let shared = Shared { engine: world.engine.clone(), feed, names, users: Arc::new(users) };
    tokio::spawn(serve(listener, shared));
    sender
}

fn ours() -> Vec<u32> {
    vec![rustix::process::geteuid().as_raw()]
}

#[tokio::test]
async fn a_data_plane_gets_everything_and_then_changes() {
    let world = World::new().await;
    world.register(&world.boot(1, 1), 1).await.unwrap();
    let feed = start(&world, ours());
    let (mut plane, first) = Plane::greeted(&world, 3).await;
    let [ToFlow::Config(config), ToFlow::Routes { instances }] = first.as_slice() else {
        panic!("{first:?}")
    };
    assert_eq!(
        (config.base_domains.as_slice(), config.connect_top_n),
        (&["apps.example.com".to_owned()][..], 3)
    );
    assert_eq!((instances.len(), instances[0].address.to_string().as_str()), (1, "10.0.0.2"));
    world.register(&world.boot(1, 2), 2).await.unwrap();
    assert!(
        matches!(plane.next().await, ToFlow::RouteDelta { upsert, .. } if upsert[0].address.to_string() == "10.0.0.3")
    );
    let id = [2; 20].into();
    world.engine.drain(&id, true).await.unwrap();
    assert!(matches!(plane.next().await, ToFlow::RouteDelta { upsert, .. } if upsert[0].draining));
    world.engine.remove(&id).await.unwrap();
    assert!(matches!(plane.next().await, ToFlow::RouteDelta { remove, .. } if remove == [id]));
    let key = Secret::from("key".to_owned());
    let certificate = Certificate { names: vec!["*.apps.example.com".into()], chain: "chain".into(), key };
    let fed = Feed { config: config.clone(), certificates: vec![certificate.clone()] };
    feed.send_replace(Arc::new(fed));
    assert!(matches!(plane.next().await, ToFlow::Config(_)));
    assert_eq!(plane.next().await, ToFlow::Certificates(vec![certificate]));
}

#[tokio::test]
async fn an_instance_says_which_of_its_ports_may_be_reached() {
    let world = World::new().await;
    let _feed = start(&world, ours());
    let (mut plane, _) = Plane::greeted(&world, 1).await;
    let mut next = async || match plane.next().await {
        ToFlow::RouteDelta { upsert, .. } => upsert.into_iter().next().unwrap(),
        other => panic!("{other:?}"),
    };
    let identity = world.kms.app(&world.boot(1, 1));
    let register = async |allowed: &[u32], proxied: &[u32]| {
        let (allowed_ports, proxy_protocol_ports) = (allowed.to_vec(), proxied.to_vec());
        let request = RegisterCvmRequest { allowed_ports, proxy_protocol_ports, ..request(1) };
        let path = "/prpc/Gateway.RegisterCvm";
        world.call::<_, serde_json::Value>(Some(&identity), path, &request).await.unwrap();
    };
    register(&[80, 8443], &[8443]).await;
    let instance = next().await;
    assert_eq!(instance.port_policy, Some([80, 8443].into()));
    assert_eq!(instance.proxy_protocol, [8443].into());
    assert!(instance.allows(80) && !instance.allows(8090) && !instance.allows(443));
    // After an upgrade the same instance says something else, and the data planes hear it.
    register(&[443], &[]).await;
    let instance = next().await;
    assert_eq!((instance.port_policy.clone(), instance.proxy_protocol.len()), (Some([443].into()), 0));
    register(&[], &[80]).await;
    let instance = next().await;
    assert!(instance.port_policy.is_none() && instance.allows(8090) && instance.proxy_protocol.contains(&80));
}

#[tokio::test]
async fn custom_domains_are_looked_up() {
    let world = World::new().await;
    let _feed = start(&world, ours());
    let (mut plane, _) = Plane::greeted(&world, 1).await;
    plane.say(&FromFlow::Name { name: "www.example.org".into() }).await;
    let target = Some(Target { id: ID.parse().unwrap(), port: 443 });
    assert_eq!(plane.next().await, ToFlow::NameAnswer { name: "www.example.org".into(), target, ttl: 77 });
    plane.say(&FromFlow::Name { name: "other.example.org".into() }).await;
    assert!(matches!(plane.next().await, ToFlow::NameAnswer { target: None, .. }));
}

#[tokio::test]
async fn numbers_of_all_generations_add_up() {
    let world = World::new().await;
    let _feed = start(&world, ours());
    let mut connected = world.engine.flows().connected();
    let (mut old, _) = Plane::greeted(&world, 1).await;
    let (mut new, _) = Plane::greeted(&world, 2).await;
    let stats =
        |accepted| Stats { counters: Counters { accepted, ..Counters::default() }, instances: Vec::new() };
    old.say(&FromFlow::Stats(Box::new(stats(5)))).await;
    old.say(&FromFlow::Drained {}).await;
    new.say(&FromFlow::Stats(Box::new(stats(7)))).await;
    // An answer comes after what was said before it.
    new.say(&FromFlow::Name { name: "a.b".into() }).await;
    new.next().await;
    drop(old);
    timeout(PATIENCE, connected.wait_for(|count| *count == 1)).await.unwrap().unwrap();
    assert_eq!(world.engine.flows().total().accepted, 12);
    assert_eq!(world.engine.flows().planes()[0].generation, 2);
}

#[tokio::test]
async fn p32_nobody_else_gets_certificates() {
    let world = World::new().await;
    let _feed = start(&world, vec![4_000_000]);
    let mut plane = UnixStream::connect(world.path("flow.sock")).await.unwrap();
    assert_eq!(plane.read(&mut [0; 16]).await.unwrap_or(0), 0, "it is cut off without a word");
}

#[tokio::test]
async fn whoever_does_not_begin_with_hello_is_cut_off() {
    let world = World::new().await;
    let _feed = start(&world, ours());
    for first in
        [flow::format(&FromFlow::Drained {}).unwrap().to_vec(), vec![0xff; 64], b"\0\0\0\x02{}".to_vec()]
    {
        let mut plane = UnixStream::connect(world.path("flow.sock")).await.unwrap();
        plane.write_all(&first).await.unwrap();
        let read = timeout(PATIENCE, plane.read(&mut [0; 16])).await.unwrap();
        assert_eq!(read.unwrap_or(0), 0);
    }
    let (_plane, first) = Plane::greeted(&world, 1).await;
    assert_eq!(first.len(), 2, "others are served");
}
