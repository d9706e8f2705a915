// SPDX-License-Identifier: Apache-2.0
//! Reading a log itself: every tree head must contain the one before, and every entry that is looked at is proven to be in
//! the signed tree, so a log can neither hide a certificate from us alone nor take one back.

use super::{Found, Sink, Source, SourceError};
use crate::certificate::KeyId;
use crate::domain::Domain;
use crate::head::{Head, Lie, Step, compare};
use crate::limits::{HEAD_AGE_MAX, HEAD_BEHIND_MAX};
use crate::merkle::{Frontier, Hash, check_consistency, leaf};
use crate::rfc6962::parse_leaf;
use crate::store::Cursor;
use dstack_ra_rpc::peer::BoxFuture;
use std::fmt::Debug;

/// Entries after which the place is kept: they are proven together.
const STEP: u64 = 4096;

/// A failure, or what was asked for.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, SourceError>>;

/// How a log is spoken to. Nothing of it is believed but the signature of its heads.
pub trait Client: Send + Sync + Debug {
    /// The newest tree head; its signature is the log's.
    fn head(&self) -> Answer<'_, Head>;
    /// The proof that the tree of `second` begins with that of `first` leaves; 0 < `first` < `second.size`.
    fn consistency<'a>(&'a self, first: u64, second: &'a Head) -> Answer<'a, Vec<Hash>>;
    /// The last leaf of the tree of `size` leaves, with its inclusion proof; 0 < `size` ≤ `head.size`.
    fn last_leaf<'a>(&'a self, size: u64, head: &'a Head) -> Answer<'a, (Hash, Vec<Hash>)>;
    /// Some leaves, at least one, from `from` on and none from `to` on; `from` < `to` ≤ `head.size`.
    fn entries<'a>(&'a self, from: u64, to: u64, head: &'a Head) -> Answer<'a, Vec<Vec<u8>>>;
}

/// What to read.
#[derive(Debug)]
pub struct Reading {
    /// The log's name.
    pub name: String,
    /// Its server.
    pub server: String,
    /// Its id.
    pub id: [u8; 32],
    /// The first entry to look at; `None`: those from now on.
    pub start: Option<u64>,
    /// Most entries of a check.
    pub entries: u64,
    /// What is watched.
    pub domains: Vec<Domain>,
}

/// A log.
#[derive(Debug)]
pub struct Log<C> {
    client: C,
    reading: Reading,
}

impl<C: Client> Log<C> {
    /// A log behind a client.
    #[must_use]
    pub const fn new(client: C, reading: Reading) -> Self {
        Self { client, reading }
    }

    async fn run(&self, cursor: Cursor, sink: &dyn Sink, now: u64) -> Result<(), SourceError> {
        let name = &self.reading.name;
        sink.stage(format!("Asking {name} for its tree"), 0);
        let new = self.client.head().await.map_err(|e| e.at("tree head"))?;
        if now.saturating_sub(new.timestamp / 1000) > HEAD_AGE_MAX {
            sink.trouble(format!(
                "its tree head is {} hours old",
                now.saturating_sub(new.timestamp / 1000) / 3600
            ));
        }
        let (head, mut frontier) = match cursor {
            Cursor::Log { head, frontier } => (self.follow(head, new, sink).await?, frontier),
            _ => (new.clone(), self.begin(&new).await?),
        };
        keep(&head, &frontier, Vec::new(), sink)?;
        let mut left = self.reading.entries;
        while frontier.size() < head.size && left > 0 {
            let waiting = head.size - frontier.size();
            sink.stage(format!("Reading {name} from entry {}", frontier.size()), waiting);
            let count = waiting.min(left).min(STEP);
            let found = self.step(&mut frontier, count, &head).await?;
            self.prove(&frontier, &head).await?;
            keep(&head, &frontier, found, sink)?;
            left -= count;
        }
        sink.stage(format!("Read {name}"), head.size - frontier.size());
        Ok(())
    }

    /// Whether the new head contains the one that was seen; gives the larger one.
    async fn follow(&self, seen: Head, new: Head, sink: &dyn Sink) -> Result<Head, SourceError> {
        match compare(&seen, &new) {
            Step::Same => Ok(new),
            Step::Lie(lie) => Err(convicted(lie, &seen, &new)),
            Step::Grown => self.grown(&seen, &new).await.map(|()| new),
            Step::Older => {
                self.grown(&new, &seen).await?;
                if seen.timestamp.saturating_sub(new.timestamp) / 1000 > HEAD_BEHIND_MAX {
                    let sizes = format!("{} entries instead of {}", new.size, seen.size);
                    sink.trouble(format!("it shows an older tree of {sizes}"));
                }
                Ok(seen)
            }
        }
    }

    async fn grown(&self, smaller: &Head, larger: &Head) -> Result<(), SourceError> {
        let proof = match smaller.size {
            0 => Vec::new(),
            first => self.client.consistency(first, larger).await.map_err(|e| e.at("consistency"))?,
        };
        check_consistency((smaller.size, &smaller.root), (larger.size, &larger.root), &proof)
            .map_err(|e| convicted(Lie::Inconsistent(e.to_string()), smaller, larger))
    }

    /// The edge of the tree where the reading begins.
    async fn begin(&self, head: &Head) -> Result<Frontier, SourceError> {
        let start = self.reading.start.unwrap_or(head.size);
        if start > head.size {
            let text = format!("start is {start}, and the log has only {} entries", head.size);
            return Err(SourceError::failed(text));
        }
        let frontier = if start == 0 {
            Frontier::default()
        } else {
            let (leaf, path) = self.client.last_leaf(start, head).await.map_err(|e| e.at("inclusion"))?;
            Frontier::from_last_leaf(start, leaf, &path).map_err(|e| unproven(&e, start, head))?
        };
        self.prove(&frontier, head).await?;
        Ok(frontier)
    }

    /// Whether all entries up to the edge are those of the signed tree.
    async fn prove(&self, frontier: &Frontier, head: &Head) -> Result<(), SourceError> {
        let (size, root) = (frontier.size(), frontier.root());
        let proof = if size == 0 || size == head.size {
            Vec::new()
        } else {
            self.client.consistency(size, head).await.map_err(|e| e.at("consistency"))?
        };
        check_consistency((size, &root), (head.size, &head.root), &proof)
            .map_err(|e| unproven(&e, size, head))
    }

    /// Takes the next `count` entries to the edge; gives those that concern us.
    async fn step(
        &self,
        frontier: &mut Frontier,
        count: u64,
        head: &Head,
    ) -> Result<Vec<Found>, SourceError> {
        let (mut found, end) = (Vec::new(), frontier.size() + count);
        while frontier.size() < end {
            let from = frontier.size();
            let leaves = self.client.entries(from, end, head).await.map_err(|e| e.at("entries"))?;
            if leaves.is_empty() || u64::try_from(leaves.len()).map_or(true, |n| n > end - from) {
                return Err(SourceError::failed(
                    "entries: it gave another number of entries than it was asked for",
                ));
            }
            for bytes in leaves {
                found.extend(self.examine(&bytes, frontier.size()));
                frontier.push(leaf(&bytes));
            }
        }
        Ok(found)
    }

    /// An entry, when it concerns us. Most mention no domain of ours anywhere and are not even parsed.
    fn examine(&self, bytes: &[u8], index: u64) -> Option<Found> {
        let domains = &self.reading.domains;
        if !domains.iter().any(|domain| domain.is_mentioned_in(bytes)) {
            return None;
        }
        let place = format!("{} entry {index}", self.reading.name);
        let unreadable = |e: String| (KeyId::of(bytes), crate::certificate::CertificateError::NotX509(e));
        let what = match parse_leaf(bytes) {
            Ok(logged) => logged.certificate().map_err(|e| (KeyId::of(logged.bytes()), e)),
            Err(e) => Err(unreadable(e.to_string())),
        };
        let concerns = |names: &[String]| names.iter().any(|n| domains.iter().any(|d| d.is_concerned_by(n)));
        let ours = what.as_ref().map_or(true, |certificate| concerns(&certificate.names));
        ours.then_some(Found { place, what })
    }
}

fn keep(head: &Head, frontier: &Frontier, found: Vec<Found>, sink: &dyn Sink) -> Result<(), SourceError> {
    let cursor = Cursor::Log { head: head.clone(), frontier: frontier.clone() };
    sink.take(found, cursor).map_err(SourceError::Sink)
}

fn convicted(lie: Lie, one: &Head, other: &Head) -> SourceError {
    SourceError::Lie { lie, evidence: format!("{} and {}", shown(one), shown(other)) }
}

fn unproven(error: &crate::merkle::ProofError, size: u64, head: &Head) -> SourceError {
    let lie = Lie::Entries(error.to_string());
    SourceError::Lie { lie, evidence: format!("entries up to {size}, {}", shown(head)) }
}

fn shown(head: &Head) -> String {
    format!(
        "tree of {} entries at {} ms, root {}, signature {}",
        head.size, head.timestamp, head.root, head.signature
    )
}

impl<C: Client> Source for Log<C> {
    fn name(&self) -> &str {
        &self.reading.name
    }

    fn server(&self) -> &str {
        &self.reading.server
    }

    fn log_id(&self) -> String {
        hex::encode(self.reading.id)
    }

    fn look<'a>(
        &'a self,
        cursor: Cursor,
        sink: &'a dyn Sink,
        now: u64,
    ) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(self.run(cursor, sink, now))
    }
}
