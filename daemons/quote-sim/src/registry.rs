// SPDX-License-Identifier: Apache-2.0
//! The registers of every VM that runs, one file each, so that a restart of the daemon loses none.

use dstack_core::event_log::{self, Digest};
use dstack_core::ids::VmName;
use dstack_core::quote_sim_wire::Registers;
use dstack_service::state::{self, StateError};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io;
use std::path::PathBuf;

const VERSION: u32 = 1;

/// One run of a VM: another start of its unit, or another main process, is another TEE.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Run {
    /// Invocation id of the unit, 32 hex digits.
    pub invocation: String,
    /// Main process of the unit.
    pub main_pid: u32,
}

/// A running VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    /// Its name.
    pub name: VmName,
    /// Its run.
    pub run: Run,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    run: Run,
    registers: Registers,
}

/// Registers by VM.
#[derive(Debug)]
pub struct Registry {
    directory: PathBuf,
    entries: HashMap<VmName, Entry>,
}

impl Registry {
    /// A registry whose files are in `directory`, which nobody else may read.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, entries: HashMap::new() }
    }

    /// The registers of this run; `None` when it is new.
    ///
    /// # Errors
    /// [`StateError`] when its file is damaged: a register is never guessed.
    pub fn get(&mut self, vm: &Vm) -> Result<Option<Registers>, StateError> {
        if !self.entries.contains_key(&vm.name)
            && let Some(entry) = state::load::<Entry>(&self.path(&vm.name), VERSION)?
        {
            self.entries.insert(vm.name.clone(), entry);
        }
        let entry = self.entries.get(&vm.name).filter(|entry| entry.run == vm.run);
        Ok(entry.map(|entry| entry.registers))
    }

    /// Begins a run with these registers, in place of the VM's run before it; a run that has begun keeps its own.
    ///
    /// # Errors
    /// [`StateError`] when they cannot be kept.
    pub fn begin(&mut self, vm: &Vm, registers: Registers) -> Result<Registers, StateError> {
        match self.get(vm)? {
            Some(registers) => Ok(registers),
            None => self.keep(vm, registers),
        }
    }

    /// Extends RTMR3 of a run that has begun; `None` when it has not. The new value is kept before it is told.
    ///
    /// # Errors
    /// [`StateError`] when it cannot be kept; the register is unchanged then.
    pub fn extend(&mut self, vm: &Vm, digest: &Digest) -> Result<Option<Digest>, StateError> {
        let Some(mut registers) = self.get(vm)? else { return Ok(None) };
        registers.rtmr3 = event_log::extend(&registers.rtmr3, digest);
        self.keep(vm, registers)?;
        Ok(Some(registers.rtmr3))
    }

    /// Forgets a VM that was removed.
    ///
    /// # Errors
    /// When its file cannot be deleted.
    pub fn forget(&mut self, name: &VmName) -> io::Result<()> {
        self.entries.remove(name);
        match std::fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn keep(&mut self, vm: &Vm, registers: Registers) -> Result<Registers, StateError> {
        let entry = Entry { run: vm.run.clone(), registers };
        state::store(&self.path(&vm.name), VERSION, &entry)?;
        self.entries.insert(vm.name.clone(), entry);
        Ok(registers)
    }

    fn path(&self, name: &VmName) -> PathBuf {
        self.directory.join(format!("{name}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(invocation: &str, main_pid: u32) -> Vm {
        Vm { name: "hello".parse().unwrap(), run: Run { invocation: invocation.into(), main_pid } }
    }

    fn registers() -> Registers {
        let zero = [0; 48];
        Registers { mrtd: [1; 48], rtmr0: zero, rtmr1: zero, rtmr2: zero, rtmr3: zero, mr_config_id: zero }
    }

    #[test]
    fn t14_a_register_survives_the_daemon_and_not_the_vm() {
        let dir = tempfile::tempdir().unwrap();
        let mut registry = Registry::new(dir.path().to_owned());
        assert_eq!(registry.extend(&vm("a", 1), &[7; 48]).unwrap(), None);
        registry.begin(&vm("a", 1), registers()).unwrap();
        let first = registry.extend(&vm("a", 1), &[7; 48]).unwrap().unwrap();
        assert_eq!(first, event_log::extend(&[0; 48], &[7; 48]));

        let mut registry = Registry::new(dir.path().to_owned());
        assert_eq!(registry.begin(&vm("a", 1), registers()).unwrap().rtmr3, first, "begun once");
        for other in [vm("a", 2), vm("b", 2)] {
            assert_eq!(registry.get(&other).unwrap(), None, "{other:?}");
            assert_eq!(registry.begin(&other, registers()).unwrap().rtmr3, [0; 48]);
        }
        assert_eq!(registry.get(&vm("a", 1)).unwrap(), None, "a run that ended does not come back");
    }

    #[test]
    fn a_removed_vm_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut registry = Registry::new(dir.path().to_owned());
        registry.begin(&vm("a", 1), registers()).unwrap();
        for _ in 0..2 {
            registry.forget(&vm("a", 1).name).unwrap();
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(registry.get(&vm("a", 1)).unwrap(), None);
    }

    #[test]
    fn p30_a_damaged_register_is_not_a_fresh_one() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("hello.json"), "{").unwrap();
        let mut registry = Registry::new(dir.path().to_owned());
        assert!(registry.begin(&vm("a", 1), registers()).is_err());
    }
}
