// SPDX-License-Identifier: Apache-2.0
//! What the pre-launch script exports for the compose file. Pure.
//!
//! Authors expect `export TAG=1.2` there to reach `${TAG}` in the compose file, as if both ran in one shell. It goes the
//! way of the deployer's own variables and under the same rule of names (T10).

use crate::inputs::Env;
use dstack_core::env;

/// Runs the script in `$1` and leaves its environment in the file `$2`. A script that calls `exit` exports nothing.
pub const DRIVER: &str = r#"eval "$1"; result=$?; env -0 >"$2"; exit "$result""#;

/// Names that a shell has by itself.
const OWN: [&str; 5] = ["HOME", "OLDPWD", "PWD", "SHLVL", "_"];

/// Splits the output of `env -0` into the variables that are new or changed, and the names of those that are refused.
#[must_use]
pub fn parse(bytes: &[u8], before: &Env) -> (Env, Vec<String>) {
    let (mut new, mut refused) = (Env::new(), Vec::new());
    for entry in bytes.split(|b| *b == 0) {
        let Some((name, value)) = std::str::from_utf8(entry).ok().and_then(|e| e.split_once('=')) else {
            continue;
        };
        let known = OWN.contains(&name) || name == "PATH" || name == "DOCKER_CONFIG";
        if known || before.get(name).is_some_and(|old| old == value) {
            continue;
        }
        match env::check(name, value) {
            Ok(()) => drop(new.insert(name.to_owned(), value.to_owned())),
            Err(_) => refused.push(name.chars().take(64).collect()),
        }
    }
    (new, refused)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::command::Program;

    fn exported(script: &str, before: &Env) -> (Env, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exports");
        let mut program = Program::new("bash", &["-c", DRIVER, "pre-launch", script, path.to_str().unwrap()]);
        program.env = before.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        program.run().unwrap();
        parse(&std::fs::read(path).unwrap_or_default(), before)
    }

    fn env(pairs: &[(&str, &str)]) -> Env {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn exports_are_kept_as_they_are() {
        let before = env(&[("OLD", "same"), ("TOKEN", "s")]);
        let (new, refused) = exported("export A=$'x\\ny\\\\' TOKEN=t; B=local; f() { :; }; cd /", &before);
        assert_eq!(new, env(&[("A", "x\ny\\"), ("TOKEN", "t")]));
        assert!(refused.is_empty(), "{refused:?}");
        assert_eq!(exported("export A=1; exit 0", &before).0, Env::new());
    }

    #[test]
    fn t10_a_script_cannot_steer_compose_by_accident() {
        let (new, refused) =
            exported("export COMPOSE_FILE=/x DOCKER_HOST=tcp://x LD_PRELOAD= GOOD=1", &Env::new());
        assert_eq!(new, env(&[("GOOD", "1")]));
        assert_eq!(refused.len(), 3, "{refused:?}");
    }

    #[test]
    fn the_scripts_status_is_the_drivers() {
        for (script, good) in [("true", true), ("false", false), ("exit 3", false), ("if", false)] {
            let program = Program::new("bash", &["-c", DRIVER, "pre-launch", script, "/dev/null"]);
            assert_eq!(program.run().is_ok(), good, "{script}");
        }
    }
}
