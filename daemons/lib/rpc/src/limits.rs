// SPDX-License-Identifier: Apache-2.0
//! Named limits of every pRPC server and client.

use std::time::Duration;

/// Largest request body, bytes.
pub const REQUEST_MAX: usize = 10 * 1024 * 1024;
/// Largest reply a client accepts, bytes.
pub const REPLY_MAX: usize = 10 * 1024 * 1024;
/// Longest method name, bytes.
pub const METHOD_MAX: usize = 64;
/// Most header fields of a request.
pub const HEADERS_MAX: usize = 64;
/// Largest request head and read buffer, bytes.
pub const HEAD_MAX: usize = 32 * 1024;
/// Time for a request head to arrive; also how long a kept-alive connection may stay idle.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for a request body to arrive.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections one listener serves at a time; more wait in the kernel's queue.
pub const CONNECTIONS_MAX: usize = 128;
/// Time that open connections get to end after a stop.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a whole call of the client.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(60);
