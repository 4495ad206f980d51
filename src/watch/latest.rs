//! The newest frame wins.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::reader::{Next, Reader};
use crate::error::Result;
use crate::preprocess::Frame;
use crate::sync::lock;

/// How long one waits before looking at what else there is to do.
const PATIENCE: Duration = Duration::from_millis(50);

/// A frame that was taken out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Its number, from 1; those that were dropped or broken have one, too.
    pub number: u64,
    /// When it was there.
    pub at: Instant,
    /// Frames that nobody took, up to now.
    pub dropped: u64,
    /// Frames that could not be used, up to now.
    pub broken: u64,
}

/// Reads a source in a thread of its own, and keeps the newest frame only.
///
/// A reader that waits for a source (a pipe without data) cannot be called back: it ends with the source, or with the
/// process.
pub struct Latest {
    shared: Arc<Shared>,
}

struct Shared {
    slot: Mutex<Slot>,
    changed: Condvar,
    /// The source waits until its frame was taken.
    waits: bool,
}

struct Slot {
    frame: Frame,
    at: Instant,
    is_full: bool,
    number: u64,
    dropped: u64,
    broken: u64,
    /// Set once there are no more frames.
    end: Option<Result<()>>,
    /// Nobody takes frames any more.
    is_closed: bool,
}

impl Latest {
    /// Starts reading; with `waits` no frame is dropped, and the source has to wait for who takes them.
    pub fn start(mut reader: Box<dyn Reader>, waits: bool) -> Self {
        let shared = Arc::new(Shared {
            slot: Mutex::new(Slot {
                frame: Frame::empty("frame"),
                at: Instant::now(),
                is_full: false,
                number: 0,
                dropped: 0,
                broken: 0,
                end: None,
                is_closed: false,
            }),
            changed: Condvar::new(),
            waits,
        });
        let theirs = Arc::clone(&shared);
        thread::spawn(move || theirs.read(reader.as_mut()));
        Self { shared }
    }

    /// Puts the newest frame that was not taken yet into `frame`, and waits for one while `go_on` says so. `None` if there
    /// are no more.
    ///
    /// # Errors
    /// That of the source, after its last frame.
    pub fn take(&self, frame: &mut Frame, go_on: &dyn Fn() -> bool) -> Result<Option<Taken>> {
        let mut slot = lock(&self.shared.slot);
        while !slot.is_full {
            if let Some(end) = slot.end.take() {
                slot.end = Some(Ok(()));
                return end.map(|()| None);
            }
            if !go_on() {
                return Ok(None);
            }
            let waited = self.shared.changed.wait_timeout(slot, PATIENCE);
            slot = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        std::mem::swap(&mut slot.frame, frame);
        slot.is_full = false;
        self.shared.changed.notify_all();
        Ok(Some(Taken {
            number: slot.number,
            at: slot.at,
            dropped: slot.dropped,
            broken: slot.broken,
        }))
    }

    /// Frames that were dropped, and that were broken, up to now.
    pub fn lost(&self) -> (u64, u64) {
        let slot = lock(&self.shared.slot);
        (slot.dropped, slot.broken)
    }
}

impl Drop for Latest {
    fn drop(&mut self) {
        lock(&self.shared.slot).is_closed = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn read(&self, reader: &mut dyn Reader) {
        let mut frame = Frame::empty("frame");
        loop {
            let next = reader.next(&mut frame);
            let mut slot = lock(&self.slot);
            match next {
                Ok(Next::Frame) => {
                    while self.waits && slot.is_full && !slot.is_closed {
                        let waited = self.changed.wait(slot);
                        slot = waited.unwrap_or_else(PoisonError::into_inner);
                    }
                    slot.number += 1;
                    slot.dropped += u64::from(slot.is_full);
                    slot.is_full = true;
                    slot.at = Instant::now();
                    std::mem::swap(&mut slot.frame, &mut frame);
                }
                Ok(Next::Broken(why)) => {
                    tracing::warn!("frame {}: {why}", slot.number + 1);
                    slot.number += 1;
                    slot.broken += 1;
                }
                Ok(Next::End) => slot.end = Some(Ok(())),
                Err(error) => slot.end = Some(Err(error)),
            }
            let is_over = slot.end.is_some() || slot.is_closed;
            drop(slot);
            self.changed.notify_all();
            if is_over {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;
    use crate::error::Error;

    /// Frames of one grey level each, as a test sends them.
    struct Sent(Receiver<Option<u8>>);

    impl Reader for Sent {
        fn next(&mut self, frame: &mut Frame) -> Result<Next> {
            match self.0.recv() {
                Ok(Some(0)) => Ok(Next::Broken("zero".to_owned())),
                Ok(Some(level)) => {
                    *frame = Frame::new("sent", 1, 1, vec![level; 3])?;
                    Ok(Next::Frame)
                }
                Ok(None) => Err(Error::malformed("sent", "ended badly")),
                Err(_) => Ok(Next::End),
            }
        }
    }

    fn taken(latest: &Latest) -> Option<(u8, Taken)> {
        let mut frame = Frame::empty("none");
        let taken = latest.take(&mut frame, &|| true).expect("no error");
        taken.map(|taken| (frame.rgb()[0], taken))
    }

    #[test]
    fn newest_frame_is_taken_and_older_ones_are_counted() {
        let (send, receive) = channel();
        for level in [1, 2, 0, 3] {
            send.send(Some(level)).expect("sent");
        }
        let latest = Latest::start(Box::new(Sent(receive)), false);
        while latest.lost() != (2, 1) {
            thread::yield_now();
        }
        let (level, first) = taken(&latest).expect("a frame");
        assert_eq!(
            (level, first.number, first.dropped, first.broken),
            (3, 4, 2, 1)
        );
        send.send(Some(9)).expect("sent");
        let (level, second) = taken(&latest).expect("a frame");
        assert_eq!((level, second.number, second.dropped), (9, 5, 2));
        assert!(second.at >= first.at);
        drop(send);
        assert_eq!((taken(&latest), taken(&latest)), (None, None));
    }

    #[test]
    fn source_that_waits_loses_nothing() {
        let (send, receive) = channel();
        for level in 1..=50 {
            send.send(Some(level)).expect("sent");
        }
        drop(send);
        let latest = Latest::start(Box::new(Sent(receive)), true);
        let levels: Vec<u8> = std::iter::from_fn(|| taken(&latest))
            .map(|(level, _)| level)
            .collect();
        assert_eq!(levels, (1..=50).collect::<Vec<u8>>());
        assert_eq!(latest.lost(), (0, 0));
    }

    #[test]
    fn error_of_the_source_comes_after_its_last_frame_and_once() {
        let (send, receive) = channel();
        send.send(Some(5)).expect("sent");
        send.send(None).expect("sent");
        let latest = Latest::start(Box::new(Sent(receive)), true);
        assert_eq!(taken(&latest).expect("a frame").0, 5);
        let mut frame = Frame::empty("none");
        let error = latest.take(&mut frame, &|| true).expect_err("its error");
        assert!(error.to_string().contains("ended badly"));
        assert_eq!(taken(&latest), None);
    }

    #[test]
    fn one_who_does_not_want_to_wait_is_let_go() {
        let (_send, receive) = channel();
        let latest = Latest::start(Box::new(Sent(receive)), false);
        let mut frame = Frame::empty("none");
        assert_eq!(latest.take(&mut frame, &|| false).expect("no error"), None);
    }
}
