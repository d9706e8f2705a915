// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]

use super::*;

const SHIPPED: &str = include_str!("../../../../units/host/ct-monitor.toml");
const KEY: &str = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEn7khjUQH1H3NJ/C8QmmBgzoNTptlH6hT5bgiQ6mQcYYg5KZoe4ZK4xCszXu4NH5NiLaDH0wHKsvg3RIQ+TTaag==";

fn settings(text: &str) -> Result<Option<Settings>, String> {
    let input = toml::from_str(text).map_err(|e| e.to_string())?;
    Settings::from_input(input).map_err(|e| e.to_string())
}

fn minimal(more: &str) -> String {
    format!("domains=['*.Apps.example.com']\n{more}\n[[tproxy]]\nuri='https://127.0.0.1'\n")
}

fn with_log(more: &str) -> String {
    format!(
        "{}[[log]]\nname='A'\nkind='static'\nurl='https://a.example/x/'\nkey='{KEY}'\n{more}\n",
        minimal("")
    )
}

#[test]
fn the_shipped_file_is_the_default_and_not_configured() {
    let printed = |text: &str| format!("{:?}", toml::from_str::<Input>(text).unwrap());
    assert_eq!(printed(SHIPPED), printed(""));
    assert!(settings(SHIPPED).unwrap().is_none());
    // Every key in it is a known one, and its default is the real one; the example at its end is one.
    let (defaults, example) = SHIPPED.split_once("# Example").unwrap();
    let active = |text: &str| {
        let lines = text.lines().map(|line| line.strip_prefix('#').unwrap_or(line));
        lines.filter(|line| line.contains(" = ") || line.starts_with('[')).collect::<Vec<_>>().join("\n")
    };
    assert!(active(defaults).lines().count() > 10);
    assert_eq!(printed(&active(defaults)), printed(""));
    let example = settings(&active(example)).unwrap().unwrap();
    assert_eq!((example.domains.len(), example.tproxies.len(), example.logs.len()), (1, 1, 2));
}

#[test]
fn a_domain_and_an_ingress_are_enough() {
    let settings = settings(&minimal("")).unwrap().unwrap();
    assert_eq!(settings.domains, ["apps.example.com".parse().unwrap()]);
    assert_eq!(settings.tproxies.first().unwrap().address.to_string(), "127.0.0.1:9070");
    assert_eq!(settings.crtsh.unwrap().base.to_string(), "https://crt.sh");
    assert_eq!((settings.blind_after, settings.skip_expired), (86_400, false));
}

#[test]
fn logs_have_their_origin() {
    let kind = |text: &str| settings(text).unwrap().unwrap().logs.first().unwrap().kind.clone();
    assert_eq!(kind(&with_log("")), LogKind::Static("a.example/x".into()));
    assert_eq!(kind(&with_log("origin='b.example/y'")), LogKind::Static("b.example/y".into()));
    assert_eq!(kind(&with_log("").replace("'static'", "'rfc6962'")), LogKind::Rfc6962);
}

#[test]
fn wrong_keys_are_named() {
    let twice =
        format!("{}[[log]]{}", with_log(""), with_log("").split_once("[[log]]").map_or("", |(_, l)| l));
    for (text, key) in [
        ("domains=['x']".to_owned(), "domains"),
        ("domains=['a.example.com']".to_owned(), "tproxy"),
        (minimal("[crtsh]\nenabled=false"), "crtsh.enabled"),
        (minimal("[crtsh]\nurl='crt.sh'"), "crtsh.url"),
        (minimal("[crtsh]\ndownloads_per_check=0"), "crtsh.downloads_per_check"),
        (minimal("blind_after='59m'"), "blind_after"),
        (minimal("blind_after='31d'"), "blind_after"),
        (minimal("known_keys=['ab']"), "known_keys"),
        (minimal("skip_expierd=true"), "skip_expierd"),
        (minimal("").replace("https", "http"), "tproxy.uri"),
        (format!("{}app_id='x'", minimal("")), "tproxy.app_id"),
        (format!("{}kms_public_key='x'", minimal("")), "tproxy.kms_public_key"),
        (with_log("").replace("'static'", "'tiles'"), "log.kind"),
        (with_log("").replace(KEY, "AAAA"), "log.key"),
        (with_log("").replace("'A'", "''"), "log.name"),
        (with_log("entries_per_check=0"), "log.entries_per_check"),
        (with_log("").replace("https://a", "a"), "log.url"),
        (twice, "log.name"),
    ] {
        let error = settings(&text).unwrap_err();
        assert!(error.contains(key), "{text}: {error}");
    }
}
