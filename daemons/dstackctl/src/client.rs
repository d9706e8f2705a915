// SPDX-License-Identifier: Apache-2.0
//! The connection to teepod: the system bus, here or over ssh.

use crate::agent::Agent;
use crate::cli::Global;
use crate::errors::Failure;
use dstack_service::api::teepod1::{Error, ManagerProxy, VmProxy};
use dstack_service::api::{certbot1, ctmonitor1, kms1, tproxy1};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::cell::OnceCell;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use zbus::connection::Builder;
use zbus::proxy::MethodFlags;
use zbus::{Connection, OwnedObjectPath};

/// The longest time a call may take; it includes the time in which a user types a password.
const PATIENCE: Duration = Duration::from_secs(300);

/// A connection to teepod.
#[derive(Debug)]
pub struct Client {
    /// The bus.
    pub connection: Connection,
    /// teepod's manager object.
    pub manager: ManagerProxy<'static>,
    /// The host worked on, when it is another one.
    pub remote: Option<String>,
    interactive: bool,
    agent: OnceCell<Option<Agent>>,
    tunnel: Option<Child>,
}

impl Client {
    /// Connects to the bus; teepod itself is started by its first call.
    ///
    /// # Errors
    /// When the bus, or ssh, cannot be reached.
    pub async fn open(global: &Global) -> Result<Self, Failure> {
        let (connection, tunnel) = match &global.host {
            Some(host) => over_ssh(host).await.map(|(c, t)| (c, Some(t)))?,
            None => (here().await?, None),
        };
        let manager = ManagerProxy::builder(&connection)
            .cache_properties(zbus::proxy::CacheProperties::No)
            .build()
            .await?;
        Ok(Self {
            connection,
            manager,
            remote: global.host.clone(),
            interactive: !global.no_ask_password && global.host.is_none(),
            agent: OnceCell::new(),
            tunnel,
        })
    }

    /// Calls a method of the manager that changes something: the user may be asked for a password.
    ///
    /// # Errors
    /// The daemon's error.
    pub async fn change<B, R>(&self, method: &'static str, body: &B) -> Result<R, Failure>
    where
        B: serde::Serialize + zbus::DynamicType,
        R: for<'d> zbus::wire::DynamicDeserialize<'d>,
    {
        self.call::<_, _, Error>(self.manager.inner(), method, body).await
    }

    /// The same with the key service of the host.
    ///
    /// # Errors
    /// The daemon's error.
    pub async fn change_kms<B, R>(&self, method: &'static str, body: &B) -> Result<R, Failure>
    where
        B: serde::Serialize + zbus::DynamicType,
        R: for<'d> zbus::wire::DynamicDeserialize<'d>,
    {
        self.call::<_, _, kms1::Error>(self.kms().await?.inner(), method, body).await
    }

    /// The key service of the host; it is started by its first call.
    ///
    /// # Errors
    /// When the bus failed.
    pub async fn kms(&self) -> Result<kms1::ManagerProxy<'static>, Failure> {
        let builder = kms1::ManagerProxy::builder(&self.connection);
        Ok(builder.cache_properties(zbus::proxy::CacheProperties::No).build().await?)
    }

    /// The same with the ingress of the host.
    ///
    /// # Errors
    /// The daemon's error.
    pub async fn change_proxy<B, R>(&self, method: &'static str, body: &B) -> Result<R, Failure>
    where
        B: serde::Serialize + zbus::DynamicType,
        R: for<'d> zbus::wire::DynamicDeserialize<'d>,
    {
        self.call::<_, _, tproxy1::Error>(self.proxy().await?.inner(), method, body).await
    }

    /// The ingress of the host; it is started by its first call.
    ///
    /// # Errors
    /// When the bus failed.
    pub async fn proxy(&self) -> Result<tproxy1::ManagerProxy<'static>, Failure> {
        let builder = tproxy1::ManagerProxy::builder(&self.connection);
        Ok(builder.cache_properties(zbus::proxy::CacheProperties::No).build().await?)
    }

    /// The same with the certificate monitor of the host.
    ///
    /// # Errors
    /// The daemon's error.
    pub async fn change_ct<B, R>(&self, method: &'static str, body: &B) -> Result<R, Failure>
    where
        B: serde::Serialize + zbus::DynamicType,
        R: for<'d> zbus::wire::DynamicDeserialize<'d>,
    {
        self.call::<_, _, ctmonitor1::Error>(self.ct().await?.inner(), method, body).await
    }

    /// The certificate monitor of the host; it is started by its first call.
    ///
    /// # Errors
    /// When the bus failed.
    pub async fn ct(&self) -> Result<ctmonitor1::ManagerProxy<'static>, Failure> {
        let builder = ctmonitor1::ManagerProxy::builder(&self.connection);
        Ok(builder.cache_properties(zbus::proxy::CacheProperties::No).build().await?)
    }

    /// The same with the certificates of the host.
    ///
    /// # Errors
    /// The daemon's error.
    pub async fn change_certbot<B, R>(&self, method: &'static str, body: &B) -> Result<R, Failure>
    where
        B: serde::Serialize + zbus::DynamicType,
        R: for<'d> zbus::wire::DynamicDeserialize<'d>,
    {
        self.call::<_, _, certbot1::Error>(self.certbot().await?.inner(), method, body).await
    }

    /// The certificates of the host; their daemon is started by its first call.
    ///
    /// # Errors
    /// When the bus failed.
    pub async fn certbot(&self) -> Result<certbot1::ManagerProxy<'static>, Failure> {
        let builder = certbot1::ManagerProxy::builder(&self.connection);
        Ok(builder.cache_properties(zbus::proxy::CacheProperties::No).build().await?)
    }

    async fn call<B, R, E>(
        &self,
        proxy: &zbus::Proxy<'_>,
        method: &'static str,
        body: &B,
    ) -> Result<R, Failure>
    where
        B: serde::Serialize + zbus::DynamicType,
        R: for<'d> zbus::wire::DynamicDeserialize<'d>,
        E: From<zbus::Error>,
        Failure: From<E>,
    {
        let flags = if self.interactive { MethodFlags::ALLOW_INTERACTIVE_AUTH } else { MethodFlags::empty() };
        if self.interactive {
            self.agent.get_or_init(Agent::start);
        }
        let reply: Option<R> = proxy.call_with_flags(method, flags, body).await.map_err(E::from)?;
        reply.ok_or_else(|| Failure::new("D-Bus: no reply"))
    }

    /// The object of a VM, by name or id.
    ///
    /// # Errors
    /// `NoSuchVm`, or the bus failed.
    pub async fn vm(&self, name: &str) -> Result<VmProxy<'static>, Failure> {
        let path = self.manager.get_vm(name).await?;
        self.vm_at(path).await
    }

    /// The VM at a path.
    ///
    /// # Errors
    /// When the bus failed.
    pub async fn vm_at(&self, path: OwnedObjectPath) -> Result<VmProxy<'static>, Failure> {
        let builder = VmProxy::builder(&self.connection).path(path);
        Ok(builder.cache_properties(zbus::proxy::CacheProperties::No).build().await?)
    }

    /// Refuses what needs file descriptors, which ssh cannot carry.
    ///
    /// # Errors
    /// On another host, with the command to use there.
    pub fn needs_local(&self, command: &str) -> Result<(), Failure> {
        match &self.remote {
            None => Ok(()),
            Some(host) => Err(Failure::usage(format!("{command} works only on the host itself"))
                .hint(format!("ssh -t {host} dstackctl {command} …"))),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(tunnel) = &mut self.tunnel {
            let _ = tunnel.kill();
            let _ = tunnel.wait();
        }
    }
}

async fn here() -> Result<Connection, Failure> {
    Builder::system().method_timeout(PATIENCE).build().await.map_err(|error| {
        Failure::new(format!("cannot reach the system bus: {error}"))
            .hint("check that D-Bus runs: systemctl status dbus.socket")
    })
}

async fn over_ssh(host: &str) -> Result<(Connection, Child), Failure> {
    let cannot = |e: &dyn std::fmt::Display| Failure::new(format!("cannot reach {host} over ssh: {e}"));
    let kind = (SocketType::STREAM, SocketFlags::CLOEXEC);
    let (ours, theirs) = socketpair(AddressFamily::UNIX, kind.0, kind.1, None).map_err(|e| cannot(&e))?;
    let output = theirs.try_clone().map_err(|e| cannot(&e))?;
    let tunnel = Command::new("ssh")
        .args(["-xT", "--", host, "systemd-stdio-bridge"])
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::from(output))
        .spawn()
        .map_err(|e| cannot(&e))?;
    let stream = UnixStream::from(ours);
    stream.set_nonblocking(true).map_err(|e| cannot(&e))?;
    match Builder::unix_stream(stream).method_timeout(PATIENCE).build().await {
        Ok(connection) => Ok((connection, tunnel)),
        Err(error) => {
            let mut tunnel = tunnel;
            let _ = tunnel.kill();
            let _ = tunnel.wait();
            Err(cannot(&error)
                .hint("check that `ssh` logs in there without a question, and that systemd is installed"))
        }
    }
}
