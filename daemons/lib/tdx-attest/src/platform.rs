// SPDX-License-Identifier: Apache-2.0
//! What a TEE offers to its guest.

use dstack_core::ccel::CcelError;
use dstack_core::event_log::{Digest, Event};
use dstack_core::quote_sim_wire::{Certified, WireError};
use std::io;
use std::path::{Path, PathBuf};

pub use dstack_core::quote_sim_wire::Registers;

/// Largest quote, bytes.
pub const QUOTE_MAX: usize = 16 * 1024;

/// Why a TEE does not do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// A file of the kernel cannot be used.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// This is a TD, and its driver is not there (trust rule T4: nothing takes its place).
    #[error("this is a TDX guest, but {} is missing: the guest image needs Linux 6.16 or newer with CONFIG_TDX_GUEST_DRIVER", .0.display())]
    NoDriver(PathBuf),
    /// Other users of the report interface came between, each time.
    #[error("no quote after {0} attempts: something else uses the kernel's report interface")]
    Contended(u32),
    /// What came back has not the form of a quote or register.
    #[error("the TEE gave {0}")]
    Malformed(&'static str),
    /// The simulated TEE cannot be reached.
    #[error("the simulated TEE cannot be reached: {0}; install dstack-testroot on the host")]
    Unreachable(io::Error),
    /// The firmware's event log is damaged.
    #[error(transparent)]
    Firmware(#[from] CcelError),
    /// The simulated TEE gave no valid answer.
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl AttestError {
    pub(crate) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::File { path, error }
    }
}

/// A TEE, from inside.
pub trait Platform: Send + Sync {
    /// `tdx` or `simulated`.
    fn label(&self) -> &'static str;

    /// A quote over the report data, raw.
    ///
    /// # Errors
    /// [`AttestError`].
    fn quote(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, AttestError>;

    /// Extends RTMR3. After an error it may have been extended or not: read [`Self::registers`].
    ///
    /// # Errors
    /// [`AttestError`].
    fn extend(&self, digest: &Digest) -> Result<(), AttestError>;

    /// The registers as they are now.
    ///
    /// # Errors
    /// [`AttestError`].
    fn registers(&self) -> Result<Registers, AttestError>;

    /// The firmware's events behind RTMR0 to RTMR2, without their data, which may be large and proves nothing; none
    /// where there is no firmware log.
    ///
    /// # Errors
    /// [`AttestError::Firmware`] when it is there but damaged.
    fn firmware_events(&self) -> Result<Vec<Event>, AttestError> {
        Ok(Vec::new())
    }

    /// Root certificate and collateral of a simulated TEE, which decide the realm of this guest (trust rule T4); `None`
    /// where the TEE is a real one.
    ///
    /// # Errors
    /// [`AttestError`].
    fn certified(&self) -> Result<Option<Certified>, AttestError> {
        Ok(None)
    }
}
