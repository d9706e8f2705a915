// SPDX-License-Identifier: Apache-2.0
//! `org.dstack.kms1`: the key service of a host.

use std::collections::HashMap;
use zbus::{OwnedVariant, proxy};

/// Well-known bus name.
pub const NAME: &str = "org.dstack.kms1";
/// Path of the manager object.
pub const PATH: &str = "/org/dstack/kms1";

/// Options of a call. `Bootstrap`: none yet. `Onboard`: `ca_public_key s` (hex SubjectPublicKeyInfo of the source's root
/// CA, required).
pub type Options<'a> = HashMap<&'a str, zbus::Variant<'a>>;

/// Options as a daemon gets them.
pub type OwnedOptions = HashMap<String, OwnedVariant>;

/// A row of `ListUpgrades`: compose hash (64 hex, or 40 as the operator wrote it), who allows it (`first operator owner
/// revoked`), number of the owner's statement or 0.
pub type UpgradeRow = (String, String, u64);

/// A row of `GetReleaseLog`: `seq t`, `time t` (Unix seconds), `kind s` (`released denied signed onboarded
/// disk-epoch disk-older disk-forgotten repaired`), `instance s`,
/// `compose_hash s`, `verdict s`, `reason s`, `prev s` and `hash s` (of the line before and of this one, hex).
pub type ReleaseRow = HashMap<String, OwnedVariant>;

/// A row of `Forecast`: `when t` (Unix seconds), `app s`, `instance s`, `compose_hash s`, `seen t`, `cause s` (`refused
/// grace-ends collateral-ends no-collateral not-genuine unreadable`), `reason s`.
pub type ForecastRow = HashMap<String, OwnedVariant>;

crate::bus_errors! {
    /// What the key service refuses, and what to do about it.
    pub enum Error in "org.dstack.kms1" {
        /// There are no root keys yet.
        NotBootstrapped,
        /// There are root keys already.
        AlreadyBootstrapped,
        /// An id, a hash, a text or an option is out of form.
        InvalidArgument,
        /// The compose hash is not allowed and was not before.
        NoSuchUpgrade,
        /// The app's owner signs its upgrades; the operator's registry does not count.
        OwnerDecides,
        /// A statement is not signed by the app's owner, or is older than the newest.
        StatementRefused,
        /// The other key service refuses, or is of another realm or custody.
        PeerRefused,
        /// State or policy cannot be read; it is left as it is.
        StateUnreadable,
        /// The keys cannot be sealed.
        SealFailed,
        /// Trust roots, certificates or policy are not usable.
        Misconfigured,
        /// The file system has no room.
        NoSpace,
    }
}

/// Client side of `org.dstack.kms1.Manager`.
#[proxy(
    interface = "org.dstack.kms1.Manager",
    default_service = "org.dstack.kms1",
    default_path = "/org/dstack/kms1"
)]
pub trait Manager {
    /// Makes the root keys, once; returns the root CA's SubjectPublicKeyInfo, hex.
    fn bootstrap(&self, domain: &str, options: Options<'_>) -> Result<String, Error>;
    /// Allows a compose hash (64 hex, or its first 40) for an app.
    fn allow_upgrade(&self, app: &str, hash: &str) -> Result<(), Error>;
    /// Takes that back; the app's first compose can be revoked too.
    fn revoke_upgrade(&self, app: &str, hash: &str) -> Result<(), Error>;
    /// What is allowed for an app.
    fn list_upgrades(&self, app: &str) -> Result<Vec<UpgradeRow>, Error>;
    /// Submits an owner's signed statement, as the JSON of `dstackctl app sign-upgrade`.
    fn submit_upgrade(&self, json: &str) -> Result<(), Error>;
    /// The key that an app's environment is encrypted for, and the root key's signature over it.
    fn get_app_env_key(&self, app: &str) -> Result<(Vec<u8>, Vec<u8>), Error>;
    /// Releases and denials of an app's keys with a number above `after`, at most `limit` (0: as many as fit).
    fn get_release_log(&self, app: &str, after: u64, limit: u32) -> Result<Vec<ReleaseRow>, Error>;
    /// Lets the next boot of an instance have any data disk, once.
    fn forget_disk(&self, app: &str, instance: &str) -> Result<(), Error>;
    /// Instances that got keys lately and will be refused, the soonest first (trust rule T22).
    fn forecast(&self) -> Result<Vec<ForecastRow>, Error>;
    /// Lets another key service of this measurement fetch the root keys once, within `ttl` seconds.
    fn allow_peer(&self, measurement: &str, ttl: u64) -> Result<(), Error>;
    /// Fetches the root keys of another key service, instead of making some.
    fn onboard(&self, source_url: &str, options: Options<'_>) -> Result<(), Error>;
    /// A certificate of role `gateway:rpc` for a P-256 key (SubjectPublicKeyInfo): leaf and root CA, DER.
    fn sign_gateway_certificate(&self, public_key: &[u8]) -> Result<Vec<Vec<u8>>, Error>;
    /// Reads policy and trust roots again.
    fn reload(&self) -> Result<(), Error>;

    /// Whether there are root keys.
    #[zbus(property)]
    fn bootstrapped(&self) -> zbus::Result<bool>;
    /// `intel` or `test:<16 hex>`.
    #[zbus(property)]
    fn realm(&self) -> zbus::Result<String>;
    /// `host` or `cvm`.
    #[zbus(property)]
    fn custody(&self) -> zbus::Result<String>;
    /// Domain that was given at bootstrap, or empty.
    #[zbus(property)]
    fn domain(&self) -> zbus::Result<String>;
    /// SubjectPublicKeyInfo of the root CA, hex: what apps pin as `key_provider_id`; empty before bootstrap.
    #[zbus(property)]
    fn ca_public_key(&self) -> zbus::Result<String>;
    /// Compressed root secp256k1 key, hex; empty before bootstrap.
    #[zbus(property, name = "K256PublicKey")]
    fn k256_public_key(&self) -> zbus::Result<String>;
    /// URL at which guests reach it.
    #[zbus(property)]
    fn address(&self) -> zbus::Result<String>;
    /// Version of the daemon.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> zbus::Result<String>;

    /// Keys of an app were released.
    #[zbus(signal)]
    fn key_released(&self, app: String, instance: String, compose_hash: String) -> zbus::Result<()>;
    /// Keys of an app were asked for and refused.
    #[zbus(signal)]
    fn key_denied(&self, app: String, compose_hash: String, reason: String) -> zbus::Result<()>;
}
