//! From a frame to pixel values, as a model folder's configuration says.

use std::ops::Range;
use std::path::Path;

use super::config::{Config, Kind, Resize};
use super::frame::{Frame, check_size};
use super::geometry::{self, Crop, Size};
use super::resample::{Canvas, Room};
use crate::error::{Error, Result};
use crate::limits;
use crate::tensor::Tensor;

/// How a frame is brought to the encoder's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fit {
    /// As the configuration says: `image_aspect_ratio: pad` of `config.json`, else the
    /// processor's own resize and centre crop.
    #[default]
    Processor,
    /// Never crops: pads to a square in the colour of the mean, then resizes.
    Pad,
    /// Never crops: resizes to the encoder's square whatever the aspect. A tiled processor does
    /// nothing else on its own, so there it is the same as [`Fit::Processor`].
    Stretch,
}

/// How many images a tiled processor makes of a frame. Others always make one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tiles {
    /// As many as the configuration says.
    #[default]
    Auto,
    /// At most so many, the global image included, and at most [`limits::TILES`].
    ///
    /// `1` is the global image alone, the processor's `do_image_splitting: false`; only a frame
    /// that has the encoder's size already is taken as it is, where the reference would enlarge
    /// it first. Above that, if the configured size makes too many tiles, `size.longest_edge` is
    /// lowered to the largest multiple of the tile side that does not; if none does, the frame
    /// is not split.
    Count(usize),
}

/// What a caller may want to tell its user.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Notes {
    /// Share of the frame's area that was cropped away, 0 to 1.
    pub cropped_share: f64,
}

/// A frame as a vision encoder takes it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PixelValues {
    /// `[n, 3, s, s]`: tiles row by row, the global image last.
    pub pixels: Tensor<f32>,
    /// `[n, s, s]`, 1 = image, 0 = padding of a batch; none if the processor does not make one
    /// (`do_pad: false`), which stands for all ones.
    pub mask: Option<Tensor<u8>>,
    /// Rows and columns of tiles before the global image; `None` if there is one image only.
    pub grid: Option<(usize, usize)>,
    /// Left, top, right and bottom of the frame's own pixels, the rest being padding: in the
    /// image, or with a grid in the `rows * s` by `columns * s` picture that was cut into tiles.
    pub content: [usize; 4],
    /// Left, top, right and bottom of the part of the frame that `content` shows, in the frame's
    /// own pixels.
    pub shown: [f64; 4],
    /// What was lost.
    pub notes: Notes,
}

/// Room for the pixel values of a frame, used again for the next one.
#[derive(Debug, Default)]
pub struct PixelRoom {
    values: PixelValues,
    /// A frame after the first resize, and as it is cut into tiles.
    first: Vec<u8>,
    cut: Vec<u8>,
    rows: Room,
}

/// Where the pixels of a frame went: a [`PixelValues`] without its pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct View {
    /// Number of images.
    pub n_pictures: usize,
    /// Side of every image, in pixels.
    pub side: usize,
    /// As [`PixelValues::grid`].
    pub grid: Option<(usize, usize)>,
    /// As [`PixelValues::content`].
    pub content: [usize; 4],
    /// As [`PixelValues::shown`].
    pub shown: [f64; 4],
}

impl PixelValues {
    /// Where the frame's pixels are.
    pub fn view(&self) -> View {
        View {
            n_pictures: self.pixels.shape()[0],
            side: self.side(),
            grid: self.grid,
            content: self.content,
            shown: self.shown,
        }
    }

    /// Side of every image, in pixels.
    pub fn side(&self) -> usize {
        self.pixels.shape()[3]
    }

    /// As [`View::content_of`].
    pub fn content_of(&self, index: usize) -> [usize; 4] {
        self.view().content_of(index)
    }
}

impl View {
    /// [`content`](Self::content) in image `index` itself; four zeros if that is all padding.
    pub fn content_of(&self, index: usize) -> [usize; 4] {
        let side = self.side;
        let [left, top, right, bottom] = self.content;
        let Some((rows, columns)) = self.grid else {
            return self.content;
        };
        let (x, y) = if index >= rows * columns {
            (
                geometry::scale_range(left..right, columns * side, side),
                geometry::scale_range(top..bottom, rows * side, side),
            )
        } else {
            let (x, y) = (index % columns * side, index / columns * side);
            (
                window(&(left..right), x, side),
                window(&(top..bottom), y, side),
            )
        };
        if x.is_empty() || y.is_empty() {
            return [0; 4];
        }
        [x.start, y.start, x.end, y.end]
    }

    /// A rectangle of image `index` (left, top, right, bottom) in the frame's own pixels; it may
    /// reach beyond the frame where the image has padding.
    pub fn in_frame(&self, index: usize, rect: [f64; 4]) -> [f64; 4] {
        let side = self.side as f64;
        // On the picture that `content` is given in.
        let (size, at) = match self.grid {
            Some((rows, columns)) if index < rows * columns => (
                (1.0, 1.0),
                ((index % columns) as f64, (index / columns) as f64),
            ),
            Some((rows, columns)) => ((columns as f64, rows as f64), (0.0, 0.0)),
            None => ((1.0, 1.0), (0.0, 0.0)),
        };
        let axis = |pixel: f64, size: f64, at: f64, low: usize, high: usize| {
            let [low, high] = [low, high].map(|x| x as f64);
            (pixel * size + at * side - low) / (high - low).max(1.0)
        };
        let [left, top, right, bottom] = self.content;
        let [from_x, from_y, to_x, to_y] = self.shown;
        let x = |pixel| from_x + axis(pixel, size.0, at.0, left, right) * (to_x - from_x);
        let y = |pixel| from_y + axis(pixel, size.1, at.1, top, bottom) * (to_y - from_y);
        [x(rect[0]), y(rect[1]), x(rect[2]), y(rect[3])]
    }
}

/// The part of `range` that lies in `at..at + len`, counted from `at`.
fn window(range: &Range<usize>, at: usize, len: usize) -> Range<usize> {
    range.start.clamp(at, at + len) - at..range.end.clamp(at, at + len) - at
}

/// The image processor of one model folder.
#[derive(Debug, Clone)]
pub struct Processor {
    config: Config,
}

impl Processor {
    /// Reads `preprocessor_config.json` of the model folder `dir` (or the `image_processor` in
    /// `processor_config.json`, which wins), and `image_aspect_ratio` of its `config.json`.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no such file, [`Error::Malformed`] if an entry is missing, is out
    /// of range, or names a processor or filter that is not supported.
    pub fn load(dir: &Path) -> Result<Self> {
        let config = Config::load(dir)?;
        Ok(Self { config })
    }

    /// Side of the images that this processor makes, in pixels.
    pub fn side(&self) -> usize {
        match self.config.kind {
            Kind::Crop { side, .. } | Kind::Tiled { side, .. } => side,
        }
    }

    /// Makes pixel values of `frame`.
    ///
    /// # Errors
    /// As [`run_in`](Self::run_in).
    pub fn run(&self, frame: &Frame, fit: Fit, tiles: Tiles) -> Result<PixelValues> {
        let mut room = PixelRoom::default();
        self.run_in(&mut room, frame, fit, tiles)?;
        Ok(room.values)
    }

    /// Makes pixel values of `frame` in memory that is used again for the next one: for a frame as large as the one
    /// before nothing is allocated.
    ///
    ///
    /// # Errors
    /// [`Error::Argument`] if no tiles are asked for, [`Error::Image`] for an empty frame, [`Error::TooLarge`] if they would be more
    /// than [`limits::TILES`], or an image on the way larger than [`limits::IMAGE_PIXELS`].
    pub fn run_in<'a>(
        &self,
        room: &'a mut PixelRoom,
        frame: &Frame,
        fit: Fit,
        tiles: Tiles,
    ) -> Result<&'a PixelValues> {
        if tiles == Tiles::Count(0) {
            return Err(Error::Argument {
                name: "tiles",
                reason: "at least 1 is needed".to_owned(),
            });
        }
        check_size(frame.name(), frame.width() as u64, frame.height() as u64)?;
        match self.config.kind {
            Kind::Crop { .. } => self.run_crop(room, frame, fit)?,
            Kind::Tiled { .. } => self.run_tiled(room, frame, fit, tiles)?,
        }
        Ok(&room.values)
    }

    fn canvas<'a>(&self, frame: &'a Frame, pad: bool) -> Canvas<'a> {
        let (rgb, width, height) = (frame.rgb(), frame.width(), frame.height());
        match pad {
            true => Canvas::square(rgb, width, height, self.config.fill),
            false => Canvas::new(rgb, width, height),
        }
    }
}

/// The size that `resize` makes of `size`.
fn resized(size: Size, resize: Option<Resize>) -> Size {
    match resize {
        None => size,
        Some(Resize::ShortestEdge(edge)) => geometry::shortest_edge(size, edge),
        Some(Resize::LongestEdge(edge)) => geometry::longest_edge(size, edge),
        Some(Resize::Exact(width, height)) => (width, height),
    }
}

/// One image, resized and cropped.
impl Processor {
    fn run_crop(&self, room: &mut PixelRoom, frame: &Frame, fit: Fit) -> Result<()> {
        let Kind::Crop {
            pad,
            resize,
            crop,
            side,
        } = self.config.kind
        else {
            return Err(self.not_this_kind());
        };
        let canvas = self.canvas(frame, fit == Fit::Pad || (fit == Fit::Processor && pad));
        let full = match fit {
            Fit::Processor => resized(canvas.size, resize),
            Fit::Pad | Fit::Stretch => (side, side),
        };
        debug_assert!(crop || full == (side, side));
        let x = geometry::center_crop(full.0, side);
        let y = geometry::center_crop(full.1, side);
        let PixelRoom { values, rows, .. } = room;
        let data = values.pixels.reshape(&[1, 3, side, side]);
        if x.kept.len() < side || y.kept.len() < side {
            let black = self.config.levels.black();
            for (plane, black) in data.chunks_exact_mut(side * side).zip(black) {
                plane.fill(black);
            }
        }
        let kept = (x.kept.clone(), y.kept.clone());
        canvas.resample(self.config.filter, full, kept, rows, |i, row| {
            self.write_row(row, data, (x.at, y.at + i), side);
        });
        let content = |crop: &Crop, offset: usize, len: usize, from: usize, to: usize| {
            let range = geometry::scale_range(offset..offset + len, from, to);
            let visible = window(&range, crop.kept.start, crop.kept.len());
            let share = visible.len() as f64 / range.len() as f64;
            // Back on the frame's own axis, of which `from` pixels became `to`.
            let back = |at: usize| {
                let at = (at + crop.kept.start) as f64;
                at * from as f64 / to as f64 - offset as f64
            };
            let seen = [visible.start, visible.end].map(|at| back(at).clamp(0.0, len as f64));
            (
                [visible.start + crop.at, visible.end + crop.at],
                seen,
                share,
            )
        };
        let ([left, right], seen_x, across) =
            content(&x, canvas.offset.0, canvas.width, canvas.size.0, full.0);
        let ([top, bottom], seen_y, down) =
            content(&y, canvas.offset.1, canvas.height, canvas.size.1, full.1);
        values.mask = None;
        values.grid = None;
        values.content = [left, top, right, bottom];
        values.shown = [seen_x[0], seen_y[0], seen_x[1], seen_y[1]];
        values.notes.cropped_share = 1.0 - across * down;
        Ok(())
    }

    /// Writes pixels as floats into the three planes of one image, from `at` (x, y) on.
    fn write_row(&self, row: &[u8], image: &mut [f32], at: (usize, usize), side: usize) {
        let (red, rest) = image.split_at_mut(side * side);
        let (green, blue) = rest.split_at_mut(side * side);
        let first = at.1 * side + at.0;
        let cells = first..first + row.len() / 3;
        let planes = [red, green, blue].map(|plane| &mut plane[cells.clone()]);
        self.config.levels.split(row, planes);
    }

    fn not_this_kind(&self) -> Error {
        Error::malformed(&self.config.path, "describes another kind of processor")
    }
}

/// Tiles and a global image.
impl Processor {
    fn run_tiled(&self, room: &mut PixelRoom, frame: &Frame, fit: Fit, tiles: Tiles) -> Result<()> {
        let Kind::Tiled {
            resize,
            split,
            mask,
            side,
        } = self.config.kind
        else {
            return Err(self.not_this_kind());
        };
        let canvas = self.canvas(frame, fit == Fit::Pad);
        let plan = Plan::new(canvas.size, resize, split, side, tiles);
        let n = plan.n_tiles();
        check(frame, "tiles", n as u64, limits::TILES as u64)?;
        check(
            frame,
            "pixels of all tiles",
            (n * side * side) as u64,
            limits::IMAGE_PIXELS,
        )?;
        let (width, height) = plan.first;
        check(
            frame,
            "pixels after resizing",
            width as u64 * height as u64,
            limits::IMAGE_PIXELS,
        )?;

        let PixelRoom {
            values,
            first,
            cut,
            rows: room,
        } = room;
        let data = values.pixels.reshape(&[n, 3, side, side]);
        let image_len = 3 * side * side;
        self.resize(&canvas, plan.first, room, first);
        let first = Canvas::new(first, width, height);
        let (rows, columns) = plan.grid;
        let size = (columns * side, rows * side);
        if n == 1 {
            self.resize_into(&first, data, room, side);
        } else {
            self.resize(&first, size, room, cut);
            for (y, row) in cut.chunks_exact(size.0 * 3).enumerate() {
                for (x, part) in row.chunks_exact(side * 3).enumerate() {
                    let image = &mut data[(y / side * columns + x) * image_len..][..image_len];
                    self.write_row(part, image, (0, y % side), side);
                }
            }
            let global = &mut data[(n - 1) * image_len..];
            self.resize_into(&Canvas::new(cut, size.0, size.1), global, room, side);
        }
        let (left, top) = canvas.offset;
        let x = geometry::scale_range(left..left + canvas.width, canvas.size.0, size.0);
        let y = geometry::scale_range(top..top + canvas.height, canvas.size.1, size.1);
        if mask {
            let mask = values.mask.get_or_insert_default();
            mask.reshape(&[n, side, side]).fill(1);
        } else {
            values.mask = None;
        }
        values.grid = (n > 1).then_some(plan.grid);
        values.content = [x.start, y.start, x.end, y.end];
        values.shown = [0.0, 0.0, canvas.width as f64, canvas.height as f64];
        values.notes = Notes::default();
        Ok(())
    }

    /// `canvas` as an image of its own of size `to`, in `rgb`.
    fn resize(&self, canvas: &Canvas<'_>, to: Size, room: &mut Room, rgb: &mut Vec<u8>) {
        rgb.clear();
        rgb.reserve_exact(to.0 * to.1 * 3);
        let whole = (0..to.0, 0..to.1);
        canvas.resample(self.config.filter, to, whole, room, |_, row| {
            rgb.extend_from_slice(row);
        });
    }

    /// `canvas` as the floats of one square image.
    fn resize_into(&self, canvas: &Canvas<'_>, image: &mut [f32], room: &mut Room, side: usize) {
        let whole = (0..side, 0..side);
        canvas.resample(self.config.filter, (side, side), whole, room, |y, row| {
            self.write_row(row, image, (0, y), side);
        });
    }
}

fn check(frame: &Frame, what: &str, actual: u64, limit: u64) -> Result<()> {
    if actual <= limit {
        return Ok(());
    }
    Err(Error::TooLarge {
        what: format!("number of {what} of image {}", frame.name()),
        actual,
        limit,
    })
}

/// What a tiled processor makes of one size.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// Size after the first resize.
    first: Size,
    /// Rows and columns of tiles; one of each if the frame is not split.
    grid: (usize, usize),
}

impl Plan {
    fn new(size: Size, resize: Option<Resize>, split: bool, side: usize, tiles: Tiles) -> Self {
        let split_from = |first| Self {
            first,
            grid: geometry::grid(first, side),
        };
        let first = resized(size, resize);
        let mut whole = Self {
            first,
            grid: (1, 1),
        };
        let most = match tiles {
            Tiles::Auto if !split => return whole,
            Tiles::Auto => return split_from(first),
            Tiles::Count(n) => n.min(limits::TILES),
        };
        if split && most > 1 {
            let lower = (2..first.0.max(first.1).div_ceil(side)).rev();
            let lower = lower.map(|n| geometry::longest_edge(size, n * side));
            let mut plans = std::iter::once(first).chain(lower).map(split_from);
            if let Some(plan) = plans.find(|plan| plan.n_tiles() <= most) {
                return plan;
            }
        }
        if size == (side, side) {
            whole.first = size;
        }
        whole
    }

    fn n_tiles(&self) -> usize {
        match self.grid {
            (1, 1) => 1,
            (rows, columns) => rows * columns + 1,
        }
    }
}
