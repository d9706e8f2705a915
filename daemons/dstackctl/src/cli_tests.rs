// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use clap::CommandFactory;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_definition_holds_together() {
    Cli::command().debug_assert();
}

#[test]
fn good_lines() {
    for line in [
        "dstackctl init",
        "dstackctl init --print-answers",
        "dstackctl init --yes --dry-run",
        "dstackctl init --answers answers.toml --yes",
        "dstackctl init --answers - --dry-run --json",
        "dstackctl init --base-domain a.b --kms-port 1 --certificate acme --dns rfc2136 --tsig-key-file /k",
        "dstackctl doctor",
        "dstackctl --json doctor",
        "dstackctl doctor --json",
        "dstackctl --no-wait deploy compose.yaml -p 8080:80",
        "dstackctl deploy compose.yaml -c 2 -m 2G -d 20G -p 8080:80 -p 0.0.0.0:53:53/udp --no-wait",
        "dstackctl deploy compose.yaml --insecure-registry registry.test:5000 --name hello",
        "dstackctl deploy --runner bash --script main.sh --name hello",
        "dstackctl deploy - --name x --dry-run",
        "dstackctl -H root@host vm list",
        "dstackctl vm ls",
        "dstackctl vm rm -f a b",
        "dstackctl vm resize a -m 4G --no-ports --autostart",
        "dstackctl vm wait a --state stopped --timeout 2min",
        "dstackctl vm upgrade a compose.yaml --restart",
        "dstackctl vm upgrade a compose.yaml --no-secrets",
        "dstackctl deploy f -e A=b -e C --env-file .env --env-file more.env --kms kms.example.com",
        "dstackctl deploy f --key-provider none --pin",
        "dstackctl deploy f --key-provider kms --upgrade-key owner.pub --allow-tags",
        "dstackctl kms status",
        "dstackctl kms bootstrap kms.example.com",
        "dstackctl kms trust https://kms.example.com:9043 --yes --default --system",
        "dstackctl kms untrust kms.example.com",
        "dstackctl kms allow-upgrade 3327603e03f5bd1f830812ca4a789277fc31f577 3327603e03f5bd1f830812ca4a789277fc31f577",
        "dstackctl kms upgrades 0x3327603e03f5bd1f830812ca4a789277fc31f577",
        "dstackctl kms submit-upgrade upgrade.json --kms kms.example.com",
        "dstackctl kms release-log 3327603e03f5bd1f830812ca4a789277fc31f577 --after 3 -n 5",
        "dstackctl kms forecast",
        "dstackctl kms allow-peer aa --ttl 10min",
        "dstackctl kms onboard https://kms.example.com --yes",
        "dstackctl proxy ls --json",
        "dstackctl proxy info",
        "dstackctl proxy info 3327603e03f5bd1f830812ca4a789277fc31f577",
        "dstackctl proxy drain 3327603e03f5bd1f830812ca4a789277fc31f577",
        "dstackctl proxy undrain 3327603e03f5bd1f830812ca4a789277fc31f577",
        "dstackctl proxy rm 3327603e03f5bd1f830812ca4a789277fc31f577",
        "dstackctl -H root@host proxy stats",
        "dstackctl app keygen -o owner.pem",
        "dstackctl app show owner.pem",
        "dstackctl vm logs a -n 20 -f",
        "dstackctl image import ./image",
        "dstackctl logs a web -f --since 10m --tail 5 --timestamps",
        "dstackctl logs a --console",
    ] {
        if let Err(error) = parse(line) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn wrong_lines() {
    for line in [
        "dstackctl",
        "dstackctl deploy",
        "dstackctl init --certificate self-signed",
        "dstackctl init --dns route53",
        "dstackctl init --realm tdx",
        "dstackctl init --kms-port 70000",
        "dstackctl init --cf-token s3cret",
        "dstackctl deploy f -p 80",
        "dstackctl deploy f -m 2048",
        "dstackctl deploy f --name Not_Valid",
        "dstackctl deploy f --app-id 12",
        "dstackctl deploy f --docker-login me",
        "dstackctl deploy f --pin --allow-tags",
        "dstackctl deploy f --key-provider local",
        "dstackctl vm upgrade a f --no-secrets -e A=b",
        "dstackctl kms",
        "dstackctl kms trust",
        "dstackctl kms trust u --fingerprint 12",
        "dstackctl kms allow-upgrade 3327603e03f5bd1f830812ca4a789277fc31f577 12",
        "dstackctl kms allow-upgrade 12 3327603e03f5bd1f830812ca4a789277fc31f577",
        "dstackctl app sign-upgrade --key k --app 3327603e03f5bd1f830812ca4a789277fc31f577 --seq 1",
        "dstackctl app sign-upgrade --key k --app 3327603e03f5bd1f830812ca4a789277fc31f577 --compose f --seq 0",
        "dstackctl proxy",
        "dstackctl proxy drain",
        "dstackctl proxy drain 12",
        "dstackctl vm remove",
        "dstackctl vm resize a --autostart --no-autostart",
        "dstackctl vm resize a --no-ports -p 1:1",
        "dstackctl vm wait a --timeout soon",
        "dstackctl logs a web --console",
        "dstackctl frobnicate",
    ] {
        assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
    }
}

#[test]
fn the_last_of_wait_and_no_wait_counts() {
    assert!(parse("dstackctl vm start a").unwrap().global.waits());
    assert!(!parse("dstackctl vm start a --no-wait").unwrap().global.waits());
    assert!(parse("dstackctl --wait vm start a").unwrap().global.waits());
}
