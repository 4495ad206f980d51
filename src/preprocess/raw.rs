//! Frames as cameras leave them in memory.
//!
//! | format            | planes                | bytes of a row                           |
//! |-------------------|-----------------------|------------------------------------------|
//! | RGB, BGR          | 1                     | `3 * width`                              |
//! | grey              | 1                     | `width`                                  |
//! | NV12              | luma, chroma pairs    | `width`, `2 * ceil(width / 2)`           |
//! | planar YUV        | luma, blue, red       | `width`, then `ceil(width / 2)` or `width` |
//!
//! Rows may have any distance (`stride`) that is at least their length. Chroma is not interpolated: each sample
//! serves the two or four pixels that it was taken from.

use super::frame::{Frame, check_size};
use crate::error::{Error, Result};

/// What the numbers of a YUV picture stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Colour {
    /// ITU-R BT.601, luma 16 to 235.
    #[default]
    Bt601,
    /// ITU-R BT.709, luma 16 to 235.
    Bt709,
    /// ITU-R BT.601, luma 0 to 255, as in JPEG files.
    Full,
}

/// How pixels lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RawFormat {
    /// Three bytes a pixel.
    Rgb,
    /// Three bytes a pixel, blue first.
    Bgr,
    /// One byte a pixel.
    Grey,
    /// A plane of luma, then one of blue and red differences in turn for each two by two pixels.
    Nv12(Colour),
    /// Three planes; chroma is halved along x, and along y.
    Planar(Colour, [bool; 2]),
}

impl RawFormat {
    /// Number of planes.
    pub fn n_planes(self) -> usize {
        match self {
            Self::Rgb | Self::Bgr | Self::Grey => 1,
            Self::Nv12(_) => 2,
            Self::Planar(..) => 3,
        }
    }

    /// Bytes of a row, and rows, of plane `plane` of a picture of this size.
    pub fn plane_size(self, plane: usize, width: usize, height: usize) -> (usize, usize) {
        let halved = |n: usize, is: bool| if is { n.div_ceil(2) } else { n };
        match (self, plane) {
            (Self::Rgb | Self::Bgr, _) => (3 * width, height),
            (Self::Nv12(_), 1) => (2 * width.div_ceil(2), height.div_ceil(2)),
            (Self::Planar(_, [x, y]), 1 | 2) => (halved(width, x), halved(height, y)),
            _ => (width, height),
        }
    }

    /// Bytes of a picture whose rows and planes have no gaps.
    pub fn n_bytes(self, width: usize, height: usize) -> usize {
        let sizes = (0..self.n_planes()).map(|plane| self.plane_size(plane, width, height));
        sizes.map(|(row, rows)| row * rows).sum()
    }
}

/// One plane of a picture.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plane<'a> {
    /// From the first row to the last, at least.
    pub bytes: &'a [u8],
    /// Bytes from one row to the next.
    pub stride: usize,
}

/// A picture in memory of somebody else's.
#[derive(Debug, Clone, Copy)]
pub struct RawImage<'a> {
    /// How pixels lie in the planes.
    pub format: RawFormat,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// As many as the format has, first.
    pub planes: [Plane<'a>; 3],
}

impl<'a> RawImage<'a> {
    /// A picture whose rows and planes have no gaps.
    ///
    /// # Errors
    /// [`Error::Image`] if `bytes` has another length; [`Error::TooLarge`] above the limits of
    /// pictures.
    pub fn packed(
        name: &str,
        format: RawFormat,
        (width, height): (usize, usize),
        bytes: &'a [u8],
    ) -> Result<Self> {
        check_size(name, width as u64, height as u64)?;
        let expected = format.n_bytes(width, height);
        if bytes.len() != expected {
            return Err(Error::Image {
                name: name.to_owned(),
                reason: format!("{} bytes, {width}x{height} has {expected}", bytes.len()),
            });
        }
        let mut planes = [Plane::default(); 3];
        let mut rest = bytes;
        for (index, plane) in planes.iter_mut().enumerate().take(format.n_planes()) {
            let (stride, rows) = format.plane_size(index, width, height);
            let (bytes, behind) = rest.split_at(stride * rows);
            (*plane, rest) = (Plane { bytes, stride }, behind);
        }
        Ok(Self {
            format,
            width,
            height,
            planes,
        })
    }

    /// Refuses planes that are too short, and sizes beyond the limits.
    fn check(&self, name: &str) -> Result<()> {
        check_size(name, self.width as u64, self.height as u64)?;
        for (index, plane) in self.planes.iter().enumerate().take(self.format.n_planes()) {
            let (row, rows) = self.format.plane_size(index, self.width, self.height);
            let wrong = |reason: String| Error::Image {
                name: name.to_owned(),
                reason: format!("plane {index}: {reason}"),
            };
            if plane.stride < row {
                let stride = plane.stride;
                return Err(wrong(format!(
                    "a stride of {stride}, a row has {row} bytes"
                )));
            }
            let needed = (rows - 1).checked_mul(plane.stride);
            let needed = needed.and_then(|n| n.checked_add(row));
            if needed.is_none_or(|needed| needed > plane.bytes.len()) {
                return Err(wrong(format!(
                    "{} bytes are too few for {rows} rows with a stride of {}",
                    plane.bytes.len(),
                    plane.stride
                )));
            }
        }
        Ok(())
    }

    fn row(&self, plane: usize, y: usize) -> &'a [u8] {
        let (len, _) = self.format.plane_size(plane, self.width, self.height);
        let plane = &self.planes[plane];
        &plane.bytes[y * plane.stride..][..len]
    }

    /// Writes row `y` as RGB.
    fn write_row(&self, y: usize, out: &mut [u8]) {
        let out = out.as_chunks_mut::<3>().0;
        let row = self.row(0, y);
        match self.format {
            RawFormat::Rgb => out.as_flattened_mut().copy_from_slice(row),
            RawFormat::Bgr => {
                for (to, &[b, g, r]) in out.iter_mut().zip(row.as_chunks::<3>().0) {
                    *to = [r, g, b];
                }
            }
            RawFormat::Grey => {
                for (to, &level) in out.iter_mut().zip(row) {
                    *to = [level; 3];
                }
            }
            RawFormat::Nv12(colour) => {
                let matrix = Matrix::of(colour);
                let pairs = self.row(1, y / 2).as_chunks::<2>().0;
                for (x, (to, &luma)) in out.iter_mut().zip(row).enumerate() {
                    let [u, v] = pairs[x / 2];
                    *to = matrix.rgb(luma, u, v);
                }
            }
            RawFormat::Planar(colour, [half_x, half_y]) => {
                let matrix = Matrix::of(colour);
                let y = y >> u32::from(half_y);
                let (us, vs) = (self.row(1, y), self.row(2, y));
                for (x, (to, &luma)) in out.iter_mut().zip(row).enumerate() {
                    let x = x >> u32::from(half_x);
                    *to = matrix.rgb(luma, us[x], vs[x]);
                }
            }
        }
    }
}

impl Frame {
    /// Copies a picture in, as RGB; memory of the frame before is used again.
    ///
    /// # Errors
    /// [`Error::Image`] if a plane is too short for the picture, or it has no pixels;
    /// [`Error::TooLarge`] above the limits of pictures. The frame is as it was.
    pub fn copy_from(&mut self, image: &RawImage<'_>) -> Result<()> {
        image.check(self.name())?;
        let rgb = self.resize(image.width, image.height);
        for (y, out) in rgb.chunks_exact_mut(3 * image.width).enumerate() {
            image.write_row(y, out);
        }
        Ok(())
    }
}

/// From luma and chroma to RGB, in 16-bit fixed point.
struct Matrix {
    black: i32,
    luma: i32,
    red_v: i32,
    green_u: i32,
    green_v: i32,
    blue_u: i32,
}

const FRACTION_BITS: u32 = 16;

impl Matrix {
    /// Source: ITU-R BT.601-7 and BT.709-6, section 3; JFIF 1.02 for the full range.
    fn of(colour: Colour) -> Self {
        let (kr, kb) = match colour {
            Colour::Bt601 | Colour::Full => (0.299, 0.114),
            Colour::Bt709 => (0.2126, 0.0722),
        };
        let (black, luma, chroma) = match colour {
            Colour::Full => (0, 1.0, 1.0),
            Colour::Bt601 | Colour::Bt709 => (16, 255.0 / 219.0, 255.0 / 224.0),
        };
        let kg = 1.0 - kr - kb;
        let fixed = |x: f64| (x * f64::from(1 << FRACTION_BITS)).round() as i32;
        Self {
            black,
            luma: fixed(luma),
            red_v: fixed(2.0 * (1.0 - kr) * chroma),
            green_u: fixed(-2.0 * (1.0 - kb) * kb / kg * chroma),
            green_v: fixed(-2.0 * (1.0 - kr) * kr / kg * chroma),
            blue_u: fixed(2.0 * (1.0 - kb) * chroma),
        }
    }

    fn rgb(&self, luma: u8, u: u8, v: u8) -> [u8; 3] {
        let half = 1 << (FRACTION_BITS - 1);
        let luma = (i32::from(luma) - self.black) * self.luma + half;
        let (u, v) = (i32::from(u) - 128, i32::from(v) - 128);
        let sums = [
            luma + self.red_v * v,
            luma + self.green_u * u + self.green_v * v,
            luma + self.blue_u * u,
        ];
        sums.map(|sum| (sum >> FRACTION_BITS).clamp(0, 255) as u8)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plane(bytes: &[u8], stride: usize) -> Plane<'_> {
        Plane { bytes, stride }
    }

    fn rgb_of(image: &RawImage<'_>) -> Result<Vec<u8>> {
        let mut frame = Frame::empty("cam");
        frame.copy_from(image)?;
        assert_eq!((frame.width(), frame.height()), (image.width, image.height));
        Ok(frame.rgb().to_vec())
    }

    #[test]
    fn rows_are_found_by_stride_and_channels_by_format() {
        let bytes = [1, 2, 3, 4, 5, 6, 99, 7, 8, 9, 10, 11, 12];
        let mut image = RawImage {
            format: RawFormat::Rgb,
            width: 2,
            height: 2,
            planes: [plane(&bytes, 7), Plane::default(), Plane::default()],
        };
        let rgb = rgb_of(&image).expect("rgb");
        assert_eq!(rgb, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        image.format = RawFormat::Bgr;
        let rgb = rgb_of(&image).expect("bgr");
        assert_eq!(rgb, [3, 2, 1, 6, 5, 4, 9, 8, 7, 12, 11, 10]);
        image.format = RawFormat::Grey;
        let rgb = rgb_of(&image).expect("grey");
        assert_eq!(rgb, [1, 1, 1, 2, 2, 2, 7, 7, 7, 8, 8, 8]);
    }

    /// The formulas of the standards, in floats.
    fn reference(colour: Colour, luma: u8, u: u8, v: u8) -> [f64; 3] {
        let (kr, kb) = match colour {
            Colour::Bt709 => (0.2126, 0.0722),
            _ => (0.299, 0.114),
        };
        let [y, u, v] = [luma, u, v].map(f64::from);
        let (y, u, v) = match colour {
            Colour::Full => (y / 255.0, (u - 128.0) / 255.0, (v - 128.0) / 255.0),
            _ => ((y - 16.0) / 219.0, (u - 128.0) / 224.0, (v - 128.0) / 224.0),
        };
        let r = y + v * 2.0 * (1.0 - kr);
        let b = y + u * 2.0 * (1.0 - kb);
        let g = (y - kr * r - kb * b) / (1.0 - kr - kb);
        [r, g, b].map(|c| (c * 255.0).clamp(0.0, 255.0))
    }

    #[test]
    fn colours_are_those_of_the_standards_to_rounding() {
        for colour in [Colour::Bt601, Colour::Bt709, Colour::Full] {
            let matrix = Matrix::of(colour);
            for (luma, u, v) in (0..=255).step_by(5).flat_map(|y| {
                (0..=255)
                    .step_by(15)
                    .flat_map(move |u| (0..=255).step_by(15).map(move |v| (y, u, v)))
            }) {
                let ours = matrix.rgb(luma, u, v);
                for (ours, exact) in ours.into_iter().zip(reference(colour, luma, u, v)) {
                    let off = (f64::from(ours) - exact).abs();
                    assert!(off <= 0.51, "{colour:?} {luma} {u} {v}: {ours} {exact}");
                }
            }
        }
    }

    /// Five by three pixels: the last column and row have chroma of their own.
    #[test]
    fn chroma_serves_the_pixels_that_it_was_taken_from() {
        let luma = [128u8; 15];
        let us = [10u8, 60, 110, 160, 210, 240];
        let vs = [200u8, 30, 90, 20, 150, 70];
        let pairs: Vec<u8> = us.iter().zip(vs).flat_map(|(&u, v)| [u, v]).collect();
        let colour = Colour::Full;
        let nv12 = RawImage {
            format: RawFormat::Nv12(colour),
            width: 5,
            height: 3,
            planes: [plane(&luma, 5), plane(&pairs, 6), Plane::default()],
        };
        let planar = RawImage {
            format: RawFormat::Planar(colour, [true, true]),
            planes: [plane(&luma, 5), plane(&us, 3), plane(&vs, 3)],
            ..nv12
        };
        let rgb = rgb_of(&nv12).expect("nv12");
        assert_eq!(rgb, rgb_of(&planar).expect("planar"));
        let matrix = Matrix::of(colour);
        for (at, pixel) in rgb.as_chunks::<3>().0.iter().enumerate() {
            let chroma = (at / 5 / 2) * 3 + at % 5 / 2;
            assert_eq!(*pixel, matrix.rgb(128, us[chroma], vs[chroma]), "{at}");
        }
    }

    #[test]
    fn planes_that_are_too_short_are_refused_and_leave_the_frame() {
        let bytes = [7u8; 64];
        let mut frame = Frame::new("cam", 1, 1, vec![1, 2, 3]).expect("frame");
        let formats = [
            RawFormat::Rgb,
            RawFormat::Grey,
            RawFormat::Nv12(Colour::Bt601),
            RawFormat::Planar(Colour::Bt709, [true, false]),
        ];
        for format in formats {
            let short = |index: usize, len: usize, stride: usize| {
                let mut planes = [plane(&bytes, 12); 3];
                planes[index] = plane(&bytes[..len], stride);
                RawImage {
                    format,
                    width: 4,
                    height: 4,
                    planes,
                }
            };
            for index in 0..format.n_planes() {
                let (row, rows) = format.plane_size(index, 4, 4);
                let exact = (rows - 1) * 12 + row;
                for (len, stride) in [(exact - 1, 12), (64, row - 1), (64, usize::MAX), (0, 12)] {
                    let error = frame.copy_from(&short(index, len, stride));
                    let error = error.expect_err("refused");
                    assert!(matches!(error, Error::Image { .. }), "{error}");
                    assert!(error.to_string().contains(&format!("plane {index}")));
                    assert_eq!(frame.rgb(), [1, 2, 3]);
                }
                let fits = short(index, exact, 12);
                assert!(Frame::empty("cam").copy_from(&fits).is_ok());
            }
        }
        for (width, height) in [(0, 4), (4, 0), (usize::MAX, usize::MAX), (1 << 20, 1)] {
            let image = RawImage {
                format: RawFormat::Grey,
                width,
                height,
                planes: [plane(&bytes, usize::MAX); 3],
            };
            assert!(frame.copy_from(&image).is_err(), "{width}x{height}");
        }
    }

    proptest! {
        #[test]
        fn packed_pictures_of_any_size_are_read_whole(
            width in 1usize..9, height in 1usize..9, which in 0usize..8, extra in 0usize..2,
        ) {
            let format = [
                RawFormat::Rgb,
                RawFormat::Bgr,
                RawFormat::Grey,
                RawFormat::Nv12(Colour::Bt709),
                RawFormat::Planar(Colour::Full, [true, true]),
                RawFormat::Planar(Colour::Full, [true, false]),
                RawFormat::Planar(Colour::Full, [false, true]),
                RawFormat::Planar(Colour::Full, [false, false]),
            ][which];
            let bytes = vec![128u8; format.n_bytes(width, height) + extra];
            let image = RawImage::packed("cam", format, (width, height), &bytes);
            prop_assert_eq!(image.is_ok(), extra == 0);
            if let Ok(image) = image {
                prop_assert_eq!(rgb_of(&image).expect("whole").len(), 3 * width * height);
            }
        }
    }
}
