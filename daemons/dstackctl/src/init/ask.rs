// SPDX-License-Identifier: Apache-2.0
//! Questions on a terminal, with what is taken when nothing is typed.

use super::answers::{self, AnswerError, Answers, Defaults};
use super::draft::Draft;
use super::rules;
use crate::errors::Failure;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use std::io::{BufRead, Read, Write};
use zeroize::Zeroizing;

/// Longest answer, bytes.
const ANSWER_MAX: u64 = 8192;

/// Somebody who is asked.
pub trait Asker {
    /// Asks for a line; the text is without its end.
    ///
    /// # Errors
    /// When nobody answers.
    fn line(&mut self, question: &str) -> Result<String, Failure>;
    /// The same without showing what is typed.
    ///
    /// # Errors
    /// As [`Asker::line`].
    fn secret(&mut self, what: &str) -> Result<Zeroizing<String>, Failure>;
    /// Says something.
    fn say(&mut self, text: &str);
}

/// The terminal.
#[derive(Debug)]
pub struct Terminal;

fn cannot(error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot ask: {error}"))
}

fn read() -> Result<Zeroizing<String>, Failure> {
    let mut text = Zeroizing::new(String::new());
    let read = std::io::stdin().lock().take(ANSWER_MAX).read_line(&mut text).map_err(|e| cannot(&e))?;
    if read == 0 {
        return Err(Failure::new("the input ended before all was answered; nothing was changed"));
    }
    Ok(Zeroizing::new(text.trim_end_matches(['\n', '\r']).to_owned()))
}

fn prompt(text: &str) -> Result<(), Failure> {
    let mut err = std::io::stderr().lock();
    err.write_all(text.as_bytes()).and_then(|()| err.flush()).map_err(|e| cannot(&e))
}

impl Asker for Terminal {
    fn line(&mut self, question: &str) -> Result<String, Failure> {
        prompt(question)?;
        read().map(|text| text.as_str().to_owned())
    }

    fn secret(&mut self, what: &str) -> Result<Zeroizing<String>, Failure> {
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).map_err(|e| cannot(&e.into()))?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        prompt(&format!("{what} (is not shown): "))?;
        tcsetattr(&stdin, OptionalActions::Flush, &silent).map_err(|e| cannot(&e.into()))?;
        let answer = read();
        let restored = tcsetattr(&stdin, OptionalActions::Flush, &before);
        self.say("");
        restored.map_err(|e| cannot(&e.into()))?;
        answer
    }

    fn say(&mut self, text: &str) {
        crate::output::note(text);
    }
}

/// Whether the answer to a question is yes; `usual` counts for an empty one.
///
/// # Errors
/// When nobody answers.
pub fn yes(asker: &mut dyn Asker, question: &str, usual: bool) -> Result<bool, Failure> {
    let choice = if usual { "[Y/n]" } else { "[y/N]" };
    loop {
        let answer = asker.line(&format!("{question} {choice} "))?;
        match answer.trim().to_ascii_lowercase().as_str() {
            "" => return Ok(usual),
            "y" | "yes" => return Ok(true),
            "n" | "no" => return Ok(false),
            _ => asker.say("  please answer y or n"),
        }
    }
}

type Rule<'a> = &'a dyn Fn(&str) -> Result<String, AnswerError>;

/// Asks until the answer is a right one; Enter takes `usual`, unless that is wrong itself.
fn one(asker: &mut dyn Asker, question: &str, usual: &str, rule: Rule<'_>) -> Result<String, Failure> {
    let shown = if usual.is_empty() { String::new() } else { format!(" [{usual}]") };
    loop {
        let answer = asker.line(&format!("{question}{shown}: "))?;
        let answer = if answer.trim().is_empty() { usual } else { answer.trim() };
        match rule(answer) {
            Ok(answer) => return Ok(answer),
            Err(error) => asker.say(&format!("  {}", error.reason)),
        }
    }
}

fn any(text: &str) -> Result<String, AnswerError> {
    Ok(text.to_owned())
}

/// Asks for everything; what `known` says is what Enter takes.
///
/// # Errors
/// When nobody answers.
pub fn all(asker: &mut dyn Asker, known: Draft, defaults: &Defaults) -> Result<Draft, Failure> {
    asker.say("Enter takes what is in [brackets]. Nothing is changed before you have seen it all.\n");
    let mut draft = known;
    names(asker, &mut draft, defaults)?;
    loop {
        ports(asker, &mut draft)?;
        tunnel(asker, &mut draft)?;
        certificate(asker, &mut draft)?;
        // What depends on several answers at once.
        match Answers::check(&draft, defaults) {
            Ok(_) => return Ok(draft),
            Err(error) => asker.say(&format!("\n{error}\nOnce more:")),
        }
    }
}

fn names(asker: &mut dyn Asker, draft: &mut Draft, defaults: &Defaults) -> Result<(), Failure> {
    let usual = draft.base_domain.clone().unwrap_or_default();
    let base = one(asker, "Domain of apps, such as apps.example.com", &usual, &rules::base_domain)?;
    let usual = draft.kms_domain.clone().unwrap_or_else(|| rules::suggested_kms(&base));
    let rule = |text: &str| rules::domain("kms_domain", text);
    draft.kms_domain = Some(one(asker, "Domain of the key service", &usual, &rule)?);
    draft.base_domain = Some(base);
    let found = defaults.address.map(|a| a.to_string());
    let usual = draft.address.clone().or(found).unwrap_or_default();
    draft.address =
        Some(one(asker, "Address at which guests and clients reach this host", &usual, &rules::address)?);
    Ok(())
}

fn port(text: &str) -> Result<String, AnswerError> {
    match text.parse::<u16>() {
        Ok(port) if port != 0 => Ok(port.to_string()),
        _ => Err(AnswerError { key: "ports", reason: format!("{text:?} is no port; write 1 to 65535") }),
    }
}

fn number(text: &str) -> Result<String, AnswerError> {
    let wrong = |_| AnswerError { key: "cid", reason: format!("{text:?} is no number") };
    text.parse::<u32>().map(|n| n.to_string()).map_err(wrong)
}

fn ports(asker: &mut dyn Asker, draft: &mut Draft) -> Result<(), Failure> {
    let (ports, usual) = (&mut draft.ports, answers::Ports::DEFAULT);
    for (question, port_of, usual) in [
        ("Port of the key service", &mut ports.kms, usual.kms),
        ("Port at which apps register with the ingress", &mut ports.registration, usual.registration),
        ("Port at which clients reach apps", &mut ports.ingress, usual.ingress),
        ("UDP port of WireGuard", &mut draft.wireguard.port, 51820),
    ] {
        let answer = one(asker, question, &port_of.unwrap_or(usual).to_string(), &port)?;
        *port_of = answer.parse().ok();
    }
    Ok(())
}

fn tunnel(asker: &mut dyn Asker, draft: &mut Draft) -> Result<(), Failure> {
    let address = draft.address.clone().unwrap_or_default();
    let port = draft.wireguard.port.unwrap_or(51820);
    let usual = draft.wireguard.endpoint.clone().unwrap_or_else(|| rules::endpoint_at(&address, port));
    draft.wireguard.endpoint = Some(one(asker, "Where guests reach WireGuard", &usual, &rules::endpoint)?);
    let usual = draft.wireguard.range.clone().unwrap_or_else(|| "10.0.0.0/16".into());
    let rule = |text: &str| rules::range(text, &address).map(|net| net.to_string());
    let range = one(asker, "Network of WireGuard, which nothing else uses", &usual, &rule)?;
    if draft.wireguard.range.as_ref().is_some_and(|before| *before != range) {
        // The address of before is in the network of before.
        draft.wireguard.ip = None;
    }
    draft.wireguard.range = Some(range);
    let (start, size) = (draft.cid.start.unwrap_or(1000), draft.cid.size.unwrap_or(1000));
    draft.cid.start = one(asker, "First vsock context id of VMs", &start.to_string(), &number)?.parse().ok();
    draft.cid.size = one(asker, "How many context ids", &size.to_string(), &number)?.parse().ok();
    Ok(())
}

fn choice(asker: &mut dyn Asker, question: &str, usual: &str, choices: &[&str]) -> Result<String, Failure> {
    let rule = |text: &str| match choices.contains(&text) {
        true => Ok(text.to_owned()),
        false => Err(AnswerError { key: "choice", reason: format!("write one of: {}", choices.join(", ")) }),
    };
    one(asker, &format!("{question} ({})", choices.join(", ")), usual, &rule)
}

fn certificate(asker: &mut dyn Asker, draft: &mut Draft) -> Result<(), Failure> {
    let certificate = &mut draft.certificate;
    let usual = certificate.source.clone().unwrap_or_else(|| "acme".into());
    let source =
        choice(asker, "Where the certificate of the ingress comes from", &usual, &["acme", "files", "none"])?;
    certificate.source = Some(source.clone());
    match source.as_str() {
        "files" => {
            let file = |of: &Option<String>, name: &str| {
                of.clone().unwrap_or_else(|| format!("/etc/dstack/certs/{name}"))
            };
            let rule = |text: &str| {
                rules::needed_path("certificate.chain", Some(text)).map(|p| p.display().to_string())
            };
            let (chain, key) = (file(&certificate.chain, "cert.pem"), file(&certificate.key, "key.pem"));
            certificate.chain = Some(one(asker, "Certificate chain, PEM", &chain, &rule)?);
            certificate.key = Some(one(asker, "Its private key, PEM", &key, &rule)?);
        }
        "acme" => acme(asker, draft)?,
        _ => {}
    }
    Ok(())
}

fn acme(asker: &mut dyn Asker, draft: &mut Draft) -> Result<(), Failure> {
    let certificate = &mut draft.certificate;
    let usual = certificate.acme_url.clone().unwrap_or_else(|| "letsencrypt".into());
    let question = "Authority: letsencrypt, letsencrypt-staging (for tries), or the URL of an ACME directory";
    let url = one(asker, question, &usual, &rules::acme_url)?;
    let is_own = !url.starts_with("https://acme-");
    certificate.acme_url = Some(url);
    if is_own {
        let usual = certificate.acme_root.clone().unwrap_or_default();
        let root = one(
            asker,
            "PEM file of who signs its TLS certificate, empty: the system's authorities",
            &usual,
            &any,
        )?;
        certificate.acme_root = Some(root).filter(|r| !r.is_empty());
    }
    let dns = &mut certificate.dns;
    let usual = dns.provider.clone().unwrap_or_else(|| "cloudflare".into());
    let provider = choice(asker, "Who changes DNS records", &usual, &["cloudflare", "rfc2136"])?;
    dns.provider = Some(provider.clone());
    if provider == "cloudflare" {
        let usual = dns.cloudflare.zone_id.clone().unwrap_or_default();
        let id = one(asker, "Id of the zone, empty: it is looked for", &usual, &rules::zone_id)?;
        dns.cloudflare.zone_id = Some(id).filter(|id| !id.is_empty());
        return Ok(());
    }
    let rule = |text: &str| rules::server("certificate.dns.rfc2136.server", text).map(|a| a.to_string());
    let usual = dns.rfc2136.server.clone().unwrap_or_default();
    dns.rfc2136.server = Some(one(asker, "DNS server that takes updates", &usual, &rule)?);
    let usual = dns.rfc2136.key_name.clone().unwrap_or_else(|| "dstack".into());
    dns.rfc2136.key_name = Some(one(asker, "Name of the TSIG key", &usual, &rules::key_name)?);
    let usual = dns.rfc2136.algorithm.clone().unwrap_or_else(|| "hmac-sha256".into());
    let algorithms = ["hmac-sha256", "hmac-sha384", "hmac-sha512"];
    dns.rfc2136.algorithm = Some(choice(asker, "Its digest", &usual, &algorithms)?);
    Ok(())
}

#[cfg(test)]
#[path = "ask_tests.rs"]
pub(super) mod tests;
