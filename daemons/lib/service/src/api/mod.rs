// SPDX-License-Identifier: Apache-2.0
//! D-Bus interfaces as clients see them.

pub mod certbot1;
pub mod ctmonitor1;
pub mod kms1;
pub mod systemd1;
pub mod tappd1;
pub mod teepod1;
pub mod tproxy1;
