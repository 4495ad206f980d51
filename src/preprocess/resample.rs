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

use super::axes::{Axes, Span};
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
        room: &mut Room,
        sink: impl FnMut(usize, &[u8]),
    ) {
        let span = |from: usize, to: usize, window: Range<usize>, offset: usize, len: usize| Span {
            filter,
            from,
            to,
            window: (window.start, window.end),
            inside: (offset, len),
        };
        let x = span(self.size.0, to.0, window.0, self.offset.0, self.width);
        let y = span(self.size.1, to.1, window.1, self.offset.1, self.height);
        let (x, y) = room.axes.pair(x, y);
        let passes = Passes { canvas: self, x, y };
        if passes.rows_first() {
            passes.run_rows_first(&mut room.lines, sink);
        } else {
            passes.run_columns_first(&mut room.lines, sink);
        }
    }
}

/// Room for resampling, used again for the next image.
#[derive(Debug, Default)]
pub(super) struct Room {
    axes: Axes,
    lines: Lines,
}

/// Rows on their way.
#[derive(Debug, Default)]
struct Lines {
    ring: Vec<u8>,
    batch: Vec<u8>,
    mixed: Vec<u8>,
    wide: Vec<[u8; CHUNK]>,
    offsets: Vec<usize>,
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

    fn run_columns_first(&self, lines: &mut Lines, mut sink: impl FnMut(usize, &[u8])) {
        let (stride, len) = (self.canvas.width * 3, self.x.len() * 3);
        // Row `r` of the image, its columns mixed, is in slot `r % depth`; rows are mixed some
        // ahead of their use.
        let depth = self.y.max_taps() + BATCH - 1;
        let Lines {
            ring,
            batch,
            mixed,
            wide,
            offsets,
        } = lines;
        ring.resize(len * depth, 0);
        batch.resize(len * BATCH, 0);
        mixed.resize(len, 0);
        wide.resize(self.canvas.width, [0; CHUNK]);
        let mut next = 0;
        for i in 0..self.y.len() {
            let (first, weights) = self.y.taps(i);
            let end = first + weights.len();
            next = next.max(first);
            while next < end {
                let n = BATCH.min(self.canvas.height - next);
                let rows = &self.canvas.rgb[next * stride..][..n * stride];
                self.mix_columns(rows, wide, &mut batch[..n * len]);
                for (r, row) in batch.chunks_exact(len).take(n).enumerate() {
                    ring[(next + r) % depth * len..][..len].copy_from_slice(row);
                }
                next += n;
            }
            offsets.clear();
            offsets.extend((first..end).map(|r| r % depth * len));
            if let ([offset], [UNIT]) = (&offsets[..], weights) {
                sink(i, &ring[*offset..][..len]);
                continue;
            }
            self.mix_rows(i, ring, offsets, mixed);
            sink(i, mixed);
        }
    }

    fn run_rows_first(&self, lines: &mut Lines, mut sink: impl FnMut(usize, &[u8])) {
        let (stride, len) = (self.canvas.width * 3, self.x.len() * 3);
        let Lines {
            batch,
            mixed,
            wide,
            offsets,
            ..
        } = lines;
        mixed.resize(stride * BATCH, 0);
        batch.resize(len * BATCH, 0);
        wide.resize(self.canvas.width, [0; CHUNK]);
        for i in (0..self.y.len()).step_by(BATCH) {
            let n = BATCH.min(self.y.len() - i);
            for (k, mixed) in mixed.chunks_exact_mut(stride).take(n).enumerate() {
                let (first, weights) = self.y.taps(i + k);
                offsets.clear();
                offsets.extend((first..first + weights.len()).map(|r| r * stride));
                self.mix_rows(i + k, self.canvas.rgb, offsets, mixed);
            }
            self.mix_columns(&mixed[..n * stride], wide, &mut batch[..n * len]);
            for (k, row) in batch.chunks_exact(len).take(n).enumerate() {
                sink(i + k, row);
            }
        }
    }

    fn mix_columns(&self, rows: &[u8], wide: &mut [[u8; CHUNK]], out: &mut [u8]) {
        MixColumns {
            rows,
            wide,
            axis: self.x,
            fill: self.canvas.fill,
            out,
        }
        .dispatch();
    }

    fn mix_rows(&self, i: usize, rows: &[u8], offsets: &[usize], out: &mut [u8]) {
        MixRows {
            rows,
            offsets,
            weights: self.y.taps(i).1,
            outside: self.y.outside(i),
            fill: self.canvas.fill,
            out,
        }
        .dispatch();
    }
}

/// Bytes that are mixed at once: whole pixels, and enough of them that the compiler makes
/// vectors of any width of them.
const CHUNK: usize = 48;

/// What the sums of a chunk of pixels begin with, if `outside` is the sum of weights that fall on
/// the colour `fill`.
#[inline(always)]
fn start_of_chunk(fill: [u8; 3], outside: i32) -> [i32; CHUNK] {
    let mut sums = [0; CHUNK];
    for pixel in sums.as_chunks_mut::<3>().0 {
        *pixel = fill.map(|fill| HALF + i32::from(fill) * outside);
    }
    sums
}

#[inline(always)]
fn add(sums: &mut [i32], levels: &[u8], weight: i32) {
    for (sum, &v) in sums.iter_mut().zip(levels) {
        *sum += i32::from(v) * weight;
    }
}

/// Turns sums of weighted levels, which began with [`HALF`], into levels again.
#[inline(always)]
fn finish(sums: &[i32], levels: &mut [u8]) {
    for (level, sum) in levels.iter_mut().zip(sums) {
        *level = (sum >> PRECISION_BITS).clamp(0, 255) as u8;
    }
}

/// Rows whose columns are mixed at once: a chunk holds one pixel of each.
const BATCH: usize = CHUNK / 3;

/// Up to [`BATCH`] output rows from as many input rows: each pixel is a weighted sum of its
/// neighbours.
struct MixColumns<'a> {
    rows: &'a [u8],
    /// Room for the pixels of all rows side by side.
    wide: &'a mut [[u8; CHUNK]],
    axis: &'a Axis,
    fill: [u8; 3],
    out: &'a mut [u8],
}

impl SimdOp for MixColumns<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _: I) {
        let (stride, len) = (self.wide.len() * 3, self.axis.len() * 3);
        let rows = self.rows.chunks_exact(stride);
        if let Some(first) = self.axis.copied_from() {
            for (out, row) in self.out.chunks_exact_mut(len).zip(rows) {
                out.copy_from_slice(&row[first * 3..][..len]);
            }
            return;
        }
        let used = self.axis.used();
        for (k, row) in rows.enumerate() {
            let pixels = &row.as_chunks::<3>().0[used.clone()];
            for (wide, pixel) in self.wide[used.clone()].iter_mut().zip(pixels) {
                wide[k * 3..][..3].copy_from_slice(pixel);
            }
        }
        for i in 0..self.axis.len() {
            let (first, weights) = self.axis.taps(i);
            let outside = self.axis.outside(i);
            let mut sums = start_of_chunk(self.fill, outside);
            for (&w, pixels) in weights.iter().zip(&self.wide[first..]) {
                add(&mut sums, pixels, w);
            }
            let mut levels = [0; CHUNK];
            finish(&sums, &mut levels);
            let pixels = levels.as_chunks::<3>().0;
            for (out, pixel) in self.out.chunks_exact_mut(len).zip(pixels) {
                out[i * 3..][..3].copy_from_slice(pixel);
            }
        }
    }
}

/// One output row as a weighted sum of whole rows.
struct MixRows<'a> {
    rows: &'a [u8],
    /// Where in `rows` each row begins.
    offsets: &'a [usize],
    weights: &'a [i32],
    /// Sum of the weights of rows of the colour `fill`, which are not stored.
    outside: i32,
    fill: [u8; 3],
    out: &'a mut [u8],
}

impl SimdOp for MixRows<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _: I) {
        let mut start = start_of_chunk(self.fill, self.outside);
        let (chunks, rest) = self.out.as_chunks_mut::<CHUNK>();
        let done = chunks.len() * CHUNK;
        let taps = || self.weights.iter().zip(self.offsets);
        for (i, out) in chunks.iter_mut().enumerate() {
            let mut sums = start;
            for (&w, offset) in taps() {
                add(&mut sums, &self.rows[offset + i * CHUNK..][..CHUNK], w);
            }
            finish(&sums, out);
        }
        let sums = &mut start[..rest.len()];
        for (&w, offset) in taps() {
            add(sums, &self.rows[offset + done..][..sums.len()], w);
        }
        finish(sums, rest);
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
        let mut room = Room::default();
        canvas.resample(filter, to, (0..to.0, 0..to.1), &mut room, |_, row| {
            out.extend_from_slice(row);
        });
        out
    }

    #[test]
    fn resample_of_made_frames_equals_pillow() {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/preprocess/resize.json");
        let text = std::fs::read(path).expect("golden file");
        let cases: Vec<(u64, usize, usize, usize, usize, String)> =
            serde_json::from_slice(&text).expect("golden cases");
        assert!(cases.len() >= 200);
        let wrong: Vec<_> = cases
            .iter()
            .filter(|(code, w, h, to_w, to_h, sha256)| {
                let rgb = frame(*w, *h);
                let filter = Filter::from_code(*code).expect("a known code");
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

    /// Images of other sizes and filters in between leave nothing behind that matters.
    #[test]
    fn resample_in_a_used_room_is_as_in_a_new_one() {
        let mut room = Room::default();
        let sizes = [
            (30, 17),
            (9, 200),
            (64, 3),
            (30, 17),
            (5, 5),
            (200, 9),
            (31, 17),
        ];
        for ((w, h), code) in sizes
            .into_iter()
            .flat_map(|size| (0..6).map(move |c| (size, c)))
        {
            let rgb = frame(w, h);
            let filter = Filter::from_code(code).expect("a known code");
            for canvas in [
                Canvas::new(&rgb, w, h),
                Canvas::square(&rgb, w, h, [9, 99, 199]),
            ] {
                let mut out = Vec::new();
                canvas.resample(filter, (20, 11), (0..20, 2..9), &mut room, |_, row| {
                    out.extend_from_slice(row);
                });
                let whole = resize(&canvas, filter, (20, 11));
                assert_eq!(out, whole[2 * 60..9 * 60], "{filter:?} {w}x{h}");
            }
        }
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
                let filter = Filter::from_code(code).expect("a known code");
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
