// SPDX-License-Identifier: Apache-2.0
//! What systemd says about VMs' units.

use super::Engine;
use super::vm::Vm;
use crate::vm::UnitState;
use crate::vm::state::Asked;
use dstack_service::api::teepod1::Error;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

impl Engine {
    /// Asks systemd again, so that whoever waited for a job sees its outcome.
    pub(super) async fn refresh(&self, vm: &Vm) -> Result<(), Error> {
        let state = self.inner.units.state(&vm.name).await?;
        self.apply(vm, state);
        Ok(())
    }

    /// Since when a VM runs or does not; `None`: it never ran, or systemd has forgotten.
    pub async fn since(&self, vm: &Vm) -> Option<Duration> {
        let (active, inactive) = self.inner.units.times(&vm.name).await.ok()?;
        let at = if vm.state().is_down() { inactive } else { active };
        let at = Some(at).filter(|at| *at > 0)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        Some(now.saturating_sub(Duration::from_micros(at)))
    }

    /// Takes over systemd's word on a VM's unit.
    pub(super) fn apply(&self, vm: &Vm, unit: UnitState) {
        self.observe(vm, |observed| {
            let down = |u: &UnitState| !u.is_up();
            if down(&observed.unit) && !down(&unit) && !observed.home {
                // A new boot: what the last one said of its failure is over.
                if let Some(status) = &mut observed.status {
                    status.error.clear();
                    status.timeline.clear();
                }
            }
            if down(&unit) {
                observed.home = false;
            }
            let begun = match observed.asked {
                Some(Asked::Start) => unit.is_up(),
                Some(Asked::Stop) => matches!(unit, UnitState::Deactivating) || down(&unit),
                None => false,
            };
            if begun {
                observed.asked = None;
            }
            observed.unit = unit;
        });
    }
}
