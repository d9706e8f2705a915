// SPDX-License-Identifier: Apache-2.0
//! Named limits for everything that comes from outside.

use std::time::Duration;

/// Most domains that are watched.
pub const DOMAINS_MAX: usize = 32;
/// Most logs that are read.
pub const LOGS_MAX: usize = 64;
/// Most ingresses whose keys are asked for.
pub const TPROXIES_MAX: usize = 64;
/// Most keys that one source of keys may name.
pub const KEYS_MAX: usize = 16_384;
/// Most keys that are kept of all sources together, so that the file stays readable.
pub const KEYS_KEPT_MAX: usize = 32_768;
/// Longest URL of a service.
pub const URL_MAX: usize = 1024;

/// Most entries of a search, as it is asked for.
pub const SEARCH_ENTRIES_MAX: usize = 10_000;
/// Largest answer to a search, bytes; an entry takes some 600.
pub const SEARCH_MAX: usize = 32 * 1024 * 1024;
/// Longest text of an entry of a search, bytes.
pub const SEARCH_TEXT_MAX: usize = 64 * 1024;
/// Largest downloaded PEM file, bytes.
pub const PEM_MAX: usize = 512 * 1024;
/// Largest certificate, bytes.
pub const CERTIFICATE_MAX: usize = 256 * 1024;
/// Most names of a certificate that are kept for an alert.
pub const NAMES_SHOWN: usize = 16;
/// Longest text of a certificate that is shown, characters.
pub const TEXT_SHOWN: usize = 256;

/// Most alerts that are kept: those that nobody has acknowledged are never dropped for new ones.
pub const ALERTS_MAX: usize = 1000;
/// Most acknowledged alerts of which the id alone is remembered, so that they are not told again.
pub const ACKNOWLEDGED_MAX: usize = 16_384;

/// Largest signed tree head or checkpoint, bytes.
pub const HEAD_MAX: usize = 64 * 1024;
/// Largest proof as a log sends it, bytes.
pub const PROOF_MAX: usize = 64 * 1024;
/// Most hashes of a proof: a tree of 2^64 leaves is 64 high, and a proof has at most one more.
pub const PROOF_HASHES_MAX: usize = 65;
/// Largest batch of entries as a log sends it, bytes.
pub const BATCH_MAX: usize = 64 * 1024 * 1024;
/// Most entries that are asked for at once.
pub const BATCH_ENTRIES: u64 = 256;
/// Largest signature of a tree head, bytes.
pub const SIGNATURE_MAX: usize = 1024;
/// Hashes of a full tile.
pub const TILE_WIDTH: u64 = 256;
/// Most tiles that are kept while a log is read.
pub const TILES_KEPT: usize = 256;
/// Most lines of a checkpoint.
pub const CHECKPOINT_LINES_MAX: usize = 64;

/// Time for one answer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);
/// Time for one pass over all sources.
pub const CHECK_TIMEOUT: Duration = Duration::from_secs(3600);
/// Shortest pause after a failure of a source.
pub const PAUSE_MIN: u64 = 60;
/// Longest pause after a failure, unless the source asks for more.
pub const PAUSE_MAX: u64 = 3600;
/// Longest pause that a source may ask for.
pub const PAUSE_ASKED_MAX: u64 = 86_400;
/// By how much a tree head may be older than the newest one that was seen without a word, seconds: servers of one log are
/// not always at the same point.
pub const HEAD_BEHIND_MAX: u64 = 3600;
/// Oldest tree head that is no trouble, seconds: logs promise one within 24 hours.
pub const HEAD_AGE_MAX: u64 = 26 * 3600;
