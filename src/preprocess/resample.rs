//! Exact resampling of RGB8 images, row by row.
//!
//! Same numbers as Pillow's `ImagingResample` on 8-bit images: two passes in 22-bit fixed point,
//! the first rounded to u8 before the second. `fast_image_resize` was tried first: its 16-bit
//! weights and its order of the passes give other values in most images.
//!
//! Only the wanted window of the output is computed, padding is never stored, and rows go to a
//! sink as they are finished, so that between the frame and the tensor there is no more than a
//! few rows. The loops are plain; `rten_simd` compiles them for the widest vectors the CPU has.

use std::ops::Range;

use rten_simd::{Isa, SimdOp};

use super::filter::{Axis, Filter, PRECISION_BITS};

const UNIT: i32 = 1 << PRECISION_BITS;
const HALF: i32 = UNIT / 2;

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

    /// Resizes the canvas to `to`, and hands each row of the `window` of that (its columns and
    /// rows) to `sink`, top to bottom.
    pub(super) fn resample(
        &self,
        filter: Filter,
        to: (usize, usize),
        window: (Range<usize>, Range<usize>),
        sink: impl FnMut(usize, &[u8]),
    ) {
        let x = Axis::new(filter, self.size.0, to.0, window.0);
        let y = Axis::new(filter, self.size.1, to.1, window.1);
        let passes = Passes {
            canvas: self,
            x: &x.within(self.offset.0, self.width),
            y: &y.within(self.offset.1, self.height),
        };
        if passes.rows_first() {
            passes.run_rows_first(sink);
        } else {
            passes.run_columns_first(sink);
        }
    }

    /// Row `y` of the image and at least one byte more, in `scratch` if it is the last.
    fn row<'b>(&self, y: usize, scratch: &'b mut Vec<u8>) -> &'b [u8]
    where
        'a: 'b,
    {
        let (start, end) = (y * self.width * 3, (y + 1) * self.width * 3);
        self.rgb.get(start..end + 1).unwrap_or_else(|| {
            scratch.clear();
            scratch.extend_from_slice(&self.rgb[start..end]);
            scratch.push(0);
            scratch
        })
    }
}

struct Passes<'a> {
    canvas: &'a Canvas<'a>,
    x: &'a Axis,
    y: &'a Axis,
}

impl Passes<'_> {
    /// Whether the vertical pass is the first. The rounding between the passes makes it visible.
    ///
    /// Pillow 13 does so if it saves rows enough (found by comparing both orders with its results
    /// over 2,508 random sizes and filters); up to Pillow 12 the horizontal pass was always first.
    fn rows_first(&self) -> bool {
        let saved = |axis: &Axis| axis.in_len() as i64 - axis.out_len() as i64;
        saved(self.y) > 0 && saved(self.y) > 2 * saved(self.x)
    }

    fn run_columns_first(&self, mut sink: impl FnMut(usize, &[u8])) {
        let len = self.x.len() * 3;
        // Row `r` of the image, its columns mixed, is in slot `r % depth`.
        let depth = self.y.max_taps();
        let mut ring = vec![0u8; len * depth];
        let mut mixed = vec![0u8; len];
        let mut scratch = Vec::new();
        let mut offsets = Vec::with_capacity(depth);
        let mut next = 0;
        for i in 0..self.y.len() {
            let (first, weights) = self.y.taps(i);
            let end = first + weights.len();
            for r in next.max(first)..end {
                let row = self.canvas.row(r, &mut scratch);
                self.mix_columns(row, &mut ring[r % depth * len..][..len]);
            }
            next = next.max(end);
            offsets.clear();
            offsets.extend((first..end).map(|r| r % depth * len));
            if let ([offset], [UNIT]) = (&offsets[..], weights) {
                sink(i, &ring[*offset..][..len]);
                continue;
            }
            self.mix_rows(i, &ring, &offsets, &mut mixed);
            sink(i, &mixed);
        }
    }

    fn run_rows_first(&self, mut sink: impl FnMut(usize, &[u8])) {
        let stride = self.canvas.width * 3;
        let mut mixed = vec![0u8; stride + 1];
        let mut out = vec![0u8; self.x.len() * 3];
        let mut offsets = Vec::with_capacity(self.y.max_taps());
        for i in 0..self.y.len() {
            let (first, weights) = self.y.taps(i);
            offsets.clear();
            offsets.extend((first..first + weights.len()).map(|r| r * stride));
            self.mix_rows(i, self.canvas.rgb, &offsets, &mut mixed[..stride]);
            self.mix_columns(&mixed, &mut out);
            sink(i, &out);
        }
    }

    fn mix_columns(&self, row: &[u8], out: &mut [u8]) {
        let (axis, fill) = (self.x, self.canvas.fill);
        MixColumns {
            row,
            axis,
            fill,
            out,
        }
        .dispatch();
    }

    fn mix_rows(&self, i: usize, rows: &[u8], offsets: &[usize], out: &mut [u8]) {
        let weights = self.y.taps(i).1;
        let outside = self.y.outside(i);
        let start = self
            .canvas
            .fill
            .map(|fill| HALF + i32::from(fill) * outside);
        MixRows {
            rows,
            offsets,
            weights,
            start,
            out,
        }
        .dispatch();
    }
}

/// Rounds a sum of weighted pixels that began with [`HALF`], and clips it.
#[inline(always)]
fn to_u8(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// One output row from one input row: each pixel is a weighted sum of its neighbours.
struct MixColumns<'a> {
    /// Pixels, and one more byte.
    row: &'a [u8],
    axis: &'a Axis,
    fill: [u8; 3],
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
            let outside = self.axis.outside(i);
            let start = self.fill.map(|fill| HALF + i32::from(fill) * outside);
            // The fourth lane is the next pixel's red, for the sake of whole vectors.
            let mut sums = [start[0], start[1], start[2], 0];
            let pixels = &self.row[first * 3..][..weights.len() * 3 + 1];
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
    /// Where in `rows` each row begins.
    offsets: &'a [usize],
    weights: &'a [i32],
    /// What the sums of each channel begin with.
    start: [i32; 3],
    out: &'a mut [u8],
}

/// Bytes of a row that are mixed at once, whole pixels.
const CHUNK: usize = 48;

impl SimdOp for MixRows<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _: I) {
        let mut start = [0; CHUNK];
        for pixel in start.as_chunks_mut::<3>().0 {
            *pixel = self.start;
        }
        let (chunks, rest) = self.out.as_chunks_mut::<CHUNK>();
        let done = chunks.len() * CHUNK;
        let taps = || self.weights.iter().zip(self.offsets);
        for (i, out) in chunks.iter_mut().enumerate() {
            let mut sums = start;
            for (&w, offset) in taps() {
                add(&mut sums, &self.rows[offset + i * CHUNK..][..CHUNK], w);
            }
            *out = sums.map(to_u8);
        }
        let sums = &mut start[..rest.len()];
        for (&w, offset) in taps() {
            add(sums, &self.rows[offset + done..][..sums.len()], w);
        }
        for (out, &mut sum) in rest.iter_mut().zip(sums) {
            *out = to_u8(sum);
        }
    }
}

#[inline(always)]
fn add(sums: &mut [i32], row: &[u8], weight: i32) {
    for (sum, &v) in sums.iter_mut().zip(row) {
        *sum += i32::from(v) * weight;
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
        let mut out = Vec::new();
        canvas.resample(filter, to, (0..to.0, 0..to.1), |_, row| {
            out.extend_from_slice(row);
        });
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
