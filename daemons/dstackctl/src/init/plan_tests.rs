// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;
use crate::init::answers::{Answers, Certificate, Defaults};
use crate::init::draft::parse;
use crate::init::settings::files;

const ACME: &str = "base_domain='a.b'\naddress='h.b'\n[certificate]\nsource='acme'\n[certificate.dns]\nprovider='cloudflare'\n";
const PLAIN: &str = "base_domain='a.b'\naddress='h.b'\n";

pub(in crate::init) fn goal(text: &str) -> Goal {
    let answers = Answers::check(&parse(text).unwrap(), &Defaults { address: None }).unwrap();
    Goal {
        files: files(&answers, Some("00112233445566778899aabbccddeeff00112233")),
        kms_domain: answers.kms_domain.clone(),
        certificate: answers.acme().map(|_| format!("*.{}", answers.base_domain)),
        remedy: String::new(),
        own_files: matches!(answers.certificate, Certificate::Files { .. }),
    }
}

/// A host with all packages, whose units are in this state.
pub(in crate::init) fn units(state: &State) -> BTreeMap<&'static str, State> {
    let all = ALL.into_iter().flat_map(|c| c.triggers.iter().copied().chain([c.service]));
    all.map(|unit| (unit, state.clone())).collect()
}

const UP: State = State { loaded: true, active: true, enabled: true };

/// A host that is as it is to be.
fn settled(goal: &Goal) -> Found {
    let files = goal.files.iter().filter_map(|w| Some((w.path, w.text.clone()?))).collect();
    Found { files, units: units(&UP), keys: Keys::Trusted, certified: true, ..Found::default() }
}

fn commands(goal: &Goal, found: &Found) -> Vec<String> {
    plan(goal, found).iter().filter(|s| s.is_shown()).map(Step::command).collect()
}

#[test]
fn a_host_that_is_as_it_is_to_be_is_left_alone() {
    for text in [PLAIN, ACME] {
        let goal = goal(text);
        assert_eq!(plan(&goal, &settled(&goal)), []);
        let stored = BTreeMap::from([("certbot-cloudflare", Secret::Stored)]);
        assert_eq!(plan(&goal, &Found { secrets: stored, ..settled(&goal) }), []);
    }
}

#[test]
fn a_fresh_host_gets_files_then_sockets_then_keys_then_who_needs_them_then_the_certificate() {
    let fresh = Found {
        units: units(&State { loaded: true, ..State::default() }),
        secrets: BTreeMap::from([("certbot-cloudflare", Secret::New)]),
        keys: Keys::None,
        ..Found::default()
    };
    let expected = "\
systemd-creds encrypt --name=certbot-cloudflare - /etc/credstore.encrypted/certbot-cloudflare
write /etc/dstack/kms.toml.d/20-init.toml
write /etc/dstack/tproxy.toml.d/20-init.toml
write /etc/dstack/teepod.toml.d/20-init.toml
write /etc/dstack/certbot.toml.d/20-init.toml
write /etc/dstack/ct-monitor.toml.d/20-init.toml
write /etc/dstack/init.toml
systemctl enable dstack-kms.socket dstack-kms.service dstack-teepod.socket dstack-teepod.service dstack-certbot.timer \
dstack-certbot-rehearsal.timer dstack-certbot.service dstack-tproxy.socket dstack-tproxy-passthrough.socket dstack-tproxy-rpc.socket dstack-tproxy-control.socket dstack-tproxy.service dstack-ct-monitor.timer dstack-ct-monitor.service
systemctl start dstack-kms.socket
systemctl start dstack-teepod.socket
systemctl start dstack-certbot.timer
systemctl start dstack-certbot-rehearsal.timer
systemctl start dstack-tproxy.socket
systemctl start dstack-tproxy-passthrough.socket
systemctl start dstack-tproxy-rpc.socket
systemctl start dstack-tproxy-control.socket
systemctl start dstack-ct-monitor.timer
systemctl restart dstack-kms.service
dstackctl kms bootstrap kms.a.b
dstackctl kms trust (this host's, for all users of this host)
systemctl restart dstack-teepod.service
systemctl restart dstack-certbot.service
systemctl restart dstack-tproxy.service
systemctl restart dstack-ct-monitor.service
dstackctl cert renew a.b";
    assert_eq!(commands(&goal(ACME), &fresh).join("\n"), expected);
    let steps = plan(&goal(ACME), &fresh);
    assert!(
        matches!(steps.first(), Some(Step::Note(units)) if units.contains("dstack-tproxy.service")),
        "{steps:?}"
    );
    // Who is interrupted while the certificate is ordered only orders it again.
    let left = BTreeSet::from(["dstack-certbot.service".to_owned()]);
    let end = [Step::Note(left), Step::Certificate("*.a.b".into()), Step::Done];
    assert!(steps.ends_with(&end), "{steps:?}");
}

#[test]
fn only_what_changes_is_restarted() {
    let (before, after) = (goal(PLAIN), goal(&format!("{PLAIN}[wireguard]\nport=9\n")));
    let found = settled(&before);
    assert_eq!(
        commands(&after, &found),
        [
            "write /etc/dstack/tproxy.toml.d/20-init.toml",
            "write /etc/dstack/init.toml",
            "systemctl restart dstack-tproxy.service"
        ]
    );
}

#[test]
fn a_port_that_changes_takes_its_socket_with_it() {
    let (before, after) = (goal(PLAIN), goal(&format!("{PLAIN}[ports]\npassthrough=9\n")));
    let found = settled(&before);
    let expected = [
        "write /etc/systemd/system/dstack-tproxy-passthrough.socket.d/20-init.conf",
        "write /etc/dstack/init.toml",
        "systemctl daemon-reload",
        "systemctl stop dstack-tproxy.socket dstack-tproxy-passthrough.socket dstack-tproxy-rpc.socket dstack-tproxy-control.socket \
         dstack-tproxy.service 'dstack-tproxy-flow@*.service'",
        "systemctl start dstack-tproxy.socket",
        "systemctl start dstack-tproxy-passthrough.socket",
        "systemctl start dstack-tproxy-rpc.socket",
        "systemctl start dstack-tproxy-control.socket",
        "systemctl restart dstack-tproxy.service",
    ];
    assert_eq!(commands(&after, &found), expected);
    let back = commands(&before, &settled(&after));
    assert_eq!(back[0], "rm /etc/systemd/system/dstack-tproxy-passthrough.socket.d/20-init.conf");
    assert_eq!(back[2..], expected[2..]);
}

#[test]
fn what_an_interrupted_run_left_is_restarted() {
    let goal = goal(PLAIN);
    let noted = BTreeSet::from(["dstack-teepod.service".to_owned()]);
    let found = Found { noted: noted.clone(), ..settled(&goal) };
    assert_eq!(plan(&goal, &found), [Step::Restart("dstack-teepod.service"), Step::Done]);
    let mut gone = found;
    gone.units.insert("dstack-teepod.service", State::default());
    gone.units.insert("dstack-teepod.socket", State::default());
    assert_eq!(plan(&goal, &gone), [Step::Done], "what is not installed any more is forgotten");
}

#[test]
fn who_trusts_it_learns_its_new_address() {
    let (before, after) = (goal(PLAIN), goal("base_domain='a.b'\naddress='other.b'\n"));
    assert!(plan(&after, &settled(&before)).contains(&Step::Trust));
    let found = Found { keys: Keys::Untrusted, ..settled(&before) };
    assert_eq!(plan(&before, &found), [Step::Trust]);
    let found = Found { keys: Keys::Unusable, ..settled(&before) };
    let again = [Step::Restart("dstack-kms.service"), Step::Trust];
    assert_eq!(plan(&before, &found), again, "keys that are there are never made again");
}

#[test]
fn a_new_token_is_tried_at_once_and_a_missing_certificate_is_ordered() {
    let goal = goal(ACME);
    let new = Found { secrets: BTreeMap::from([("certbot-cloudflare", Secret::New)]), ..settled(&goal) };
    let expected = [
        "systemd-creds encrypt --name=certbot-cloudflare - /etc/credstore.encrypted/certbot-cloudflare",
        "systemctl restart dstack-certbot.service",
        "dstackctl cert renew a.b",
    ];
    assert_eq!(commands(&goal, &new), expected);
    let none = Found { certified: false, ..settled(&goal) };
    assert_eq!(plan(&goal, &none), [Step::Certificate("*.a.b".into())]);
}

#[test]
fn without_acme_certbot_gets_no_settings_and_is_not_started() {
    let (acme, plain) = (goal(ACME), goal(PLAIN));
    let commands = commands(&plain, &settled(&acme));
    assert!(commands.contains(&"rm /etc/dstack/certbot.toml.d/20-init.toml".to_owned()));
    assert!(commands.contains(&"systemctl try-restart dstack-certbot.service".to_owned()));
    let off = State { loaded: true, active: false, enabled: false };
    let mut found = settled(&plain);
    for unit in CERTBOT.triggers.iter().chain([&CERTBOT.service]) {
        found.units.insert(unit, off.clone());
    }
    assert_eq!(plan(&plain, &found), []);
}

#[test]
fn what_is_not_installed_is_left_out() {
    let goal = goal(PLAIN);
    let mut found = Found { units: units(&UP), keys: Keys::Absent, ..Found::default() };
    for unit in TPROXY.triggers.iter().chain([&TPROXY.service, &KMS.service]).chain(KMS.triggers) {
        found.units.insert(unit, State::default());
    }
    assert_eq!(
        commands(&goal, &found),
        [
            "write /etc/dstack/teepod.toml.d/20-init.toml",
            "write /etc/dstack/init.toml",
            "systemctl restart dstack-teepod.service"
        ]
    );
}

#[test]
fn a_certificate_that_could_not_be_loaded_is_loaded_again() {
    let goal = goal(&format!("{PLAIN}[certificate]\nsource='files'\nchain='/c.pem'\nkey='/k.pem'\n"));
    let found = Found { unshown: true, ..settled(&goal) };
    assert_eq!(plan(&goal, &found), [Step::ReloadUnit("dstack-tproxy.service")]);
    let noted = BTreeSet::from(["dstack-tproxy.service".to_owned()]);
    let found = Found { noted, ..found };
    assert_eq!(plan(&goal, &found), [Step::Restart("dstack-tproxy.service"), Step::Done]);
}
