// SPDX-License-Identifier: Apache-2.0
//! `/run/dstack/network.json`: what dstack-prepare leaves for dstack-network, if the app is to be reached from outside.

use crate::inputs::{Inputs, Provider};
use dstack_core::ids::AppId;
use dstack_core::kms_address::{ADDRESSES_MAX, Address, TPROXY_PORT};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;

/// Version of the format.
const VERSION: u32 = 1;

/// Whom to ask, and whom to believe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handover {
    /// Where tproxies may be: hints of the host.
    pub tproxies: Vec<Address>,
    /// The app id of the gateway, as the key service names it.
    pub gateway: Option<AppId>,
    /// The key service's public key, SPKI DER.
    pub kms: Vec<u8>,
    /// `tdx` or `simulated`.
    pub platform: String,
    /// Ports that may be reached from outside; `None` means all.
    pub allowed_ports: Option<Vec<u16>>,
    /// Ports whose connections begin with a PROXY protocol header.
    pub proxy_protocol_ports: Vec<u16>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    tproxy_urls: Vec<String>,
    gateway_app_id: String,
    kms_public_key: String,
    platform: String,
    allowed_ports: Option<Vec<u16>>,
    proxy_protocol_ports: Vec<u16>,
}

/// The file, when the app asks for tproxy and has a key service; nobody else can register (trust rule T1).
#[must_use]
pub fn render(inputs: &Inputs, gateway_app_id: &str, platform: &str) -> Option<Vec<u8>> {
    let Provider::Kms(kms) = &inputs.provider else { return None };
    let ports = inputs.compose.port_policy.clone().unwrap_or_default();
    let document = Document {
        version: VERSION,
        tproxy_urls: inputs.hints.tproxy_urls.clone(),
        gateway_app_id: gateway_app_id.to_owned(),
        kms_public_key: hex::encode(kms),
        platform: platform.to_owned(),
        allowed_ports: ports.allowed(),
        proxy_protocol_ports: ports.proxy_protocol(),
    };
    inputs.compose.wants_tproxy().then(|| serde_json::json!(document).to_string().into_bytes())
}

impl Handover {
    /// Reads the file. URLs that are none are left out.
    ///
    /// # Errors
    /// When it cannot be read, or is not what [`render`] writes.
    pub fn read(path: &Path) -> io::Result<Self> {
        Self::parse(&std::fs::read(path)?)
    }

    fn parse(bytes: &[u8]) -> io::Result<Self> {
        let document: Document = serde_json::from_slice(bytes)?;
        if document.version != VERSION {
            return Err(io::Error::other("unknown version of network.json"));
        }
        let gateway = Some(document.gateway_app_id).filter(|id| !id.is_empty());
        Ok(Self {
            tproxies: addresses(&document.tproxy_urls),
            gateway: gateway.map(|id| id.parse()).transpose().map_err(io::Error::other)?,
            kms: hex::decode(document.kms_public_key).map_err(io::Error::other)?,
            platform: document.platform,
            allowed_ports: document.allowed_ports,
            proxy_protocol_ports: document.proxy_protocol_ports,
        })
    }
}

/// Each address once.
fn addresses(urls: &[String]) -> Vec<Address> {
    let mut all: Vec<Address> = Vec::new();
    for address in urls.iter().filter_map(|url| Address::parse_with(url, TPROXY_PORT)) {
        if !all.contains(&address) && all.len() < ADDRESSES_MAX {
            all.push(address);
        }
    }
    all
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing;
    use serde_json::json;

    fn rendered(extra: &serde_json::Value) -> Option<Vec<u8>> {
        let mut files = testing::files(testing::compose(extra), &["https://kms.example".to_owned()]);
        let sys = json!({"tproxy_urls": ["https://tproxy.example", "nonsense"], "gateway_urls":
            ["https://tproxy.example:9070/prpc", "https://[2001:db8::1]:8443"]});
        files.insert(dstack_core::config_disk::File::SysConfig, sys.to_string().into_bytes());
        render(&testing::inputs(&files), &"ab".repeat(20), "simulated")
    }

    #[test]
    fn what_is_written_is_read_back() {
        let compose = json!({"tproxy_enabled": true, "key_provider": "kms", "key_provider_id": "3059"});
        let handover = Handover::parse(&rendered(&compose).unwrap()).unwrap();
        let shown: Vec<String> = handover.tproxies.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["tproxy.example:9070", "[2001:db8::1]:8443"]);
        assert_eq!((handover.gateway, handover.kms), (Some(AppId::from([0xab; 20])), vec![0x30, 0x59]));
    }

    #[test]
    fn the_policy_of_the_ports_is_that_of_the_measured_document() {
        for (policy, allowed, proxied) in [
            (json!(null), None, vec![]),
            (json!({"ports": [{"port": 80, "pp": true}]}), None, vec![80]),
            (
                json!({"ports": [{"port": 80}, {"port": 443, "pp": true}], "restrict_mode": true}),
                Some(vec![80, 443]),
                vec![443],
            ),
        ] {
            let compose = json!({"tproxy_enabled": true, "key_provider": "kms", "key_provider_id": "3059",
                "port_policy": policy});
            let handover = Handover::parse(&rendered(&compose).unwrap()).unwrap();
            assert_eq!(
                (handover.allowed_ports, handover.proxy_protocol_ports),
                (allowed, proxied),
                "{policy}"
            );
        }
    }

    #[test]
    fn t01_only_an_app_that_asks_for_it_and_has_a_key_service_registers() {
        for compose in [
            json!({"key_provider": "kms", "key_provider_id": "3059"}),
            json!({"tproxy_enabled": true, "key_provider": "none"}),
        ] {
            assert_eq!(rendered(&compose), None, "{compose}");
        }
    }

    #[test]
    fn a_damaged_file_is_an_error() {
        for text in [
            "",
            "{}",
            r#"{"version":2,"tproxy_urls":[],"gateway_app_id":"","kms_public_key":"","platform":""}"#,
        ] {
            assert!(Handover::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
