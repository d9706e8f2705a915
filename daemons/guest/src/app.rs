// SPDX-License-Identifier: Apache-2.0
//! The app's life: what to do in which order, then doing it, then ending it in order.

pub mod exports;
pub mod plan;
pub mod progress;
pub mod run;
pub mod supervise;
