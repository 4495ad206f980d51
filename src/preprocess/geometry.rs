//! Output sizes, crops and tile grids, in the integer and float order of the reference.

use std::ops::Range;

/// Largest side to which a tiled processor resizes an image, whatever its configuration says
/// (`MAX_IMAGE_SIZE` of the Idefics3 processor).
const MAX_TILED_SIDE: usize = 4096;

/// Width and height.
pub(super) type Size = (usize, usize);

/// The size whose shorter edge is `edge`.
pub(super) fn shortest_edge((width, height): Size, edge: usize) -> Size {
    let (short, long) = (width.min(height), width.max(height));
    let new_long = ((edge * long) as f64 / short as f64) as usize;
    if width <= height {
        (edge, new_long)
    } else {
        (new_long, edge)
    }
}

/// The size whose longer edge is `edge`, the shorter one made even, at least one pixel.
pub(super) fn longest_edge((width, height): Size, edge: usize) -> Size {
    let aspect = width as f64 / height as f64;
    let (mut w, mut h) = (edge, edge);
    if width >= height {
        h = (edge as f64 / aspect) as usize;
        h += h % 2;
    } else {
        w = (edge as f64 * aspect) as usize;
        w += w % 2;
    }
    below_limit((w.max(1), h.max(1)))
}

fn below_limit((width, height): Size) -> Size {
    let aspect = width as f64 / height as f64;
    let (mut w, mut h) = (width, height);
    if width >= height && width > MAX_TILED_SIDE {
        w = MAX_TILED_SIDE;
        h = (w as f64 / aspect) as usize;
    } else if height > width && height > MAX_TILED_SIDE {
        h = MAX_TILED_SIDE;
        w = (h as f64 * aspect) as usize;
    }
    (w.max(1), h.max(1))
}

/// Rows and columns of the tiles of side `tile` that cover an image of this size.
pub(super) fn grid((width, height): Size, tile: usize) -> (usize, usize) {
    let aspect = width as f64 / height as f64;
    if width >= height {
        let columns = width.div_ceil(tile);
        let height = ((columns * tile) as f64 / aspect) as usize;
        (height.div_ceil(tile).max(1), columns)
    } else {
        let rows = height.div_ceil(tile);
        let width = ((rows * tile) as f64 * aspect) as usize;
        (rows, width.div_ceil(tile).max(1))
    }
}

/// One axis of a centre crop: which part of the input is kept, and where it goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Crop {
    /// Input positions that are kept.
    pub(super) kept: Range<usize>,
    /// Output position of the first of them; what is before and after is black.
    pub(super) at: usize,
}

/// Crops `len` positions to `out` around the centre, or pads if there are fewer.
pub(super) fn center_crop(len: usize, out: usize) -> Crop {
    if len >= out {
        let first = (len - out) / 2;
        Crop {
            kept: first..first + out,
            at: 0,
        }
    } else {
        Crop {
            kept: 0..len,
            at: (out - len).div_ceil(2),
        }
    }
}

/// `range` of an axis of length `from`, on the same axis resized to length `to`, rounded
/// outwards.
pub(super) fn scale_range(range: Range<usize>, from: usize, to: usize) -> Range<usize> {
    range.start * to / from..(range.end * to).div_ceil(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortest_edge_rounds_the_longer_down() {
        assert_eq!(shortest_edge((1280, 720), 1024), (1820, 1024));
        assert_eq!(shortest_edge((300, 500), 1024), (1024, 1706));
        assert_eq!(shortest_edge((7, 7), 256), (256, 256));
    }

    #[test]
    fn longest_edge_makes_the_shorter_even() {
        assert_eq!(longest_edge((1280, 720), 2048), (2048, 1152));
        assert_eq!(longest_edge((100, 63), 512), (512, 322));
        assert_eq!(longest_edge((63, 100), 512), (322, 512));
        assert_eq!(longest_edge((1, 30_000), 512), (1, 512));
        assert_eq!(longest_edge((100, 50), 8192), (4096, 2048));
    }

    #[test]
    fn grid_covers_wide_tall_and_thin_images() {
        assert_eq!(grid((2048, 1152), 512), (3, 4));
        assert_eq!(grid((322, 512), 128), (4, 3));
        assert_eq!(grid((512, 1), 128), (1, 4));
        assert_eq!(grid((128, 128), 128), (1, 1));
    }

    #[test]
    fn center_crop_of_odd_margins_keeps_the_earlier_pixel() {
        let crop = |kept, at| Crop { kept, at };
        assert_eq!(center_crop(1820, 1024), crop(398..1422, 0));
        assert_eq!(center_crop(8, 5), crop(1..6, 0));
        assert_eq!(center_crop(5, 8), crop(0..5, 2));
    }

    #[test]
    fn scale_range_rounds_outwards() {
        assert_eq!(scale_range(280..1000, 1280, 1024), 224..800);
        assert_eq!(scale_range(1..2, 3, 10), 3..7);
    }
}
