// SPDX-License-Identifier: Apache-2.0
//! What `dstack-prepare` does, in order (T7). Each step is repeatable, also after a kill between any two of them;
//! nothing of the app's is touched before all inputs are checked.

use crate::clock::Clock;
use crate::disk::{self, DiskError, Watch};
use crate::env::{self, EnvFailure};
use crate::inputs::{self, InputError, Inputs, Provider, Seed};
use crate::keys::{BootKeys, KeysError};
use crate::kms::{self, Ask, KmsError};
use crate::layout::{CONFIG_DISK, Layout};
use crate::measure::{MeasureError, Measured};
use crate::outputs::{self, Facts, Output};
use crate::rollback::{self, Epochs, Guard};
use crate::status::Status;
use crate::tee::{self, RealmError, Tee};
use crate::timing::Timing;
use dstack_core::boot::{Failure, Stage};
use dstack_core::limits::CONFIG_DISK_MAX;
use dstack_keys::KeyError;
use dstack_keys::handover::{AppKeys, VERSION};
use dstack_ra_rpc::Verifier;
use dstack_rpc::kms::{API_VERSION, GetAppKeyRequest};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use zeroize::Zeroizing;

/// Why the boot cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The config disk.
    #[error("cannot read the config disk: {0}")]
    Config(io::Error),
    /// What is on it.
    #[error(transparent)]
    Inputs(#[from] InputError),
    /// The TEE or its log.
    #[error(transparent)]
    Measure(#[from] MeasureError),
    /// The realm of this machine.
    #[error(transparent)]
    Realm(#[from] RealmError),
    /// The key service.
    #[error(transparent)]
    Kms(#[from] KmsError),
    /// The keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// An earlier run asked for keys and did not come to keep them: they cannot be asked for again (T7).
    #[error("this boot has asked for its keys and lost them; restart the VM")]
    KeysLost,
    /// The deployer's environment.
    #[error("the environment cannot be used: {0}")]
    Env(#[from] EnvFailure),
    /// No data disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The files for the other units.
    #[error("cannot write below /run/dstack: {0}")]
    Outputs(io::Error),
    /// A key operation.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The kernel gives no random bytes.
    #[error("no random bytes from the kernel")]
    Random,
}

impl PrepareError {
    /// What the host is told.
    #[must_use]
    pub const fn failure(&self) -> Failure {
        match self {
            Self::Config(_) => Failure::ConfigMissing,
            Self::Inputs(error) => error.failure(),
            Self::Measure(error) => error.failure(),
            Self::Realm(_) => Failure::TeeMissing,
            Self::Kms(error) => error.failure(),
            Self::Env(_) => Failure::EnvInvalid,
            Self::Disk(DiskError::Foreign(_)) => Failure::DiskForeign,
            Self::Disk(DiskError::Rollback(error)) => error.failure(),
            Self::Disk(_) => Failure::DiskFailed,
            Self::Keys(_) | Self::KeysLost | Self::Outputs(_) | Self::Key(_) | Self::Random => {
                Failure::Internal
            }
        }
    }
}

/// Makes the data disk of this key ready, under somebody's watch.
pub type Prepare<'a> = dyn Fn(&disk::DiskKey, &mut dyn Watch) -> Result<(), DiskError> + 'a;

/// One run of the boot agent.
pub struct Boot<'a> {
    /// Where things are.
    pub layout: &'a Layout,
    /// The TEE.
    pub tee: &'a dyn Tee,
    /// The config disk.
    pub config_disk: &'a Path,
    /// Time.
    pub clock: Clock,
    /// Makes the data disk ready.
    pub disk: &'a Prepare<'a>,
}

impl std::fmt::Debug for Boot<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Boot({:?})", self.layout)
    }
}

/// Runs all steps on this machine. The status file has the `ERROR` line when it fails.
///
/// # Errors
/// [`PrepareError`], for the journal.
pub fn run(layout: &Layout) -> Result<(), PrepareError> {
    let boot = Boot {
        layout,
        tee: &tee::Machine,
        config_disk: Path::new(CONFIG_DISK),
        clock: Clock::of_image(),
        disk: &|key, watch| disk::prepare(layout, key, watch),
    };
    boot.run()
}

impl Boot<'_> {
    /// Runs all steps.
    ///
    /// # Errors
    /// [`PrepareError`]; the status file has the `ERROR` line.
    pub fn run(&self) -> Result<(), PrepareError> {
        if self.layout.prepared().exists() {
            println!("this boot is prepared already");
            return Ok(());
        }
        let status = Status::new(&self.layout.status());
        self.steps(&status).inspect_err(|error| status.error(error.failure()))
    }

    fn steps(&self, status: &Status) -> Result<(), PrepareError> {
        let mut timing = Timing::begin();
        status.stage(Stage::Config);
        let inputs = read_inputs(self.config_disk, seed(self.layout)?)?;
        println!("app {} with compose {}", inputs.app_id, inputs.compose_hash);
        timing.done("config");
        status.stage(Stage::Measure);
        let mut measured = self.measure(&inputs)?;
        inputs.instance_id.into_iter().for_each(|id| status.instance(id));
        timing.done("measure");
        status.stage(Stage::Keys);
        let realm = self.realm(&measured)?;
        let keys = self.keys(&inputs, &mut measured, realm.as_ref(), status)?;
        let opened = env::open(&inputs, keys.env.as_ref())?;
        say_env(&opened);
        timing.done("keys");
        status.stage(Stage::Disk);
        // Before the next event: the key service hears of the disk only from a boot that could ask for keys (T7, T13).
        self.data_disk(&inputs, &keys, &mut measured, realm.as_ref(), status)?;
        measured.key_provider(provider_name(&inputs), &keys.app.provider_id)?;
        measured.storage("ext4")?;
        timing.done("disk");
        let realm = realm.as_ref().map(Verifier::realm).unwrap_or_default();
        let rollback = rollback::finding(self.layout, inputs.compose.rollback);
        let rollback = rollback.map_err(PrepareError::Outputs)?;
        let facts = Facts { platform: measured.label(), realm: &realm, keys: &keys, env: &opened, rollback };
        let outputs = outputs::render(self.layout, &inputs, &facts)?;
        outputs::write_all(self.layout, &outputs).map_err(PrepareError::Outputs)?;
        measured.ready()?;
        // The mark first: without it a later run would look for the keys.
        fs::write(self.layout.prepared(), b"").map_err(PrepareError::Outputs)?;
        BootKeys::forget(self.layout)?;
        timing.done("handover");
        println!("prepared on platform {}: {timing}", measured.label());
        status.stage(Stage::Docker);
        Ok(())
    }

    /// Everything before keys goes into RTMR3.
    fn measure(&self, inputs: &Inputs) -> Result<Measured, PrepareError> {
        let platform = self.tee.platform().map_err(MeasureError::from)?;
        let mut measured = Measured::open(platform, &self.layout.private(), inputs)?;
        measured.inputs(inputs)?;
        Ok(measured)
    }

    /// The judge of this machine's realm; none without a TEE.
    fn realm(&self, measured: &Measured) -> Result<Option<Verifier>, PrepareError> {
        let clock = self.clock.clone();
        Ok(match measured.label() {
            "none" => None,
            label => {
                let verifier = tee::verifier(self.tee, label)?;
                Some(verifier.with_clock(std::sync::Arc::new(move || clock.now())))
            }
        })
    }

    /// The keys of this boot; an earlier run's, when it has kept them.
    fn keys(
        &self,
        inputs: &Inputs,
        measured: &mut Measured,
        realm: Option<&Verifier>,
        status: &Status,
    ) -> Result<BootKeys, PrepareError> {
        if let Some(keys) = BootKeys::kept(self.layout)? {
            return Ok(keys);
        }
        if measured.past_keys() {
            return Err(PrepareError::KeysLost);
        }
        let keys = match (&inputs.provider, realm) {
            (Provider::None, _) => BootKeys::ephemeral(inputs, self.clock.now())?,
            (Provider::Kms(pinned), Some(realm)) => self.granted(inputs, pinned, measured, realm, status)?,
            // Without a TEE an app with a key service has not come this far.
            (Provider::Kms(_), None) => return Err(PrepareError::KeysLost),
        };
        keys.keep(self.layout)?;
        Ok(keys)
    }

    fn granted(
        &self,
        inputs: &Inputs,
        pinned: &[u8],
        measured: &mut Measured,
        verifier: &Verifier,
        status: &Status,
    ) -> Result<BootKeys, PrepareError> {
        let request = GetAppKeyRequest {
            api_version: API_VERSION,
            vm_config: inputs.hints.vm_config.clone(),
            app_compose: inputs.compose_bytes.clone(),
        };
        let ask = self.ask(inputs, pinned, verifier);
        let mut attest = |data: &[u8; 64]| measured.attest(data);
        let mut waiting = || status.waiting(Failure::KeysUnreachable);
        let granted = kms::obtain(&ask, &request, &mut attest, &mut waiting)?;
        let app = AppKeys {
            version: VERSION,
            provider: dstack_keys::handover::Provider::Kms,
            provider_id: hex::encode(pinned),
            kms_urls: inputs.hints.kms_urls.clone(),
            ca_cert: granted.ca_cert,
            ca_key: None,
            k256_key: granted.k256,
            k256_signature: granted.k256_signature,
            gateway_app_id: granted.gateway_app_id,
            os_image_hash: inputs.hints.os_image_hash.map(|h| h.to_string()).unwrap_or_default(),
            vm_config: inputs.hints.vm_config.clone(),
        };
        let custody = granted.custody.to_owned();
        Ok(BootKeys { app, disk: Some(granted.disk), env: Some(granted.env), custody })
    }

    /// The key service of this boot.
    fn ask<'b>(&'b self, inputs: &'b Inputs, pinned: &'b [u8], verifier: &'b Verifier) -> Ask<'b> {
        Ask { addresses: &inputs.hints.kms, pinned, verifier, clock: &self.clock }
    }

    /// The data disk; when it was last written, that time is past (T12), and an older one is not taken where the app
    /// says so (T13).
    fn data_disk(
        &self,
        inputs: &Inputs,
        keys: &BootKeys,
        measured: &mut Measured,
        realm: Option<&Verifier>,
        status: &Status,
    ) -> Result<(), PrepareError> {
        let epochs = match (inputs.compose.rollback, &inputs.provider, realm) {
            (None, ..) => None,
            (Some(mode), Provider::Kms(pinned), Some(verifier)) => {
                Some(Epochs { mode, ask: self.ask(inputs, pinned, verifier), measured, status })
            }
            // A document that asks for what nobody can give was not parsed.
            (Some(_), ..) => return Err(PrepareError::KeysLost),
        };
        (self.disk)(&keys.disk(inputs), &mut Guard::new(self.layout, &self.clock, epochs))?;
        if !self.clock.is_behind() {
            return Ok(());
        }
        println!("<4>the host's clock is behind what is known to be past");
        let bytes = Zeroizing::new(self.clock.floor().to_string().into_bytes());
        let output = Output { path: self.layout.clock_floor(), mode: 0o644, bytes };
        outputs::write_all(self.layout, &[output]).map_err(PrepareError::Outputs)
    }
}

const fn provider_name(inputs: &Inputs) -> &'static str {
    match inputs.provider {
        Provider::None => "none",
        Provider::Kms(_) => "kms",
    }
}

/// Names only; no value reaches the journal.
fn say_env(opened: &env::Opened) {
    if !opened.skipped.is_empty() {
        let names = opened.skipped.join(", ");
        println!("<4>variables that allowed_envs does not name are left out: {names}");
    }
    if opened.authenticated == Some(false) {
        println!(
            "<5>the environment is not authenticated: the app names no env_signer, so anybody may have sent it"
        );
    }
}

/// T6: the device is read once; everything after works on that buffer.
fn read_inputs(device: &Path, seed: Seed) -> Result<Inputs, PrepareError> {
    let mut disk = Vec::new();
    let limit = u64::try_from(CONFIG_DISK_MAX).unwrap_or(u64::MAX).saturating_add(1);
    File::open(device).and_then(|f| f.take(limit).read_to_end(&mut disk)).map_err(PrepareError::Config)?;
    Ok(inputs::parse(&disk, seed)?)
}

/// What stands in for a seed that the host does not keep: random, the same for all runs in one boot.
fn seed(layout: &Layout) -> Result<Seed, PrepareError> {
    let path = layout.private().join("instance-seed");
    if let Some(seed) = fs::read(&path).ok().and_then(|bytes| bytes.try_into().ok()) {
        return Ok(seed);
    }
    let mut seed = Seed::default();
    getrandom::fill(&mut seed).map_err(|_| PrepareError::Random)?;
    let output = Output { path, mode: 0o600, bytes: Zeroizing::new(seed.to_vec()) };
    outputs::write_all(layout, &[output]).map_err(PrepareError::Outputs)?;
    Ok(seed)
}

#[cfg(test)]
#[path = "prepare_tests.rs"]
mod tests;
