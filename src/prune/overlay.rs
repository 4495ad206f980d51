//! A picture of what stayed and why.

use std::io::Cursor;

use image::imageops::FilterType;
use image::{ImageFormat, Rgb, RgbImage};

use super::place::{Place, places};
use crate::error::{Error, Result};
use crate::preprocess::{Frame, View};

/// Longer side of a panel, in pixels.
const PANEL: u32 = 640;

/// Pixels between panels.
const GAP: u32 = 10;

/// What dropped tokens keep of their light.
const DIM: f32 = 0.22;

/// How much of a token in the heat map is its score, and not the picture.
const HEAT: f32 = 0.68;

const PAPER: Rgb<u8> = Rgb([255, 255, 255]);
const KEPT: Rgb<u8> = Rgb([255, 214, 64]);

/// From the least to the greatest score: matplotlib's `inferno` at five points.
const COLORS: [[f32; 3]; 5] = [
    [0.0, 0.0, 4.0],
    [87.0, 16.0, 110.0],
    [188.0, 55.0, 84.0],
    [249.0, 142.0, 9.0],
    [252.0, 255.0, 164.0],
];

/// What is drawn.
#[derive(Debug, Clone, Copy)]
pub struct Overlay<'a> {
    /// The frame.
    pub frame: &'a Frame,
    /// Where its pixels went.
    pub view: &'a View,
    /// Tokens that the vision tower made.
    pub total: usize,
    /// Those that stayed, ascending.
    pub kept: &'a [usize],
    /// A score for each of all tokens, NaN for those that have none; empty if none has.
    pub scores: &'a [f32],
}

/// Draws the frame with the kept tokens outlined and the others dimmed, and where there are scores a
/// heat map of them beside it; returns a PNG file. A frame that was cut into tiles has these for its
/// tiles and, below, for the view of all of it.
///
/// # Errors
/// [`Error::Image`] if the tokens are no grid over the frame, or cannot be written as PNG.
pub fn draw(overlay: &Overlay<'_>) -> Result<Vec<u8>> {
    let failed = |reason: String| Error::Image {
        name: overlay.frame.name().to_owned(),
        reason,
    };
    let places = places(overlay.view, overlay.total)
        .ok_or_else(|| failed("no overlay: its visual tokens are no square grid".to_owned()))?;
    let base = scaled(overlay.frame)
        .ok_or_else(|| failed("no overlay: its pixels have another number".to_owned()))?;
    let (width, height) = base.dimensions();
    let n_tiles = overlay
        .view
        .grid
        .map_or(0, |(rows, columns)| rows * columns);
    let last = places.last().map_or(0, |place| place.picture);
    let rows = [0..n_tiles, n_tiles..last + 1];
    let rows: Vec<_> = rows.into_iter().filter(|of| !of.is_empty()).collect();
    let heat = ranks(overlay.scores);
    let columns = 1 + u32::from(!heat.is_empty());
    let mut sheet = RgbImage::from_pixel(
        columns * (width + GAP) - GAP,
        rows.len() as u32 * (height + GAP) - GAP,
        PAPER,
    );
    for (index, pictures) in (0u32..).zip(rows) {
        let tokens: Vec<Token> = places
            .iter()
            .enumerate()
            .filter(|(_, place)| pictures.contains(&place.picture))
            .filter_map(|(token, place)| Token::new(overlay, token, *place, (width, height)))
            .collect();
        let y = i64::from(index * (height + GAP));
        let panel = kept_panel(&base, &tokens);
        image::imageops::replace(&mut sheet, &panel, 0, y);
        if columns > 1 {
            let panel = heat_panel(&base, &tokens, &heat);
            image::imageops::replace(&mut sheet, &panel, i64::from(width + GAP), y);
        }
    }
    let mut png = Cursor::new(Vec::new());
    sheet
        .write_to(&mut png, ImageFormat::Png)
        .map_err(|e| failed(e.to_string()))?;
    Ok(png.into_inner())
}

/// A token's rectangle on a panel: left, top, right, bottom.
struct Token {
    index: usize,
    rect: [u32; 4],
    kept: bool,
}

impl Token {
    /// `None` if nothing of it lies in the frame.
    fn new(overlay: &Overlay<'_>, index: usize, place: Place, size: (u32, u32)) -> Option<Self> {
        let view = overlay.view;
        let per_picture = overlay.total / view.n_pictures.max(1);
        let cell = view.side as f64 / per_picture.isqrt().max(1) as f64;
        let (x, y) = (place.column as f64 * cell, place.row as f64 * cell);
        let [left, top, right, bottom] = view.in_frame(place.picture, [x, y, x + cell, y + cell]);
        let across = f64::from(size.0) / overlay.frame.width() as f64;
        let down = f64::from(size.1) / overlay.frame.height() as f64;
        let pixel =
            |x: f64, scale: f64, most: u32| (x * scale).round().clamp(0.0, f64::from(most)) as u32;
        let rect = [
            pixel(left, across, size.0),
            pixel(top, down, size.1),
            pixel(right, across, size.0),
            pixel(bottom, down, size.1),
        ];
        (rect[0] < rect[2] && rect[1] < rect[3]).then(|| Self {
            index,
            rect,
            kept: overlay.kept.binary_search(&index).is_ok(),
        })
    }
}

/// The frame, its longer side a panel's.
fn scaled(frame: &Frame) -> Option<RgbImage> {
    let (width, height) = (frame.width() as u32, frame.height() as u32);
    let image = RgbImage::from_raw(width, height, frame.rgb().to_vec())?;
    let scale = f64::from(PANEL) / f64::from(width.max(height));
    let side = |n: u32| ((f64::from(n) * scale).round() as u32).max(1);
    let (width, height) = (side(width), side(height));
    Some(image::imageops::resize(
        &image,
        width,
        height,
        FilterType::Triangle,
    ))
}

/// Ranks of the scores, from 0 to 1; NaN stays.
fn ranks(scores: &[f32]) -> Vec<f32> {
    let mut order: Vec<usize> = (0..scores.len()).filter(|&i| !scores[i].is_nan()).collect();
    if order.is_empty() {
        return Vec::new();
    }
    order.sort_unstable_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    let most = (order.len() - 1).max(1) as f32;
    let mut ranks = vec![f32::NAN; scores.len()];
    let mut same = 0;
    for (rank, &token) in order.iter().enumerate() {
        // Equal scores have equal ranks.
        if scores[token] > scores[order[same]] {
            same = rank;
        }
        ranks[token] = same as f32 / most;
    }
    ranks
}

fn kept_panel(base: &RgbImage, tokens: &[Token]) -> RgbImage {
    let mut panel = base.clone();
    for pixel in panel.pixels_mut() {
        let grey = grey(*pixel);
        pixel.0 = pixel.0.map(|x| ((f32::from(x) + grey) / 2.0 * DIM) as u8);
    }
    for token in tokens.iter().filter(|token| token.kept) {
        fill(&mut panel, token, |x, y| *base.get_pixel(x, y));
    }
    for token in tokens.iter().filter(|token| token.kept) {
        outline(&mut panel, token);
    }
    panel
}

fn heat_panel(base: &RgbImage, tokens: &[Token], heat: &[f32]) -> RgbImage {
    let mut panel = base.clone();
    for token in tokens {
        let Some(&score) = heat.get(token.index).filter(|score| !score.is_nan()) else {
            continue;
        };
        let color = color(score);
        fill(&mut panel, token, |x, y| {
            let grey = grey(*base.get_pixel(x, y));
            Rgb(color.map(|c| (c * HEAT + grey * (1.0 - HEAT)) as u8))
        });
    }
    panel
}

fn grey(pixel: Rgb<u8>) -> f32 {
    let [r, g, b] = pixel.0.map(f32::from);
    0.299 * r + 0.587 * g + 0.114 * b
}

fn color(score: f32) -> [f32; 3] {
    let at = score.clamp(0.0, 1.0) * (COLORS.len() - 1) as f32;
    let below = (at as usize).min(COLORS.len() - 2);
    let share = at - below as f32;
    let (low, high) = (COLORS[below], COLORS[below + 1]);
    std::array::from_fn(|i| low[i] + (high[i] - low[i]) * share)
}

fn fill(panel: &mut RgbImage, token: &Token, color: impl Fn(u32, u32) -> Rgb<u8>) {
    let [left, top, right, bottom] = token.rect;
    for y in top..bottom {
        for x in left..right {
            panel.put_pixel(x, y, color(x, y));
        }
    }
}

fn outline(panel: &mut RgbImage, token: &Token) {
    let [left, top, right, bottom] = token.rect;
    for x in left..right {
        panel.put_pixel(x, top, KEPT);
        panel.put_pixel(x, bottom - 1, KEPT);
    }
    for y in top..bottom {
        panel.put_pixel(left, y, KEPT);
        panel.put_pixel(right - 1, y, KEPT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(overlay: &Overlay<'_>) -> RgbImage {
        let png = draw(overlay).expect("picture");
        image::load_from_memory(&png).expect("a PNG file").to_rgb8()
    }

    fn frame(width: usize, height: usize) -> Frame {
        Frame::new("f", width, height, vec![200; width * height * 3]).expect("frame")
    }

    #[test]
    fn kept_tokens_are_light_where_they_stand_and_others_dim() {
        // A wide frame in the middle of a padded square: rows 1 and 2 of 4 see it.
        let frame = frame(64, 32);
        let view = View {
            n_pictures: 1,
            side: 8,
            grid: None,
            content: [0, 2, 8, 6],
            shown: [0.0, 0.0, 64.0, 32.0],
        };
        let overlay = Overlay {
            frame: &frame,
            view: &view,
            total: 16,
            kept: &[5, 10],
            scores: &[],
        };
        let sheet = decoded(&overlay);
        assert_eq!(sheet.dimensions(), (640, 320));
        // Centres of the eight tokens that see the frame, 160 pixels wide and high.
        for token in 4..12u32 {
            let (column, row) = (token % 4, token / 4 - 1);
            let light = sheet.get_pixel(column * 160 + 80, row * 160 + 80).0[0];
            let kept = overlay.kept.contains(&(token as usize));
            assert_eq!(light == 200, kept, "{token}: {light}");
            assert!(kept || light < 60, "{token}: {light}");
        }
        assert_eq!(*sheet.get_pixel(160, 0), KEPT);
    }

    #[test]
    fn tiles_and_the_whole_frame_have_panels_with_a_heat_map_each() {
        let frame = frame(40, 40);
        let view = View {
            n_pictures: 5,
            side: 8,
            grid: Some((2, 2)),
            content: [0, 0, 16, 16],
            shown: [0.0, 0.0, 40.0, 40.0],
        };
        let mut scores = vec![0.5; 20];
        scores[7] = 0.9;
        scores[16] = f32::NAN;
        let overlay = Overlay {
            frame: &frame,
            view: &view,
            total: 20,
            kept: &[7, 19],
            scores: &scores,
        };
        let sheet = decoded(&overlay);
        assert_eq!(sheet.dimensions(), (2 * 640 + GAP, 2 * 640 + GAP));
        let light = |x: u32, y: u32| sheet.get_pixel(x, y).0[0] == 200;
        // Token 7 is the last of the tile at top right: an eighth of the frame, not a quarter.
        assert!(light(560, 240) && !light(400, 240) && !light(560, 80));
        // Token 19 is the last of the whole frame.
        assert!(light(480, 650 + 480) && !light(160, 650 + 160));
        // The greatest score is the lightest colour; what has none is the picture.
        assert!(sheet.get_pixel(650 + 560, 240).0[1] > 200);
        assert!(sheet.get_pixel(650 + 400, 240).0[1] < 100);
        assert!(light(650 + 160, 650 + 160));
    }

    #[test]
    fn tokens_that_are_no_grid_are_refused() {
        let frame = frame(8, 8);
        let view = View {
            n_pictures: 1,
            side: 8,
            grid: None,
            content: [0, 0, 8, 8],
            shown: [0.0, 0.0, 8.0, 8.0],
        };
        let overlay = Overlay {
            frame: &frame,
            view: &view,
            total: 15,
            kept: &[0],
            scores: &[],
        };
        let error = draw(&overlay).expect_err("refused");
        assert!(matches!(error, Error::Image { .. }), "{error}");
    }
}
