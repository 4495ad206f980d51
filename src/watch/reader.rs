//! What all sources are.

use std::io::{BufRead, ErrorKind};

use super::mjpeg::Mjpeg;
use super::y4m::{MAGIC, Y4m};
use crate::error::{Error, Result};
use crate::preprocess::Frame;

/// What a source gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// A frame.
    Frame,
    /// A frame that cannot be used, and why; others may follow.
    Broken(String),
    /// There are no more.
    End,
}

/// Gives one frame after the other.
pub trait Reader: Send {
    /// Puts the next frame into `frame`, which keeps its memory; waits for it.
    ///
    /// # Errors
    /// [`Error::Malformed`] if nothing that follows can be understood, [`Error::Io`] if it cannot be read.
    fn next(&mut self, frame: &mut Frame) -> Result<Next>;
}

/// Reads a pipe, which carries MJPEG or Y4M; `name` is what errors call it.
///
/// # Errors
/// [`Error::Malformed`] if it is neither, or empty; [`Error::Io`] if it cannot be read.
pub fn detect(name: &str, mut input: Box<dyn BufRead + Send>) -> Result<Box<dyn Reader>> {
    let start = filled(name, &mut input)?;
    if start.is_empty() {
        return Err(Error::malformed(name, "it is empty"));
    }
    if start[0] == MAGIC[0] {
        return Ok(Box::new(Y4m::open(name, input)?));
    }
    Ok(Box::new(Mjpeg::new(name, input)))
}

/// Bytes that are there, at least one unless the end was reached.
pub(super) fn filled<'a>(name: &str, input: &'a mut Box<dyn BufRead + Send>) -> Result<&'a [u8]> {
    loop {
        match input.fill_buf() {
            Ok(_) => break,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io(name)(e)),
        }
    }
    // Filled already: this reads nothing.
    input.fill_buf().map_err(Error::io(name))
}

/// Reads as many bytes as there is room for; fewer at the end.
pub(super) fn read_full(
    name: &str,
    input: &mut Box<dyn BufRead + Send>,
    room: &mut [u8],
) -> Result<usize> {
    let mut n = 0;
    while n < room.len() {
        let there = filled(name, input)?;
        if there.is_empty() {
            break;
        }
        let taken = there.len().min(room.len() - n);
        room[n..n + taken].copy_from_slice(&there[..taken]);
        input.consume(taken);
        n += taken;
    }
    Ok(n)
}
