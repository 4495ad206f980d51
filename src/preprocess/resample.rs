//! Exact resampling of RGB8 images, row by row.
//!
//! Same numbers as Pillow's `ImagingResample` on 8-bit images: a horizontal pass rounded to u8,
//! then a vertical pass, both in 22-bit fixed point. `fast_image_resize` was tried first: its
//! 16-bit weights and its order of the passes give other values in most images.
//!
//! Only the wanted window of the output is computed, padding is never stored, and rows go to a
//! sink as they are finished, so that between the frame and the tensor there is no more than a
//! few rows. The loops are plain; `rten_simd` compiles them for the widest vectors the CPU has.

use rten_simd::{Isa, SimdOp};

use super::filter::{Axis, PRECISION_BITS};

const HALF: i32 = 1 << (PRECISION_BITS - 1);
const UNIT: i32 = 1 << PRECISION_BITS;

/// An RGB8 image inside a larger canvas of one colour, which is not stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Canvas<'a> {
    pub(super) rgb: &'a [u8],
    pub(super) width: usize,
    pub(super) height: usize,
    /// Width and height of the canvas.
    pub(super) size: (usize, usize),
    /// Left and top of the image in the canvas.
    pub(super) offset: (usize, usize),
    pub(super) fill: [u8; 3],
}

impl<'a> Canvas<'a> {
    /// The image itself, without padding.
    pub(super) fn new(rgb: &'a [u8], width: usize, height: usize) -> Self {
        Self {
            rgb,
            width,
            height,
            size: (width, height),
            offset: (0, 0),
            fill: [0; 3],
        }
    }

    /// The image in the middle of a square as large as its longer side; an odd pixel goes to the
    /// right or bottom.
    pub(super) fn square(rgb: &'a [u8], width: usize, height: usize, fill: [u8; 3]) -> Self {
        let side = width.max(height);
        Self {
            size: (side, side),
            offset: ((side - width) / 2, (side - height) / 2),
            fill,
            ..Self::new(rgb, width, height)
        }
    }

    /// Copies row `y` of the canvas to the front of `out`; false if it has no pixel of the image.
    ///
    /// `out` keeps the padding to the left and right from the first call on.
    fn read_row(&self, y: usize, out: &mut [u8]) -> bool {
        let Some(y) = y.checked_sub(self.offset.1).filter(|&y| y < self.height) else {
            return false;
        };
        let row = &self.rgb[y * self.width * 3..][..self.width * 3];
        out[self.offset.0 * 3..][..row.len()].copy_from_slice(row);
        true
    }
}

/// Resizes `canvas` along `x` and `y`, and hands each finished row of `x.len() * 3` bytes to
/// `sink`, top to bottom.
///
/// `x.in_len()` and `y.in_len()` are the sides of the canvas.
pub(super) fn resample(
    canvas: &Canvas<'_>,
    x: &Axis,
    y: &Axis,
    mut sink: impl FnMut(usize, &[u8]),
) {
    debug_assert_eq!((x.in_len(), y.in_len()), canvas.size);
    let used = x.len() * 3;
    let len = used.next_multiple_of(CHUNK);
    let mut wide = canvas.fill.repeat(canvas.size.0);
    wide.push(0); // pixels are read as four bytes
    // Horizontally finished rows: row `r` of the canvas is in slot `r % depth`, the row that is
    // all padding in the slot after the last.
    let depth = y.stride();
    let mut ring = vec![0u8; len * (depth + 1)];
    ring[len * depth..][..used].copy_from_slice(&canvas.fill.repeat(x.len()));
    let mut is_blank = vec![false; depth];
    let mut mixed = vec![0u8; len];
    let mut offsets = Vec::with_capacity(depth);
    let mut next = 0;
    for i in 0..y.len() {
        let (first, weights) = y.taps(i);
        let end = first + weights.len();
        for r in next.max(first)..end {
            let slot = r % depth;
            is_blank[slot] = !canvas.read_row(r, &mut wide);
            if !is_blank[slot] {
                MixColumns {
                    row: &wide,
                    axis: x,
                    out: &mut ring[slot * len..][..used],
                }
                .dispatch();
            }
        }
        next = next.max(end);
        offsets.clear();
        offsets.extend((first..end).map(|r| match r % depth {
            slot if is_blank[slot] => depth * len,
            slot => slot * len,
        }));
        if let ([offset], [UNIT]) = (&offsets[..], weights) {
            sink(i, &ring[*offset..][..used]);
            continue;
        }
        MixRows {
            rows: &ring,
            offsets: &offsets,
            weights,
            out: &mut mixed,
        }
        .dispatch();
        sink(i, &mixed[..used]);
    }
}

/// Bytes of a row that are mixed at once; rows in the ring are a multiple of it.
const CHUNK: usize = 64;

/// Rounds a sum of weighted pixels, and clips it.
#[inline(always)]
fn to_u8(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// One output row from one input row: each pixel is a weighted sum of its neighbours.
struct MixColumns<'a> {
    /// Pixels, and one more byte.
    row: &'a [u8],
    axis: &'a Axis,
    out: &'a mut [u8],
}

impl SimdOp for MixColumns<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _: I) {
        if let Some(first) = self.axis.copied_from() {
            self.out
                .copy_from_slice(&self.row[first * 3..][..self.out.len()]);
            return;
        }
        for (i, out) in self.out.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            let (first, weights) = self.axis.taps(i);
            let pixels = &self.row[first * 3..][..weights.len() * 3 + 1];
            let mut sums = [HALF; 4]; // the fourth lane is the next pixel's red, for alignment
            for (&w, pixel) in weights.iter().zip(pixels.windows(4).step_by(3)) {
                for (sum, &v) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(v) * w;
                }
            }
            *out = [to_u8(sums[0]), to_u8(sums[1]), to_u8(sums[2])];
        }
    }
}

/// One output row as a weighted sum of whole rows.
struct MixRows<'a> {
    rows: &'a [u8],
    /// Where each row begins.
    offsets: &'a [usize],
    weights: &'a [i32],
    out: &'a mut [u8],
}

impl SimdOp for MixRows<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _: I) {
        for (i, out) in self.out.as_chunks_mut::<CHUNK>().0.iter_mut().enumerate() {
            let mut sums = [HALF; CHUNK];
            for (&w, offset) in self.weights.iter().zip(self.offsets) {
                let row = &self.rows[offset + i * CHUNK..][..CHUNK];
                for (sum, &v) in sums.iter_mut().zip(row) {
                    *sum += i32::from(v) * w;
                }
            }
            for (out, &sum) in out.iter_mut().zip(&sums) {
                *out = to_u8(sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sha2::{Digest, Sha256};

    use super::super::filter::Filter;
    use super::*;

    /// The same formula as in `make.py`.
    fn frame(width: usize, height: usize) -> Vec<u8> {
        let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        let channels = pixels.flat_map(|(x, y)| (0..3usize).map(move |c| (x, y, c)));
        let level = |(x, y, c)| (x * (3 + c) / 2 + y * (5 - c)) ^ ((x / 7) * (y / 5) * (11 + c));
        channels.map(|at| level(at) as u8).collect()
    }

    fn resize(canvas: &Canvas<'_>, filter: Filter, to: (usize, usize)) -> Vec<u8> {
        let x = Axis::new(filter, canvas.size.0, to.0, 0..to.0);
        let y = Axis::new(filter, canvas.size.1, to.1, 0..to.1);
        let mut out = Vec::new();
        resample(canvas, &x, &y, |_, row| out.extend_from_slice(row));
        out
    }

    #[test]
    fn resample_of_made_frames_equals_pillow() {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/preprocess/resize.json");
        let text = std::fs::read(path).unwrap();
        let cases: Vec<(u64, usize, usize, usize, usize, String)> =
            serde_json::from_slice(&text).unwrap();
        assert!(cases.len() >= 200);
        let wrong: Vec<_> = cases
            .iter()
            .filter(|(code, w, h, to_w, to_h, sha256)| {
                let rgb = frame(*w, *h);
                let filter = Filter::from_code(*code).unwrap();
                let out = resize(&Canvas::new(&rgb, *w, *h), filter, (*to_w, *to_h));
                let digest: String = Sha256::digest(&out)
                    .iter()
                    .map(|b| format!("{b:02x}"))
                    .collect();
                digest != *sha256
            })
            .collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    #[test]
    fn resample_of_virtual_padding_equals_stored_padding() {
        for (w, h) in [(30, 17), (17, 30), (1, 40)] {
            let rgb = frame(w, h);
            let canvas = Canvas::square(&rgb, w, h, [9, 99, 199]);
            let side = w.max(h);
            let mut stored = canvas.fill.repeat(side * side);
            for y in 0..h {
                let at = ((y + canvas.offset.1) * side + canvas.offset.0) * 3;
                stored[at..at + w * 3].copy_from_slice(&rgb[y * w * 3..][..w * 3]);
            }
            for code in 0..6 {
                let filter = Filter::from_code(code).unwrap();
                for to in [(11, 11), (64, 50)] {
                    let expected = resize(&Canvas::new(&stored, side, side), filter, to);
                    assert_eq!(
                        resize(&canvas, filter, to),
                        expected,
                        "{filter:?} {w}x{h} {to:?}"
                    );
                }
            }
        }
    }
}
