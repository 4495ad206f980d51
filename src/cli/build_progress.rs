//! The bar of a build: one line a component, on a terminal only.

use std::time::Duration;

use indicatif::ProgressBar;

use super::main::say;
use super::progress::style;
use crate::build::Event;

/// Steps of a bar from empty to full.
const STEPS: u64 = 1000;

/// Shows where a build stands.
pub struct BuildProgress {
    bar: ProgressBar,
    label: String,
}

impl BuildProgress {
    /// A bar on stderr; nothing is drawn where that is no terminal.
    pub fn new() -> Self {
        let bar = ProgressBar::new(STEPS);
        bar.set_style(style("{spinner} {msg} [{elapsed}]"));
        bar.enable_steady_tick(Duration::from_millis(100));
        Self {
            bar,
            label: String::new(),
        }
    }

    /// Takes note of an event.
    pub fn on(&mut self, event: &Event) {
        match event {
            Event::Start { target, component } => {
                self.label = format!("{target} {component}");
                self.bar.reset();
                self.bar.set_style(style("{spinner} {msg} [{elapsed}]"));
                self.bar.set_message(format!("{}: preparing", self.label));
            }
            Event::Check => {
                self.label = "check".to_owned();
                self.bar.reset();
                self.bar.set_style(style("{spinner} {msg} [{elapsed}]"));
                self.bar.set_message("loading what was written");
            }
            Event::Progress { fraction, phase } => {
                if self.bar.position() == 0 {
                    self.bar
                        .set_style(style("{spinner} {bar:24} {msg} [{elapsed}, {eta} left]"));
                }
                self.bar
                    .set_position(1 + (f64::from(*fraction) * (STEPS - 1) as f64) as u64);
                if let Some(phase) = phase {
                    self.bar.set_message(format!("{}: {phase}", self.label));
                }
            }
            Event::Done => self.bar.println(format!("{}: done", self.label)),
            Event::Portable { target, reason } => self.bar.suspend(|| {
                say(format_args!(
                    "{target}: {reason}; writing graphs, of which `trtvlm build` makes engines there"
                ));
            }),
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
