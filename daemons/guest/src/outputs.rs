// SPDX-License-Identifier: Apache-2.0
//! What the rest of the guest reads below `/run/dstack`.

use crate::dotenv;
use crate::env::Opened;
use crate::inputs::{Env, Inputs};
use crate::keys::BootKeys;
use crate::layout::Layout;
use crate::network::handover;
use dstack_core::compose::{AppCompose, Runner};
use dstack_keys::KeyError;
use rustix::fs::{Mode, OFlags};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// A file to write.
#[derive(PartialEq, Eq)]
pub struct Output {
    /// Where.
    pub path: PathBuf,
    /// Permission bits: 0644, or 0600 for secrets.
    pub mode: u32,
    /// What; wiped when dropped.
    pub bytes: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Output({}, {:o}, {} bytes)", self.path.display(), self.mode, self.bytes.len())
    }
}

/// What was found out about this guest, for its agent and its app.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// `tdx`, `simulated` or `none`.
    pub platform: &'a str,
    /// `intel`, `test:<fingerprint>`, or empty without a TEE.
    pub realm: &'a str,
    /// The keys of this boot.
    pub keys: &'a BootKeys,
    /// The deployer's environment.
    pub env: &'a Opened,
    /// [`crate::rollback::finding`].
    pub rollback: &'static str,
}

/// All files of one boot, in the order in which they are written.
///
/// # Errors
/// When the keys are larger than any reader accepts.
pub fn render(layout: &Layout, inputs: &Inputs, facts: &Facts<'_>) -> Result<Vec<Output>, KeyError> {
    let public = |name: &str, bytes: Vec<u8>| Output {
        path: layout.run().join(name),
        mode: 0o644,
        bytes: Zeroizing::new(bytes),
    };
    let private = |path: PathBuf, bytes: Zeroizing<Vec<u8>>| Output { path, mode: 0o600, bytes };
    let compose_file = inputs.compose.docker_compose_file.clone().unwrap_or_default();
    let env = &facts.env.env;
    let network = handover::render(inputs, &facts.keys.app.gateway_app_id, facts.platform);
    let mut outputs = vec![
        public("docker-compose.yaml", compose_file.into_bytes()),
        public("docker-daemon.json", docker_daemon(&inputs.compose)),
        public("user-config", inputs.user_config.clone()),
        private(layout.env(), Zeroizing::new(json!(env).to_string().into_bytes())),
        compose_env(layout, env),
        private(layout.app_keys(), facts.keys.app.to_json()?),
        public("instance.json", instance(inputs, facts)),
        public("app-compose.json", inputs.compose_bytes.clone()),
    ];
    outputs.extend(network.map(|bytes| public("network.json", bytes)));
    Ok(outputs)
}

/// The values for the compose file.
#[must_use]
pub fn compose_env(layout: &Layout, env: &Env) -> Output {
    Output {
        path: layout.compose_env(),
        mode: 0o600,
        bytes: Zeroizing::new(dotenv::render(env).into_bytes()),
    }
}

/// Docker's settings. Registries come from the measured compose alone (T5).
#[must_use]
pub fn docker_daemon(compose: &AppCompose) -> Vec<u8> {
    let settings = json!({
        "data-root": "/data/docker",
        "insecure-registries": compose.insecure_registries,
        "live-restore": false,
        "log-driver": "journald",
        "log-level": "warn",
        "registry-mirrors": compose.registry_mirrors,
        "storage-driver": "overlay2",
        "userland-proxy": false,
    });
    settings.to_string().into_bytes()
}

/// Who this guest is, and what may be believed about it: ids in hex, the instance id empty when the app wants none.
fn instance(inputs: &Inputs, facts: &Facts<'_>) -> Vec<u8> {
    let keys = &facts.keys.app;
    let instance = json!({
        "app_id": inputs.app_id,
        "app_name": inputs.compose.name,
        "compose_hash": inputs.compose_hash,
        "custody": facts.keys.custody,
        "env": match facts.env.authenticated {
            None => "none",
            Some(true) => "authenticated",
            Some(false) => "unauthenticated",
        },
        "env_skipped": facts.env.skipped,
        "images": if images_pinned(&inputs.compose) { "pinned" } else { "unpinned" },
        "instance_id": inputs.instance_id.map(|id| id.to_string()).unwrap_or_default(),
        "key_provider": keys.provider,
        "key_provider_id": keys.provider_id,
        "os_image_hash": keys.os_image_hash,
        "platform": facts.platform,
        "realm": facts.realm,
        "rollback": facts.rollback,
        "time": "floor",
    });
    instance.to_string().into_bytes()
}

/// Whether every image of the compose file is named by its digest (T5). A script may run whatever it likes.
fn images_pinned(compose: &AppCompose) -> bool {
    #[derive(Deserialize)]
    struct File {
        services: BTreeMap<String, Service>,
    }
    #[derive(Deserialize)]
    struct Service {
        image: Option<String>,
    }
    let text = compose.docker_compose_file.as_deref().filter(|_| compose.runner == Runner::DockerCompose);
    let parsed = text.and_then(|text| serde_saphyr::from_str::<File>(text).ok());
    let pinned = |service: &Service| service.image.as_ref().is_some_and(|image| image.contains("@sha256:"));
    parsed.is_some_and(|file| file.services.values().all(pinned))
}

/// Makes the directories and writes the files, each whole or not at all.
///
/// # Errors
/// The error of the first file that cannot be written.
pub fn write_all(layout: &Layout, outputs: &[Output]) -> io::Result<()> {
    directory(layout.run(), 0o755)?;
    directory(&layout.private(), 0o700)?;
    outputs.iter().try_for_each(write)
}

fn directory(path: &Path, mode: u32) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// A nameless file gets its mode and bytes before it gets a name, so no reader sees half of it or a wider mode (P03,
/// P04). What is below `/run` needs no fsync.
///
/// # Errors
/// Of the file; the old one is there still.
pub fn write(output: &Output) -> io::Result<()> {
    let parent = output.path.parent().unwrap_or(Path::new("/"));
    let name = output.path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = parent.join(format!(".{name}.{}", std::process::id()));
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut file = File::from(rustix::fs::open(&temporary, flags, Mode::RUSR | Mode::WUSR)?);
    let done = file
        .write_all(&output.bytes)
        .and_then(|()| file.set_permissions(Permissions::from_mode(output.mode)))
        .and_then(|()| fs::rename(&temporary, &output.path));
    done.inspect_err(|_| drop(fs::remove_file(&temporary)))
}

#[cfg(test)]
#[path = "outputs_tests.rs"]
mod tests;
