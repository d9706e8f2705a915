// SPDX-License-Identifier: Apache-2.0
//! Answers guests: frames in, frames out. Everything but collateral needs to be a running VM of teepod.

use crate::SimError;
use crate::collateral::{Claims, Collateral};
use crate::identity::{Caller, Host, IdentityError};
use crate::pki::TestRoot;
use crate::quote::TdReport;
use crate::registry::{Registry, Vm};
use dstack_core::ids::VmName;
use dstack_core::quote_sim_wire::{
    self as wire, Certified, Extended, Quoted, REQUEST_MAX, Refused, Registers, Request, WireError,
};
use dstack_service::state::StateError;
use serde::Serialize;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// Time for a request to arrive; also how long a connection may stay idle.
pub const IDLE: Duration = Duration::from_secs(60);
/// Time for an answer to be taken.
const ANSWER: Duration = Duration::from_secs(10);
/// Age at which collateral is signed again.
const COLLATERAL_AGE: time::Duration = time::Duration::hours(1);

/// Why a request gets no answer; the caller is told.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the register cannot be kept; see the log of dstack-quote-sim on the host")]
    State(#[from] StateError),
    #[error("the test root cannot sign; see the log of dstack-quote-sim on the host")]
    Sign(#[from] SimError),
    #[error("collateral has no JSON form: {0}")]
    Json(#[from] serde_json::Error),
}

/// The simulated TEE of a host.
#[derive(Debug)]
pub struct Tee<H> {
    root: TestRoot,
    host: H,
    registry: Mutex<Registry>,
    /// The last collateral and when it was signed: one entry, whoever asks.
    collateral: Mutex<Option<(OffsetDateTime, Collateral)>>,
}

impl<H: Host> Tee<H> {
    /// Quotes under this root for the VMs of this host.
    #[must_use]
    pub const fn new(root: TestRoot, host: H, registry: Registry) -> Self {
        Self { root, host, registry: Mutex::new(registry), collateral: Mutex::new(None) }
    }

    /// The name of the root for people.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        self.root.fingerprint()
    }

    /// Forgets the registers of a VM that was removed.
    ///
    /// # Errors
    /// When its file cannot be deleted.
    pub fn forget(&self, name: &VmName) -> io::Result<()> {
        lock(&self.registry).forget(name)
    }

    /// Serves one connection until it ends.
    ///
    /// # Errors
    /// When the stream breaks, is idle for [`IDLE`], or announces a frame over its limit.
    pub async fn serve<S>(
        &self,
        mut stream: S,
        caller: Caller,
        alive: impl Fn() -> bool + Send,
    ) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let mut vm = None;
        while let Some(body) = timeout(IDLE, read_frame(&mut stream)).await?? {
            let answer = self.answer(&body, caller, &mut vm, &alive).await;
            let frame = answer.or_else(|refusal| {
                tracing::warn!("request of {caller:?} refused: {}", log_text(&refusal));
                wire::frame(&Refused { error: refusal.to_string() })
            });
            let frame = frame.map_err(io::Error::other)?;
            timeout(ANSWER, stream.write_all(&frame)).await??;
        }
        Ok(())
    }

    async fn answer(
        &self,
        body: &[u8],
        caller: Caller,
        vm: &mut Option<Vm>,
        alive: &(impl Fn() -> bool + Send),
    ) -> Result<Vec<u8>, Refusal> {
        let request = wire::parse_request(body)?;
        if request == Request::Collateral {
            return framed(&self.certified(OffsetDateTime::now_utc())?);
        }
        let registers = self.registers(caller, vm, alive).await?;
        let Some(vm) = vm else { return Err(IdentityError::NotAVm.into()) };
        match request {
            Request::Quote { report_data } => {
                let quote = self.root.quote(&report(&registers, report_data));
                framed(&Quoted { quote })
            }
            Request::Extend { digest } => {
                let rtmr3 = lock(&self.registry).extend(vm, &digest)?.ok_or(IdentityError::NotAVm)?;
                framed(&Extended { rtmr3 })
            }
            Request::Registers | Request::Collateral => framed(&registers),
        }
    }

    /// The caller's registers now; its run begins with its first request.
    async fn registers(
        &self,
        caller: Caller,
        vm: &mut Option<Vm>,
        alive: &(impl Fn() -> bool + Send),
    ) -> Result<Registers, Refusal> {
        let known = match vm.take() {
            Some(known) => known,
            None => self.host.identify(caller).await?,
        };
        // The process is still the one that connected, so its number was not given to another meanwhile.
        if !alive() {
            return Err(IdentityError::NotAVm.into());
        }
        let begun = lock(&self.registry).get(&known)?;
        let registers = match begun {
            Some(registers) => registers,
            None => {
                let launched = self.host.launched(&known.name).await?;
                lock(&self.registry).begin(&known, launched.registers())?
            }
        };
        *vm = Some(known);
        Ok(registers)
    }

    fn certified(&self, now: OffsetDateTime) -> Result<Certified, Refusal> {
        let collateral = serde_json::to_value(self.collateral(now)?)?;
        Ok(Certified { collateral, root: self.root.certificate_pem().to_owned() })
    }

    /// The collateral in force, signed again when it is an hour old.
    ///
    /// # Errors
    /// [`SimError`] when it cannot be signed.
    pub fn collateral(&self, now: OffsetDateTime) -> Result<Collateral, SimError> {
        let mut cached = lock(&self.collateral);
        let fresh = |signed: OffsetDateTime| signed <= now && now - signed < COLLATERAL_AGE;
        if let Some((signed, collateral)) = cached.as_ref()
            && fresh(*signed)
        {
            return Ok(collateral.clone());
        }
        let collateral = self.root.collateral(&Claims::up_to_date(now))?;
        *cached = Some((now, collateral.clone()));
        Ok(collateral)
    }
}

/// A refusal for the log, with the cause that the caller is not told.
fn log_text(refusal: &Refusal) -> String {
    match refusal {
        Refusal::State(error) => error.to_string(),
        Refusal::Sign(error) => error.to_string(),
        other => other.to_string(),
    }
}

fn report(registers: &Registers, report_data: [u8; 64]) -> TdReport {
    let rtmr = [registers.rtmr0, registers.rtmr1, registers.rtmr2, registers.rtmr3];
    let (mr_td, mr_config_id) = (registers.mrtd, registers.mr_config_id);
    TdReport { mr_td, mr_config_id, rtmr, report_data, ..TdReport::default() }
}

fn framed<T: Serialize>(reply: &T) -> Result<Vec<u8>, Refusal> {
    Ok(wire::frame(reply)?)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The body of the next frame; `None` when the other end has closed between two.
async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut head = [0; 4];
    match stream.read_exact(&mut head).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let length = wire::length(head, REQUEST_MAX).map_err(io::Error::other)?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some(body))
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
