//! Work that is the same every time: enqueued once, then captured and replayed.

use crate::cuda::{Device, Graph};
use crate::error::Result;

/// How a piece of work is run next.
#[derive(Default)]
enum State {
    /// As it is: libraries load and allocate what they need on their first run.
    #[default]
    Cold,
    /// It has run: the next run captures it.
    Warm,
    /// From its graph.
    Captured(Graph),
    /// As it is, since it could not be captured.
    Refused,
}

/// One piece of work.
#[derive(Default)]
pub(super) struct Replay(State);

impl Replay {
    /// Forgets the graph: shapes or addresses are others now.
    pub fn reset(&mut self) {
        self.0 = State::Cold;
    }

    /// Runs it, whichever way; `what` names it where it cannot be captured.
    ///
    /// # Errors
    /// Those of `enqueue`, and of the device.
    pub fn run(
        &mut self,
        what: &str,
        device: &Device,
        mut enqueue: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        match &self.0 {
            State::Captured(graph) => return graph.launch(),
            State::Refused => return enqueue(),
            State::Cold => {
                enqueue()?;
                self.0 = State::Warm;
                return Ok(());
            }
            State::Warm => {}
        }
        match device.capture(&mut enqueue) {
            Ok(graph) => {
                graph.launch()?;
                self.0 = State::Captured(graph);
                Ok(())
            }
            Err(error) => {
                // A device that is lost answers with that.
                device.ready()?;
                tracing::warn!(
                    "{what} is enqueued anew each time, since it was not captured: {error}"
                );
                self.0 = State::Refused;
                enqueue()
            }
        }
    }
}
