// SPDX-License-Identifier: Apache-2.0
//! A static log over HTTP: proofs are made here, from its tiles, and then checked as anybody else's.

use super::SourceError;
use super::log::{Answer, Client};
use crate::head::{Head, LogKey};
use crate::http::{Base, Http, HttpError};
use crate::limits::{BATCH_MAX, HEAD_MAX, TILE_WIDTH, TILES_KEPT};
use crate::merkle::{Hash, Parts, Subtree, consistency_nodes, inclusion_nodes, join};
use crate::tiles::{Tile, data_path, fold, parse_checkpoint, parse_data, parse_tile};
use hyper::StatusCode;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Bytes of a full tile.
const TILE_MAX: usize = 256 * 32;

/// Such a log.
#[derive(Debug)]
pub struct Static {
    http: Http,
    base: Base,
    origin: String,
    key: LogKey,
    tiles: Mutex<BTreeMap<Tile, Vec<Hash>>>,
}

fn form(error: impl std::fmt::Display) -> SourceError {
    SourceError::failed(error.to_string())
}

impl Static {
    /// The log with this monitoring prefix, this origin in its checkpoints, and this key.
    #[must_use]
    pub fn new(http: Http, base: Base, origin: String, key: LogKey) -> Self {
        Self { http, base, origin, key, tiles: Mutex::default() }
    }

    /// Gets a file of `width` elements: when it is not there, the full one that has replaced it.
    async fn tile(
        &self,
        path: impl Fn(u64) -> String,
        width: u64,
        max: usize,
    ) -> Result<Vec<u8>, SourceError> {
        let gone = |e: &HttpError| {
            matches!(e, HttpError::Status { status: StatusCode::NOT_FOUND | StatusCode::GONE, .. })
        };
        match self.http.get(&self.base, &path(width), max).await {
            Err(error) if width < TILE_WIDTH && gone(&error) => {
                Ok(self.http.get(&self.base, &path(TILE_WIDTH), max).await?)
            }
            other => Ok(other?),
        }
    }

    async fn hashes(&self, tile: Tile) -> Result<Vec<Hash>, SourceError> {
        let kept = || self.tiles.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hashes) = kept().get(&tile) {
            return Ok(hashes.clone());
        }
        let bytes = self.tile(|width| Tile { width, ..tile }.path(), tile.width, TILE_MAX).await?;
        let hashes = parse_tile(&bytes, tile.width).map_err(form)?;
        let mut tiles = kept();
        if tiles.len() >= TILES_KEPT {
            tiles.clear();
        }
        tiles.insert(tile, hashes.clone());
        Ok(hashes)
    }

    async fn subtree(&self, subtree: Subtree, size: u64) -> Result<Hash, SourceError> {
        let missing = || SourceError::failed("a proof needs a tile that the tree does not have");
        let (tile, range) = Tile::of(subtree, size).ok_or_else(missing)?;
        let hashes = self.hashes(tile).await?;
        hashes.get(range).and_then(fold).ok_or_else(missing)
    }

    async fn nodes(&self, nodes: Vec<Parts>, size: u64) -> Result<Vec<Hash>, SourceError> {
        let mut proof = Vec::with_capacity(nodes.len());
        for parts in nodes {
            let mut hashes = Vec::with_capacity(parts.len());
            for part in parts {
                hashes.push(self.subtree(part, size).await?);
            }
            proof.push(join(&hashes));
        }
        Ok(proof)
    }
}

impl Client for Static {
    fn head(&self) -> Answer<'_, Head> {
        Box::pin(async {
            // Tiles are kept for one reading: what a proof has shown to be wrong must not stay.
            self.tiles.lock().unwrap_or_else(PoisonError::into_inner).clear();
            let bytes = self.http.get(&self.base, "checkpoint", HEAD_MAX).await?;
            let head = parse_checkpoint(&bytes, &self.origin, self.key.id()).map_err(form)?;
            head.check(&self.key).map_err(form)
        })
    }

    fn consistency<'a>(&'a self, first: u64, second: &'a Head) -> Answer<'a, Vec<Hash>> {
        Box::pin(self.nodes(consistency_nodes(first, second.size), second.size))
    }

    fn last_leaf<'a>(&'a self, size: u64, head: &'a Head) -> Answer<'a, (Hash, Vec<Hash>)> {
        Box::pin(async move {
            let index = size.saturating_sub(1);
            let leaf = self.subtree(Subtree { height: 0, index }, head.size).await?;
            Ok((leaf, self.nodes(inclusion_nodes(index, size), head.size).await?))
        })
    }

    fn entries<'a>(&'a self, from: u64, to: u64, head: &'a Head) -> Answer<'a, Vec<Vec<u8>>> {
        Box::pin(async move {
            let (index, offset) = (from / TILE_WIDTH, from % TILE_WIDTH);
            let width = (head.size - index * TILE_WIDTH).min(TILE_WIDTH);
            let bytes = self.tile(|width| data_path(index, width), width, BATCH_MAX).await?;
            let leaves = parse_data(&bytes, width).map_err(form)?;
            let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
            Ok(leaves.into_iter().skip(count(offset)).take(count((to - from).min(width - offset))).collect())
        })
    }
}
