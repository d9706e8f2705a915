// SPDX-License-Identifier: Apache-2.0
//! What a VM is (its record) and what it is doing (its state): pure, no I/O.

pub mod record;
pub mod state;

pub use record::Record;
pub use state::{Observed, State, UnitState};
