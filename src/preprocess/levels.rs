//! Pixel levels as the floats that an encoder takes.

/// The float of each of the 256 levels, per channel.
///
/// Rescaling and normalisation see one level at a time, so a table of them is exact by
/// construction: rescaled in f64 and rounded to f32, then `(x - mean) / std` in f32, the order of
/// operations of `transformers.image_transforms.rescale` and `normalize`.
#[derive(Debug, Clone)]
pub(super) struct Levels {
    table: [[f32; 256]; 3],
}

impl Levels {
    /// `rescale` is the factor, `normalize` the means and deviations; `None` leaves that step out.
    pub(super) fn new(rescale: Option<f64>, normalize: Option<[[f64; 3]; 2]>) -> Self {
        let mut table = [[0f32; 256]; 3];
        for (channel, levels) in table.iter_mut().enumerate() {
            for (level, value) in levels.iter_mut().enumerate() {
                *value = match rescale {
                    Some(factor) => (level as f64 * factor) as f32,
                    None => level as f32,
                };
                if let Some([mean, std]) = normalize {
                    *value = (*value - mean[channel] as f32) / std[channel] as f32;
                }
            }
        }
        Self { table }
    }

    /// Whether every level is a finite number.
    pub(super) fn all_finite(&self) -> bool {
        self.table.iter().flatten().all(|v| v.is_finite())
    }

    /// The floats of the colour black.
    pub(super) fn black(&self) -> [f32; 3] {
        self.table.map(|levels| levels[0])
    }

    /// Splits a row of RGB pixels into three rows of floats.
    pub(super) fn split(&self, row: &[u8], planes: [&mut [f32]; 3]) {
        let [red, green, blue] = planes;
        let pixels = row.as_chunks::<3>().0;
        for (((&[r, g, b], red), green), blue) in pixels.iter().zip(red).zip(green).zip(blue) {
            *red = self.table[0][usize::from(r)];
            *green = self.table[1][usize::from(g)];
            *blue = self.table[2][usize::from(b)];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_follow_numpys_order_of_operations() {
        let levels = Levels::new(Some(1.0 / 255.0), Some([[0.485; 3], [0.229; 3]]));
        // np.float32(np.float64(v) * (1 / 255)), minus and divided by np.float32
        for v in [0u8, 1, 77, 128, 254, 255] {
            let x = (f64::from(v) * (1.0 / 255.0)) as f32;
            assert_eq!(levels.table[1][usize::from(v)], (x - 0.485f32) / 0.229f32);
        }
        let plain = Levels::new(None, None);
        assert_eq!(plain.table[2][200], 200.0);
        assert_eq!(plain.black(), [0.0; 3]);
    }

    #[test]
    fn split_writes_one_plane_per_channel() {
        let (mut r, mut g, mut b) = ([0f32; 2], [0f32; 2], [0f32; 2]);
        Levels::new(None, None).split(&[1, 2, 3, 4, 5, 6], [&mut r, &mut g, &mut b]);
        assert_eq!((r, g, b), ([1., 4.], [2., 5.], [3., 6.]));
    }
}
