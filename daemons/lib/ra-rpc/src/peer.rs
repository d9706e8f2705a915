// SPDX-License-Identifier: Apache-2.0
//! What a peer must show, and what is known about it once it has.

use crate::collateral::{Cache, PlatformId, SourceError};
use crate::tls::CHAIN_MAX;
use dstack_core::event_log::Milestone;
use dstack_core::ids::AppId;
use dstack_ra_tls::certificate::{self, CertificateError, Claims, Usage, report_data};
use dstack_ra_tls::{Evidence, Expect, Policy, Roots, Verdict, VerifyError, verify};
use rustls::pki_types::{CertificateDer, UnixTime};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;
use webpki::aws_lc_rs::ECDSA_P256_SHA256;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer, X509Certificate};

/// How long a verdict holds: a connection that lives longer must be made anew.
pub const VERDICT_TTL: Duration = Duration::from_secs(3600);
/// Longest life of a self-signed certificate.
pub const SELF_SIGNED_MAX: Duration = Duration::from_secs(7 * 86_400);
/// Quotes verified at a time; each keeps a core busy for up to a few milliseconds.
const VERIFICATIONS: usize = 4;

/// A future behind a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Which side the judged peer is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// It connected to us.
    Client,
    /// We connected to it.
    Server,
}

/// The only authority whose certificates count, by its public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// SubjectPublicKeyInfo, DER.
    public_key: Vec<u8>,
}

impl Anchor {
    /// The authority with this SubjectPublicKeyInfo (DER), e.g. the `key_provider_id` of an app (trust rule T3).
    #[must_use]
    pub const fn pinned(public_key: Vec<u8>) -> Self {
        Self { public_key }
    }

    /// Checks the leaf's path to the authority, which the peer sends along.
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        side: Side,
        now: UnixTime,
    ) -> Result<(), PeerError> {
        let is_ours = |der: &&CertificateDer<'_>| {
            X509Certificate::from_der(der).is_ok_and(|(_, c)| c.public_key().raw == self.public_key)
        };
        let ours = rest.iter().find(is_ours).ok_or(PeerError::Authority)?;
        let anchors = [anchor_from_trusted_cert(ours).map_err(|_| PeerError::Authority)?];
        let leaf = EndEntityCert::try_from(leaf).map_err(|e| PeerError::Path(e.to_string()))?;
        let usage = match side {
            Side::Client => KeyUsage::client_auth(),
            Side::Server => KeyUsage::server_auth(),
        };
        let path = leaf.verify_for_usage(&[ECDSA_P256_SHA256], &anchors, rest, now, usage, None, None);
        path.map(drop).map_err(|e| PeerError::Path(e.to_string()))
    }
}

/// What evidence a peer must bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// None; what it brings must be good all the same.
    IfPresent,
    /// A quote, of a boot at this point, or at any.
    Evidence(Option<Milestone>),
}

/// What a peer must show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    issued: Option<(Anchor, Vec<Usage>)>,
    needs: Needs,
}

impl Rules {
    /// Any certificate, most often self-signed, with evidence of a boot at this point (`None`: any point). What the
    /// certificate says beside the evidence counts for nothing.
    #[must_use]
    pub const fn attested(milestone: Option<Milestone>) -> Self {
        Self { issued: None, needs: Needs::Evidence(milestone) }
    }

    /// A certificate of this authority for one of these usages; evidence is not needed.
    #[must_use]
    pub const fn issued(anchor: Anchor, usages: Vec<Usage>) -> Self {
        Self { issued: Some((anchor, usages)), needs: Needs::IfPresent }
    }

    /// A certificate of this authority for one of these usages, with evidence inside.
    #[must_use]
    pub const fn issued_and_attested(
        anchor: Anchor,
        usages: Vec<Usage>,
        milestone: Option<Milestone>,
    ) -> Self {
        Self { issued: Some((anchor, usages)), needs: Needs::Evidence(milestone) }
    }
}

/// Why a peer is refused.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// It shows no certificate.
    #[error("the peer shows no certificate")]
    Anonymous,
    /// Its chain is too long.
    #[error("the peer's chain has more than {CHAIN_MAX} certificates")]
    Chain,
    /// Its certificate cannot be read.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// Its certificate is not valid now, or for too long.
    #[error("the peer's certificate is {0}")]
    Dates(&'static str),
    /// Its certificate is the pinned authority's and begins at this time, seconds since 1970, so this clock is behind.
    #[error("the peer's certificate begins at {0} (Unix seconds): this clock is behind")]
    NotYet(u64),
    /// The authority that was pinned is not in its chain.
    #[error("the peer's certificate is not of the pinned authority")]
    Authority,
    /// Its certificate does not lead to the pinned authority.
    #[error("the peer's certificate does not lead to the pinned authority: {0}")]
    Path(String),
    /// Its certificate is for something else (trust rule T20).
    #[error("the peer's certificate is for {found}, needed is {needed}")]
    Usage {
        /// What it is for.
        found: &'static str,
        /// What would do.
        needed: String,
    },
    /// It brings no evidence.
    #[error("the peer's certificate carries no quote and event log")]
    NoEvidence,
    /// Its authority wrote another app id than the one that is measured.
    #[error("the peer's certificate is for another app than the measured one")]
    AppId,
    /// There is no collateral to judge by.
    #[error(transparent)]
    Collateral(#[from] SourceError),
    /// Its quote is not genuine.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// Its evidence is genuine and breaks a rule.
    #[error("the peer's evidence is refused: {}", .0.reasons())]
    Refused(Arc<Verdict>),
    /// The verification did not end.
    #[error("the verification was cut off")]
    Cut,
}

/// Evidence as a peer showed it.
#[derive(Clone, PartialEq, Eq)]
pub struct Shown {
    /// The quote.
    pub quote: Vec<u8>,
    /// The event log, JSON.
    pub event_log: Vec<u8>,
}

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shown({} bytes, log of {})", self.quote.len(), self.event_log.len())
    }
}

/// What is known about a peer. Every field was checked.
#[derive(Debug, Clone)]
pub struct Peer {
    /// SubjectPublicKeyInfo of the key it holds, DER.
    pub public_key: Vec<u8>,
    /// The verdict over its evidence, passed; `None` when it brought none and needed none.
    pub verdict: Option<Arc<Verdict>>,
    /// That evidence, to be judged again later.
    pub shown: Option<Arc<Shown>>,
    /// What the pinned authority issued its certificate for; `None` without such an authority.
    pub usage: Option<Usage>,
    /// The app id: of the verdict, or else of the pinned authority.
    pub app_id: Option<AppId>,
    /// Until when this holds, seconds since 1970.
    pub valid_until: u64,
}

impl Peer {
    /// Whether this still holds.
    #[must_use]
    pub const fn is_current(&self, now: u64) -> bool {
        now < self.valid_until
    }
}

/// Tells the time, seconds since 1970.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Judges peers by roots, policy and collateral.
pub struct Verifier {
    roots: Roots,
    policy: RwLock<Arc<Policy>>,
    collateral: Cache,
    clock: Clock,
    slots: Arc<Semaphore>,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Verifier({})", self.roots.realm())
    }
}

impl Verifier {
    /// A verifier by the system's clock.
    #[must_use]
    pub fn new(roots: Roots, policy: Policy, collateral: Cache) -> Self {
        let since = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Self {
            roots,
            policy: RwLock::new(Arc::new(policy)),
            collateral,
            clock: Arc::new(since),
            slots: Arc::new(Semaphore::new(VERIFICATIONS)),
        }
    }

    /// The same by another clock, e.g. one that never falls behind what was verified (trust rule T12).
    #[must_use]
    pub fn with_clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    /// The realm of its roots, as text.
    #[must_use]
    pub fn realm(&self) -> String {
        self.roots.realm().to_string()
    }

    /// The time by its clock, and never before what was verified (trust rule T12), seconds since 1970.
    #[must_use]
    pub fn now(&self) -> u64 {
        (self.clock)().max(self.collateral.floors().not_earlier_than())
    }

    /// The roots it judges by.
    #[must_use]
    pub const fn roots(&self) -> &Roots {
        &self.roots
    }

    /// The policy in force.
    #[must_use]
    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Judges by another policy from now on; connections that were judged before live on for at most [`VERDICT_TTL`].
    pub fn set_policy(&self, policy: Policy) {
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
    }

    /// The collateral, to be refreshed by a timer.
    #[must_use]
    pub const fn collateral(&self) -> &Cache {
        &self.collateral
    }

    /// Judges a chain, leaf first, whose leaf's key the peer has proven to hold.
    ///
    /// # Errors
    /// [`PeerError`] with the first thing that is wrong, cheap checks before dear ones.
    pub async fn judge(
        &self,
        chain: &[CertificateDer<'static>],
        side: Side,
        rules: &Rules,
    ) -> Result<Peer, PeerError> {
        let (leaf, rest) = chain.split_first().ok_or(PeerError::Anonymous)?;
        if chain.len() > CHAIN_MAX {
            return Err(PeerError::Chain);
        }
        let now = self.now();
        let claims = certificate::parse(leaf)?;
        let validity = validity(leaf)?;
        // The authority's word of when its certificate begins is heard also by who believes that time is to come.
        let early = rules.issued.is_some() && now < validity.0;
        if !early {
            dates(validity, now, rules.issued.is_none())?;
        }
        if let Some((anchor, usages)) = &rules.issued {
            let at = UnixTime::since_unix_epoch(Duration::from_secs(now.max(validity.0)));
            anchor.check(leaf, rest, side, at)?;
            check_usage(claims.usage, usages)?;
        }
        if early {
            return Err(PeerError::NotYet(validity.0));
        }
        let ends = validity.1;
        let verdict = self.verdict(&claims, rules.needs, now).await?;
        peer(claims, verdict, rules.issued.is_some(), ends.min(now + VERDICT_TTL.as_secs()))
    }

    async fn verdict(
        &self,
        claims: &Claims,
        needs: Needs,
        now: u64,
    ) -> Result<Option<Arc<Verdict>>, PeerError> {
        let (quote, log) = match (&claims.quote, &claims.event_log, needs) {
            (Some(quote), Some(log), _) => (quote.clone(), log.clone()),
            (None, None, Needs::IfPresent) => return Ok(None),
            _ => return Err(PeerError::NoEvidence),
        };
        let milestone = if let Needs::Evidence(milestone) = needs { milestone } else { None };
        self.judge_evidence(&claims.public_key, quote, log, milestone, now).await.map(Some)
    }

    /// Judges evidence that came otherwise than in a certificate, e.g. in a request for one. It must bind this public
    /// key (SubjectPublicKeyInfo, DER), whose possession the caller has checked.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn judge_evidence(
        &self,
        public_key: &[u8],
        quote: Vec<u8>,
        log: Vec<u8>,
        milestone: Option<Milestone>,
        now: u64,
    ) -> Result<Arc<Verdict>, PeerError> {
        let expect = Expect { report_data: Some(report_data(public_key)), milestone };
        let shown = Shown { quote, event_log: log };
        let (platform, verdict) = self.appraise(shown, expect, now).await?;
        self.collateral.floors().raise(platform, &verdict);
        let verdict = Arc::new(verdict);
        if verdict.passed() { Ok(verdict) } else { Err(PeerError::Refused(verdict)) }
    }

    /// Judges evidence again that was shown before, at the time `at` by the policy and collateral of now. It says
    /// nothing about who holds which key.
    ///
    /// # Errors
    /// [`PeerError`] when there is no verdict; one that did not pass is no error.
    pub async fn judge_again(&self, shown: Shown, at: u64) -> Result<Verdict, PeerError> {
        self.appraise(shown, Expect::default(), at).await.map(|(_, verdict)| verdict)
    }

    async fn appraise(
        &self,
        shown: Shown,
        expect: Expect,
        now: u64,
    ) -> Result<(PlatformId, Verdict), PeerError> {
        let slot = Arc::clone(&self.slots).acquire_owned().await.map_err(|_| PeerError::Cut)?;
        let platform = PlatformId::of(&shown.quote)?;
        let today = UNIX_EPOCH + Duration::from_secs(self.now());
        let collateral = self.collateral.of_platform(platform, today).await?;
        let (roots, mut policy) = (self.roots.clone(), Policy::clone(&self.policy()));
        let floor = self.collateral.floors().of(platform);
        policy.min_evaluation_number = policy.min_evaluation_number.max(floor.evaluation_number);
        let work = tokio::task::spawn_blocking(move || {
            let evidence =
                Evidence { quote: &shown.quote, event_log: &shown.event_log, collateral: &collateral };
            let verdict = verify(&evidence, &roots, &policy, &expect, now);
            drop(slot);
            verdict
        });
        Ok((platform, work.await.map_err(|_| PeerError::Cut)??))
    }
}

/// Puts together what was checked; `issued` says whether the certificate's own words count.
fn peer(claims: Claims, verdict: Option<Arc<Verdict>>, issued: bool, ends: u64) -> Result<Peer, PeerError> {
    let measured = verdict.as_ref().and_then(|v| v.boot.as_ref()).map(|boot| boot.app_id);
    let written = claims.app_id.filter(|_| issued);
    if measured.zip(written).is_some_and(|(measured, written)| measured != written) {
        return Err(PeerError::AppId);
    }
    let ends = verdict.as_ref().map_or(ends, |v| ends.min(v.collateral_expires));
    let shown = claims.quote.zip(claims.event_log).filter(|_| verdict.is_some());
    Ok(Peer {
        public_key: claims.public_key,
        usage: claims.usage.filter(|_| issued),
        app_id: measured.or(written),
        verdict,
        shown: shown.map(|(quote, event_log)| Arc::new(Shown { quote, event_log })),
        valid_until: ends,
    })
}

/// Begin and end of a certificate, seconds since 1970.
fn validity(leaf: &CertificateDer<'_>) -> Result<(u64, u64), PeerError> {
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| CertificateError::NotX509)?;
    let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    let validity = certificate.validity();
    Ok((seconds(validity.not_before), seconds(validity.not_after)))
}

/// Checks a certificate's dates.
fn dates((from, to): (u64, u64), now: u64, self_signed: bool) -> Result<(), PeerError> {
    match () {
        () if now < from => Err(PeerError::Dates("not valid yet; compare the clocks")),
        () if now >= to => Err(PeerError::Dates("expired")),
        () if self_signed && to - now > SELF_SIGNED_MAX.as_secs() => {
            Err(PeerError::Dates("valid for more than 7 days"))
        }
        () => Ok(()),
    }
}

fn check_usage(found: Option<Usage>, needed: &[Usage]) -> Result<(), PeerError> {
    if found.is_some_and(|usage| needed.contains(&usage)) {
        return Ok(());
    }
    let needed: Vec<&str> = needed.iter().map(|usage| usage.text()).collect();
    Err(PeerError::Usage { found: found.map_or("nothing", Usage::text), needed: needed.join(" or ") })
}
