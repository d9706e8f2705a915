// SPDX-License-Identifier: Apache-2.0
//! What the rest of the guest reads below `/run/dstack`.

use crate::dotenv;
use crate::inputs::{Env, Inputs};
use crate::layout::Layout;
use dstack_core::compose::AppCompose;
use rustix::fs::{Mode, OFlags};
use serde_json::json;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A file to write.
#[derive(Debug, PartialEq, Eq)]
pub struct Output {
    /// Where.
    pub path: PathBuf,
    /// Permission bits: 0644, or 0600 for secrets.
    pub mode: u32,
    /// What.
    pub bytes: Vec<u8>,
}

/// All files of one boot, in the order in which they are written.
#[must_use]
pub fn render(layout: &Layout, inputs: &Inputs, provider: &str) -> Vec<Output> {
    let public = |name: &str, bytes: Vec<u8>| Output { path: layout.run().join(name), mode: 0o644, bytes };
    let private = |path: PathBuf, bytes: Vec<u8>| Output { path, mode: 0o600, bytes };
    let compose_file = inputs.compose.docker_compose_file.clone().unwrap_or_default();
    vec![
        public("docker-compose.yaml", compose_file.into_bytes()),
        public("docker-daemon.json", docker_daemon(&inputs.compose)),
        public("user-config", inputs.user_config.clone()),
        private(layout.env(), json!(inputs.env).to_string().into_bytes()),
        compose_env(layout, &inputs.env),
        public("instance.json", instance(inputs, provider)),
        public("app-compose.json", inputs.compose_bytes.clone()),
    ]
}

/// The values for the compose file.
#[must_use]
pub fn compose_env(layout: &Layout, env: &Env) -> Output {
    Output { path: layout.compose_env(), mode: 0o600, bytes: dotenv::render(env).into_bytes() }
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

/// Who this guest is: ids in hex, the instance id empty when the app wants none.
fn instance(inputs: &Inputs, provider: &str) -> Vec<u8> {
    let instance = json!({
        "app_id": inputs.app_id,
        "app_name": inputs.compose.name,
        "compose_hash": inputs.compose_hash,
        "instance_id": inputs.instance_id.map(|id| id.to_string()).unwrap_or_default(),
        "key_provider": provider,
        "platform": "none",
    });
    instance.to_string().into_bytes()
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
fn write(output: &Output) -> io::Result<()> {
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
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use dstack_core::config_disk::{self, File as ConfigFile};

    fn sample(extra: &serde_json::Value) -> Inputs {
        let mut compose = json!({
            "manifest_version": 2, "name": "hello", "runner": "docker-compose",
            "docker_compose_file": "services: {web: {image: web}}",
        });
        compose.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let hints =
            json!({"docker_registry": "http://evil.example", "registry_mirrors": ["http://evil.example"]});
        let files = [
            (ConfigFile::AppCompose, compose.to_string().into_bytes()),
            (ConfigFile::SysConfig, hints.to_string().into_bytes()),
            (ConfigFile::UserConfig, b"hi".to_vec()),
        ];
        crate::inputs::parse(&config_disk::write(&files.into()).unwrap(), [1; 20]).unwrap().0
    }

    #[test]
    fn t05_registries_come_from_the_measured_compose_alone() {
        let inputs = sample(&json!({"insecure_registries": ["registry.test:5000"]}));
        let outputs = render(&Layout::default(), &inputs, "none");
        assert!(outputs.iter().all(|o| !String::from_utf8_lossy(&o.bytes).contains("evil")));
        let daemon: serde_json::Value = serde_json::from_slice(&docker_daemon(&inputs.compose)).unwrap();
        assert_eq!(daemon["insecure-registries"], json!(["registry.test:5000"]));
        assert_eq!(daemon["registry-mirrors"], json!([]));
        assert_eq!(
            (&daemon["log-driver"], &daemon["data-root"]),
            (&json!("journald"), &json!("/data/docker"))
        );
    }

    #[test]
    fn p03_secrets_are_for_their_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::at(&dir.path().join("run"), dir.path());
        let mut inputs = sample(&json!({}));
        inputs.env.insert("TOKEN".into(), "s3cret".into());
        let outputs = render(&layout, &inputs, "none");
        for _ in 0..2 {
            write_all(&layout, &outputs).unwrap();
        }
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&layout.private()), 0o700);
        for output in &outputs {
            let secret = String::from_utf8_lossy(&output.bytes).contains("s3cret");
            assert_eq!(mode(&output.path), if secret { 0o600 } else { output.mode }, "{:?}", output.path);
            assert_eq!(fs::read(&output.path).unwrap(), output.bytes);
        }
        let names =
            fs::read_dir(layout.run()).unwrap().count() + fs::read_dir(layout.private()).unwrap().count();
        assert_eq!(names, outputs.len() + 1, "no temporary file stays");
    }

    #[test]
    fn the_exact_compose_bytes_are_kept() {
        let inputs = sample(&json!({"zzz": 1.0}));
        let outputs = render(&Layout::default(), &inputs, "none");
        let kept = outputs.iter().find(|o| o.path == Layout::default().app_compose()).unwrap();
        assert_eq!(kept.bytes, inputs.compose_bytes);
    }
}
