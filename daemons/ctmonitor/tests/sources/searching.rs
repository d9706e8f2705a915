// SPDX-License-Identifier: Apache-2.0
//! crt.sh.

use crate::certs::issue;
use crate::crtsh::Crtsh;
use crate::server::{Handler, Reply, Server};
use crate::world::{NAMES, OTHERS, OURS, THEIRS, World, http, ids, keys, ours, search};
use dstack_ctmonitor::alert::{Alert, Book};
use dstack_ctmonitor::head::Lie;
use dstack_ctmonitor::http::{Base, Http};
use dstack_ctmonitor::limits::ALERTS_MAX;
use dstack_ctmonitor::source::search::{Query, Search};
use dstack_ctmonitor::store::Store;
use std::sync::Arc;

#[tokio::test]
async fn every_unknown_key_alerts_once_and_none_hides_another() {
    let crtsh = Crtsh::start().await;
    crtsh.list(14_705_660_685, issue(&OURS, &NAMES, 1, 0, false));
    crtsh.list(14_666_084_839, issue(&THEIRS, &NAMES, 2, 1, false));
    crtsh.list(14_666_084_000, issue(&OTHERS, &["x.apps.example.com", "b.org"], 3, 2, true));
    crtsh.list(14_000_000_000, issue(&THEIRS, &NAMES, 4, 3, true));
    let world = World::new(vec![search(&crtsh.server.url, false, 100)]);
    let first = world.check().await;
    assert_eq!(ids(&first.new_alerts), keys(&[&THEIRS, &OTHERS]), "{first:?}");
    assert_eq!((first.looked_at, first.troubles.len()), (4, 0), "{first:?}");
    let asked = crtsh.server.take();
    assert_eq!(asked[0], "/?q=apps.example.com&output=json&limit=10000");
    assert_eq!(asked[1], "/?d=14705660685", "the newest first");
    let again = world.check().await;
    assert_eq!((again.new_alerts.len(), again.looked_at), (0, 0));
    assert_eq!(crtsh.server.take().len(), 1, "nothing is downloaded twice");
    // One that comes late under a lower number is seen all the same.
    let late = rcgen::KeyPair::generate().unwrap();
    crtsh.list(13_000_000_000, issue(&late, &NAMES, 5, 9, false));
    assert_eq!(ids(&world.check().await.new_alerts), keys(&[&late]));
    let view = world.engine.view();
    assert_eq!((view.open, view.known, view.check.error.as_str()), (3, 1, ""));
    let alert = world.engine.alerts().into_iter().find(|a| a.id == keys(&[&OTHERS])[0]).unwrap();
    assert_eq!(alert.names, ["b.org", "x.apps.example.com"]);
    assert!(alert.place.ends_with("/?id=14666084000") && alert.issuer.contains("Test CA"), "{alert:?}");
    assert!(alert.text.contains("precertificate"), "{alert:?}");
}

#[tokio::test]
async fn a_full_book_neither_silences_alerts_nor_stops_other_sources() {
    let (one, two) = (Crtsh::start().await, Crtsh::start().await);
    one.list(1, issue(&THEIRS, &NAMES, 1, 0, false));
    two.list(1, issue(&OTHERS, &NAMES, 2, 0, false));
    let (mut book, store) = (Book::default(), Store::memory());
    for n in 0..ALERTS_MAX {
        let lie = Lie::Forked;
        book.note(Alert::log_lies(&n.to_string(), "Argon", &lie, "evidence", 1)).unwrap();
    }
    book.told(&book.untold());
    store.put_book(&book).unwrap();
    let sources = vec![search(&one.server.url, false, 9), search(&two.server.url, false, 9)];
    let world = World::with(sources, vec![ours()], false, store);
    let summary = world.check().await;
    assert_eq!(ids(&summary.new_alerts), keys(&[&THEIRS, &OTHERS]), "{summary:?}");
    assert_eq!(summary.looked_at, 2, "{summary:?}");
    assert!(world.engine.view().check.error.starts_with("2 alerts are in the journal only"), "{summary:?}");
    // Each is said once, and with room the next is kept again.
    assert!(world.check().await.new_alerts.is_empty());
    assert_eq!(world.engine.view().check.error, "");
    world.engine.acknowledge(&book.list()[0].id).unwrap();
    let late = rcgen::KeyPair::generate().unwrap();
    two.list(2, issue(&late, &NAMES, 3, 0, false));
    assert_eq!(ids(&world.check().await.new_alerts), keys(&[&late]));
    assert!(world.engine.alerts().iter().any(|kept| kept.id == keys(&[&late])[0]));
}

#[tokio::test]
async fn p30_no_answer_of_a_broken_server_is_an_empty_list() {
    for (reply, said, pause) in [
        (Reply::page(404, "Not Found"), "404", 60),
        (Reply::page(429, "Too Many Requests").with("Retry-After", "900"), "429", 900),
        (Reply::page(502, "Bad Gateway"), "Bad Gateway", 60),
        (Reply::page(503, "Service Unavailable"), "503", 60),
        (Reply { status: 200, ..Reply::page(200, "crt.sh") }, "no list of certificates", 60),
        (Reply::ok("[{\"id\": 1,"), "no list of certificates", 60),
        (Reply::ok(""), "no list of certificates", 60),
    ] {
        let crtsh = Crtsh::start().await;
        crtsh.list(5, issue(&THEIRS, &NAMES, 2, 0, false));
        crtsh.fault("?q=", reply);
        let world = World::new(vec![search(&crtsh.server.url, false, 100)]);
        let failed = world.check().await;
        assert!(failed.troubles.len() == 1 && failed.troubles[0].contains(said), "{failed:?}");
        assert!(failed.new_alerts.is_empty() && world.engine.view().check.error.contains(said));
        assert_eq!(crtsh.server.take().len(), 1);
        world.later(pause - 1);
        let left = world.check().await;
        assert!(
            left.troubles[0].contains("left alone for 1 s") && left.troubles[0].contains(said),
            "{left:?}"
        );
        assert_eq!(crtsh.server.take().len(), 0, "{said}: it is left alone");
        crtsh.mend();
        world.later(1);
        assert_eq!(ids(&world.check().await.new_alerts), keys(&[&THEIRS]), "{said}");
        assert_eq!(world.engine.view().check.error, "");
    }
}

#[tokio::test]
async fn a_server_that_asks_for_a_pause_gets_it_for_all_domains() {
    let crtsh = Crtsh::start().await;
    crtsh.fault("?q=", Reply::page(429, "Too Many Requests").with("Retry-After", "120"));
    let url = &crtsh.server.url;
    let other = Search::new(
        http(),
        Base::parse(url).unwrap(),
        Query::Below("other.example.com".parse().unwrap()),
        false,
        9,
    );
    let world = World::new(vec![search(url, false, 9), Box::new(other)]);
    assert_eq!(world.check().await.troubles.len(), 2);
    assert_eq!(crtsh.server.take().len(), 1);
}

#[tokio::test]
async fn one_failing_download_blocks_no_other() {
    let crtsh = Crtsh::start().await;
    for (id, serial) in [(1, 1), (3, 3)] {
        crtsh.list(id, issue(&THEIRS, &NAMES, serial, 0, false));
    }
    crtsh.list(2, issue(&OTHERS, &NAMES, 2, 0, false));
    crtsh.fault("?d=2", Reply::page(404, "Not Found"));
    let world = World::new(vec![search(&crtsh.server.url, false, 100)]);
    let first = world.check().await;
    assert_eq!(ids(&first.new_alerts), keys(&[&THEIRS]));
    assert!(first.troubles[0].contains("certificate 2") && first.looked_at == 2, "{first:?}");
    crtsh.mend();
    world.later(60);
    crtsh.server.take();
    assert_eq!(ids(&world.check().await.new_alerts), keys(&[&OTHERS]));
    assert_eq!(crtsh.server.take().len(), 2, "only what was missing");
}

#[tokio::test]
async fn certificates_that_fail_for_good_keep_no_older_one_from_being_looked_at() {
    let crtsh = Crtsh::start().await;
    (7..=9).for_each(|id| crtsh.list(id, issue(&OURS, &NAMES, id, 0, false)));
    (7..=9).for_each(|id| crtsh.fault(&format!("?d={id}"), Reply::page(404, "Not Found")));
    crtsh.list(1, issue(&THEIRS, &NAMES, 1, 0, false));
    let world = World::new(vec![search(&crtsh.server.url, false, 3)]);
    assert!(world.check().await.new_alerts.is_empty(), "three in a row seem to be the server's fault");
    world.later(60);
    let second = world.check().await;
    assert_eq!(ids(&second.new_alerts), keys(&[&THEIRS]));
    assert!(second.troubles[0].contains("3 could not be looked at"), "{second:?}");
    let asked: Vec<usize> = {
        let mut asked = Vec::new();
        for _ in 0..3 {
            crtsh.server.take();
            assert!(!world.check().await.troubles.is_empty(), "it is no success");
            asked.push(crtsh.server.take().len());
            world.later(300);
        }
        asked
    };
    assert_eq!(asked, [2, 4, 4], "the list, and what is due");
    // A new one is found at once, and not after the pause of a source that fails.
    crtsh.list(10, issue(&OTHERS, &NAMES, 2, 0, false));
    assert_eq!(ids(&world.check().await.new_alerts), keys(&[&OTHERS]));
    world.later(86_400);
    let blind = world.check().await.new_alerts;
    assert_eq!(blind[0].kind.word(), "blind", "{blind:?}");
    crtsh.mend();
    world.later(3600);
    world.check().await;
    assert_eq!((world.engine.view().check.error.as_str(), world.engine.view().open), ("", 2));
}

#[tokio::test]
async fn a_wildcard_above_a_domain_is_found() {
    let crtsh = Crtsh::start().await;
    crtsh.list(1, issue(&THEIRS, &["*.example.com", "example.com"], 1, 0, false));
    crtsh.list(2, issue(&OTHERS, &["www.example.com"], 2, 0, false));
    let base = Base::parse(&crtsh.server.url).unwrap();
    let query = Query::Exactly("*.example.com".to_owned());
    let world = World::new(vec![Box::new(Search::new(http(), base, query, false, 9))]);
    assert_eq!(ids(&world.check().await.new_alerts), keys(&[&THEIRS]));
    assert_eq!(crtsh.server.take(), ["/?q=*.example.com&match=%3D&output=json&limit=10000", "/?d=1"]);
    assert!(world.check().await.troubles.is_empty());
}

#[tokio::test]
async fn a_server_that_is_down_is_not_asked_for_everything() {
    let crtsh = Crtsh::start().await;
    (1..=50).for_each(|id| crtsh.list(id, issue(&THEIRS, &NAMES, id, 0, false)));
    crtsh.fault("?d=", Reply::page(502, "Bad Gateway"));
    let world = World::new(vec![search(&crtsh.server.url, false, 100)]);
    assert!(world.check().await.new_alerts.is_empty());
    assert_eq!(crtsh.server.take().len(), 4);
}

#[tokio::test]
async fn downloads_are_capped_and_go_on_in_the_next_check() {
    let crtsh = Crtsh::start().await;
    (1..=7).for_each(|id| crtsh.list(id, issue(&OURS, &NAMES, id, 0, false)));
    crtsh.list(0, issue(&THEIRS, &NAMES, 99, 0, false));
    let world = World::new(vec![search(&crtsh.server.url, false, 3)]);
    for (looked_at, pending) in [(3, 5), (3, 2), (2, 0), (0, 0)] {
        let summary = world.check().await;
        let positions = world.engine.positions().unwrap();
        assert_eq!((summary.looked_at, positions[0].pending), (looked_at, pending));
    }
    assert_eq!(ids(&world.engine.alerts()), keys(&[&THEIRS]));
}

#[tokio::test]
async fn expired_certificates_are_skipped_by_option_only() {
    let crtsh = Crtsh::start().await;
    crtsh.list(1, issue(&THEIRS, &NAMES, 1, 200, false));
    crtsh.list(2, issue(&OTHERS, &NAMES, 2, 10, false));
    let url = &crtsh.server.url;
    let skipping = World::with(vec![search(url, true, 9)], vec![crate::world::ours()], true, Store::memory());
    assert_eq!(ids(&skipping.check().await.new_alerts), keys(&[&OTHERS]));
    assert!(!crtsh.server.take().contains(&"/?d=1".to_owned()));
    let whole = World::new(vec![search(url, false, 9)]);
    assert_eq!(ids(&whole.check().await.new_alerts), keys(&[&OTHERS, &THEIRS]));
}

#[tokio::test]
async fn what_is_not_listed_any_more_is_told_and_looked_at_again() {
    let crtsh = Crtsh::start().await;
    let issued = issue(&OURS, &NAMES, 1, 0, false);
    crtsh.list(1, issued.clone());
    let world = World::new(vec![search(&crtsh.server.url, false, 9)]);
    world.check().await;
    crtsh.state.lock().unwrap().listed.clear();
    let gone = world.check().await;
    assert!(gone.troubles[0].contains("not any more"), "{gone:?}");
    assert!(world.check().await.troubles.is_empty(), "told once");
    crtsh.list(1, issued);
    assert_eq!(world.check().await.looked_at, 1);
}

#[tokio::test]
async fn another_certificate_than_the_listed_one_is_refused() {
    let crtsh = Crtsh::start().await;
    crtsh.list(1, issue(&THEIRS, &NAMES, 1, 0, false));
    crtsh.fault("?d=1", Reply::ok(issue(&OURS, &NAMES, 2, 0, false).pem));
    let world = World::new(vec![search(&crtsh.server.url, false, 9)]);
    let summary = world.check().await;
    assert!(summary.troubles[0].contains("another certificate"), "{summary:?}");
    assert_eq!(summary.looked_at, 0);
}

#[tokio::test]
async fn a_certificate_that_cannot_be_read_is_an_alert() {
    let crtsh = Crtsh::start().await;
    crtsh.list(1, issue(&THEIRS, &NAMES, 1, 0, false));
    let pem = "-----BEGIN CERTIFICATE-----\nMAMCAQU=\n-----END CERTIFICATE-----\n";
    crtsh.fault("?d=1", Reply::ok(pem));
    let world = World::new(vec![search(&crtsh.server.url, false, 9)]);
    let first = world.check().await;
    assert_eq!((first.new_alerts.len(), first.new_alerts[0].kind.word()), (1, "unreadable"));
    assert!(world.check().await.new_alerts.is_empty());
}

#[tokio::test]
async fn state_outlives_a_restart() {
    let (crtsh, dir) = (Crtsh::start().await, tempfile::tempdir().unwrap());
    crtsh.list(1, issue(&THEIRS, &NAMES, 1, 0, false));
    let sources = || vec![search(&crtsh.server.url, false, 9)];
    assert_eq!(World::at(dir.path(), sources()).check().await.new_alerts.len(), 1);
    crtsh.server.take();
    let world = World::at(dir.path(), sources());
    assert_eq!(ids(&world.engine.alerts()), keys(&[&THEIRS]));
    let again = world.check().await;
    assert_eq!((again.new_alerts.len(), crtsh.server.take().len()), (0, 1));
    world.engine.acknowledge(&keys(&[&THEIRS])[0]).unwrap();
    let last = World::at(dir.path(), sources());
    assert_eq!((last.engine.view().open, last.engine.alerts().len()), (0, 1));
    std::fs::write(dir.path().join("alerts.json"), "{").unwrap();
    let parts = || World::at(dir.path(), sources());
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(parts)).is_err(), "damaged is not empty");
}

#[tokio::test]
async fn blindness_is_an_alert_and_ends() {
    let crtsh = Crtsh::start().await;
    crtsh.fault("?q=", Reply::page(502, "Bad Gateway"));
    let world = World::new(vec![search(&crtsh.server.url, false, 9)]);
    assert!(world.check().await.new_alerts.is_empty());
    world.later(86_399);
    assert!(world.check().await.new_alerts.is_empty());
    world.later(3601);
    let blind = world.check().await;
    assert_eq!((blind.new_alerts.len(), blind.new_alerts[0].kind.word()), (1, "blind"));
    assert!(blind.new_alerts[0].text.contains("Bad Gateway"), "{blind:?}");
    world.later(3601);
    assert!(world.check().await.new_alerts.is_empty(), "once");
    crtsh.mend();
    world.later(3601);
    world.check().await;
    assert_eq!(world.engine.view().open, 0);
}

/// TLS with a certificate of an authority of the test.
#[tokio::test]
async fn https_is_checked_by_the_authorities() {
    let key = rcgen::KeyPair::generate().unwrap();
    let own = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let pkcs8 = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
    let config =
        builder.unwrap().with_no_client_auth().with_single_cert(vec![own.der().clone()], pkcs8.into());
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config.unwrap()));
    let handler: Handler = Arc::new(|_| Reply::ok("[]"));
    let server = Server::serve(handler, Some(acceptor)).await;
    let dir = tempfile::tempdir().unwrap();
    let (file, base) = (dir.path().join("ca.pem"), Base::parse(&server.url).unwrap());
    std::fs::write(&file, own.pem()).unwrap();
    assert_eq!(Http::trusting(&file).unwrap().get(&base, "?q=x", 10).await.unwrap(), b"[]");
    let other = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(&file, other.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()).unwrap();
    let refused = Http::trusting(&file).unwrap().get(&base, "", 10).await.unwrap_err();
    assert!(refused.to_string().contains("certificate"), "{refused}");
}

#[tokio::test]
async fn p15_an_endless_answer_is_cut_off() {
    let handler: Handler = Arc::new(|_| Reply::ok(vec![b' '; 100_000]));
    let server = Server::start(handler).await;
    let error = http().get(&Base::parse(&server.url).unwrap(), "", 99_999).await.unwrap_err();
    assert!(error.to_string().contains("larger than 99999"), "{error}");
}

#[tokio::test]
async fn a_clock_that_was_ahead_hides_no_blindness() {
    let crtsh = Crtsh::start().await;
    let world = World::new(vec![search(&crtsh.server.url, false, 9)]);
    world.later(10 * 86_400);
    assert!(world.check().await.troubles.is_empty());
    world.clock.fetch_sub(10 * 86_400, std::sync::atomic::Ordering::Relaxed);
    crtsh.fault("?q=", Reply::page(502, "Bad Gateway"));
    assert!(world.check().await.new_alerts.is_empty());
    world.later(86_400);
    assert_eq!(world.check().await.new_alerts.len(), 1);
}
