// SPDX-License-Identifier: Apache-2.0
//! The daemons that are set up, and their units.

/// A daemon with its units.
#[derive(Debug, PartialEq, Eq)]
pub struct Component {
    /// Its package.
    pub package: &'static str,
    /// Its service.
    pub service: &'static str,
    /// Sockets and timers, in the order in which they are started.
    pub triggers: &'static [&'static str],
    /// Services that hold the sockets beside the service, as a pattern.
    pub holders: Option<&'static str>,
}

/// The VM manager.
pub const TEEPOD: Component = Component {
    package: "dstack-teepod",
    service: "dstack-teepod.service",
    triggers: &["dstack-teepod.socket"],
    holders: None,
};

/// The key service.
pub const KMS: Component = Component {
    package: "dstack-kms",
    service: "dstack-kms.service",
    triggers: &["dstack-kms.socket"],
    holders: None,
};

/// The ingress.
pub const TPROXY: Component = Component {
    package: "dstack-tproxy",
    service: "dstack-tproxy.service",
    triggers: &[
        "dstack-tproxy.socket",
        "dstack-tproxy-passthrough.socket",
        "dstack-tproxy-rpc.socket",
        "dstack-tproxy-control.socket",
    ],
    holders: Some("dstack-tproxy-flow@*.service"),
};

/// Certificates.
pub const CERTBOT: Component = Component {
    package: "dstack-certbot",
    service: "dstack-certbot.service",
    triggers: &["dstack-certbot.timer", "dstack-certbot-rehearsal.timer"],
    holders: None,
};

/// The watch over certificates of unknown keys.
pub const CT_MONITOR: Component = Component {
    package: "dstack-ct-monitor",
    service: "dstack-ct-monitor.service",
    triggers: &["dstack-ct-monitor.timer"],
    holders: None,
};

/// All, in the order in which they are restarted: who needs keys comes after who has them.
pub const ALL: [&Component; 5] = [&KMS, &TEEPOD, &CERTBOT, &TPROXY, &CT_MONITOR];

/// The daemon of a unit.
#[must_use]
pub fn of(unit: &str) -> Option<&'static Component> {
    ALL.into_iter().find(|c| c.service == unit || c.triggers.contains(&unit))
}

/// What systemd says of a unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// Whether there is such a unit.
    pub loaded: bool,
    /// Whether it is active.
    pub active: bool,
    /// Whether it starts at boot.
    pub enabled: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table against the units themselves.
    #[test]
    fn the_units_are_the_shipped_ones() {
        let units = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../units/host");
        for component in ALL {
            for unit in component.triggers.iter().chain([&component.service]) {
                assert!(units.join(unit).is_file(), "{unit}");
                assert_eq!(of(unit), Some(component));
            }
        }
        assert_eq!(of("ssh.service"), None);
    }
}
