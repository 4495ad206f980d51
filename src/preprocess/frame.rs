//! RGB frames, from files and from cameras.

use std::path::Path;

use super::decode::decode;
use crate::error::{Error, Result};
use crate::limits;
use crate::read::read_file;

/// An RGB8 image in host memory, rows top to bottom, without gaps.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    name: String,
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Frame {
    /// Wraps `rgb`, `[height, width, 3]`; `name` is what errors call it.
    ///
    /// # Errors
    /// [`Error::Image`] if a side is zero or `rgb` has another length, [`Error::TooLarge`] above
    /// [`limits::IMAGE_SIDE`] or [`limits::IMAGE_PIXELS`].
    pub fn new(name: impl Into<String>, width: usize, height: usize, rgb: Vec<u8>) -> Result<Self> {
        let name = name.into();
        check_size(&name, width as u64, height as u64)?;
        if rgb.len() != width * height * 3 {
            return Err(Error::Image {
                reason: format!("{width}x{height} RGB in {} bytes", rgb.len()),
                name,
            });
        }
        Ok(Self {
            name,
            width,
            height,
            rgb,
        })
    }

    /// A frame whose bytes, counted from 0, are `level` of their number.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn from_fn(
        name: impl Into<String>,
        width: usize,
        height: usize,
        level: impl FnMut(usize) -> u8,
    ) -> Result<Self> {
        let name = name.into();
        check_size(&name, width as u64, height as u64)?;
        Self::new(
            name,
            width,
            height,
            (0..3 * width * height).map(level).collect(),
        )
    }

    /// A frame without pixels, to [copy](Self::copy_from) pictures into.
    pub fn empty(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            width: 0,
            height: 0,
            rgb: Vec::new(),
        }
    }

    /// Makes it that large, without another allocation where it was as large before; returns the pixels, to be
    /// overwritten.
    pub(super) fn resize(&mut self, width: usize, height: usize) -> &mut [u8] {
        self.rgb.resize(width * height * 3, 0);
        (self.width, self.height) = (width, height);
        &mut self.rgb
    }

    /// Reads an image file: PNG, JPEG, BMP, GIF, PNM, TIFF or WebP, told apart by content.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Malformed`] if it is no regular file, else as
    /// [`Frame::decode`].
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = read_file(path, limits::IMAGE_FILE_BYTES)?;
        Self::decode(&path.display().to_string(), &bytes)
    }

    /// Decodes an image file's bytes; `name` is what errors call it.
    ///
    /// # Errors
    /// [`Error::Image`] if the bytes are no image, are cut short, or the image has no pixels,
    /// [`Error::TooLarge`] if the header announces more than [`limits`] allows.
    pub fn decode(name: &str, bytes: &[u8]) -> Result<Self> {
        let (width, height, rgb) = decode(name, bytes)?;
        Self::new(name, width, height, rgb)
    }

    /// What errors call this frame: its file, or the name that the caller gave.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The pixels, `[height, width, 3]`.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Frame({}, {}x{})", self.name, self.width, self.height)
    }
}

/// Refuses an image without pixels, or with too many.
pub(super) fn check_size(name: &str, width: u64, height: u64) -> Result<()> {
    if width == 0 || height == 0 {
        return Err(Error::Image {
            name: name.to_owned(),
            reason: format!("{width}x{height} has no pixels"),
        });
    }
    let too_large = |what: &str, actual, limit| Error::TooLarge {
        what: format!("{what} of image {name} ({width}x{height})"),
        actual,
        limit,
    };
    let side = width.max(height);
    if side > u64::from(limits::IMAGE_SIDE) {
        return Err(too_large("longer side", side, limits::IMAGE_SIDE.into()));
    }
    if width * height > limits::IMAGE_PIXELS {
        return Err(too_large(
            "number of pixels",
            width * height,
            limits::IMAGE_PIXELS,
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_of_wrong_length_or_size_is_refused() {
        assert!(Frame::new("f", 2, 3, vec![0; 18]).is_ok());
        for (w, h, n) in [(2, 3, 17), (2, 3, 19), (0, 3, 0), (3, 0, 0)] {
            let error = Frame::new("cam", w, h, vec![0; n]).expect_err("refused");
            assert!(matches!(error, Error::Image { .. }), "{w}x{h}: {error}");
            assert!(error.to_string().contains("cam"));
        }
        for (w, h) in [
            (60_000, 1),
            (1, 60_000),
            (usize::MAX, usize::MAX),
            (30_000, 30_000),
        ] {
            let error = Frame::new("cam", w, h, Vec::new()).expect_err("refused");
            assert!(matches!(error, Error::TooLarge { .. }), "{w}x{h}: {error}");
        }
    }

    #[test]
    fn load_of_what_is_no_file_names_it() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let pipe = dir.path().join("pipe.png");
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0)
            .expect("pipe");
        for (path, missing) in [
            (dir.path().join("none.png"), true),
            (dir.path().to_owned(), false),
            (pipe, false),
            ("/dev/zero".into(), false),
        ] {
            let error = Frame::load(&path).expect_err("refused");
            let io = matches!(error, Error::Io { .. });
            assert!(io == missing, "{error}");
            assert!(io || matches!(error, Error::Malformed { .. }), "{error}");
            assert!(error.to_string().contains(path.to_str().expect("UTF-8")));
        }
    }
}
