//! YUV4MPEG2: a line about the stream, then frames with a line each.
//!
//! Source: `yuv4mpeg(5)` of the MJPEG Tools. Eight bits, progressive or interlaced frames as they are.

use std::io::BufRead;

use super::reader::{Next, Reader, filled, read_full};
use crate::error::{Error, Result};
use crate::limits;
use crate::preprocess::{Colour, Frame, RawFormat, RawImage};

/// What every stream begins with.
pub(super) const MAGIC: &[u8; 9] = b"YUV4MPEG2";

/// Longest line, in bytes.
const LINE_BYTES: usize = 4096;

/// Reads frames of a stream.
pub struct Y4m {
    name: String,
    input: Box<dyn BufRead + Send>,
    format: RawFormat,
    size: (usize, usize),
    bytes: Vec<u8>,
}

impl Y4m {
    /// Reads the line about the stream; `name` is what errors call it.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is none, or of a kind that is not supported; [`Error::TooLarge`] above the
    /// limits of pictures; [`Error::Io`] if it cannot be read.
    pub fn open(name: &str, mut input: Box<dyn BufRead + Send>) -> Result<Self> {
        let wrong = |reason: String| Error::malformed(name, reason);
        let line = read_line(name, &mut input)?.unwrap_or_default();
        let mut words = line.split(' ');
        if words.next().map(str::as_bytes) != Some(MAGIC.as_slice()) {
            return Err(wrong(
                "neither MJPEG nor Y4M; raw frames need --format".to_owned(),
            ));
        }
        let (mut size, mut chroma, mut is_full) = ([None; 2], "420", false);
        for word in words.filter(|word| !word.is_empty()) {
            let (key, value) = word.split_at(word.ceil_char_boundary(1));
            match key {
                "W" => size[0] = value.parse().ok(),
                "H" => size[1] = value.parse().ok(),
                "C" => chroma = value,
                "X" => is_full |= value == "COLORRANGE=FULL",
                _ => {}
            }
        }
        let [Some(width), Some(height)] = size else {
            return Err(wrong(format!("no width and height in {line:?}")));
        };
        let most = limits::IMAGE_SIDE as usize;
        if !(1..=most).contains(&width) || !(1..=most).contains(&height) {
            return Err(wrong(format!(
                "{width}x{height} pixels, 1 to {most} a side"
            )));
        }
        let colour = match is_full {
            true => Colour::Full,
            false => Colour::Bt601,
        };
        let format = match chroma {
            "420" | "420jpeg" | "420mpeg2" | "420paldv" => RawFormat::Planar(colour, [true, true]),
            "422" => RawFormat::Planar(colour, [true, false]),
            "444" => RawFormat::Planar(colour, [false, false]),
            "mono" => RawFormat::Grey,
            other => {
                return Err(wrong(format!(
                    "pixels of kind {other:?}; 420, 422, 444 and mono of 8 bits are supported"
                )));
            }
        };
        let pixels = (width * height) as u64;
        if pixels > limits::IMAGE_PIXELS {
            return Err(Error::TooLarge {
                what: format!("number of pixels of {name}"),
                actual: pixels,
                limit: limits::IMAGE_PIXELS,
            });
        }
        Ok(Self {
            name: name.to_owned(),
            input,
            format,
            size: (width, height),
            bytes: vec![0; format.n_bytes(width, height)],
        })
    }
}

impl Reader for Y4m {
    fn next(&mut self, frame: &mut Frame) -> Result<Next> {
        let Some(line) = read_line(&self.name, &mut self.input)? else {
            return Ok(Next::End);
        };
        if line.split(' ').next() != Some("FRAME") {
            let reason = format!("{line:?} where a frame should begin");
            return Err(Error::malformed(&self.name, reason));
        }
        let n = read_full(&self.name, &mut self.input, &mut self.bytes)?;
        if n < self.bytes.len() {
            let expected = self.bytes.len();
            return Ok(Next::Broken(format!("cut short: {n} of {expected} bytes")));
        }
        let image = RawImage::packed(&self.name, self.format, self.size, &self.bytes)?;
        frame.copy_from(&image)?;
        Ok(Next::Frame)
    }
}

/// A line without its end; `None` at the end of the stream.
fn read_line(name: &str, input: &mut Box<dyn BufRead + Send>) -> Result<Option<String>> {
    let mut line = Vec::new();
    loop {
        let there = filled(name, input)?;
        if there.is_empty() {
            return match line.is_empty() {
                true => Ok(None),
                false => Err(Error::malformed(name, "it ends in the middle of a line")),
            };
        }
        let end = there.iter().position(|&byte| byte == b'\n');
        line.extend_from_slice(&there[..end.unwrap_or(there.len())]);
        let taken = end.map_or(there.len(), |end| end + 1);
        input.consume(taken);
        if line.len() > LINE_BYTES {
            return Err(Error::malformed(
                name,
                format!("a line of more than {LINE_BYTES} bytes"),
            ));
        }
        if end.is_some() {
            return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    fn open(bytes: Vec<u8>) -> Result<Y4m> {
        Y4m::open("pipe", Box::new(Cursor::new(bytes)))
    }

    fn stream(header: &str, frames: &[&[u8]]) -> Vec<u8> {
        let mut bytes = header.as_bytes().to_vec();
        for frame in frames {
            bytes.extend_from_slice(b"FRAME\n");
            bytes.extend_from_slice(frame);
        }
        bytes
    }

    #[test]
    fn frames_of_each_kind_are_read() {
        for (kind, n) in [
            ("", 9 + 8),
            (" C420jpeg", 9 + 8),
            (" C422", 9 + 12),
            (" C444", 27),
            (" Cmono", 9),
        ] {
            let header = format!("YUV4MPEG2 W3 H3 F30:1 Ip A1:1{kind} XCOLORRANGE=FULL\n");
            let mut y4m = open(stream(&header, &[&vec![128; n], &vec![128; n]])).expect("a stream");
            let mut frame = Frame::empty("pipe");
            for _ in 0..2 {
                assert_eq!(y4m.next(&mut frame).expect("read"), Next::Frame, "{kind}");
                assert_eq!(frame.rgb(), [128; 27]);
            }
            assert_eq!(y4m.next(&mut frame).expect("read"), Next::End);
        }
    }

    #[test]
    fn stream_that_is_none_or_cut_is_told() {
        for (header, why) in [
            ("YUV4MPEG2 W3\n", "no width and height"),
            ("YUV4MPEG2 W0 H3\n", "0x3"),
            ("YUV4MPEG2 W99999999 H3\n", "99999999x3"),
            ("YUV4MPEG2 W30000 H30000\n", "number of pixels"),
            ("YUV4MPEG2 W3 H3 C420p10\n", "420p10"),
            ("YUV4MPEG2 W3 H3", "middle of a line"),
            ("YUV4MPEG3 W3 H3\n", "neither MJPEG nor Y4M"),
            (&"Y".repeat(5000), "a line of more"),
        ] {
            let error = open(header.into()).err().expect("refused");
            assert!(error.to_string().contains(why), "{header}: {error}");
        }
        let mut frame = Frame::empty("pipe");
        let mut cut = open(stream("YUV4MPEG2 W3 H3 Cmono\n", &[&[1; 5]])).expect("a stream");
        let broken = cut.next(&mut frame).expect("read");
        assert_eq!(broken, Next::Broken("cut short: 5 of 9 bytes".to_owned()));
        let mut garbage = open(b"YUV4MPEG2 W3 H3 Cmono\nFRAM\n".to_vec()).expect("a stream");
        let error = garbage.next(&mut frame).expect_err("no frame");
        assert!(error.to_string().contains("FRAM"), "{error}");
    }

    proptest! {
        #[test]
        fn damaged_streams_end_without_a_panic(at in 0usize..90, byte: u8, cut in 0usize..90) {
            let mut bytes = stream("YUV4MPEG2 W3 H3 C444\n", &[&[7; 27], &[9; 27]]);
            let n = bytes.len();
            bytes[at % n] = byte;
            bytes.truncate(cut.min(n));
            if let Ok(mut y4m) = open(bytes) {
                let mut frame = Frame::empty("pipe");
                let mut n = 0;
                while let Ok(Next::Frame | Next::Broken(_)) = y4m.next(&mut frame) {
                    n += 1;
                    prop_assert!(n < 100);
                }
            }
        }
    }
}
