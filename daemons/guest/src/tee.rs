// SPDX-License-Identifier: Apache-2.0
//! The TEE of this machine and the root that its evidence stands under: one realm, found by what the machine is and by
//! no setting (T4).

use dstack_ra_rpc::Verifier;
use dstack_ra_rpc::collateral::{Cache, Fetch, Offline, PlatformId};
use dstack_ra_rpc::peer::BoxFuture;
use dstack_ra_tls::roots::RootError;
use dstack_ra_tls::{Policy, Roots};
use dstack_tdx_attest::simulated::{Connect, Simulated};
use dstack_tdx_attest::{AttestError, Platform};

/// What the simulated TEE's root and collateral are asked from.
pub type Certified = dstack_core::quote_sim_wire::Certified;

/// A TEE.
pub trait Tee {
    /// The door to it.
    ///
    /// # Errors
    /// In a TD without driver: nothing else takes its place.
    fn platform(&self) -> Result<Box<dyn Platform>, AttestError>;

    /// Root and collateral of the simulated TEE.
    ///
    /// # Errors
    /// When it does not answer.
    fn certified(&self) -> Result<Certified, AttestError>;
}

/// This machine's.
#[derive(Debug, Clone, Copy)]
pub struct Machine;

impl Tee for Machine {
    fn platform(&self) -> Result<Box<dyn Platform>, AttestError> {
        dstack_tdx_attest::detect()
    }

    fn certified(&self) -> Result<Certified, AttestError> {
        Simulated::new(dstack_tdx_attest::simulated::Vsock).collateral()
    }
}

/// The simulated TEE behind another door than vsock, for tools and tests.
#[derive(Debug, Clone)]
pub struct Behind<C>(pub C);

impl<C: Connect + Clone + 'static> Tee for Behind<C> {
    fn platform(&self) -> Result<Box<dyn Platform>, AttestError> {
        Ok(Box::new(Simulated::new(self.0.clone())))
    }

    fn certified(&self) -> Result<Certified, AttestError> {
        Simulated::new(self.0.clone()).collateral()
    }
}

/// Why the realm is not known.
#[derive(Debug, thiserror::Error)]
pub enum RealmError {
    /// The simulated TEE does not answer.
    #[error(transparent)]
    Attest(#[from] AttestError),
    /// Its root is none.
    #[error("the root of the simulated TEE cannot be used: {0}")]
    Root(#[from] RootError),
}

/// Judges peers of this machine's realm: Intel's root for a TD, the test root of the simulated TEE for nothing else.
///
/// # Errors
/// [`RealmError`].
pub fn verifier(tee: &dyn Tee, label: &str) -> Result<Verifier, RealmError> {
    if label == "tdx" {
        return Ok(Verifier::new(Roots::intel(), Policy::default(), Cache::new(None, Offline)));
    }
    let certified = tee.certified()?;
    let roots = Roots::test_pem(&certified.root)?;
    let collateral = Fixed(certified.collateral.to_string().into_bytes());
    Ok(Verifier::new(roots, Policy::default(), Cache::new(None, collateral)))
}

/// The test root's own collateral, for peers under it.
struct Fixed(Vec<u8>);

impl Fetch for Fixed {
    fn fetch(&self, _platform: PlatformId) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        Box::pin(async { Ok(self.0.clone()) })
    }
}
