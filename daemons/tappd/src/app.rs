// SPDX-License-Identifier: Apache-2.0
//! Which app this guest is, and what of it is public.

use dstack_core::compose::{self, AppCompose, ComposeError};
use dstack_core::limits::{APP_COMPOSE_MAX, INSTANCE_INFO_MAX};
use serde::Deserialize;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// What is known about the app. Without a usable app-compose.json everything is empty and nothing is public.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct App {
    /// App id, 40 hex.
    pub app_id: String,
    /// Instance id, 40 hex, or empty when the app wants none.
    pub instance_id: String,
    /// SHA-256 of app-compose.json, 64 hex.
    pub compose_hash: String,
    /// The text of app-compose.json.
    pub compose: String,
    /// The app's name.
    pub name: String,
    /// Whether anybody may read the containers' logs.
    pub public_logs: bool,
    /// Whether anybody may read load and containers.
    pub public_sysinfo: bool,
    /// Whether anybody may read the measurements.
    pub public_tcbinfo: bool,
}

/// `instance.json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Instance {
    app_id: String,
    instance_id: String,
}

/// Why the app is not known.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A file cannot be read.
    #[error("{file} cannot be read: {error}; is dstack-prepare.service done?")]
    Read {
        /// Which.
        file: &'static str,
        /// Why.
        error: io::Error,
    },
    /// The description is not valid.
    #[error(transparent)]
    Compose(#[from] ComposeError),
    /// The instance's ids are not valid.
    #[error("instance.json is not valid: {0}")]
    Instance(#[from] serde_json::Error),
}

impl App {
    /// Reads what dstack-prepare wrote.
    ///
    /// # Errors
    /// [`AppError`] names the file.
    pub fn load(directory: &Path) -> Result<Self, AppError> {
        let compose = read(directory, "app-compose.json", APP_COMPOSE_MAX)?;
        let instance = read(directory, "instance.json", INSTANCE_INFO_MAX)?;
        Self::parse(&compose, &instance)
    }

    /// Parses the exact bytes of `app-compose.json` and `instance.json`.
    ///
    /// # Errors
    /// [`AppError`] when one is not valid.
    pub fn parse(compose: &[u8], instance: &[u8]) -> Result<Self, AppError> {
        let app = AppCompose::parse(compose)?;
        let instance: Instance = serde_json::from_slice(instance)?;
        Ok(Self {
            app_id: instance.app_id,
            instance_id: instance.instance_id,
            compose_hash: compose::hash(compose).to_string(),
            // It was parsed as JSON, so it is UTF-8.
            compose: String::from_utf8_lossy(compose).into_owned(),
            name: app.name,
            public_logs: app.public_logs,
            public_sysinfo: app.public_sysinfo,
            public_tcbinfo: app.public_tcbinfo,
        })
    }
}

fn read(directory: &Path, file: &'static str, limit: usize) -> Result<Vec<u8>, AppError> {
    let failed = |error| AppError::Read { file, error };
    let mut bytes = Vec::new();
    let limit = u64::try_from(limit).unwrap_or(u64::MAX);
    let opened = File::open(directory.join(file)).map_err(failed)?;
    opened.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_public_is_what_the_measured_compose_says() {
        let compose = br#"{"manifest_version":2,"name":"a","runner":"docker-compose","public_logs":true,
            "docker_compose_file":"services: {a: {image: b}}"}"#;
        let app = App::parse(compose, br#"{"app_id":"aa","instance_id":"","platform":"none"}"#).unwrap();
        assert_eq!((app.public_logs, app.public_sysinfo, app.app_id.as_str()), (true, false, "aa"));
        assert_eq!(app.compose_hash.len(), 64);
        assert!(App::parse(b"{}", b"{}").is_err());
        assert!(App::parse(compose, b"").is_err());
        assert!(App::load(Path::new("/nonexistent")).unwrap_err().to_string().contains("dstack-prepare"));
        assert!(!App::default().public_tcbinfo);
    }
}
