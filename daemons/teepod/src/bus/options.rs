// SPDX-License-Identifier: Apache-2.0
//! `a{sv}` options: each key at most once, of the right type, and none that is not known.

use crate::engine::change::{Resize, Upgrade};
use crate::engine::create::{Create, Port};
use crate::engine::errors::invalid;
use dstack_core::ids::{AppId, IdError, ImageName};
use dstack_core::spec::SpecError;
use dstack_service::api::teepod1::{Error, OwnedOptions, Port as PortRow};
use zbus::OwnedVariant;

/// The options of one call.
struct Options(OwnedOptions);

impl Options {
    fn take<T: TryFrom<OwnedVariant>>(&mut self, key: &str, kind: &str) -> Result<Option<T>, Error> {
        let Some(value) = self.0.remove(key) else { return Ok(None) };
        let found = value.value_signature().to_string();
        let wrong = |_| invalid(format!("option {key:?} has type {found:?}; it needs {kind:?}"));
        T::try_from(value).map(Some).map_err(wrong)
    }

    fn parse<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, IdError>,
    ) -> Result<Option<T>, Error> {
        self.take::<String>(key, "s")?.map(|text| parse(&text).map_err(invalid)).transpose()
    }

    fn ports(&mut self) -> Result<Option<Vec<Port>>, Error> {
        let rows: Option<Vec<PortRow>> = self.take("ports", "a(ssqq)")?;
        rows.map(|rows| rows.into_iter().map(port).collect()).transpose()
    }

    /// Refuses what is left: a typing error must not be taken for a wish that was granted.
    fn end(self, known: &[&str]) -> Result<(), Error> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(key) => {
                let key: String = key.chars().take(64).collect();
                Err(invalid(format!("option {key:?} is not known: use {}", known.join(", "))))
            }
        }
    }
}

fn port((protocol, address, host_port, vm_port): PortRow) -> Result<Port, Error> {
    let protocol = protocol.parse().map_err(|e: SpecError| invalid(e))?;
    let wrong =
        |_| invalid(format!("host address {address:?} is not an IP address; leave it empty for the default"));
    let host_address = if address.is_empty() { None } else { Some(address.parse().map_err(wrong)?) };
    Ok(Port { protocol, host_address, host_port, vm_port })
}

fn image(text: &str) -> Result<ImageName, IdError> {
    text.parse()
}

fn app_id(text: &str) -> Result<AppId, IdError> {
    text.parse()
}

/// The options of `CreateVm`.
///
/// # Errors
/// `InvalidArgument` names the option.
pub fn create(name: String, compose: Vec<u8>, options: OwnedOptions) -> Result<Create, Error> {
    let mut options = Options(options);
    let create = Create {
        name,
        compose,
        image: options.parse("image", image)?,
        vcpus: options.take("vcpus", "u")?,
        memory: options.take("memory", "t")?,
        disk: options.take("disk", "t")?,
        ports: options.ports()?.unwrap_or_default(),
        encrypted_env: options.take("encrypted_env", "ay")?,
        encrypted_env_sig: options.take("encrypted_env_sig", "ay")?,
        app_id: options.parse("app_id", app_id)?,
        user_config: options.take("user_config", "ay")?,
        autostart: options.take("autostart", "b")?.unwrap_or(false),
        start: options.take("start", "b")?.unwrap_or(true),
    };
    let known = [
        "image",
        "vcpus",
        "memory",
        "disk",
        "ports",
        "encrypted_env",
        "encrypted_env_sig",
        "app_id",
        "user_config",
        "autostart",
        "start",
    ];
    options.end(&known).map(|()| create)
}

/// The options of `UpgradeApp`.
///
/// # Errors
/// `InvalidArgument` names the option.
pub fn upgrade(compose: Vec<u8>, options: OwnedOptions) -> Result<Upgrade, Error> {
    let mut options = Options(options);
    let upgrade = Upgrade {
        compose,
        encrypted_env: options.take("encrypted_env", "ay")?,
        encrypted_env_sig: options.take("encrypted_env_sig", "ay")?,
        user_config: options.take("user_config", "ay")?,
    };
    options.end(&["encrypted_env", "encrypted_env_sig", "user_config"]).map(|()| upgrade)
}

/// The options of `ResizeVm`.
///
/// # Errors
/// `InvalidArgument` names the option.
pub fn resize(options: OwnedOptions) -> Result<Resize, Error> {
    let mut options = Options(options);
    let resize = Resize {
        vcpus: options.take("vcpus", "u")?,
        memory: options.take("memory", "t")?,
        disk: options.take("disk", "t")?,
        image: options.parse("image", image)?,
        ports: options.ports()?,
        autostart: options.take("autostart", "b")?,
    };
    options.end(&["vcpus", "memory", "disk", "image", "ports", "autostart"]).map(|()| resize)
}

/// The options of `ImportImage`: none yet.
///
/// # Errors
/// `InvalidArgument` names the option.
pub fn none(options: OwnedOptions) -> Result<(), Error> {
    Options(options).end(&["none so far"])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use zbus::Variant;

    fn options(pairs: &[(&str, Variant<'_>)]) -> OwnedOptions {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), v.try_to_owned().unwrap())).collect()
    }

    #[test]
    fn every_option_arrives() {
        let ports: Vec<PortRow> =
            vec![("tcp".into(), String::new(), 8080, 80), ("udp".into(), "::1".into(), 53, 53)];
        let given = options(&[
            ("image", "dstack-0.1.0".into()),
            ("vcpus", 2_u32.into()),
            ("memory", (1_u64 << 30).into()),
            ("disk", (1_u64 << 31).into()),
            ("ports", ports.into()),
            ("encrypted_env", vec![1_u8, 2].into()),
            ("app_id", "3327603e03f5bd1f830812ca4a789277fc31f577".into()),
            ("user_config", vec![3_u8].into()),
            ("autostart", true.into()),
            ("start", false.into()),
        ]);
        let create = create("a".into(), b"{}".to_vec(), given).unwrap();
        assert_eq!((create.vcpus, create.memory, create.disk), (Some(2), Some(1 << 30), Some(1 << 31)));
        assert_eq!(create.ports.len(), 2);
        assert_eq!(create.ports.first().unwrap().host_address, None);
        assert_eq!(create.encrypted_env.as_deref(), Some(&[1, 2][..]));
        assert!(create.autostart && !create.start && create.app_id.is_some() && create.image.is_some());
    }

    #[test]
    fn wrong_options_are_named() {
        let port = |p: &str, a: &str| Variant::from(vec![(p.to_owned(), a.to_owned(), 1_u16, 1_u16)]);
        for (key, value, part) in [
            ("vcpu", Variant::from(1_u32), "vcpus"),
            ("vcpus", Variant::from("1"), "\"u\""),
            ("image", Variant::from("../x"), "image name"),
            ("app_id", Variant::from("12"), "40 hexadecimal"),
            ("ports", port("sctp", ""), "tcp or udp"),
            ("ports", port("tcp", "localhost"), "IP address"),
            ("ports", Variant::from(1_u32), "a(ssqq)"),
        ] {
            let error = create("a".into(), Vec::new(), options(&[(key, value)])).unwrap_err().to_string();
            assert!(error.contains(part), "{part} in {error}");
        }
    }
}
