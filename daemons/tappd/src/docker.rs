// SPDX-License-Identifier: Apache-2.0
//! The one question to Docker's API: which containers there are.

use dstack_rpc::client::{self, ClientError};
use dstack_rpc::{Stream, guest};
use hyper::Method;
use hyper::body::Bytes;
use serde::Deserialize;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::UnixStream;

/// Time Docker gets for an answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Most containers reported.
const CONTAINERS_MAX: usize = 1000;
/// Path of the list; this version of the API is in Docker 20.10 and later, and in podman.
const LIST: &str = "/v1.41/containers/json?all=true";

/// Docker's API on a Unix socket.
#[derive(Debug, Clone)]
pub struct Docker {
    socket: PathBuf,
}

/// Why the containers are not known.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// No connection.
    #[error("Docker cannot be reached: {0}; see `systemctl status docker`")]
    Connect(#[from] io::Error),
    /// No answer.
    #[error("Docker does not answer: {0}")]
    Call(#[from] ClientError),
    /// An answer of another shape.
    #[error("Docker's list of containers is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// An error.
    #[error("Docker refuses to list containers: HTTP status {0}")]
    Status(hyper::StatusCode),
}

/// A container as Docker describes it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Described {
    id: String,
    names: Option<Vec<String>>,
    image: String,
    #[serde(rename = "ImageID")]
    image_id: String,
    command: String,
    created: i64,
    state: String,
    status: String,
}

impl Docker {
    /// The API on this socket.
    #[must_use]
    pub const fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// All containers, also those that have ended.
    ///
    /// # Errors
    /// [`DockerError`].
    pub async fn containers(&self) -> Result<Vec<guest::Container>, DockerError> {
        let stream = Stream::Unix(UnixStream::connect(&self.socket).await?);
        let reply = client::exchange(stream, Method::GET, LIST, Bytes::new(), TIMEOUT).await?;
        if !reply.status.is_success() {
            return Err(DockerError::Status(reply.status));
        }
        parse(&reply.body)
    }
}

/// Parses Docker's list.
fn parse(body: &[u8]) -> Result<Vec<guest::Container>, DockerError> {
    let described: Vec<Described> = serde_json::from_slice(body)?;
    Ok(described.into_iter().take(CONTAINERS_MAX).map(container).collect())
}

fn container(described: Described) -> guest::Container {
    guest::Container {
        id: described.id,
        names: described.names.unwrap_or_default(),
        image: described.image,
        image_id: described.image_id,
        command: described.command,
        created: described.created,
        state: described.state,
        status: described.status,
    }
}

/// The name by which people know a container.
#[must_use]
pub fn display_name(container: &guest::Container) -> &str {
    let first = container.names.first().unwrap_or(&container.id);
    first.strip_prefix('/').unwrap_or(first)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn dockers_list() {
        let list = parse(
            br#"[{"Id":"ab","Names":["/app-web-1"],"Image":"web","ImageID":"sha256:1","Command":"run",
                "Created":1700000000,"State":"running","Status":"Up 3 minutes","Ports":[],"Labels":{}},
                {"Id":"cd","Names":null}]"#,
        )
        .unwrap();
        assert_eq!(list.iter().map(display_name).collect::<Vec<_>>(), ["app-web-1", "cd"]);
        assert_eq!(list.first().unwrap().created, 1_700_000_000);
        assert!(parse(b"{}").is_err());
    }
}
