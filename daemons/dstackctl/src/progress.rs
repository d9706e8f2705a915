// SPDX-License-Identifier: Apache-2.0
//! Progress on standard error: a moving line on a terminal, plain lines elsewhere, nothing with `--json`.

use crate::output::{Ui, note};
use crate::quantity::show_duration;
use indicatif::{ProgressBar, ProgressStyle};
use std::time::{Duration, Instant};

/// Shows the stages of a job.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
    began: Instant,
    stage: String,
    stage_began: Instant,
    guest_speaks: bool,
}

impl Progress {
    /// Begins; nothing is shown before the first stage.
    #[must_use]
    pub fn new(ui: &Ui) -> Self {
        let now = Instant::now();
        let bar = ui.animated.then(bar);
        Self { bar, quiet: ui.json, began: now, stage: String::new(), stage_began: now, guest_speaks: false }
    }

    /// Says what is being done now; repeating it changes nothing. `fraction` is from 0 to 1, negative when unknown.
    pub fn stage(&mut self, stage: &str, fraction: Option<f64>) {
        if !stage.is_empty() && stage != self.stage {
            self.finish_stage();
            stage.clone_into(&mut self.stage);
            self.stage_began = Instant::now();
            self.show();
        }
        if let (Some(bar), Some(fraction)) = (&self.bar, fraction) {
            let percent = format!("{:3.0} %", fraction.clamp(0.0, 1.0) * 100.0);
            bar.set_prefix(if fraction < 0.0 { String::new() } else { percent });
        }
    }

    /// What the guest itself says of its boot. From then on the job's own stages, which come later, are not shown.
    pub fn guest_stage(&mut self, stage: &str, fraction: Option<f64>) {
        self.guest_speaks |= !stage.is_empty();
        self.stage(stage, fraction);
    }

    /// What the job says.
    pub fn job_stage(&mut self, stage: &str, fraction: Option<f64>) {
        if !self.guest_speaks {
            self.stage(stage, fraction);
        }
    }

    /// Says something that stays, above the moving line.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => note(text),
        }
    }

    /// How long it has taken so far.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Clears the moving line.
    pub fn finish(&mut self) {
        self.finish_stage();
        self.stage.clear();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn show(&self) {
        match &self.bar {
            Some(bar) => bar.set_message(self.stage.clone()),
            None if self.quiet => {}
            None => note(&format!("[{:>7}] {}", show_duration(self.began.elapsed()), self.stage)),
        }
    }

    fn finish_stage(&self) {
        if let (Some(bar), false) = (&self.bar, self.stage.is_empty()) {
            bar.println(format!("  {:>8}  {}", show_duration(self.stage_began.elapsed()), self.stage));
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>8}  {msg} {prefix}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}
