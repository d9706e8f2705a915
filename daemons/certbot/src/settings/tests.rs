// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]

use super::*;

fn of(text: &str) -> Result<Option<Settings>, String> {
    let input: Input = toml::from_str(text).map_err(|e| e.to_string())?;
    Settings::from_input(input).map_err(|e| e.to_string())
}

const DNS: &str = "[dns]\nprovider = \"rfc2136\"\n[dns.rfc2136]\nserver = \"192.0.2.1\"\nkey_name = \"k\"\n";

#[test]
fn the_shipped_file_says_nothing_and_means_it() {
    let text = include_str!("../../../../units/host/certbot.toml");
    assert!(of(text).unwrap().is_none());
    // Every key that it shows is known: without the comment signs, only the values differ.
    let shown: String = text
        .lines()
        .filter_map(|l| l.strip_prefix('#'))
        .filter(|l| !l.starts_with(' '))
        .map(|l| format!("{l}\n"))
        .collect();
    let settings = of(&shown).unwrap().unwrap();
    assert!(!settings.certificates.is_empty(), "{shown}");
}

#[test]
fn what_init_writes_is_understood() {
    let written = include_str!("../../../dstackctl/testdata/init/rfc2136/certbot.toml");
    let settings = of(written).unwrap().unwrap();
    assert_eq!(settings.authority.url, "https://ca.example.com/dir");
    assert_eq!(settings.eab_key_id.as_deref(), Some("kid-1"));
    assert_eq!(settings.resolver, Some("192.0.2.1:53".parse().unwrap()));
    assert!(matches!(&settings.dns, Dns::Rfc2136 { key_name, .. } if key_name == "dstack"));
    let written = include_str!("../../../dstackctl/testdata/init/cloudflare/certbot.toml");
    let settings = of(written).unwrap().unwrap();
    let [certificate] = settings.certificates.as_slice() else { panic!("{settings:?}") };
    assert_eq!(certificate.domain.as_str(), "apps.example.com");
    assert_eq!(settings.authority.url, PRODUCTION);
}

#[test]
fn the_originals_file_is_understood() {
    let text = "workdir = \".\"\nacme_url = \"https://acme-staging-v02.api.letsencrypt.org/directory\"\ncf_api_token = \"t\"\n\
                cf_zone_id = \"0123456789abcdef0123456789abcdef\"\nauto_set_caa = true\ndomain = \"*.example.com\"\n\
                renew_interval = 3600\nrenew_days_before = 10\nrenew_timeout = 120\n";
    let settings = of(text).unwrap().unwrap();
    let [certificate] = settings.certificates.as_slice() else { panic!("{settings:?}") };
    assert_eq!((certificate.domain.as_str(), certificate.names.len()), ("example.com", 1));
    assert!(
        matches!(&settings.dns, Dns::Cloudflare { zone_id: Some(id), token: Some(_), .. } if id.len() == 32)
    );
    assert_eq!(settings.rehearsal.unwrap().url, STAGING);
    assert!(!format!("{:?}", settings.dns).contains("\"t\""), "the token is shown to nobody");
}

#[test]
fn several_certificates_with_several_names() {
    let text = format!(
        "domain = \"*.a.example\"\n[[certificate]]\nnames = [\"*.b.example\", \"b.example\", \"c.example\"]\n{DNS}"
    );
    let settings = of(&text).unwrap().unwrap();
    let domains: Vec<&str> = settings.certificates.iter().map(|c| c.domain.as_str()).collect();
    assert_eq!(domains, ["a.example", "b.example"]);
    assert_eq!(settings.certificates.last().unwrap().bases().len(), 2);
    assert!(matches!(settings.dns, Dns::Rfc2136 { server, .. } if server.port() == 53));
}

#[test]
fn errors_name_the_key() {
    let with = |text: &str| of(&format!("domain = \"a.example\"\n{text}\n{DNS}")).unwrap_err();
    for (text, key) in [
        ("acme_url = \"http://ca\"", "acme_url"),
        ("renew_days_before = 0", "renew_days_before"),
        ("renew_timeout = 0", "renew_timeout"),
        ("foreign_caa = \"burn\"", "foreign_caa"),
        ("frob = 1", "frob"),
        ("[[certificate]]\nnames = []", "certificate.names"),
        ("[[certificate]]\nnames = [\"*.a.example\"]", "certificate.names"),
        ("[propagation]\nservers = [\"x\"]", "propagation.servers"),
    ] {
        assert!(with(text).contains(key), "{text}: {}", with(text));
    }
    assert!(of("domain = \"a.example\"").unwrap_err().contains("dns.provider"));
    assert!(of("domain = \"no\"").unwrap_err().contains("\"no\""));
    let clear = "domain = \"a.example\"\n[dns]\nprovider = \"cloudflare\"\n[dns.cloudflare]\nbase_url = \"http://api.example\"";
    assert!(of(clear).unwrap_err().contains("base_url"));
    assert!(of(&clear.replace("api.example", "127.0.0.1:8080")).is_ok());
}

#[test]
fn a_thousand_certificates_are_planned_at_once() {
    let table = |n: usize| format!("[[certificate]]\nnames = [\"*.d{n}.example\", \"d{n}.example\"]\n");
    let text = |count: usize| format!("{DNS}{}", (0..count).map(table).collect::<String>());
    assert_eq!(of(&text(1000)).unwrap().unwrap().certificates.len(), 1000);
    assert!(of(&text(1001)).unwrap_err().contains("1000"));
}
