//! Bars on stderr: drawn on a terminal only, with the time that remains.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::hub;

/// A bar that counts bytes; `label` says of what.
pub fn bytes_bar(label: &str, total_bytes: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total_bytes), ProgressDrawTarget::stderr());
    bar.set_style(style(
        "{msg} {bar:24} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left",
    ));
    bar.set_message(label.to_owned());
    bar
}

/// Says that something goes on of which nobody knows how long it takes.
pub fn spinner(label: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(style("{spinner} {msg} [{elapsed}]"));
    bar.set_message(label.to_owned());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// The look of a bar.
pub fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// The bar of a download, one file after the other.
#[derive(Debug)]
pub struct DownloadBar {
    bar: ProgressBar,
    shown: Option<usize>,
}

impl DownloadBar {
    /// A bar that waits for the hub's answer.
    pub fn new(repo: &hub::RepoId) -> Self {
        Self {
            bar: spinner(&format!("asking the hub for {repo}")),
            shown: None,
        }
    }

    /// Takes note of how far the download is.
    pub fn on(&mut self, progress: &hub::Progress) {
        let label = format!(
            "[{}/{}] {}",
            progress.index + 1,
            progress.n_files,
            progress.file
        );
        if self.shown != Some(progress.index) {
            self.shown = Some(progress.index);
            self.bar.finish_and_clear();
            self.bar = bytes_bar(&label, progress.total_bytes);
            // A resumed file did not come at the speed of the first moment.
            self.bar.set_position(progress.bytes);
            self.bar.reset_eta();
        }
        self.bar.set_length(progress.total_bytes);
        self.bar.set_position(progress.bytes);
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
