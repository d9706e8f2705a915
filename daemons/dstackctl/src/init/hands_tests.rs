// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;
use crate::init::found;
use crate::init::plan::tests::{goal, units};
use crate::init::plan::{Found, Goal, Keys, Secret, plan};
use crate::init::units::{State, of};
use std::collections::{BTreeMap, BTreeSet};

const BEFORE: &str = "base_domain='old.b'\naddress='h.b'\n[ports]\npassthrough=1\n";
const AFTER: &str = "base_domain='a.b'\naddress='h.b'\n[ports]\nkms=19043\n[certificate]\nsource='acme'\n\
    [certificate.dns]\nprovider='cloudflare'\n";

/// A host whose files are real, and whose units remember with which files they started.
struct Machine {
    root: Root,
    units: BTreeMap<&'static str, State>,
    /// For each unit, the texts that it has read.
    running: BTreeMap<&'static str, Vec<Option<String>>>,
    keys: Keys,
    stored: BTreeSet<&'static str>,
    certified: Option<String>,
    /// Steps until it is killed.
    fuse: usize,
    goal: Goal,
}

impl Machine {
    fn new(directory: &std::path::Path, goal: Goal) -> Self {
        let down = State { loaded: true, ..State::default() };
        Self {
            root: Root::below(directory),
            units: units(&down),
            running: BTreeMap::new(),
            keys: Keys::None,
            stored: BTreeSet::new(),
            certified: None,
            fuse: usize::MAX,
            goal,
        }
    }

    fn look(&self) -> Found {
        let secret = if self.stored.contains("certbot-cloudflare") { Secret::Stored } else { Secret::New };
        let needed = self.goal.certificate.is_some();
        Found {
            files: found::files(&self.goal, &self.root).unwrap(),
            units: self.units.clone(),
            noted: self.root.noted().unwrap(),
            secrets: needed.then_some(("certbot-cloudflare", secret)).into_iter().collect(),
            keys: self.keys,
            certified: self.certified.is_some() && self.certified == self.goal.certificate,
            unshown: false,
        }
    }

    fn steps(&self) -> Vec<Step> {
        plan(&self.goal, &self.look())
    }

    async fn run(&mut self) -> Result<(), Failure> {
        let steps = self.steps();
        carry_out(&steps, self).await
    }

    /// The files that a unit reads, as they are now.
    fn texts(&self, unit: &str) -> Vec<Option<String>> {
        let is_socket = |w: &&crate::init::settings::Wanted| w.socket == Some(unit);
        let is_service = |w: &&crate::init::settings::Wanted| {
            w.socket.is_none() && w.of.is_some_and(|c| c.service == unit)
        };
        let read = |w: &crate::init::settings::Wanted| self.root.read(w.path).unwrap();
        self.goal.files.iter().filter(|w| is_socket(w) || is_service(w)).map(read).collect()
    }

    fn start(&mut self, unit: &'static str) {
        let texts = self.texts(unit);
        self.running.insert(unit, texts);
        self.units.get_mut(unit).unwrap().active = true;
    }

    fn act(&mut self, step: &Step) {
        match step {
            Step::Store(name) => drop(self.stored.insert(name)),
            Step::Enable(units) => units.iter().for_each(|u| self.units.get_mut(u).unwrap().enabled = true),
            Step::Stop(units) => {
                for unit in units.iter().filter(|u| !u.contains('*')) {
                    self.units.get_mut(unit).unwrap().active = false;
                    self.running.remove(unit);
                }
            }
            Step::Start(unit) => {
                let service = of(unit).unwrap().service;
                let is_held = unit.ends_with(".socket") && self.units[service].active;
                assert!(!is_held || self.units[unit].active, "{unit} cannot be started while {service} runs");
                self.start(unit);
            }
            Step::Restart(unit) => self.start(unit),
            Step::Bootstrap(_) => self.keys = Keys::Untrusted,
            Step::Trust => self.keys = Keys::Trusted,
            Step::Certificate(name) => self.certified = Some(name.clone()),
            _ => {}
        }
    }

    /// Everything that a later run could see.
    fn state(&self) -> String {
        let mut files = Vec::new();
        tree(&self.root.real("/"), &mut files);
        let rest = (&self.units, &self.running, self.keys, &self.stored, &self.certified);
        format!("{files:#?}\n{rest:#?}").replace(&self.root.real("/").display().to_string(), "")
    }
}

fn tree(directory: &std::path::Path, into: &mut Vec<(String, String)>) {
    let mut entries: Vec<_> = std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        match path.is_dir() {
            true => tree(&path, into),
            false => into.push((path.display().to_string(), std::fs::read_to_string(&path).unwrap())),
        }
    }
}

impl Hands for Machine {
    async fn take(&mut self, step: &Step) -> Result<(), Failure> {
        if self.fuse == 0 {
            if let Step::Write { path, text, .. } = step {
                // The middle of a write: what is beside is half there, and the file is as it was.
                let beside = self.root.real(&format!("{path}.new"));
                std::fs::create_dir_all(beside.parent().unwrap()).unwrap();
                std::fs::write(beside, &text[..text.len() / 2]).unwrap();
            }
            return Err(Failure::new("killed"));
        }
        self.fuse -= 1;
        write(step, &self.root)?;
        self.act(step);
        Ok(())
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

/// A host that was set up with other answers before.
fn used(directory: &std::path::Path) -> Machine {
    let mut machine = Machine::new(directory, goal(BEFORE));
    block_on(machine.run()).unwrap();
    assert_eq!(machine.steps(), []);
    machine.goal = goal(AFTER);
    machine
}

#[test]
fn killed_between_any_two_steps_a_second_run_ends_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let mut whole = used(directory.path());
    let steps = whole.steps().len();
    block_on(whole.run()).unwrap();
    assert!(steps > 15, "{steps}");
    for fuse in 0..steps {
        let directory = tempfile::tempdir().unwrap();
        let mut machine = used(directory.path());
        machine.fuse = fuse;
        assert_eq!(block_on(machine.run()).unwrap_err().message, "killed", "{fuse}");
        machine.fuse = usize::MAX;
        block_on(machine.run()).unwrap();
        assert_eq!(machine.state(), whole.state(), "killed before step {fuse}");
        assert_eq!(machine.steps(), [], "killed before step {fuse}");
    }
}

#[test]
fn a_second_run_has_nothing_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let mut machine = Machine::new(directory.path(), goal(BEFORE));
    block_on(machine.run()).unwrap();
    let state = machine.state();
    assert_eq!(machine.steps(), []);
    block_on(machine.run()).unwrap();
    assert_eq!(machine.state(), state);
}

#[test]
fn a_failure_says_how_to_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let mut machine = Machine::new(directory.path(), goal(BEFORE));
    machine.fuse = 3;
    let failure = block_on(machine.run()).unwrap_err();
    assert!(failure.hint.unwrap().contains("run `dstackctl init` again"));
}
