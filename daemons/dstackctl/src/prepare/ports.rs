// SPDX-License-Identifier: Apache-2.0
//! What options say of the ports that clients of the ingress reach.

use crate::cli_deploy::{Document, IngressPort};
use crate::errors::Failure;
use dstack_core::compose::{PortPolicy, PortRule};
use std::collections::BTreeSet;

/// The policy that is measured: `before` as far as options are silent, `None` where nothing is said of any port.
///
/// # Errors
/// When options contradict each other.
pub fn policy(options: &Document, before: Option<&PortPolicy>) -> Result<Option<PortPolicy>, Failure> {
    if options.tproxy_port.is_empty() && options.proxy_protocol.is_empty() {
        return Ok(before.cloned());
    }
    let allowed = match chosen("--tproxy-port", &options.tproxy_port)? {
        Some(ports) => (!ports.is_empty()).then_some(ports),
        None => before.and_then(PortPolicy::allowed).map(BTreeSet::from_iter),
    };
    let headed = match chosen("--proxy-protocol", &options.proxy_protocol)? {
        Some(ports) => ports,
        None => before.map(PortPolicy::proxy_protocol).into_iter().flatten().collect(),
    };
    if let Some(port) = allowed.as_ref().and_then(|allowed| headed.difference(allowed).next()) {
        return Err(Failure::usage(format!("no client reaches port {port}, which --proxy-protocol names"))
            .hint(format!("add --tproxy-port {port}, or give --proxy-protocol without it")));
    }
    let restrict_mode = allowed.is_some();
    let ports: BTreeSet<u16> = allowed.into_iter().flatten().chain(headed.iter().copied()).collect();
    let ports: Vec<PortRule> =
        ports.into_iter().map(|port| PortRule { port, pp: headed.contains(&port) }).collect();
    Ok((!ports.is_empty()).then_some(PortPolicy { ports, restrict_mode }))
}

/// The ports that an option names; none of them for its word alone, `None` where it is not given.
fn chosen(option: &str, given: &[IngressPort]) -> Result<Option<BTreeSet<u16>>, Failure> {
    let ports: BTreeSet<u16> = given.iter().filter_map(|one| one.0).collect();
    let words = given.iter().filter(|one| one.0.is_none()).count();
    match (ports.is_empty(), words) {
        (true, 0) => Ok(None),
        (false, 0) => Ok(Some(ports)),
        (true, _) => Ok(Some(ports)),
        (false, _) => Err(Failure::usage(format!("{option} takes either ports, or its word alone"))),
    }
}

/// Nobody would heed the policy of an app that has no name outside.
///
/// # Errors
/// When options want one for such an app.
pub fn refuse_without_ingress(options: &Document, tproxy: bool) -> Result<(), Failure> {
    let given = [
        ("--tproxy-port", !options.tproxy_port.is_empty()),
        ("--proxy-protocol", !options.proxy_protocol.is_empty()),
    ];
    match given.into_iter().find(|(_, set)| *set && !tproxy) {
        None => Ok(()),
        Some((option, _)) => Err(Failure::usage(format!(
            "{option} is about clients of the ingress, and the app is not to be reached through it"
        ))
        .hint(
            "add --tproxy; this host has no ingress yet where it is not the default: see dstack-tproxy(8)",
        )),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn options(tproxy: &[&str], proxy: &[&str]) -> Document {
        let tproxy_port = tproxy.iter().map(|t| IngressPort::or_all(t).unwrap()).collect();
        let proxy_protocol = proxy.iter().map(|t| IngressPort::or_none(t).unwrap()).collect();
        Document { tproxy_port, proxy_protocol, ..Document::default() }
    }

    fn made(tproxy: &[&str], proxy: &[&str], before: Option<&PortPolicy>) -> Option<PortPolicy> {
        policy(&options(tproxy, proxy), before).unwrap()
    }

    #[test]
    fn a_policy_from_options() {
        assert_eq!(made(&[], &[], None), None);
        assert_eq!(made(&["all"], &["none"], None), None);
        let open = made(&[], &["443"], None).unwrap();
        assert_eq!((open.allowed(), open.proxy_protocol()), (None, vec![443]));
        let closed = made(&["443", "80", "80"], &["443"], None).unwrap();
        assert_eq!((closed.allowed(), closed.proxy_protocol()), (Some(vec![80, 443]), vec![443]));
    }

    #[test]
    fn an_upgrade_keeps_what_options_do_not_name() {
        let before = made(&["80", "443"], &["443"], None);
        let next = |tproxy: &[&str], proxy: &[&str]| made(tproxy, proxy, before.as_ref());
        assert_eq!(next(&[], &[]), before);
        let wider = next(&["443", "8080"], &[]).unwrap();
        assert_eq!((wider.allowed(), wider.proxy_protocol()), (Some(vec![443, 8080]), vec![443]));
        let open = next(&["all"], &[]).unwrap();
        assert_eq!((open.allowed(), open.proxy_protocol()), (None, vec![443]));
        assert_eq!(next(&["all"], &["none"]), None);
        let plain = next(&[], &["none"]).unwrap();
        assert_eq!((plain.allowed(), plain.proxy_protocol()), (Some(vec![80, 443]), vec![]));
    }

    #[test]
    fn contradictions_are_named() {
        for (tproxy, proxy, part) in [
            (&["80"][..], &["443"][..], "port 443"),
            (&["80", "all"][..], &[][..], "--tproxy-port"),
            (&[][..], &["80", "none"][..], "--proxy-protocol"),
        ] {
            let failure = policy(&options(tproxy, proxy), None).unwrap_err();
            assert!(failure.message.contains(part), "{failure}");
        }
        assert!(refuse_without_ingress(&options(&["80"], &[]), true).is_ok());
        assert!(refuse_without_ingress(&options(&[], &[]), false).is_ok());
        let failure = refuse_without_ingress(&options(&[], &["80"]), false).unwrap_err();
        assert!(failure.message.starts_with("--proxy-protocol"), "{failure}");
    }
}
