//! Image files as RGB8, converted as `PIL.Image.open(..).convert("RGB")` does.

use std::io::Cursor;

use image::error::LimitErrorKind;
use image::{ColorType, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use super::frame::check_size;
use crate::error::{Error, Result};
use crate::limits;

/// Most memory that a decoder may ask for: the largest image with four 16-bit channels, twice.
const DECODER_BYTES: u64 = limits::IMAGE_PIXELS * 8 * 2;

/// Width, height and pixels of the image in `bytes`.
pub(super) fn decode(name: &str, bytes: &[u8]) -> Result<(usize, usize, Vec<u8>)> {
    let len = bytes.len() as u64;
    if len > limits::IMAGE_FILE_BYTES {
        return Err(Error::TooLarge {
            what: format!("size of image {name} in bytes"),
            actual: len,
            limit: limits::IMAGE_FILE_BYTES,
        });
    }
    let wrong = |reason: String| Error::Image {
        name: name.to_owned(),
        reason,
    };
    if bytes.is_empty() {
        return Err(wrong("is empty".to_owned()));
    }
    let failed = |e: ImageError| match e {
        ImageError::Limits(e) if e.kind() == LimitErrorKind::InsufficientMemory => {
            wrong(format!("needs more than {DECODER_BYTES} bytes to decode"))
        }
        e => wrong(e.to_string()),
    };
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(Error::io(name))?;
    let format = reader
        .format()
        .ok_or_else(|| wrong("is in no known format".to_owned()))?;
    if format == ImageFormat::Jpeg && !jpeg_is_complete(bytes) {
        return Err(wrong("is cut short: it has no end marker".to_owned()));
    }
    let mut allowed = Limits::no_limits();
    allowed.max_alloc = Some(DECODER_BYTES);
    reader.limits(allowed);
    let decoder = reader.into_decoder().map_err(failed)?;
    let (width, height) = decoder.dimensions();
    check_size(name, width.into(), height.into())?;
    let color = decoder.color_type();
    if !is_supported(color) {
        return Err(wrong(format!("has pixels of type {color:?}")));
    }
    let mut pixels = vec![0u8; decoder.total_bytes() as usize];
    decoder.read_image(&mut pixels).map_err(failed)?;
    let rgb = match color {
        ColorType::Rgb8 => pixels,
        ColorType::La16 if is_grey16_png(format, bytes) => grey16(&pixels, 4),
        ColorType::L16 => grey16(&pixels, 2),
        ColorType::Rgb16 if format == ImageFormat::Pnm => scaled16(&pixels),
        ColorType::L8 => pixels.iter().flat_map(|&v| [v; 3]).collect(),
        ColorType::La8 => pixels
            .as_chunks::<2>()
            .0
            .iter()
            .flat_map(|p| [p[0]; 3])
            .collect(),
        ColorType::La16 => words::<2>(&pixels).flat_map(|p| [high(p[0]); 3]).collect(),
        ColorType::Rgba8 => drop_alpha(&pixels),
        ColorType::Rgb16 => words::<3>(&pixels).flat_map(|p| p.map(high)).collect(),
        _ => words::<4>(&pixels)
            .flat_map(|p| [high(p[0]), high(p[1]), high(p[2])])
            .collect(),
    };
    Ok((width as usize, height as usize, rgb))
}

fn is_supported(color: ColorType) -> bool {
    use ColorType::*;
    matches!(color, L8 | La8 | Rgb8 | Rgba8 | L16 | La16 | Rgb16 | Rgba16)
}

fn drop_alpha(pixels: &[u8]) -> Vec<u8> {
    let pixels = pixels.as_chunks::<4>().0;
    pixels.iter().flat_map(|p| [p[0], p[1], p[2]]).collect()
}

/// Pixels of `N` 16-bit channels in native byte order.
fn words<const N: usize>(pixels: &[u8]) -> impl Iterator<Item = [u16; N]> {
    let words = pixels.as_chunks::<2>().0.as_chunks::<N>().0;
    words.iter().map(|p| p.map(u16::from_ne_bytes))
}

fn high(v: u16) -> u8 {
    (v >> 8) as u8
}

/// 16-bit grey is clipped: PIL has a 16-bit mode for it, and its conversion to 8 bits clips.
/// `step` is the number of bytes from one grey value to the next.
fn grey16(pixels: &[u8], step: usize) -> Vec<u8> {
    let grey = |p: &[u8]| u16::from_ne_bytes([p[0], p[1]]).min(255) as u8;
    pixels
        .chunks_exact(step)
        .flat_map(|p| [grey(p); 3])
        .collect()
}

/// 16-bit PPM is scaled and rounded by PIL's own reader.
fn scaled16(pixels: &[u8]) -> Vec<u8> {
    let scale = |v: u16| (f64::from(v) / 65535.0 * 255.0).round_ties_even() as u8;
    words::<3>(pixels).flat_map(|p| p.map(scale)).collect()
}

/// Whether the header of a PNG says 16-bit grey: with a transparent colour the decoder gives it
/// an alpha channel, which PIL does not.
fn is_grey16_png(format: ImageFormat, bytes: &[u8]) -> bool {
    const BIT_DEPTH_AND_COLOR: std::ops::Range<usize> = 24..26;
    format == ImageFormat::Png && bytes.get(BIT_DEPTH_AND_COLOR) == Some(&[16, 0])
}

/// Whether there is an end marker behind the first scan of a JPEG file.
///
/// The decoder fills what is missing with grey, which a model would take for the world.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xda;
    let mut at = 2;
    // Segments before the scan may hold a thumbnail with an end marker of its own.
    while let Some(&[0xff, marker, high, low]) = bytes.get(at..at + 4) {
        match marker {
            START_OF_SCAN => {
                let scan = &bytes[at..];
                return scan.windows(2).rev().any(|w| w == [0xff, 0xd9]);
            }
            // Fill bytes, and markers without a length.
            0xff => at += 1,
            0x01 | 0xd0..=0xd8 => at += 2,
            _ => at += 2 + usize::from(u16::from_be_bytes([high, low])),
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jpeg_with_an_end_marker_only_in_a_thumbnail_is_incomplete() {
        let thumbnail = [0xff, 0xe1, 0, 6, 1, 2, 0xff, 0xd9];
        let scan = [0xff, 0xff, 0xda, 0, 4, 9, 9, 1, 2, 3];
        let mut file = vec![0xff, 0xd8];
        file.extend(thumbnail);
        assert!(!jpeg_is_complete(&file));
        file.extend(scan);
        assert!(!jpeg_is_complete(&file));
        file.extend([0xff, 0xd9]);
        assert!(jpeg_is_complete(&file));
        assert!(!jpeg_is_complete(&[0xff, 0xd8, 0xff]));
    }

    #[test]
    fn grey16_is_clipped_and_colour16_keeps_its_high_byte() {
        let bytes: Vec<u8> = [0u16, 255, 256, 65535]
            .iter()
            .flat_map(|v| v.to_ne_bytes())
            .collect();
        assert_eq!(
            grey16(&bytes, 2),
            [0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255]
        );
        let rgb: Vec<u8> = words::<2>(&bytes).flat_map(|p| p.map(high)).collect();
        assert_eq!(rgb, [0, 0, 1, 255]);
    }
}
