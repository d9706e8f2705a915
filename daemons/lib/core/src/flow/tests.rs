// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
use super::*;
use std::collections::BTreeSet;

fn id(byte: u8) -> InstanceId {
    [byte; 20].into()
}

fn instance(byte: u8) -> Instance {
    Instance {
        instance_id: id(byte),
        app_id: [byte; 20].into(),
        address: [10, 0, 0, byte].into(),
        handshake: Some(1_700_000_000),
        port_policy: Some(BTreeSet::from([80, 443])),
        proxy_protocol: BTreeSet::from([80]),
        draining: false,
    }
}

fn certificate() -> Certificate {
    let key = Secret::from("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n".to_owned());
    Certificate { names: vec!["*.example.org".into()], chain: "chain".into(), key }
}

fn to_flow() -> Vec<ToFlow> {
    vec![
        ToFlow::Config(Config { base_domains: vec!["example.org".into()], ..Config::default() }),
        ToFlow::Certificates(vec![certificate()]),
        ToFlow::Routes { instances: vec![instance(1), instance(2)] },
        ToFlow::RouteDelta { upsert: vec![instance(3)], remove: vec![id(1)] },
        ToFlow::NameAnswer {
            name: "www.example.net".into(),
            target: Some(Target { id: [7; 20].into(), port: 443 }),
            ttl: 60,
        },
        ToFlow::NameAnswer { name: "none.example.net".into(), target: None, ttl: 5 },
        ToFlow::Drain { instance: id(2) },
    ]
}

fn from_flow() -> Vec<FromFlow> {
    let counters = Counters { accepted: 7, ..Counters::default() };
    let news = InstanceStats { instance: id(1), connected: 5, failed: 1, open: 2 };
    vec![
        FromFlow::Hello { version: PROTOCOL, generation: 3, pid: 4711 },
        FromFlow::Name { name: "www.example.net".into() },
        FromFlow::Stats(Box::new(Stats { counters, instances: vec![news] })),
        FromFlow::Drained {},
    ]
}

fn round_trip<T: Message + PartialEq + std::fmt::Debug>(messages: &[T]) {
    let stream: Vec<u8> = messages.iter().flat_map(|m| format(m).unwrap().to_vec()).collect();
    // However the stream is cut, the same messages come out of it.
    for piece in [1, 3, 7, 100, stream.len()] {
        let (mut decoder, mut found) = (Decoder::default(), Vec::new());
        for bytes in stream.chunks(piece) {
            decoder.push(bytes);
            while let Some(body) = decoder.next_frame().unwrap() {
                found.push(parse::<T>(body).unwrap());
            }
        }
        let expected = messages.iter().map(|m| parse::<T>(&format(m).unwrap()[4..]).unwrap());
        assert!(found.iter().eq(expected.collect::<Vec<_>>().iter()));
        assert!(
            found.iter().zip(messages).all(|(f, m)| matches!(f, Parsed::Known(f) if f == m)),
            "{found:?}"
        );
        assert_eq!(found.len(), messages.len());
    }
}

#[test]
fn every_message_survives_every_cut() {
    round_trip(&to_flow());
    round_trip(&from_flow());
}

#[test]
fn the_kinds_are_all_there() {
    for (json, kinds) in [
        (to_flow().iter().map(|m| serde_json::to_value(m).unwrap()).collect::<Vec<_>>(), ToFlow::KINDS),
        (from_flow().iter().map(|m| serde_json::to_value(m).unwrap()).collect(), FromFlow::KINDS),
    ] {
        let seen: BTreeSet<&str> =
            json.iter().flat_map(|v| v.as_object().unwrap().keys().map(String::as_str)).collect();
        assert_eq!(seen, kinds.iter().copied().collect());
    }
}

#[test]
fn a_newer_peer_is_understood_as_far_as_possible() {
    let unknown = |text: &str| matches!(parse::<ToFlow>(text.as_bytes()).unwrap(), Parsed::Unknown(_));
    assert!(unknown(r#"{"shape-traffic":{"rate":3}}"#));
    assert!(unknown(r#""pause""#));
    let hello = r#"{"hello":{"version":2,"generation":9,"pid":1,"mood":"fine"}}"#;
    let expected = FromFlow::Hello { version: 2, generation: 9, pid: 1 };
    assert_eq!(parse::<FromFlow>(hello.as_bytes()).unwrap(), Parsed::Known(expected));
    let config = |text: &[u8]| match parse(text).unwrap() {
        Parsed::Known(ToFlow::Config(config)) => config,
        other => panic!("not a config: {other:?}"),
    };
    assert_eq!(config(br#"{"config":{"ktls":"off"}}"#).ktls, Ktls::Off);
    let config = config(br#"{"config":{"timeouts":{"idle":null}}}"#);
    assert_eq!(config.ktls, Ktls::Auto);
    assert_eq!((config.timeouts.idle, config.timeouts.connect, config.connect_top_n), (None, 5_000, 3));
}

#[test]
fn what_is_wrong_is_refused() {
    let app = "07".repeat(20);
    for text in [
        String::new(),
        "{}".into(),
        "[]".into(),
        r#"{"drain":{}}"#.into(),
        r#"{"drain":{"instance":"07"}}"#.into(),
        r#"{"config":{},"drain":{}}"#.into(),
        r#"{"config":{"tappd_port":0}}"#.into(),
        r#"{"config":{"base_domains":[""]}}"#.into(),
        format!(r#"{{"name-answer":{{"name":"a.b","target":{{"id":"{app}","port":0}},"ttl":1}}}}"#),
        format!(r#"{{"name-answer":{{"name":"{}","target":null,"ttl":1}}}}"#, "a".repeat(254)),
        format!(r#"{{"routes":{{"instances":[{{"instance_id":"{app}","app_id":"{app}","address":"x"}}]}}}}"#),
    ] {
        assert!(parse::<ToFlow>(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn limits_hold_both_ways() {
    let ports: BTreeSet<u16> = (1..=65).collect();
    let many = Instance { port_policy: Some(ports), ..instance(1) };
    assert!(matches!(format(&ToFlow::Routes { instances: vec![many] }), Err(FrameError::Limit(_))));
    let certificates = vec![certificate(); CERTIFICATES_MAX + 1];
    assert!(matches!(format(&ToFlow::Certificates(certificates)), Err(FrameError::Limit(_))));
    let mut decoder = Decoder::default();
    decoder.push(&u32::MAX.to_be_bytes());
    assert!(matches!(decoder.next_frame(), Err(FrameError::TooLarge(_))));
}

#[test]
fn a_whole_snapshot_fits() {
    let ports: BTreeSet<u16> = (65_000..65_000 + 8).collect();
    let largest = Instance {
        address: "fd00:1111:2222:3333:4444:5555:6666:7777".parse().unwrap(),
        port_policy: Some(ports.clone()),
        proxy_protocol: ports,
        draining: true,
        ..instance(255)
    };
    let frame = format(&ToFlow::Routes { instances: vec![largest; INSTANCES_MAX] }).unwrap();
    assert!(frame.len() < FRAME_MAX);
}

#[test]
fn keys_are_never_printed() {
    let all = format!("{:?}", ToFlow::Certificates(vec![certificate()]));
    assert!(all.contains("example.org") && !all.contains("PRIVATE") && !all.contains("c2Vj"), "{all}");
}

#[test]
fn counters_add_up_and_are_named() {
    let mut sum = Counters { accepted: 1, open: 2, ..Counters::default() };
    sum.add(&Counters { accepted: 5, reset: 1, ..Counters::default() });
    assert_eq!((sum.accepted, sum.open, sum.reset), (6, 2, 1));
    let names: BTreeSet<_> = sum.each().map(|(name, ..)| name).collect();
    assert_eq!(names.len(), sum.each().count());
    assert!(sum.each().any(|found| matches!(found, ("accepted", Kind::Counter, _, 6))));
}
