// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use crate::measure::Measured;
use crate::testing::{self, Kms, Mode, Sim, realm};
use dstack_tdx_attest::simulated::Simulated;
use serde_json::json;
use std::sync::atomic::Ordering;
use time::OffsetDateTime;

fn clock() -> Clock {
    Clock::of_image()
}

/// Asks as a boot that pins `pinned` and was told these addresses; how often it waited, too.
fn ask_by(
    clock: &Clock,
    pinned: &Kms,
    urls: &[String],
    also: impl Fn(),
) -> (Result<Granted, KmsError>, usize) {
    let dir = tempfile::tempdir().unwrap();
    let files = testing::files(testing::kms_compose(pinned, &json!({})), urls);
    let inputs = testing::inputs(&files);
    let sim = Sim::launched_for(&inputs.compose_bytes);
    let mut measured = Measured::open(Box::new(Simulated::new(sim)), dir.path(), &inputs).unwrap();
    measured.inputs(&inputs).unwrap();
    let request =
        GetAppKeyRequest { app_compose: inputs.compose_bytes.clone(), ..GetAppKeyRequest::default() };
    let ask = Ask {
        addresses: &inputs.hints.kms,
        pinned: &hex::decode(pinned.pin()).unwrap(),
        verifier: &testing::verifier(clock),
        clock,
    };
    let mut waits = 0;
    let mut waiting = || {
        waits += 1;
        also();
    };
    let outcome = obtain(&ask, &request, &mut |data| measured.attest(data), &mut waiting);
    (outcome, waits)
}

fn ask(pinned: &Kms, urls: &[String]) -> Result<Granted, KmsError> {
    ask_by(&clock(), pinned, urls, || ()).0
}

/// An address at which nobody listens.
fn nowhere() -> String {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    format!("https://127.0.0.1:{port}")
}

#[test]
fn keys_are_those_of_the_measured_app_and_instance() {
    let kms = Kms::start(Mode::Good, &realm());
    let granted = ask(&kms, &[nowhere(), "https://".into(), kms.url()]).unwrap();
    let (app, instance) = testing::ids(&testing::kms_compose(&kms, &json!({})));
    let roots = testing::kms_roots();
    assert_eq!(granted.disk, roots.disk_key(&app, Some(&instance)).unwrap());
    assert_eq!(granted.env, roots.env_secret(&app).unwrap());
    assert_eq!(granted.k256, roots.app_key(&app).unwrap());
    assert_eq!((granted.custody, granted.k256_signature), ("host", "01".repeat(65)));
    assert_eq!(granted.ca_cert, kms.pem);
}

#[test]
fn t03_an_address_is_a_hint_and_the_pin_decides() {
    let (pinned, other) = (Kms::start(Mode::Good, &realm()), Kms::start(Mode::Good, &realm()));
    let error = ask(&pinned, &[other.url()]).unwrap_err();
    assert!(matches!(error, KmsError::Foreign(_)), "{error}");
    assert_eq!(error.failure(), Failure::KeysForeign);
    assert_eq!(other.asked.load(Ordering::SeqCst), 0, "nothing was asked of it");
    assert!(ask(&pinned, &[other.url(), pinned.url()]).is_ok());
}

#[test]
fn t04_a_key_service_of_the_other_realm_is_refused() {
    use dstack_ra_tls::roots::Label;
    for other in [Label::Intel, Label::Test("0123456789abcdef".into())] {
        let kms = Kms::start(Mode::Good, &other);
        let error = ask(&kms, &[kms.url()]).unwrap_err();
        assert!(matches!(&error, KmsError::Realm { kms, .. } if *kms == other.to_string()), "{error}");
        assert_eq!(error.failure(), Failure::KeysRealm);
    }
}

#[test]
fn a_refusal_ends_it_at_once_with_the_key_services_words() {
    let kms = Kms::start(Mode::Refuse, &realm());
    let error = ask(&kms, &[kms.url(), nowhere()]).unwrap_err();
    assert!(matches!(&error, KmsError::Refused(why) if why.contains("not allowed")), "{error}");
    assert_eq!(error.failure(), Failure::KeysRefused);
    assert_eq!(kms.asked.load(Ordering::SeqCst), 1);
    assert!(matches!(ask(&kms, &[]), Err(KmsError::NoAddress)));
}

#[test]
fn an_error_of_the_key_service_is_not_a_refusal() {
    let kms = Kms::start(Mode::Flaky, &realm());
    assert!(ask(&kms, &[kms.url()]).is_ok());
    assert_eq!(kms.asked.load(Ordering::SeqCst), 4);
}

#[test]
fn while_nobody_can_be_reached_it_waits_and_says_so() {
    // Somebody comes up at the address after the first report.
    let kms = Kms::start(Mode::Good, &realm());
    let url = nowhere();
    let (from, to) = (url.trim_start_matches("https://").to_owned(), kms.port);
    let relay = std::sync::Once::new();
    let up = || relay.call_once(|| forward(&from, to));
    let (outcome, waits) = ask_by(&clock(), &kms, std::slice::from_ref(&url), up);
    assert!(outcome.is_ok(), "{outcome:?}");
    assert!(waits >= 1);
}

/// Passes connections on, from now on.
fn forward(from: &str, to: u16) {
    let listener = std::net::TcpListener::bind(from).unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let server = std::net::TcpStream::connect(("127.0.0.1", to)).unwrap();
            for (mut from, mut to) in
                [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)]
            {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
            }
        }
    });
}

#[test]
fn t12_a_clock_set_back_does_not_make_an_old_certificate_good() {
    let old = OffsetDateTime::now_utc() - time::Duration::days(365);
    let kms = Kms::start_with(Mode::Good, &realm(), old);
    // The host sets the clock back to when that certificate was good; the floor knows better.
    let year_ago = || {
        let now = std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        now - 365 * 86_400 + 3600
    };
    let floor = year_ago() + 200 * 86_400;
    let (outcome, _) = ask_by(&Clock::new(floor, year_ago), &kms, &[kms.url()], || ());
    assert!(matches!(&outcome, Err(KmsError::Foreign(why)) if why.contains("expired")), "{outcome:?}");
    // Without a floor it would have been taken: the key service then refuses the guest's own certificate.
    let (outcome, _) = ask_by(&Clock::new(0, year_ago), &kms, &[kms.url()], || ());
    assert!(!matches!(outcome, Err(KmsError::Foreign(_))), "{outcome:?}");
}

#[test]
fn t12_the_key_services_certificate_tells_a_guest_of_a_year_ago_the_time() {
    let began = OffsetDateTime::now_utc() - time::Duration::hours(20);
    let kms = Kms::start_with(Mode::Good, &realm(), began);
    let clock = Clock::new(0, || {
        let now = std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        now - 365 * 86_400
    });
    let (outcome, _) = ask_by(&clock, &kms, &[kms.url()], || ());
    assert!(outcome.is_ok(), "{outcome:?}");
    assert!(clock.is_behind());
    assert_eq!(i64::try_from(clock.now()).unwrap(), began.unix_timestamp());
    // Somebody else's certificate tells nothing.
    let other = Kms::start_with(Mode::Good, &realm(), began);
    let clock = Clock::new(0, || 1);
    let (outcome, _) = ask_by(&clock, &kms, &[other.url()], || ());
    assert!(matches!(outcome, Err(KmsError::Foreign(_))), "{outcome:?}");
    assert_eq!(clock.now(), 1);
}

#[test]
fn pauses_vary_between_half_and_whole() {
    let pause = Duration::from_secs(8);
    for _ in 0..100 {
        let jittered = jittered(pause);
        assert!(jittered >= pause / 2 && jittered <= pause, "{jittered:?}");
    }
}
