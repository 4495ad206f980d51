//! Frames without any header, one behind the other.

use std::io::BufRead;
use std::str::FromStr;

use super::reader::{Next, Reader, read_full};
use crate::error::{Error, Result};
use crate::limits;
use crate::preprocess::{Colour, Frame, RawFormat, RawImage};

/// Format and size of raw frames, as `rgb24:640x480`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawSpec {
    /// How pixels lie in memory.
    pub format: RawFormat,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
}

/// Formats by ffmpeg's names.
const FORMATS: [(&str, RawFormat); 6] = [
    ("rgb24", RawFormat::Rgb),
    ("bgr24", RawFormat::Bgr),
    ("gray", RawFormat::Grey),
    ("nv12", RawFormat::Nv12(Colour::Bt601)),
    ("yuv420p", RawFormat::Planar(Colour::Bt601, [true, true])),
    ("yuvj420p", RawFormat::Planar(Colour::Full, [true, true])),
];

impl FromStr for RawSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::Argument {
            name: "format",
            reason: format!(
                "`{text}`, expected NAME:WIDTHxHEIGHT with one of {}",
                FORMATS.map(|(name, _)| name).join(", ")
            ),
        };
        let (name, size) = text.split_once(':').ok_or_else(wrong)?;
        let (width, height) = size.split_once('x').ok_or_else(wrong)?;
        let mut formats = FORMATS.into_iter();
        let (_, format) = formats.find(|known| known.0 == name).ok_or_else(wrong)?;
        let side = |text: &str| {
            let side = text.parse().ok().filter(|_| !text.starts_with('+'));
            let most = limits::IMAGE_SIDE as usize;
            side.filter(|side| (1..=most).contains(side))
                .ok_or_else(wrong)
        };
        let (width, height) = (side(width)?, side(height)?);
        if (width * height) as u64 > limits::IMAGE_PIXELS {
            return Err(Error::TooLarge {
                what: format!("number of pixels of {text}"),
                actual: (width * height) as u64,
                limit: limits::IMAGE_PIXELS,
            });
        }
        Ok(Self {
            format,
            width,
            height,
        })
    }
}

/// Reads raw frames.
pub struct Raw {
    name: String,
    input: Box<dyn BufRead + Send>,
    spec: RawSpec,
    bytes: Vec<u8>,
}

impl Raw {
    /// Of a pipe; `name` is what errors call it.
    pub fn new(name: &str, input: Box<dyn BufRead + Send>, spec: RawSpec) -> Self {
        Self {
            name: name.to_owned(),
            input,
            spec,
            bytes: vec![0; spec.format.n_bytes(spec.width, spec.height)],
        }
    }
}

impl Reader for Raw {
    fn next(&mut self, frame: &mut Frame) -> Result<Next> {
        let n = read_full(&self.name, &mut self.input, &mut self.bytes)?;
        if n == 0 {
            return Ok(Next::End);
        }
        if n < self.bytes.len() {
            let expected = self.bytes.len();
            return Ok(Next::Broken(format!("cut short: {n} of {expected} bytes")));
        }
        let size = (self.spec.width, self.spec.height);
        let image = RawImage::packed(&self.name, self.spec.format, size, &self.bytes)?;
        frame.copy_from(&image)?;
        Ok(Next::Frame)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn format_is_read_or_refused_with_what_is_expected() {
        let spec: RawSpec = "nv12:640x480".parse().expect("a format");
        assert_eq!((spec.width, spec.height), (640, 480));
        assert_eq!(spec.format, RawFormat::Nv12(Colour::Bt601));
        for text in [
            "",
            "rgb24",
            "rgb24:",
            "rgb24:640",
            "rgb25:640x480",
            "rgb24:0x1",
            "rgb24:1x-1",
            "rgb24:+1x1",
            "rgb24:99999999999999999999x1",
            "rgb24:40000x1",
            "rgb24:1x1x1",
            "RGB24:1x1",
        ] {
            let error = text.parse::<RawSpec>().expect_err("refused");
            assert!(error.to_string().contains("rgb24"), "{text}: {error}");
        }
        assert!(matches!(
            "gray:30000x30000".parse::<RawSpec>(),
            Err(Error::TooLarge { .. })
        ));
    }

    #[test]
    fn frames_come_whole_and_a_cut_one_is_told() {
        let spec: RawSpec = "gray:2x2".parse().expect("a format");
        let bytes: Vec<u8> = (0..10).collect();
        let mut raw = Raw::new("pipe", Box::new(Cursor::new(bytes)), spec);
        let mut frame = Frame::empty("pipe");
        for first in [0, 4] {
            assert_eq!(raw.next(&mut frame).expect("read"), Next::Frame);
            assert_eq!(
                frame.rgb()[..6],
                [first, first, first, first + 1, first + 1, first + 1]
            );
        }
        let broken = raw.next(&mut frame).expect("read");
        assert_eq!(broken, Next::Broken("cut short: 2 of 4 bytes".to_owned()));
        assert_eq!(raw.next(&mut frame).expect("read"), Next::End);
    }
}
