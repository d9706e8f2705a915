// SPDX-License-Identifier: Apache-2.0
//! placeholder
use crate::engine::Engine;
use axum::Router;
/// Log routes.
pub fn router(_engine: Engine) -> Router {
    Router::new()
}
