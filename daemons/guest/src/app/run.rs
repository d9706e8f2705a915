// SPDX-License-Identifier: Apache-2.0
//! Runs the plan as the unit's main process.

use crate::app::exports;
use crate::app::plan::{self, Step, Watch};
use crate::app::progress::{Event, Up};
use crate::app::supervise::{End, Running};
use crate::command::{CommandError, Program};
use crate::inputs::Env;
use crate::layout::Layout;
use crate::outputs;
use crate::status::Status;
use dstack_core::boot::{Failure, Stage};
use dstack_core::compose::AppCompose;
use dstack_sys::signal::{self, Signals};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use sd_notify::NotifyState;
use std::fs;
use std::io;

/// Why the app did not start or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A step failed; its output is in the journal.
    #[error("{}", .0.sentence())]
    Step(Failure),
    /// dstack-prepare has not left what it should.
    #[error("cannot read what dstack-prepare wrote: {0}")]
    Inputs(io::Error),
    /// The containers did not end in order; Docker ends them next.
    #[error("cannot stop the containers in order: {0}")]
    Stop(#[from] CommandError),
    /// The system refuses something that always works.
    #[error("{0}")]
    System(#[from] io::Error),
}

/// An app with its steps.
struct App {
    layout: Layout,
    status: Status,
    signals: Signals,
    compose: AppCompose,
}

/// Starts the app, stays, and ends it in order when the unit is told to stop.
///
/// # Errors
/// [`AppError`]; the status file has the `ERROR` line.
pub fn run(layout: &Layout) -> Result<(), AppError> {
    let status = Status::new(&layout.status());
    let outcome = begin(layout, &status).and_then(|(app, env)| app.live(env));
    outcome.inspect_err(|error| error.failure().into_iter().for_each(|failure| status.error(failure)))
}

fn begin(layout: &Layout, status: &Status) -> Result<(App, Env), AppError> {
    let signals = Signals::block(&[signal::TERM])?;
    let bytes = fs::read(layout.app_compose()).map_err(AppError::Inputs)?;
    let compose = AppCompose::parse(&bytes).map_err(|_| AppError::Step(Failure::ComposeInvalid))?;
    let env = fs::read(layout.env()).map_err(AppError::Inputs)?;
    let env = serde_json::from_slice(&env).map_err(|e| AppError::Inputs(e.into()))?;
    fs::create_dir_all(layout.project())?;
    std::env::set_current_dir(layout.project())?;
    Ok((App { layout: layout.clone(), status: status.clone(), signals, compose }, env))
}

impl AppError {
    /// What the host is told; nothing about an end that it asked for.
    const fn failure(&self) -> Option<Failure> {
        match self {
            Self::Step(failure) => Some(*failure),
            Self::Inputs(_) | Self::System(_) => Some(Failure::Internal),
            Self::Stop(_) => None,
        }
    }
}

/// Whether to go on with the next step.
enum Next {
    Go,
    Stop,
}

impl App {
    /// The plan is made anew for each step, as the pre-launch script adds to the environment.
    fn live(&self, mut env: Env) -> Result<(), AppError> {
        let mut done = 0;
        while let Some(step) = self.plan(&env)?.get(done) {
            self.stage(step.stage);
            if matches!(self.step(step)?, Next::Stop) {
                return self.stop(step.stage);
            }
            match step.watch {
                Watch::Main => return Ok(()),
                Watch::PreLaunch => self.take_exports(&mut env)?,
                Watch::ToEnd | Watch::Up => {}
            }
            done += 1;
        }
        self.ready();
        self.wait_for_stop()?;
        self.stop(Stage::App)
    }

    fn plan(&self, env: &Env) -> Result<Vec<Step>, AppError> {
        plan::plan(&self.compose, env, &self.layout).map_err(AppError::Step)
    }

    fn take_exports(&self, env: &mut Env) -> Result<(), AppError> {
        let path = self.layout.exports();
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        fs::remove_file(&path)?;
        let (new, refused) = exports::parse(&bytes, env);
        for name in refused {
            println!(
                "{name} from the pre-launch script is not passed on: the name is reserved or not a name"
            );
        }
        env.extend(new);
        Ok(outputs::write_all(&self.layout, &[outputs::compose_env(&self.layout, env)])?)
    }

    fn step(&self, step: &Step) -> Result<Next, AppError> {
        let failed = |_| AppError::Step(step.failure);
        let running = Running::start(&step.program, step.watch == Watch::Up).map_err(failed)?;
        if step.watch == Watch::Main {
            self.ready();
        }
        let mut up = Up::default();
        match running.wait(&self.signals, &mut |line| self.output(&mut up, line))? {
            End::Stopped => Ok(Next::Stop),
            End::Exited(status) if status.success() => Ok(Next::Go),
            End::Exited(status) => {
                println!("{} ended with {status}", step.program.name);
                let failure = if step.watch == Watch::Up { up.failure() } else { step.failure };
                Err(AppError::Step(failure))
            }
        }
    }

    /// One line of compose: to the journal, and what it means to the host.
    fn output(&self, up: &mut Up, line: &str) {
        let events = up.line(line);
        if events != [Event::Layer] {
            println!("{line}");
        }
        for event in events {
            match event {
                Event::Pull => self.stage(Stage::Pull),
                Event::Pulled { done, total } => self.status.progress(done, total),
                Event::Create => self.stage(Stage::App),
                Event::Layer => {}
            }
        }
    }

    fn stage(&self, stage: Stage) {
        self.status.stage(stage);
        notify(&[NotifyState::Status(stage.sentence())]);
    }

    fn ready(&self) {
        self.status.ready();
        notify(&[NotifyState::Ready, NotifyState::Status("the app runs")]);
    }

    fn wait_for_stop(&self) -> io::Result<()> {
        while self.signals.next()?.is_none() {
            match poll(&mut [PollFd::new(&self.signals, PollFlags::IN)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Ends the containers, if any were started, before Docker ends. The unit's time limit holds.
    fn stop(&self, reached: Stage) -> Result<(), AppError> {
        notify(&[NotifyState::Stopping, NotifyState::Status("stopping the containers")]);
        let program = (reached == Stage::App).then(|| plan::stop(&self.compose, &self.layout)).flatten();
        program
            .as_ref()
            .map_or(Ok(()), Program::run)
            .map_err(|error| AppError::System(io::Error::other(error)))
    }
}

/// Without systemd there is nobody to tell.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        println!("cannot notify systemd: {error}");
    }
}
