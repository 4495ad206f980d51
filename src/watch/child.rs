//! Videos and cameras through `ffmpeg`.

use std::io::{BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use super::reader::{Next, Reader};
use super::y4m::Y4m;
use crate::error::{Error, Result};
use crate::preprocess::Frame;

/// The program, as `PATH` finds it.
const PROGRAM: &str = "ffmpeg";

/// Letters of a message of the program's that are told.
const MESSAGE_BYTES: u64 = 2000;

/// Frames that a child process writes; it ends with the reader.
pub(super) struct Ffmpeg {
    path: PathBuf,
    child: Child,
    /// Opened when the first frame is asked for: the child may take a while.
    output: Option<ChildStdout>,
    frames: Option<Y4m>,
}

impl Ffmpeg {
    /// Starts the program on a video file, at the speed at which it plays, or on a camera.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no such file, [`Error::Unavailable`] if the program is not installed.
    pub(super) fn open(path: &Path, is_camera: bool) -> Result<Self> {
        path.metadata().map_err(Error::io(path))?;
        let mut command = Command::new(PROGRAM);
        command.args(["-nostdin", "-loglevel", "error"]);
        match is_camera {
            true => command.args(["-f", "v4l2"]),
            false => command.arg("-re"),
        };
        // A name that begins with a dash is a name.
        let mut url = std::ffi::OsString::from("file:");
        url.push(path);
        match is_camera {
            true => command.arg("-i").arg(path),
            false => command.arg("-i").arg(url),
        };
        command.args(["-an", "-pix_fmt", "yuv420p", "-f", "yuv4mpegpipe", "-"]);
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| match e.kind() {
            ErrorKind::NotFound => Error::Unavailable {
                what: PROGRAM.to_owned(),
                reason: format!("{} is read through it: install ffmpeg", path.display()),
            },
            _ => Error::io(PROGRAM)(e),
        })?;
        Ok(Self {
            path: path.to_owned(),
            output: child.stdout.take(),
            child,
            frames: None,
        })
    }

    /// What the program said, once it has ended.
    fn failure(&mut self) -> Option<Error> {
        let status = self.child.wait().ok()?;
        if status.success() {
            return None;
        }
        let mut text = Vec::new();
        if let Some(errors) = self.child.stderr.take() {
            // A message that cannot be read is none.
            let _ = errors.take(MESSAGE_BYTES).read_to_end(&mut text);
        }
        let text = String::from_utf8_lossy(&text);
        let reason = format!("ffmpeg: {}", text.trim());
        Some(Error::malformed(&self.path, reason))
    }
}

impl Reader for Ffmpeg {
    fn next(&mut self, frame: &mut Frame) -> Result<Next> {
        let name = self.path.display().to_string();
        if let Some(output) = self.output.take() {
            match Y4m::open(&name, Box::new(BufReader::new(output))) {
                Ok(frames) => self.frames = Some(frames),
                // It ended without a frame, and knows why.
                Err(error) => return Err(self.failure().unwrap_or(error)),
            }
        }
        let next = match &mut self.frames {
            Some(frames) => frames.next(frame)?,
            None => Next::End,
        };
        match next {
            Next::End => self.failure().map_or(Ok(Next::End), Err),
            next => Ok(next),
        }
    }
}

impl Drop for Ffmpeg {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
