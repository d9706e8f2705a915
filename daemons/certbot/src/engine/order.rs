// SPDX-License-Identifier: Apache-2.0
//! From an order to a live certificate. The order and the key of its certificate are on the disk before anything is
//! asked of anybody, so a run that was killed gets the certificate of the same order.

use super::{Engine, EngineError, Observer, Outcome};
use crate::account::Credentials;
use crate::acme::{AcmeError, Refusal, Session, Stage};
use crate::certificate::{self, Leaf, Pair};
use crate::files::{self, FileError};
use crate::renewal::Reason;
use crate::settings::Certificate;
use crate::workdir::Workdir;
use dstack_service::state;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use zeroize::{Zeroize, Zeroizing};

const FILE: &str = "order.json";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Order {
    url: String,
    account: String,
    names: BTreeSet<String>,
    key: String,
}

impl Drop for Order {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

fn names(wanted: &Certificate) -> BTreeSet<String> {
    wanted.names.iter().map(ToString::to_string).collect()
}

/// Whether an earlier run has begun an order.
pub(super) fn is_under_way(workdir: &Workdir) -> bool {
    workdir.file(FILE).exists()
}

/// The public key of an order under way, SubjectPublicKeyInfo in DER: logs of certificates may have it before we do.
pub(super) fn public_key(workdir: &Workdir) -> Result<Option<Vec<u8>>, FileError> {
    let path = workdir.file(FILE);
    let Some(order) = state::load::<Order>(&path, VERSION)? else { return Ok(None) };
    certificate::public_key(&order.key).map(Some).map_err(|e| FileError::new(&path, e))
}

fn forget(workdir: &Workdir) -> Result<(), FileError> {
    files::remove(&workdir.file(FILE))
}

/// The order of an earlier run, when it is of this account and for these names.
fn resumable(
    workdir: &Workdir,
    account: &Credentials,
    wanted: &Certificate,
) -> Result<Option<Order>, FileError> {
    let Some(order) = state::load::<Order>(&workdir.file(FILE), VERSION)? else { return Ok(None) };
    if order.account == account.id && order.names == names(wanted) {
        return Ok(Some(order));
    }
    forget(workdir)?;
    Ok(None)
}

/// What an order works on.
pub(super) struct Work<'a> {
    pub(super) wanted: &'a Certificate,
    pub(super) workdir: &'a Workdir,
    pub(super) account: &'a Credentials,
    pub(super) observer: &'a dyn Observer,
}

impl Engine {
    #[allow(clippy::too_many_arguments)]
    pub(super) async fn renew(
        &self,
        wanted: &Certificate,
        workdir: &Workdir,
        account: &Credentials,
        live: Option<Pair>,
        renewal: &mut super::state::Renewal,
        reason: Reason,
        observer: &dyn Observer,
    ) -> Result<Outcome, EngineError> {
        tracing::info!("a certificate for {} is ordered: {}", wanted.domain, reason.words());
        let work = Work { wanted, workdir, account, observer };
        let leaf = match self.stored(&work)? {
            Some(leaf) => leaf,
            None => self.order_and_publish(&work, live.as_ref()).await?,
        };
        renewal.directory = Some(account.directory.clone());
        renewal.error.clear();
        (renewal.suggested, renewal.suggested_for) = (None, None);
        renewal.store(workdir)?;
        forget(workdir)?;
        observer.step("order: forgotten");
        tracing::info!("the certificate for {} is live", wanted.domain);
        Ok(Outcome::Renewed { reason, public_key: leaf.public_key })
    }

    /// The certificate of an earlier run that was stored and maybe not made live.
    fn stored(&self, work: &Work<'_>) -> Result<Option<Leaf>, EngineError> {
        let Some(order) = resumable(work.workdir, work.account, work.wanted)? else { return Ok(None) };
        let key =
            certificate::public_key(&order.key).map_err(|e| FileError::new(&work.workdir.file(FILE), e))?;
        if self.settings().reuse_key {
            // The key says nothing about the order; the order itself is asked.
            return Ok(None);
        }
        let Some(name) = work.workdir.stored(&key)? else { return Ok(None) };
        work.workdir.make_live(&name)?;
        Ok(work.workdir.live()?.map(|pair| pair.leaf))
    }

    async fn order_and_publish(&self, work: &Work<'_>, live: Option<&Pair>) -> Result<Leaf, EngineError> {
        let mut session = self.parts().acme.log_in(work.account).await?;
        let kept = live.filter(|_| self.settings().reuse_key).map(|pair| pair.key.clone());
        let pair = self.obtain(&mut *session, work, live.map(|pair| &pair.leaf), kept).await?;
        work.observer.step("order: issued");
        let time = jiff::Timestamp::now().to_string();
        work.workdir.publish(&pair, &time, |step| work.observer.step(step))?;
        Ok(pair.leaf)
    }

    /// A chain and its key, by the order of an earlier run or by a new one.
    pub(super) async fn obtain(
        &self,
        session: &mut dyn Session,
        work: &Work<'_>,
        replaces: Option<&Leaf>,
        key: Option<Zeroizing<String>>,
    ) -> Result<Pair, EngineError> {
        if let Some(order) = resumable(work.workdir, work.account, work.wanted)? {
            work.observer.step("order: found again");
            match self.fulfil(session, work, &order).await {
                // An order of an earlier run may have expired meanwhile: once more, with a new one.
                Err(EngineError::Acme(
                    AcmeError::Failed(why) | AcmeError::Refused { words: why, kind: Refusal::Lasting, .. },
                )) => {
                    tracing::info!("the order of an earlier run cannot be used any more: {why}");
                    forget(work.workdir)?;
                }
                other => return other,
            }
        }
        let key = key.map_or_else(certificate::fresh_key, Ok).map_err(EngineError::Unusable)?;
        work.observer.step("order: key");
        let url = session.order(&work.wanted.names, replaces).await?;
        work.observer.step("order: at the authority");
        let order =
            Order { url, account: work.account.id.clone(), names: names(work.wanted), key: key.to_string() };
        state::store(&work.workdir.file(FILE), VERSION, &order).map_err(FileError::from)?;
        work.observer.step("order: written down");
        let fulfilled = self.fulfil(session, work, &order).await;
        if matches!(fulfilled, Err(EngineError::Acme(AcmeError::Failed(_)))) {
            forget(work.workdir)?;
        }
        fulfilled
    }

    async fn fulfil(
        &self,
        session: &mut dyn Session,
        work: &Work<'_>,
        order: &Order,
    ) -> Result<Pair, EngineError> {
        let mut stage = session.look(&order.url).await?;
        if let Stage::Pending(challenges) = &stage {
            let answered = self.answer(session, work, challenges).await;
            // The records are of no use any more, however it went; the next run removes what cannot be removed now.
            if let Err(error) = self.clean(work.workdir, work.observer).await {
                tracing::warn!("TXT records are left for the next run: {error}");
            }
            answered?;
            stage = session.look(&order.url).await?;
        }
        if stage == Stage::Ready {
            let request =
                certificate::request(&order.key, &work.wanted.names).map_err(EngineError::Unusable)?;
            session.finalize(&request).await?;
            work.observer.step("order: finalized");
        }
        if let Stage::Failed(why) = stage {
            return Err(AcmeError::Failed(why).into());
        }
        let chain = session.chain().await?;
        let pair = Pair::new(chain, Zeroizing::new(order.key.clone())).map_err(EngineError::Unusable)?;
        if pair.leaf.names != work.wanted.names {
            return Err(EngineError::Unusable("it has other names than were ordered".into()));
        }
        Ok(pair)
    }

    async fn answer(
        &self,
        session: &mut dyn Session,
        work: &Work<'_>,
        challenges: &[crate::acme::Challenge],
    ) -> Result<(), EngineError> {
        self.present(work.workdir, challenges, work.observer).await?;
        session.answer().await?;
        work.observer.step("challenge: accepted");
        Ok(())
    }
}
