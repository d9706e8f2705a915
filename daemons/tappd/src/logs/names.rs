// SPDX-License-Identifier: Apache-2.0
//! Which container a name in a URL means.

/// Longest name or id accepted.
pub const NAME_MAX: usize = 255;

/// What journal records of a container have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `CONTAINER_NAME=`.
    Name(String),
    /// `CONTAINER_ID=`, 12 hex digits.
    ShortId(String),
    /// `CONTAINER_ID_FULL=`, 64 hex digits.
    FullId(String),
}

/// Why a name means no container.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It cannot be a container's name.
    #[error("container names have letters, digits, '.', '_' and '-' only")]
    Malformed,
    /// Nothing has this name.
    #[error("no container {0:?}; the dashboard lists the containers")]
    Unknown(String),
    /// A service with several containers.
    #[error("{name:?} could be {}; use one of these names", .candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// The containers that it could be.
        candidates: Vec<String>,
    },
}

/// Removes the slash that Docker puts before names, and checks the rest.
///
/// # Errors
/// [`NameError::Malformed`].
pub fn checked(name: &str) -> Result<&str, NameError> {
    let name = name.strip_prefix('/').unwrap_or(name);
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(allowed) {
        return Err(NameError::Malformed);
    }
    Ok(name)
}

/// Finds the container: by its name, then as the service of compose's `project-service-1`, then by its id.
///
/// # Errors
/// [`NameError`].
pub fn resolve(name: &str, known: &[String]) -> Result<Target, NameError> {
    let name = checked(name)?;
    if known.iter().any(|k| k == name) {
        return Ok(Target::Name(name.to_owned()));
    }
    let candidates: Vec<String> = known.iter().filter(|k| is_service(k, name)).cloned().collect();
    match (candidates.as_slice(), id(name)) {
        ([only], _) => Ok(Target::Name(only.clone())),
        ([], Some(target)) => Ok(target),
        ([], None) => Err(NameError::Unknown(name.to_owned())),
        _ => Err(NameError::Ambiguous { name: name.to_owned(), candidates }),
    }
}

/// Whether `container` is `<project>-<service>-<number>` (podman-compose joins by `_`).
fn is_service(container: &str, service: &str) -> bool {
    ['-', '_'].iter().any(|joint| {
        let Some((rest, number)) = container.rsplit_once(*joint) else { return false };
        let numbered = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        let project = rest.strip_suffix(service).and_then(|p| p.strip_suffix(*joint));
        numbered && project.is_some_and(|p| !p.is_empty())
    })
}

fn id(name: &str) -> Option<Target> {
    let hex = name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    match name.len() {
        12 if hex => Some(Target::ShortId(name.to_owned())),
        64 if hex => Some(Target::FullId(name.to_owned())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_services_and_ids() {
        let known: Vec<String> =
            ["app-web-1", "app-db-1", "app-db-2", "solo", "p_old_1", "app-my-api-1"].map(String::from).into();
        let name = |n: &str| Ok(Target::Name(n.to_owned()));
        let cases = [
            ("app-web-1", name("app-web-1")),
            ("/app-web-1", name("app-web-1")),
            ("web", name("app-web-1")),
            ("solo", name("solo")),
            ("old", name("p_old_1")),
            ("my-api", name("app-my-api-1")),
            ("0123456789ab", Ok(Target::ShortId("0123456789ab".into()))),
            ("nothing", Err(NameError::Unknown("nothing".into()))),
            ("../etc", Err(NameError::Malformed)),
            ("", Err(NameError::Malformed)),
            ("a=b", Err(NameError::Malformed)),
        ];
        for (asked, expected) in cases {
            assert_eq!(resolve(asked, &known), expected, "{asked}");
        }
        let error = resolve("db", &known).map_err(|e| e.to_string());
        assert_eq!(error, Err("\"db\" could be app-db-1, app-db-2; use one of these names".into()));
    }
}
