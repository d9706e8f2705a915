// SPDX-License-Identifier: Apache-2.0
//! `/prpc/Teepod.<Method>`: the original's interface over this engine.

use crate::engine::Engine;
use crate::engine::change::{Resize, Upgrade};
use crate::engine::create::{Create, Port};
use crate::engine::vm::{View, Vm};
use crate::settings::{GIB, MIB};
use crate::vm::State;
use dstack_core::config_disk::File;
use dstack_core::ids::ImageName;
use dstack_rpc::teepod::{
    AppId, GetInfoResponse, GetMetaResponse, Id, ImageInfo, ImageListResponse, KmsSettings, PortMapping,
    PublicKeyResponse, ResizeVmRequest, ResourcesSettings, StatusResponse, TProxySettings, UpgradeAppRequest,
    VersionResponse, VmConfiguration, VmInfo,
};
use dstack_rpc::{Call, RpcError, Service};
use dstack_service::api::teepod1::Error;
use dstack_service::jobs::{Context, JobError};
use std::sync::Arc;

/// Answers the original's calls.
#[derive(Debug)]
pub struct Teepod {
    engine: Engine,
}

type Reply = Result<Vec<u8>, RpcError>;

fn failed(error: impl Into<Error>) -> RpcError {
    RpcError::failed(error.into().to_string())
}

impl Service for Teepod {
    const NAMES: &'static [&'static str] = &["Teepod"];

    async fn call(&self, call: Call) -> Reply {
        match call.method.as_str() {
            "CreateVm" => self.create(&call).await,
            "StartVm" => self.start(&call).await,
            "StopVm" => self.kill(&call).await,
            "ShutdownVm" => self.shutdown(&call).await,
            "RemoveVm" => self.remove(&call).await,
            "UpgradeApp" => self.upgrade(&call).await,
            "ResizeVm" => self.resize(&call).await,
            "Status" => self.status(&call).await,
            "GetInfo" => self.info(&call).await,
            "ListImages" => self.images(&call).await,
            "GetAppEnvEncryptPubKey" => self.env_key(&call),
            "Version" => call.reply(&VersionResponse {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                rev: String::new(),
            }),
            "GetMeta" => self.meta(&call),
            method => Err(RpcError::unknown_method(method)),
        }
    }
}

impl Teepod {
    /// Answers over this engine.
    #[must_use]
    pub const fn new(engine: Engine) -> Self {
        Self { engine }
    }

    fn vm(&self, call: &Call) -> Result<Arc<Vm>, RpcError> {
        let id: Id = call.args()?;
        self.engine.get(&id.id).map_err(failed)
    }

    async fn create(&self, call: &Call) -> Reply {
        let ask = create(call.args()?)?;
        let vm = self.engine.create(ask).await.map_err(failed)?;
        let id = vm.record().spec.id.to_string();
        self.boot(vm);
        call.reply(&Id { id })
    }

    /// The original answers before the app is up; the boot shows in `Status`.
    fn boot(&self, vm: Arc<Vm>) {
        let engine = self.engine.clone();
        tokio::spawn(async move {
            let context = Context::detached("start-vm", vm.name.as_str());
            if let Err(JobError::Failed(error)) = engine.start(&vm, &context).await {
                tracing::warn!(DSTACK_VM = vm.name.as_str(), "{error}");
            }
        });
    }

    async fn start(&self, call: &Call) -> Reply {
        self.boot(self.vm(call)?);
        call.reply(&())
    }

    /// The original's StopVm is a kill; its ShutdownVm is the orderly way.
    async fn kill(&self, call: &Call) -> Reply {
        self.engine.kill(&self.vm(call)?).await.map_err(failed)?;
        call.reply(&())
    }

    async fn shutdown(&self, call: &Call) -> Reply {
        let (engine, vm) = (self.engine.clone(), self.vm(call)?);
        tokio::spawn(async move {
            let context = Context::detached("stop-vm", vm.name.as_str());
            if let Err(JobError::Failed(error)) = engine.stop(&vm, &context).await {
                tracing::warn!(DSTACK_VM = vm.name.as_str(), "{error}");
            }
        });
        call.reply(&())
    }

    async fn remove(&self, call: &Call) -> Reply {
        let vm = self.vm(call)?;
        let context = Context::detached("remove-vm", vm.name.as_str());
        match self.engine.remove(&vm, &context).await {
            Err(JobError::Failed(error)) => Err(failed(error)),
            Ok(()) | Err(JobError::Canceled) => call.reply(&()),
        }
    }

    async fn upgrade(&self, call: &Call) -> Reply {
        let ask: UpgradeAppRequest = call.args()?;
        let vm = self.engine.get(&ask.id).map_err(failed)?;
        let upgrade = Upgrade {
            compose: ask.compose_file.into_bytes(),
            encrypted_env: Some(ask.encrypted_env).filter(|e| !e.is_empty()),
            encrypted_env_sig: None,
            user_config: None,
        };
        let hash = self.engine.upgrade(&vm, upgrade).await.map_err(failed)?;
        call.reply(&Id { id: hash.app_id().to_string() })
    }

    async fn resize(&self, call: &Call) -> Reply {
        let ask: ResizeVmRequest = call.args()?;
        let vm = self.engine.get(&ask.id).map_err(failed)?;
        let image = ask.image.as_deref().filter(|i| !i.is_empty()).map(parse_image).transpose()?;
        let resize = Resize {
            vcpus: ask.vcpu,
            memory: ask.memory.map(|m| u64::from(m) * MIB),
            disk: ask.disk_size.map(|d| u64::from(d) * GIB),
            image,
            ports: None,
            autostart: None,
        };
        self.engine.resize(&vm, resize).await.map_err(failed)?;
        call.reply(&())
    }

    async fn status(&self, call: &Call) -> Reply {
        let mut vms = self.engine.vms();
        vms.sort_by_key(|vm| vm.record().spec.created_at);
        let mut infos = Vec::with_capacity(vms.len());
        for vm in vms {
            infos.push(self.describe(&vm).await);
        }
        let port_mapping_enabled = self.engine.settings().ports.enabled;
        call.reply(&StatusResponse { vms: infos, port_mapping_enabled })
    }

    async fn info(&self, call: &Call) -> Reply {
        let id: Id = call.args()?;
        let info = match self.engine.get(&id.id) {
            Ok(vm) => Some(self.describe(&vm).await),
            Err(Error::NoSuchVm(_)) => None,
            Err(error) => return Err(failed(error)),
        };
        call.reply(&GetInfoResponse { found: info.is_some(), info })
    }

    async fn images(&self, call: &Call) -> Reply {
        let images = self.engine.images().await.map_err(failed)?.into_iter().map(|image| {
            let metadata = image.manifest.metadata;
            ImageInfo {
                name: image.name.to_string(),
                description: serde_json::to_string(&metadata).unwrap_or_default(),
                version: metadata.version,
                is_dev: metadata.is_dev,
            }
        });
        call.reply(&ImageListResponse { images: images.collect() })
    }

    fn env_key(&self, call: &Call) -> Reply {
        let ask: AppId = call.args()?;
        let public_key = self.engine.app_env_key(&ask.app_id).map_err(failed)?;
        call.reply(&PublicKeyResponse { public_key })
    }

    fn meta(&self, call: &Call) -> Reply {
        let settings = self.engine.settings();
        let gateway = &settings.gateway;
        let first = |urls: &[String]| urls.first().cloned().unwrap_or_default();
        let most = |value: u64, unit: u64| u32::try_from(value / unit).unwrap_or(u32::MAX);
        call.reply(&GetMetaResponse {
            kms: Some(KmsSettings { url: first(&settings.kms_urls) }),
            tproxy: Some(TProxySettings {
                url: first(&settings.tproxy_urls),
                base_domain: gateway.base_domain.clone(),
                port: gateway.port.into(),
                tappd_port: gateway.tappd_port.into(),
            }),
            resources: Some(ResourcesSettings {
                max_cvm_number: settings.cids.end - settings.cids.start,
                max_allocable_vcpu: settings.max_vcpus,
                max_allocable_memory_in_mb: most(settings.max_memory, MIB),
                max_disk_size_in_gb: most(settings.max_disk, GIB),
            }),
        })
    }

    async fn describe(&self, vm: &Vm) -> VmInfo {
        // Unreadable files show as an empty compose file; the log says why at the next start.
        let mut files = self.engine.files(vm).await.unwrap_or_default();
        let compose = files.remove(&File::AppCompose).unwrap_or_default();
        let view = vm.view();
        let since = self.engine.since(vm).await.map_or_else(|| "never".to_owned(), |d| words(d.as_secs()));
        let down = view.state.is_down();
        let instance = Some(view.instance_id.clone()).filter(|i| !i.is_empty());
        VmInfo {
            id: view.record.spec.id.to_string(),
            name: vm.name.to_string(),
            status: status_word(&view.state).to_owned(),
            uptime: if down { "never".to_owned() } else { since.clone() },
            app_url: instance.as_deref().and_then(|i| self.app_url(i)),
            app_id: view.record.spec.app_id.to_string(),
            instance_id: instance,
            configuration: Some(configuration(&view, compose)),
            exited_at: down.then_some(since),
            boot_progress: view.boot_progress.clone(),
            boot_error: view.boot_error.clone(),
            shutdown_progress: if view.state == State::Stopping { "stopping".into() } else { String::new() },
            image_version: view.record.spec.image.as_str().rsplit('-').next().unwrap_or_default().to_owned(),
        }
    }

    fn app_url(&self, instance: &str) -> Option<String> {
        let gateway = &self.engine.settings().gateway;
        let domain = Some(&gateway.base_domain).filter(|d| !d.is_empty())?;
        Some(format!("https://{instance}-{}.{domain}:{}", gateway.tappd_port, gateway.port))
    }
}

/// The original's words: whether it should run and whether it does.
const fn status_word(state: &State) -> &'static str {
    match state {
        State::Starting | State::Booting | State::Running => "running",
        State::Stopping => "stopping",
        State::Failed(_) => "exited",
        State::Stopped => "stopped",
    }
}

/// `1h 2m 3s`.
fn words(seconds: u64) -> String {
    let parts =
        [(seconds / 86_400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let shown: Vec<String> = parts
        .into_iter()
        .skip_while(|(n, unit)| *n == 0 && *unit != "s")
        .map(|(n, unit)| format!("{n}{unit}"))
        .collect();
    shown.join(" ")
}

fn parse_image(text: &str) -> Result<ImageName, RpcError> {
    text.parse().map_err(|e: dstack_core::ids::IdError| RpcError::failed(e.to_string()))
}

fn create(ask: VmConfiguration) -> Result<Create, RpcError> {
    let image = if ask.image.is_empty() { None } else { Some(parse_image(&ask.image)?) };
    let app_id = ask.app_id.filter(|a| !a.is_empty()).map(|a| a.parse()).transpose();
    Ok(Create {
        name: ask.name,
        compose: ask.compose_file.into_bytes(),
        image,
        vcpus: Some(ask.vcpu).filter(|v| *v > 0),
        memory: Some(u64::from(ask.memory) * MIB).filter(|m| *m > 0),
        disk: Some(u64::from(ask.disk_size) * GIB).filter(|d| *d > 0),
        ports: ask.ports.iter().map(port).collect::<Result<_, _>>()?,
        encrypted_env: Some(ask.encrypted_env),
        encrypted_env_sig: None,
        app_id: app_id.map_err(|e: dstack_core::ids::IdError| RpcError::failed(e.to_string()))?,
        user_config: None,
        autostart: false,
        start: true,
    })
}

fn port(port: &PortMapping) -> Result<Port, RpcError> {
    let number = |p: u32| {
        u16::try_from(p).map_err(|_| RpcError::failed(format!("port {p} is not possible: use 1 to 65535")))
    };
    Ok(Port {
        protocol: port
            .protocol
            .parse()
            .map_err(|e: dstack_core::spec::SpecError| RpcError::failed(e.to_string()))?,
        host_address: None,
        host_port: number(port.host_port)?,
        vm_port: number(port.vm_port)?,
    })
}

fn configuration(view: &View, compose: Vec<u8>) -> VmConfiguration {
    let spec = &view.record.spec;
    let most = |value: u64, unit: u64| u32::try_from(value / unit).unwrap_or(u32::MAX);
    VmConfiguration {
        name: spec.name.to_string(),
        image: spec.image.to_string(),
        compose_file: String::from_utf8_lossy(&compose).into_owned(),
        vcpu: spec.vcpus,
        memory: most(spec.memory, MIB),
        disk_size: most(spec.disk, GIB),
        ports: spec
            .ports
            .iter()
            .map(|p| PortMapping {
                protocol: p.protocol.to_string(),
                host_port: p.host_port.into(),
                vm_port: p.vm_port.into(),
            })
            .collect(),
        encrypted_env: Vec::new(),
        app_id: Some(spec.app_id.to_string()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn durations_are_for_people() {
        for (seconds, words) in
            [(0, "0s"), (59, "59s"), (60, "1m 0s"), (3723, "1h 2m 3s"), (90_061, "1d 1h 1m 1s")]
        {
            assert_eq!(super::words(seconds), words);
        }
    }
}
