// SPDX-License-Identifier: Apache-2.0
//! The arguments of `init`.

use crate::init::draft::{Certificate, Cid, Cloudflare, Dns, Draft, Eab, Ports, Rfc2136, Wireguard};
use crate::realm::Realm;
use clap::{Args, ValueHint};
use std::path::PathBuf;

const EXAMPLES: &str = "\
It can be run again at any time: with the same answers it changes nothing, and after an interruption it goes on. The
answers are kept in /etc/dstack/init.toml; without --answers they are what counts where no option says otherwise.

Exit status: 0 all is set up, 1 a step failed or something is to be mended, 2 an answer is wrong or missing, 4 not root.

Examples:
  sudo dstackctl init                                      # asks
  dstackctl init --print-answers >answers.toml             # to be filled in
  dstackctl init --answers answers.toml --dry-run          # shows what would change
  sudo dstackctl init --answers answers.toml --yes
  sudo dstackctl init --base-domain apps.example.com --certificate files --yes";

/// `init`.
#[derive(Debug, Clone, Default, Args)]
#[command(after_help = EXAMPLES)]
pub struct Init {
    /// Read the answers from this TOML file (- for standard input), and ask for nothing
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub answers: Option<PathBuf>,
    /// Print a file of answers with comments, to be filled in
    #[arg(long, conflicts_with_all = ["answers", "yes", "dry_run"])]
    pub print_answers: bool,
    /// Do what is shown without being asked
    #[arg(short, long)]
    pub yes: bool,
    /// Show what would change, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Single answers.
    #[command(flatten)]
    pub given: Given,
}

/// Answers as options.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Answers")]
pub struct Given {
    /// Domain under which apps appear
    #[arg(long, value_name = "DOMAIN")]
    base_domain: Option<String>,
    /// Domain of the key service
    #[arg(long, value_name = "DOMAIN")]
    kms_domain: Option<String>,
    /// Realm that root keys are made for, for good: intel or test
    #[arg(long, value_name = "REALM")]
    realm: Option<Realm>,
    /// Name or address at which guests and clients reach this host
    #[arg(long, value_name = "HOST")]
    address: Option<String>,
    /// Port of the key service
    #[arg(long, value_name = "PORT")]
    kms_port: Option<u16>,
    /// Port at which apps register with the ingress
    #[arg(long, value_name = "PORT")]
    registration_port: Option<u16>,
    /// Port at which clients reach apps
    #[arg(long, value_name = "PORT")]
    ingress_port: Option<u16>,
    /// Port at which TLS is always passed through
    #[arg(long, value_name = "PORT")]
    passthrough_port: Option<u16>,
    /// Web port of the VM manager on 127.0.0.1
    #[arg(long, value_name = "PORT")]
    teepod_port: Option<u16>,
    /// UDP port of WireGuard
    #[arg(long, value_name = "PORT")]
    wg_port: Option<u16>,
    /// Where guests reach WireGuard
    #[arg(long, value_name = "HOST:PORT")]
    wg_endpoint: Option<String>,
    /// Network of WireGuard
    #[arg(long, value_name = "NET")]
    wg_range: Option<String>,
    /// The ingress's own address in it
    #[arg(long, value_name = "IP")]
    wg_ip: Option<String>,
    /// First vsock context id of VMs
    #[arg(long, value_name = "N")]
    cid_start: Option<u32>,
    /// Number of context ids
    #[arg(long, value_name = "N")]
    cid_size: Option<u32>,
    /// Where the certificate comes from: acme, files or none
    #[arg(long, value_name = "SOURCE", value_parser = ["acme", "files", "none"], hide_possible_values = true)]
    certificate: Option<String>,
    /// Certificate chain of your own, PEM
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    cert_chain: Option<String>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    cert_key: Option<String>,
    /// letsencrypt, letsencrypt-staging, or the URL of an ACME directory
    #[arg(long, value_name = "URL")]
    acme_url: Option<String>,
    /// PEM file of who signs the authority's own TLS certificate
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    acme_root: Option<String>,
    /// The authority's name in CAA records; by default what its directory says
    #[arg(long, value_name = "NAME")]
    acme_issuer: Option<String>,
    /// Id of an external account
    #[arg(long, value_name = "ID")]
    eab_key_id: Option<String>,
    /// File with the external account's key
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    eab_key_file: Option<String>,
    /// Who changes DNS records: cloudflare or rfc2136
    #[arg(long, value_name = "PROVIDER", value_parser = ["cloudflare", "rfc2136"], hide_possible_values = true)]
    dns: Option<String>,
    /// DNS server that is asked for the servers of the zone
    #[arg(long, value_name = "IP[:PORT]")]
    dns_resolver: Option<String>,
    /// Id of the zone at Cloudflare
    #[arg(long, value_name = "ID")]
    cf_zone_id: Option<String>,
    /// File with Cloudflare's API token
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    cf_token_file: Option<String>,
    /// DNS server that takes dynamic updates
    #[arg(long, value_name = "IP[:PORT]")]
    dns_server: Option<String>,
    /// The zone that it serves
    #[arg(long, value_name = "ZONE")]
    dns_zone: Option<String>,
    /// Name of the TSIG key
    #[arg(long, value_name = "NAME")]
    tsig_name: Option<String>,
    /// Digest of the TSIG key
    #[arg(long, value_name = "ALGORITHM", value_parser = ["hmac-sha256", "hmac-sha384", "hmac-sha512"])]
    tsig_algorithm: Option<String>,
    /// File with the TSIG key
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    tsig_key_file: Option<String>,
}

impl Given {
    /// As answers.
    #[must_use]
    pub fn draft(&self) -> Draft {
        let given = self.clone();
        Draft {
            base_domain: given.base_domain,
            kms_domain: given.kms_domain,
            realm: given.realm.map(|realm| realm.text().to_owned()),
            address: given.address,
            ports: Ports {
                kms: given.kms_port,
                registration: given.registration_port,
                ingress: given.ingress_port,
                passthrough: given.passthrough_port,
                teepod: given.teepod_port,
            },
            wireguard: Wireguard {
                port: given.wg_port,
                endpoint: given.wg_endpoint,
                range: given.wg_range,
                ip: given.wg_ip,
            },
            cid: Cid { start: given.cid_start, size: given.cid_size },
            certificate: self.certificate(),
        }
    }

    fn certificate(&self) -> Certificate {
        let given = self.clone();
        Certificate {
            source: given.certificate,
            chain: given.cert_chain,
            key: given.cert_key,
            acme_url: given.acme_url,
            acme_root: given.acme_root,
            acme_issuer: given.acme_issuer,
            eab: Eab { key_id: given.eab_key_id, key_file: given.eab_key_file },
            dns: Dns {
                provider: given.dns,
                resolver: given.dns_resolver,
                cloudflare: Cloudflare {
                    zone_id: given.cf_zone_id,
                    token_file: given.cf_token_file,
                    base_url: None,
                },
                rfc2136: Rfc2136 {
                    server: given.dns_server,
                    zone: given.dns_zone,
                    key_name: given.tsig_name,
                    algorithm: given.tsig_algorithm,
                    key_file: given.tsig_key_file,
                },
            },
        }
    }
}

/// The option that answers a key of the file, if there is one.
#[must_use]
pub fn option_of(key: &str) -> Option<&'static str> {
    OPTIONS.iter().find(|(of, _)| *of == key).map(|(_, option)| *option)
}

/// Keys of the file of answers, and their options.
const OPTIONS: &[(&str, &str)] = &[
    ("base_domain", "--base-domain"),
    ("kms_domain", "--kms-domain"),
    ("realm", "--realm"),
    ("address", "--address"),
    ("ports.kms", "--kms-port"),
    ("ports.registration", "--registration-port"),
    ("ports.ingress", "--ingress-port"),
    ("ports.passthrough", "--passthrough-port"),
    ("ports.teepod", "--teepod-port"),
    ("wireguard.port", "--wg-port"),
    ("wireguard.endpoint", "--wg-endpoint"),
    ("wireguard.range", "--wg-range"),
    ("wireguard.ip", "--wg-ip"),
    ("cid.start", "--cid-start"),
    ("cid.size", "--cid-size"),
    ("certificate.source", "--certificate"),
    ("certificate.chain", "--cert-chain"),
    ("certificate.key", "--cert-key"),
    ("certificate.acme_url", "--acme-url"),
    ("certificate.acme_root", "--acme-root"),
    ("certificate.acme_issuer", "--acme-issuer"),
    ("certificate.eab.key_id", "--eab-key-id"),
    ("certificate.eab.key_file", "--eab-key-file"),
    ("certificate.dns.provider", "--dns"),
    ("certificate.dns.resolver", "--dns-resolver"),
    ("certificate.dns.cloudflare.zone_id", "--cf-zone-id"),
    ("certificate.dns.cloudflare.token_file", "--cf-token-file"),
    ("certificate.dns.rfc2136.server", "--dns-server"),
    ("certificate.dns.rfc2136.zone", "--dns-zone"),
    ("certificate.dns.rfc2136.key_name", "--tsig-name"),
    ("certificate.dns.rfc2136.algorithm", "--tsig-algorithm"),
    ("certificate.dns.rfc2136.key_file", "--tsig-key-file"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_option_of_an_answer_is_in_the_table() {
        let command = Init::augment_args(clap::Command::new("init"));
        let heading = Some("Answers");
        let of_clap = command.get_arguments().filter(|arg| arg.get_help_heading() == heading);
        let of_clap: BTreeSet<String> =
            of_clap.filter_map(|a| a.get_long()).map(|l| format!("--{l}")).collect();
        let of_table: BTreeSet<String> = OPTIONS.iter().map(|(_, option)| (*option).to_owned()).collect();
        assert_eq!(of_clap, of_table);
        for (key, _) in OPTIONS {
            assert!(crate::init::draft::is_key(key), "{key}");
        }
    }
}
