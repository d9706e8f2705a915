// SPDX-License-Identifier: Apache-2.0
//! The guest agent: containers' logs, metrics, a dashboard, the guest API for the host, and `org.dstack.tappd1`.

pub mod logs;
