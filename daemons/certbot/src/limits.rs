// SPDX-License-Identifier: Apache-2.0
//! Limits of what comes from outside.

use std::time::Duration;

/// Most certificates of one configuration.
pub const CERTIFICATES_MAX: usize = 1_000;
/// Most names of one certificate; what Let's Encrypt allows.
pub const NAMES_MAX: usize = 100;
/// Largest answer of an HTTP server, bytes.
pub const BODY_MAX: usize = 1024 * 1024;
/// Time for one HTTP request with its answer.
pub const REQUEST: Duration = Duration::from_secs(30);
/// Time for one DNS question or update.
pub const QUESTION: Duration = Duration::from_secs(5);
/// Largest DNS message, bytes.
pub const MESSAGE_MAX: usize = 65_535;
/// Most name servers of a zone that are asked.
pub const SERVERS_MAX: usize = 16;
/// Most records of one name that are looked at.
pub const RECORDS_MAX: usize = 1_000;
/// Records of one page of an answer of Cloudflare, and most pages.
pub const PAGE: usize = 100;
/// Most pages that are read: [`RECORDS_MAX`] records.
pub const PAGES_MAX: usize = RECORDS_MAX / PAGE;
/// Largest file of the working directory that is read, bytes.
pub const FILE_MAX: u64 = 256 * 1024;
/// Most backups that are looked at; one a day for ten years.
pub const BACKUPS_MAX: usize = 4_096;
/// First pause between two looks at the same thing, doubled each time.
pub const POLL_FIRST: Duration = Duration::from_millis(250);
/// Longest pause between two looks.
pub const POLL_LAST: Duration = Duration::from_secs(8);
/// Most seconds that a server's `Retry-After` is believed: a week.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(7 * 86_400);
/// Lifetime of TXT and CAA records, seconds.
pub const TTL: u32 = 120;
