//! From probabilities of cells to objects.

use super::grid::Grid;
use super::scene::{Looked, Scene, Sure, Thing};

/// No probability is taken to be less: what a probe rules out happens.
pub(super) const LEAST: f64 = 1e-6;

/// What the probe reads in the rows of a frame: probabilities.
#[derive(Debug, Clone, Default)]
pub(super) struct Read {
    /// `[cells][1 + kinds]`: no centre here, or one of a kind.
    pub kinds: Vec<Vec<f64>>,
    /// `[cells][colours]`.
    pub colours: Vec<Vec<f64>>,
    /// `[grounds]`.
    pub ground: Vec<f64>,
}

/// Makes an object of each group of cells that touch and in which a centre is at least as likely as `threshold`.
///
/// What is less likely in the cells around a group belongs to it, too: the centre of one object may lie on the line between
/// cells. An object's kind, colour and centre are means, weighted with these probabilities.
pub(super) fn merge(grid: &Grid, read: &Read, threshold: f64) -> Looked {
    let centre = |cell: usize| match grid.sees(cell) {
        true => 1.0 - read.kinds[cell][0],
        false => 0.0,
    };
    let centres: Vec<f64> = (0..grid.n()).map(centre).collect();
    let mut is_free = vec![true; grid.n()];
    let groups = groups(grid, &centres, threshold, &mut is_free);
    let mut looked = Looked {
        scene: Scene {
            size: grid.size,
            ..Scene::default()
        },
        ..Looked::default()
    };
    for group in &groups {
        let (thing, sure) = object(grid, read, &centres, group);
        looked.scene.things.push(thing);
        looked.sures.push(sure);
    }
    let n_kinds = read.kinds.first().map_or(0, |kinds| kinds.len() - 1);
    let free = || (0..grid.n()).filter(|&cell| is_free[cell] && grid.sees(cell));
    let none = |kind: usize| {
        free()
            .map(|cell| ln(1.0 - read.kinds[cell][1 + kind]))
            .sum()
    };
    looked.elsewhere = (0..n_kinds).map(none).collect();
    looked.nothing_elsewhere = free().map(|cell| ln(read.kinds[cell][0])).sum();
    (looked.scene.ground, looked.ground) = match greatest(&read.ground) {
        Some(ground) => (Some(ground), read.ground[ground]),
        None => (None, 1.0),
    };
    looked.centres = centres;
    looked
}

/// The cells of each object; those are free no more.
fn groups(grid: &Grid, centres: &[f64], threshold: f64, is_free: &mut [bool]) -> Vec<Vec<usize>> {
    let is_likely = |cell: usize| centres[cell] >= threshold;
    let mut groups = Vec::new();
    for first in 0..grid.n() {
        if !is_free[first] || !is_likely(first) {
            continue;
        }
        is_free[first] = false;
        let mut group = vec![first];
        let mut next = 0;
        while next < group.len() {
            for cell in grid.around(group[next]) {
                if is_likely(cell) && std::mem::take(&mut is_free[cell]) {
                    group.push(cell);
                }
            }
            next += 1;
        }
        groups.push(group);
    }
    for group in &mut groups {
        for at in 0..group.len() {
            for cell in grid.around(group[at]) {
                if std::mem::take(&mut is_free[cell]) {
                    group.push(cell);
                }
            }
        }
    }
    groups
}

fn object(grid: &Grid, read: &Read, centres: &[f64], group: &[usize]) -> (Thing, Sure) {
    let mass: f64 = group.iter().map(|&cell| centres[cell]).sum();
    // Weights that sum to 1: a group has a cell at the threshold, which is above 0.
    let weighted = |of: &dyn Fn(usize) -> f64| -> f64 {
        let terms = group.iter().map(|&cell| of(cell) * centres[cell] / mass);
        terms.sum()
    };
    let at = [0, 1].map(|axis| weighted(&|cell| grid.centre(cell)[axis]));
    let of_kind =
        |kind: usize| weighted(&|cell| read.kinds[cell][1 + kind] / centres[cell].max(LEAST));
    let n_kinds = read.kinds[group[0]].len() - 1;
    let n_colours = read.colours.first().map_or(0, Vec::len);
    let kinds: Vec<f64> = (0..n_kinds).map(of_kind).collect();
    let colours = (0..n_colours).map(|colour| weighted(&|cell| read.colours[cell][colour]));
    let colours: Vec<f64> = colours.collect();
    let ninth = Grid::ninth_of(at, grid.size);
    let is_there = |cell: usize| Grid::ninth_of(grid.centre(cell), grid.size) == ninth;
    let thing = Thing {
        kind: greatest(&kinds).unwrap_or(0),
        colour: greatest(&colours),
        at,
    };
    let sure = Sure {
        presence: (1.0 - (1.0 - mass).abs()).max(0.0),
        kinds,
        colours,
        place: weighted(&|cell| f64::from(u8::from(is_there(cell)))),
    };
    (thing, sure)
}

/// Index of the greatest, the first among equals; `None` of none.
fn greatest(values: &[f64]) -> Option<usize> {
    let better = |best: usize, i: usize| if values[i] > values[best] { i } else { best };
    (!values.is_empty()).then(|| (0..values.len()).fold(0, better))
}

/// Logarithm of a probability, which is not taken to be nothing.
pub(super) fn ln(probability: f64) -> f64 {
    probability.clamp(LEAST, 1.0).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 4 x 4 cells of a square frame.
    fn grid() -> Grid {
        Grid {
            side: 4,
            first: 0,
            corner: [0.0, 0.0],
            cell: [0.25, 0.25],
            size: [1.0, 1.0],
        }
    }

    /// Two kinds, two colours; each cell `(cell, kind, probability, colour)`.
    fn read(cells: &[(usize, usize, f64, usize)]) -> Read {
        let mut read = Read {
            kinds: vec![vec![1.0, 0.0, 0.0]; 16],
            colours: vec![vec![0.5, 0.5]; 16],
            ground: vec![0.1, 0.9],
        };
        for &(cell, kind, probability, colour) in cells {
            read.kinds[cell][0] -= probability;
            read.kinds[cell][1 + kind] += probability;
            read.colours[cell] = vec![0.0, 0.0];
            read.colours[cell][colour] = 1.0;
        }
        read
    }

    #[test]
    fn cells_that_touch_are_one_object_where_their_weight_lies() {
        // One on the line between the first two cells of the second row, one alone at bottom right.
        let read = read(&[(4, 0, 0.5, 1), (5, 0, 0.5, 1), (15, 1, 0.9, 0)]);
        let looked = merge(&grid(), &read, 0.3);
        let things = &looked.scene.things;
        assert_eq!(things.len(), 2);
        assert_eq!((things[0].kind, things[0].colour), (0, Some(1)));
        assert_eq!(things[0].at, [0.25, 0.375]);
        assert_eq!((things[1].kind, things[1].colour), (1, Some(0)));
        assert_eq!(things[1].at, [0.875, 0.875]);
        let sure = &looked.sures;
        assert!((sure[0].presence - 1.0).abs() < 1e-9 && (sure[1].presence - 0.9).abs() < 1e-9);
        // Left of the first line between thirds, and right of it.
        assert!((sure[0].place - 0.5).abs() < 1e-9, "{}", sure[0].place);
        assert_eq!((looked.scene.ground, looked.ground), (Some(1), 0.9));
        assert_eq!(looked.nothing_elsewhere, 0.0);
    }

    #[test]
    fn corners_touch_and_gaps_do_not() {
        let diagonal = read(&[(0, 0, 0.6, 0), (5, 0, 0.4, 0)]);
        assert_eq!(merge(&grid(), &diagonal, 0.3).scene.things.len(), 1);
        let apart = read(&[(0, 0, 0.9, 0), (2, 0, 0.9, 0)]);
        assert_eq!(merge(&grid(), &apart, 0.3).scene.things.len(), 2);
    }

    #[test]
    fn what_is_unlikely_is_no_object_and_makes_its_absence_less_sure() {
        let faint = read(&[(0, 1, 0.2, 0)]);
        let looked = merge(&grid(), &faint, 0.3);
        assert!(looked.scene.things.is_empty());
        assert!((looked.elsewhere[1] - 0.8f64.ln()).abs() < 1e-9);
        assert_eq!(looked.elsewhere[0], 0.0);
        assert!((looked.nothing_elsewhere - 0.8f64.ln()).abs() < 1e-9);
        // Beside a likely one it is a part of that.
        let beside = read(&[(0, 1, 0.7, 0), (1, 1, 0.2, 0)]);
        let looked = merge(&grid(), &beside, 0.3);
        assert!((looked.sures[0].presence - 0.9).abs() < 1e-9);
        assert_eq!(looked.nothing_elsewhere, 0.0);
    }

    #[test]
    fn cells_in_padding_hold_nothing() {
        let mut grid = grid();
        grid.size = [1.0, 0.5];
        let looked = merge(&grid, &read(&[(15, 0, 0.9, 0), (1, 0, 0.9, 0)]), 0.3);
        assert_eq!(looked.scene.things.len(), 1);
        assert_eq!(looked.nothing_elsewhere, 0.0);
        assert_eq!(looked.centres[15], 0.0);
    }

    #[test]
    fn two_centres_in_touching_cells_are_one_object_of_doubtful_presence() {
        let looked = merge(&grid(), &read(&[(0, 0, 1.0, 0), (1, 0, 1.0, 0)]), 0.3);
        assert_eq!(looked.scene.things.len(), 1);
        assert_eq!(looked.sures[0].presence, 0.0);
    }
}
