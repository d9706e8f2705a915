// SPDX-License-Identifier: Apache-2.0
//! Which environment variables an app may be given (trust rule T10).

/// Why a variable is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    /// Not `[A-Za-z_][A-Za-z0-9_]*`.
    #[error("environment name {0:?} is not allowed: use letters, digits and '_', not beginning with a digit")]
    Name(String),
    /// A name that would steer Docker, compose, the shell or the loader instead of the app.
    #[error(
        "environment name {0:?} is reserved: COMPOSE_*, DOCKER_*, LD_*, BASH_*, PATH and IFS steer the guest's own tools; choose another name"
    )]
    Reserved(String),
    /// A NUL byte cannot be passed to a process.
    #[error("the value of {0:?} contains a NUL byte")]
    Value(String),
}

const RESERVED_PREFIXES: [&str; 4] = ["COMPOSE_", "DOCKER_", "LD_", "BASH_"];
const RESERVED_NAMES: [&str; 4] = ["PATH", "IFS", "ENV", "BASH"];

/// Checks one name and value that a deployer wants the containers to see.
///
/// # Errors
/// [`EnvError`] names the variable; the value never appears in it.
pub fn check(name: &str, value: &str) -> Result<(), EnvError> {
    let mut chars = name.chars();
    let first = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    if !first || name.len() > 256 || !chars.all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(EnvError::Name(name.chars().take(64).collect()));
    }
    let upper = name.to_ascii_uppercase();
    if RESERVED_NAMES.contains(&upper.as_str()) || RESERVED_PREFIXES.iter().any(|p| upper.starts_with(p)) {
        return Err(EnvError::Reserved(name.to_owned()));
    }
    if value.contains('\0') {
        return Err(EnvError::Value(name.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t10_reserved_names_are_refused() {
        for name in
            ["COMPOSE_FILE", "DOCKER_HOST", "LD_PRELOAD", "BASH_ENV", "PATH", "IFS", "ld_preload", "ENV"]
        {
            assert!(matches!(check(name, "x"), Err(EnvError::Reserved(_))), "{name}");
        }
        for name in ["", "1A", "A-B", "A=B", "A B", "Ä"] {
            assert!(matches!(check(name, "x"), Err(EnvError::Name(_))), "{name}");
        }
        for name in ["A", "_a", "API_KEY", "PATHS", "MY_PATH", "LDX"] {
            assert_eq!(check(name, "multi\nline \\ $ ' \""), Ok(()), "{name}");
        }
        assert!(matches!(check("A", "a\0b"), Err(EnvError::Value(_))));
    }
}
