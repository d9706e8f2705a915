// SPDX-License-Identifier: Apache-2.0
//! Which programs an app needs, in which order. Pure.

use crate::app::exports::DRIVER;
use crate::command::{Program, arg};
use crate::inputs::Env;
use crate::layout::Layout;
use dstack_core::boot::{Failure, Stage};
use dstack_core::compose::{AppCompose, DockerConfig, Runner};

/// `docker compose` without docker's command line in front, which would ask every plugin for its name first.
const COMPOSE: &str = "/usr/libexec/docker/cli-plugins/docker-compose";

/// One step of starting an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What the host is told when it begins.
    pub stage: Stage,
    /// What the host is told when it fails.
    pub failure: Failure,
    /// What runs.
    pub program: Program,
    /// How it is watched.
    pub watch: Watch,
}

/// How a step's program is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// Until it ends.
    ToEnd,
    /// Until it ends; what it exports is for the steps after it.
    PreLaunch,
    /// Until it ends, telling from compose's output how far it is.
    Up,
    /// It is the app: ready once it runs.
    Main,
}

/// The steps of an app. What the pre-launch script exports changes the steps after it, never their number.
///
/// # Errors
/// [`Failure::LoginFailed`] when the token that the login names is not in the environment.
pub fn plan(compose: &AppCompose, env: &Env, layout: &Layout) -> Result<Vec<Step>, Failure> {
    let mut steps = Vec::new();
    if !compose.docker_config.username.is_empty() {
        steps.push(login(&compose.docker_config, env, layout)?);
    }
    if let Some(script) = compose.pre_launch_script.as_deref().filter(|s| !s.is_empty()) {
        let exports = arg(&layout.exports());
        let program = bash(&["-c", DRIVER, "pre-launch", script, &exports], env, layout);
        steps.push(step(Stage::PreLaunch, Failure::PreLaunchFailed, program, Watch::PreLaunch));
    }
    match compose.runner {
        Runner::DockerCompose => steps.push(containers(layout)),
        Runner::Bash => {
            let script = compose.bash_script.as_deref().unwrap_or_default();
            let program = bash(&["-c", script], env, layout);
            steps.push(step(Stage::Script, Failure::ScriptFailed, program, Watch::Main));
        }
    }
    Ok(steps)
}

const fn step(stage: Stage, failure: Failure, program: Program, watch: Watch) -> Step {
    Step { stage, failure, program, watch }
}

/// One call pulls what is missing (the pre-launch script may have loaded some) and starts all: each call of compose
/// costs a second on a small VM. The stages of it, and what failed, are told from its output.
fn containers(layout: &Layout) -> Step {
    let up = compose_program(layout, &["up", "--detach", "--remove-orphans"]);
    step(Stage::App, Failure::ComposeFailed, up, Watch::Up)
}

/// How the containers end; `None` for an app without a compose file.
#[must_use]
pub fn stop(compose: &AppCompose, layout: &Layout) -> Option<Program> {
    (compose.runner == Runner::DockerCompose).then(|| compose_program(layout, &["stop"]))
}

/// T10: the deployer's values reach the compose file by a file of their own, never compose's environment.
fn compose_program(layout: &Layout, verb: &[&str]) -> Program {
    let mut program = Program::new(COMPOSE, &["--progress", "plain", "--file"]);
    program.env = own_env(layout);
    program.args.push(arg(&layout.compose_file()));
    program.args.extend(["--project-directory".into(), arg(layout.project())]);
    program.args.extend(["--env-file".into(), arg(&layout.compose_env())]);
    program.args.extend(verb.iter().map(|a| (*a).to_owned()));
    program
}

/// What the guest's tools need themselves.
fn own_env(layout: &Layout) -> Vec<(String, String)> {
    vec![("HOME".into(), arg(layout.project())), ("DOCKER_CONFIG".into(), arg(&layout.docker_config()))]
}

/// P02: the token goes by standard input.
fn login(config: &DockerConfig, env: &Env, layout: &Layout) -> Result<Step, Failure> {
    let token = env.get(&config.token_key).ok_or(Failure::LoginFailed)?;
    let user = format!("--username={}", config.username);
    let mut program = Program::new("docker", &["login", &user, "--password-stdin", "--"]).input(token);
    program.env = own_env(layout);
    if !config.registry.is_empty() {
        program.args.push(config.registry.clone());
    }
    Ok(step(Stage::Login, Failure::LoginFailed, program, Watch::ToEnd))
}

/// The app's own scripts get the deployer's values; they are the app. The script is the child's argument, as it is
/// measured and public; its secrets are not in it.
fn bash(args: &[&str], env: &Env, layout: &Layout) -> Program {
    let mut program = Program::new("bash", args);
    program.env = own_env(layout);
    program.env.extend(env.iter().map(|(k, v)| (k.clone(), v.clone())));
    program
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn app(extra: &serde_json::Value) -> AppCompose {
        let mut object = serde_json::json!({
            "manifest_version": 2, "name": "hello", "runner": "docker-compose",
            "docker_compose_file": "services: {web: {image: web}}",
        });
        object.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        AppCompose::parse(object.to_string().as_bytes()).unwrap()
    }

    fn stages(compose: &AppCompose, env: &Env) -> Vec<Stage> {
        plan(compose, env, &Layout::default()).unwrap().iter().map(|s| s.stage).collect()
    }

    #[test]
    fn steps_in_order() {
        let env: Env = [("TOKEN".to_owned(), "s3cret".to_owned())].into();
        let login = serde_json::json!({"registry": "r.test", "username": "u", "token_key": "TOKEN"});
        for (extra, expected) in [
            (serde_json::json!({}), &[Stage::App][..]),
            (serde_json::json!({"pre_launch_script": ""}), &[Stage::App]),
            (serde_json::json!({"runner": "bash", "bash_script": "sleep inf"}), &[Stage::Script]),
            (
                serde_json::json!({"docker_config": login, "pre_launch_script": "true"}),
                &[Stage::Login, Stage::PreLaunch, Stage::App],
            ),
        ] {
            assert_eq!(stages(&app(&extra), &env), expected, "{extra}");
        }
    }

    #[test]
    fn p33_no_container_starts_before_the_pre_launch_script() {
        let compose = app(&serde_json::json!({"pre_launch_script": "true"}));
        let steps = plan(&compose, &Env::new(), &Layout::default()).unwrap();
        let at = |stage| steps.iter().position(|s| s.stage == stage).unwrap();
        assert!(at(Stage::PreLaunch) < at(Stage::App));
        assert!(steps[..at(Stage::PreLaunch)].iter().all(|s| !s.program.args.contains(&"up".to_owned())));
    }

    #[test]
    fn p02_the_registry_token_is_no_argument() {
        let login = serde_json::json!({"registry": "r.test", "username": "-u", "token_key": "TOKEN"});
        let compose = app(&serde_json::json!({"docker_config": login}));
        let env: Env = [("TOKEN".to_owned(), "s3cret".to_owned())].into();
        let steps = plan(&compose, &env, &Layout::default()).unwrap();
        let program = &steps[0].program;
        assert_eq!(program.args, ["login", "--username=-u", "--password-stdin", "--", "r.test"]);
        assert_eq!(program.input, Some("s3cret".into()));
        assert_eq!(plan(&compose, &Env::new(), &Layout::default()), Err(Failure::LoginFailed));
    }

    #[test]
    fn t10_values_do_not_reach_composes_own_environment() {
        let env: Env = [("HTTPS_PROXY".to_owned(), "http://evil".to_owned())].into();
        let compose = app(&serde_json::json!({"pre_launch_script": "true"}));
        let steps = plan(&compose, &env, &Layout::default()).unwrap();
        for step in steps {
            let has = step.program.env.iter().any(|(k, _)| k == "HTTPS_PROXY");
            assert_eq!(has, step.program.name == "bash", "{step:?}");
            assert_eq!(step.program.args.contains(&"--env-file".to_owned()), step.program.name == COMPOSE);
        }
    }
}
