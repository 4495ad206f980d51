//! What time it is, so that a test can make it up.

use std::time::{Duration, Instant};

/// Tells the time since some fixed instant.
pub trait Clock: Send {
    /// Time since then.
    fn now(&self) -> Duration;
}

/// The clock on the wall; starts when it is made.
#[derive(Debug)]
pub struct WallClock(Instant);

impl Default for WallClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for WallClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}
