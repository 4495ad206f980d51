//! `grid`: a baseline.

use super::place::Place;
use super::policy::{Inputs, Kept, Needs, Policy};
use crate::error::Result;

/// Keeps rows that lie evenly over each picture of the frame.
///
/// Each picture gets its share of them (largest remainder, the later picture first, which is the
/// view of the whole frame), on rows and columns as far apart as each other.
#[derive(Debug, Clone, Copy, Default)]
pub struct Grid;

impl Policy for Grid {
    fn name(&self) -> &'static str {
        "grid"
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn select(&self, inputs: &Inputs<'_>, keep: usize) -> Result<Kept> {
        Ok(Kept {
            indices: evenly(inputs.places, keep),
            scores: Vec::new(),
            merge: None,
        })
    }
}

/// `keep` rows, at most all, that lie evenly over each picture, ascending.
pub(super) fn evenly(places: &[Place], keep: usize) -> Vec<usize> {
    let pictures: Vec<&[Place]> = places.chunk_by(|a, b| a.picture == b.picture).collect();
    let sizes: Vec<usize> = pictures.iter().map(|places| places.len()).collect();
    let mut indices = Vec::with_capacity(keep);
    let mut start = 0;
    for (places, share) in pictures.into_iter().zip(shares(&sizes, keep)) {
        indices.extend(spread_over(places, share).into_iter().map(|i| start + i));
        start += places.len();
    }
    indices
}

/// `keep` distributed in proportion to `sizes`, of which it is at most the sum.
fn shares(sizes: &[usize], keep: usize) -> Vec<usize> {
    let total: usize = sizes.iter().sum::<usize>().max(1);
    let mut shares: Vec<usize> = sizes.iter().map(|size| size * keep / total).collect();
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse((sizes[i] * keep % total, i)));
    let left = keep - shares.iter().sum::<usize>();
    for &i in order.iter().take(left) {
        shares[i] += 1;
    }
    shares
}

/// `k` of the places of one picture, ascending.
fn spread_over(places: &[Place], k: usize) -> Vec<usize> {
    if k == 0 {
        return Vec::new();
    }
    let mut rows: Vec<(usize, usize)> = Vec::new();
    let mut start = 0;
    for row in places.chunk_by(|a, b| a.row == b.row) {
        rows.push((start, row.len()));
        start += row.len();
    }
    let (height, width) = (rows.len(), rows.iter().map(|row| row.1).max().unwrap_or(1));
    let square = (k as f64 * height as f64 / width as f64).sqrt().round() as usize;
    let least = k.div_ceil(width);
    let n_rows = square.clamp(least, height.min(k).max(least)).min(height);
    let mut kept = vec![false; places.len()];
    for i in 0..n_rows {
        let (start, len) = rows[(2 * i + 1) * height / (2 * n_rows)];
        let share = ((i + 1) * k / n_rows - i * k / n_rows).min(len);
        for j in 0..share {
            kept[start + (2 * j + 1) * len / (2 * share)] = true;
        }
    }
    // Rows of different lengths may have left some over.
    let mut left = k - kept.iter().filter(|kept| **kept).count();
    for place in &mut kept {
        if left > 0 && !*place {
            *place = true;
            left -= 1;
        }
    }
    (0..places.len()).filter(|&i| kept[i]).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::grid_places;
    use super::*;

    #[test]
    fn grid_lies_evenly_over_a_picture() {
        let cases: [(usize, &[usize]); 4] = [
            (1, &[10]),
            (4, &[5, 7, 13, 15]),
            (2, &[9, 11]),
            (3, &[6, 13, 15]),
        ];
        for (k, expected) in cases {
            assert_eq!(spread_over(&grid_places(1, 4, 4), k), expected, "{k}");
        }
        for (height, width) in [(16, 16), (1, 9), (9, 1), (5, 13), (9, 16)] {
            for k in 1..=height * width {
                let kept = spread_over(&grid_places(1, height, width), k);
                assert_eq!(kept.len(), k, "{height} x {width}");
                assert!(kept.is_sorted_by(|a, b| a < b), "{height} x {width}, {k}");
            }
        }
    }

    #[test]
    fn pictures_get_their_shares_the_last_one_first() {
        assert_eq!(shares(&[4, 4, 4], 1), [0, 0, 1]);
        assert_eq!(shares(&[4, 4, 4], 5), [1, 2, 2]);
        assert_eq!(shares(&[2, 8], 5), [1, 4]);
        assert_eq!(shares(&[7], 7), [7]);
    }
}
