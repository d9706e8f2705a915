// SPDX-License-Identifier: Apache-2.0
//! `measure` and `verify` as programs, over evidence of a test root.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod cases;
mod changes;
mod world;
