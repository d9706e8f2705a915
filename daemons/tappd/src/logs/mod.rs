// SPDX-License-Identifier: Apache-2.0
//! Containers' logs from the guest's journal: query -> records -> lines -> text.

pub mod cursor;
pub mod engine;
pub mod format;
pub mod names;
pub mod query;
pub mod reader;
pub mod record;

pub use engine::{LogError, Logs};
pub use query::Query;
pub use reader::Place;
