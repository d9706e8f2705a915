// SPDX-License-Identifier: Apache-2.0
//! What dstack-network leaves in `/run/dstack-network/state.json` for others in the guest: under which domains the
//! ingress serves this instance. dstack-network's own part of the file is skipped.

use crate::ids::AppId;
use serde::Deserialize;

/// Where the file is.
pub const FILE: &str = "state.json";
/// Largest file that is read, bytes.
pub const SIZE_MAX: usize = 64 * 1024;
/// Longest base domain, bytes.
pub const DOMAIN_MAX: usize = 253;

#[derive(Deserialize)]
struct State {
    tunnels: Vec<Registration>,
}

/// One registration at an ingress.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Registration {
    /// Base domain of the ingress; apps are below it.
    domain: String,
    /// TCP port of its TLS.
    external_port: u16,
}

/// The registrations of a file; none where it says none, or is not whole.
#[must_use]
pub fn parse(bytes: &[u8]) -> Vec<Registration> {
    let state = serde_json::from_slice::<State>(bytes).ok();
    let mut all = state.map(|state| state.tunnels).unwrap_or_default();
    all.retain(|one| one.external_port != 0 && is_domain(&one.domain));
    all.dedup();
    all
}

/// The characters of a name, which have no meaning in a URL or in markup.
fn is_domain(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    (1..=DOMAIN_MAX).contains(&text.len()) && text.bytes().all(good)
}

impl Registration {
    /// The address of an app's port 80.
    #[must_use]
    pub fn url(&self, app: &AppId) -> String {
        match self.external_port {
            443 => format!("https://{app}.{}/", self.domain),
            port => format!("https://{app}.{}:{port}/", self.domain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_a_file() {
        let text = br#"{"version":1,"tunnels":[
            {"tproxy":"a:1","domain":"apps.test","external_port":443,"servers":[]},
            {"domain":"apps.test","external_port":443},
            {"domain":"","external_port":443},
            {"domain":"<b>","external_port":443},
            {"domain":"other.test","external_port":0},
            {"domain":"apps.example","external_port":9443}]}"#;
        let app: AppId = "00112233445566778899aabbccddeeff00112233".parse().unwrap();
        let urls: Vec<String> = parse(text).iter().map(|one| one.url(&app)).collect();
        assert_eq!(urls, [format!("https://{app}.apps.test/"), format!("https://{app}.apps.example:9443/")]);
        for text in
            ["", "{}", "{\"tunnels\":[{}]}", "{\"tunnels\":[{\"domain\":\"a\",\"external_port\":70000}]}"]
        {
            assert_eq!(parse(text.as_bytes()), [], "{text}");
        }
    }
}
