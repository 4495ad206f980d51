//! JPEG files one behind the other, with anything between them (multipart headers of network cameras).

use std::io::BufRead;

use super::reader::{Next, Reader, filled};
use crate::error::{Error, Result};
use crate::preprocess::Frame;

/// Largest file, and most bytes without the beginning of one.
const FILE_BYTES: usize = 64 << 20;

const START: u8 = 0xd8;
const END: u8 = 0xd9;
const SCAN: u8 = 0xda;

/// Reads JPEG files.
pub struct Mjpeg {
    name: String,
    input: Box<dyn BufRead + Send>,
    parser: Parser,
}

impl Mjpeg {
    /// Of a pipe; `name` is what errors call it.
    pub fn new(name: &str, input: Box<dyn BufRead + Send>) -> Self {
        Self {
            name: name.to_owned(),
            input,
            parser: Parser::default(),
        }
    }
}

impl Reader for Mjpeg {
    fn next(&mut self, frame: &mut Frame) -> Result<Next> {
        loop {
            let there = filled(&self.name, &mut self.input)?;
            if there.is_empty() {
                return Ok(self.parser.end());
            }
            let (n, event) = self.parser.push(there);
            self.input.consume(n);
            match event {
                None if self.parser.skipped > FILE_BYTES => {
                    let reason = format!("no JPEG file in {FILE_BYTES} bytes");
                    return Err(Error::malformed(&self.name, reason));
                }
                None => {}
                Some(Event::Broken(reason)) => return Ok(Next::Broken(reason.to_owned())),
                Some(Event::File) => {
                    return Ok(match Frame::decode(&self.name, &self.parser.file) {
                        Ok(decoded) => {
                            *frame = decoded;
                            Next::Frame
                        }
                        Err(error) => Next::Broken(error.to_string()),
                    });
                }
            }
        }
    }
}

/// Where in a file the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// Not in one.
    #[default]
    Outside,
    /// A marker's first byte is expected.
    Marker,
    /// A marker's second byte.
    Kind,
    /// The two bytes of a segment's length; `true` if a scan follows the segment.
    Length(bool),
    /// So many bytes of a segment.
    Segment(usize, bool),
    /// The bits of a scan.
    Bits,
}

#[derive(Debug, PartialEq, Eq)]
enum Event {
    /// A whole file is in the parser.
    File,
    /// A file ended before its end.
    Broken(&'static str),
}

/// Finds files in bytes, by their segments: a thumbnail inside one is not its end.
#[derive(Debug, Default)]
struct Parser {
    state: State,
    /// Bytes of the file at hand; it is whole after [`Event::File`].
    file: Vec<u8>,
    is_whole: bool,
    /// The newest byte was 0xff, where that matters.
    after_ff: bool,
    /// First byte of a length.
    high: Option<u8>,
    /// Bytes since the newest file.
    skipped: usize,
}

impl Parser {
    /// Takes bytes up to what they say; returns how many.
    fn push(&mut self, bytes: &[u8]) -> (usize, Option<Event>) {
        if std::mem::take(&mut self.is_whole) {
            self.file.clear();
        }
        for (at, &byte) in bytes.iter().enumerate() {
            if let Some(event) = self.take(byte) {
                return (at + 1, Some(event));
            }
        }
        (bytes.len(), None)
    }

    /// The end of the stream.
    fn end(&mut self) -> Next {
        if std::mem::take(&mut self.state) == State::Outside {
            return Next::End;
        }
        self.file.clear();
        Next::Broken("a JPEG file that is cut short".to_owned())
    }

    fn take(&mut self, byte: u8) -> Option<Event> {
        if self.state == State::Outside {
            self.skipped += 1;
            let starts = std::mem::replace(&mut self.after_ff, byte == 0xff) && byte == START;
            if starts {
                self.begin();
            }
            return None;
        }
        self.file.push(byte);
        if self.file.len() > FILE_BYTES {
            return self.broken("a JPEG file of more than 64 MiB");
        }
        match self.state {
            State::Outside => None,
            State::Marker if byte == 0xff => self.go(State::Kind),
            State::Marker => self.broken("a JPEG file without a marker where one belongs"),
            State::Kind => self.marker(byte),
            State::Length(scan) => match self.high.take() {
                None => {
                    self.high = Some(byte);
                    None
                }
                Some(high) => match usize::from(u16::from_be_bytes([high, byte])) {
                    0 | 1 => self.broken("a JPEG file with a segment of no length"),
                    n => self.segment(n - 2, scan),
                },
            },
            State::Segment(n, scan) => self.segment(n - 1, scan),
            State::Bits => {
                if !std::mem::replace(&mut self.after_ff, byte == 0xff) || byte == 0xff {
                    return None;
                }
                match byte {
                    // A stuffed byte, or a restart.
                    0x00 | 0xd0..=0xd7 => None,
                    _ => self.marker(byte),
                }
            }
        }
    }

    fn marker(&mut self, kind: u8) -> Option<Event> {
        match kind {
            // Fill bytes.
            0xff => None,
            START => {
                // The file before was cut, and this one begins.
                self.begin();
                Some(Event::Broken("a JPEG file that is cut short"))
            }
            END => {
                self.go(State::Outside);
                self.is_whole = true;
                Some(Event::File)
            }
            0x01 | 0xd0..=0xd7 => self.go(State::Marker),
            _ => self.go(State::Length(kind == SCAN)),
        }
    }

    fn segment(&mut self, left: usize, scan: bool) -> Option<Event> {
        self.go(match (left, scan) {
            (0, true) => State::Bits,
            (0, false) => State::Marker,
            _ => State::Segment(left, scan),
        })
    }

    fn begin(&mut self) {
        self.file.clear();
        self.file.extend_from_slice(&[0xff, START]);
        self.skipped = 0;
        self.go(State::Marker);
    }

    fn go(&mut self, state: State) -> Option<Event> {
        self.state = state;
        self.after_ff = false;
        self.high = None;
        None
    }

    fn broken(&mut self, reason: &'static str) -> Option<Event> {
        self.go(State::Outside);
        self.file.clear();
        Some(Event::Broken(reason))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::ImageEncoder;
    use image::codecs::jpeg::JpegEncoder;
    use proptest::prelude::*;

    use super::*;

    /// A grey picture as a JPEG file.
    fn jpeg(level: u8) -> Vec<u8> {
        let mut file = Vec::new();
        let encoder = JpegEncoder::new_with_quality(&mut file, 90);
        let written = encoder.write_image(
            &[level; 16 * 16 * 3],
            16,
            16,
            image::ExtendedColorType::Rgb8,
        );
        written.expect("a file");
        file
    }

    /// The same with a thumbnail in a segment, whose end marker is not the file's.
    fn with_thumbnail(file: &[u8], thumbnail: &[u8]) -> Vec<u8> {
        let n = u16::try_from(thumbnail.len() + 2).expect("short");
        let mut out = vec![0xff, START, 0xff, 0xe1];
        out.extend_from_slice(&n.to_be_bytes());
        out.extend_from_slice(thumbnail);
        out.extend_from_slice(&file[2..]);
        out
    }

    fn read_all(bytes: &[u8]) -> (Vec<u8>, usize) {
        // Small pieces, so that markers fall apart.
        let input = std::io::BufReader::with_capacity(7, Cursor::new(bytes.to_vec()));
        let mut mjpeg = Mjpeg::new("pipe", Box::new(input));
        let (mut frame, mut levels, mut broken) = (Frame::empty("pipe"), Vec::new(), 0);
        loop {
            match mjpeg.next(&mut frame).expect("read") {
                Next::Frame => levels.push(frame.rgb()[0]),
                Next::Broken(_) => broken += 1,
                Next::End => return (levels, broken),
            }
            assert!(levels.len() + broken < 1000);
        }
    }

    #[test]
    fn files_are_found_whatever_stands_between_them() {
        let (dark, light) = (jpeg(40), jpeg(200));
        let multipart: &[u8] = b"\r\n--frame\r\nContent-Type: image/jpeg\r\n\r\n\xff";
        let nested = with_thumbnail(&light, &dark);
        let stream = [
            multipart, &dark, multipart, &light, &nested, &dark, multipart,
        ]
        .concat();
        assert_eq!(read_all(&stream), (vec![40, 200, 200, 40], 0));
    }

    #[test]
    fn cut_files_are_counted_and_the_next_one_is_read() {
        let (dark, light) = (jpeg(40), jpeg(200));
        let cut = &dark[..dark.len() - 9];
        assert_eq!(read_all(&[cut, &light, cut].concat()), (vec![200], 2));
        // Cut in the middle of a segment: what follows is taken for the rest of it.
        let in_segment = &dark[..30];
        let (levels, broken) = read_all(&[in_segment, &light, &dark].concat());
        assert!(
            broken >= 1 && levels.ends_with(&[40]),
            "{levels:?} {broken}"
        );
        assert_eq!(read_all(b"no picture at all"), (Vec::new(), 0));
        assert_eq!(read_all(&[0xff, START, 0, 0]).1, 1);
        assert_eq!(read_all(&[0xff, START, 0xff, 0xc0, 0, 1]).1, 1);
    }

    #[test]
    fn endless_garbage_is_an_error() {
        let input = std::io::BufReader::new(std::io::Read::take(std::io::repeat(7), u64::MAX));
        let mut mjpeg = Mjpeg::new("pipe", Box::new(input));
        let error = mjpeg.next(&mut Frame::empty("pipe")).expect_err("garbage");
        assert!(error.to_string().contains("no JPEG file"), "{error}");
    }

    proptest! {
        #[test]
        fn damaged_streams_end_without_a_panic(at in 0usize..5000, byte: u8, cut in 0usize..5000) {
            let mut stream = [jpeg(40), jpeg(200), jpeg(90)].concat();
            let n = stream.len();
            stream[at % n] = byte;
            stream.truncate(n - cut % n);
            let (levels, broken) = read_all(&stream);
            prop_assert!(levels.len() + broken <= 8);
        }
    }
}
