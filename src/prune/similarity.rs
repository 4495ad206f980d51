//! `similarity`: neighbours that look the same become one.

use super::features::{Features, cosine, dot};
use super::place::Place;
use super::policy::{Inputs, Kept, Merge, Needs, Policy};
use crate::error::Result;

/// Joins the two most alike of neighbouring tokens, again and again, until `keep` groups are left;
/// each group becomes its average, and stands where its member nearest to the average stood.
///
/// Neighbours are those beside and below each other in a picture, so that there are two cosines a
/// token and not one for every pair: groups are connected patches. Pictures are joined, last to
/// first, only where patches alone do not suffice. Merging by average is PruMerge's (arXiv 2403.15388)
/// without its attention of a class token, which these towers do not have; the groups are those of
/// single linkage.
#[derive(Debug, Clone, Copy, Default)]
pub struct Similarity;

/// Two tokens, and how alike they are.
struct Pair {
    likeness: f32,
    a: usize,
    b: usize,
}

impl Policy for Similarity {
    fn name(&self) -> &'static str {
        "similarity"
    }

    fn needs(&self) -> Needs {
        Needs {
            features: true,
            ..Needs::default()
        }
    }

    fn select(&self, inputs: &Inputs<'_>, keep: usize) -> Result<Kept> {
        let features = &inputs.features;
        let norms = features.norms()?;
        let n = features.n();
        let pairs = |places: Vec<(usize, usize)>| {
            let pair = |(a, b): (usize, usize)| Pair {
                likeness: likeness(features, &norms, a, b),
                a,
                b,
            };
            let mut pairs: Vec<Pair> = places.into_iter().map(pair).collect();
            pairs.sort_unstable_by(|p, q| {
                let alike = q.likeness.total_cmp(&p.likeness);
                alike.then((p.a, p.b).cmp(&(q.a, q.b)))
            });
            pairs
        };
        let beside = pairs(neighbours(inputs.places));
        let mut groups = Groups::new(n);
        groups.join(&beside, keep);
        if groups.n > keep {
            groups.join(&pairs((1..n).map(|b| (b - 1, b)).collect()), keep);
        }
        // How little a token is like what is beside it.
        let mut scores = vec![f32::MAX; n];
        for pair in &beside {
            for token in [pair.a, pair.b] {
                scores[token] = scores[token].min(1.0 - pair.likeness);
            }
        }
        for score in &mut scores {
            // A token without neighbours.
            *score = if *score == f32::MAX { 1.0 } else { *score };
        }
        let (indices, merge) = average(features, &norms, &mut groups, keep);
        Ok(Kept {
            indices,
            scores,
            merge: Some(merge),
        })
    }
}

/// Cosine of two rows; two that are zero are the same.
fn likeness(features: &Features<'_>, norms: &[f32], a: usize, b: usize) -> f32 {
    match norms[a] == 0.0 && norms[b] == 0.0 {
        true => 1.0,
        false => cosine(dot(features.row(a), features.row(b)), norms[a], norms[b]),
    }
}

/// Pairs beside and below each other; `places` ascend.
fn neighbours(places: &[Place]) -> Vec<(usize, usize)> {
    let mut pairs = Vec::with_capacity(2 * places.len());
    let mut below = 0;
    for (a, place) in places.iter().enumerate() {
        let right = Place {
            column: place.column + 1,
            ..*place
        };
        if places.get(a + 1) == Some(&right) {
            pairs.push((a, a + 1));
        }
        let lower = Place {
            row: place.row + 1,
            ..*place
        };
        while places.get(below).is_some_and(|other| *other < lower) {
            below += 1;
        }
        if places.get(below) == Some(&lower) {
            pairs.push((a, below));
        }
    }
    pairs
}

/// Groups of tokens: each token names another of its group, the first of them itself.
struct Groups {
    parents: Vec<usize>,
    n: usize,
}

impl Groups {
    fn new(n: usize) -> Self {
        Self {
            parents: (0..n).collect(),
            n,
        }
    }

    fn first(&mut self, mut token: usize) -> usize {
        while self.parents[token] != token {
            self.parents[token] = self.parents[self.parents[token]];
            token = self.parents[token];
        }
        token
    }

    fn join(&mut self, pairs: &[Pair], keep: usize) {
        for pair in pairs {
            if self.n <= keep {
                return;
            }
            let (a, b) = (self.first(pair.a), self.first(pair.b));
            if a != b {
                self.parents[a.max(b)] = a.min(b);
                self.n -= 1;
            }
        }
    }
}

/// The member of each group that is nearest to its average, ascending, and the averages' weights.
fn average(
    features: &Features<'_>,
    norms: &[f32],
    groups: &mut Groups,
    keep: usize,
) -> (Vec<usize>, Merge) {
    let n = features.n();
    let firsts: Vec<usize> = (0..n).map(|token| groups.first(token)).collect();
    let mut sizes = vec![0usize; n];
    for &first in &firsts {
        sizes[first] += 1;
    }
    // Groups are numbered by their first members, until it is known which members stay.
    let mut number = vec![0u32; n];
    let of_groups = (0..n).filter(|&token| sizes[token] > 0);
    for (group, first) in (0u32..).zip(of_groups) {
        number[first] = group;
    }
    let mut merge = Merge {
        slots: firsts.iter().map(|&first| number[first]).collect(),
        weights: firsts
            .iter()
            .map(|&first| 1.0 / sizes[first] as f32)
            .collect(),
    };
    let means = merge.apply(features, keep);
    let d = features.d();
    let mut nearest: Vec<Option<(f32, usize)>> = vec![None; keep];
    for (token, &slot) in merge.slots.iter().enumerate() {
        let mean = &means[slot as usize * d..][..d];
        // The mean's own norm is the same for all members.
        let near = cosine(dot(features.row(token), mean), norms[token], 1.0);
        let best = &mut nearest[slot as usize];
        if best.is_none_or(|(most, _)| near > most) {
            *best = Some((near, token));
        }
    }
    let mut kept: Vec<(usize, u32)> = (0u32..)
        .zip(&nearest)
        .filter_map(|(slot, best)| Some((best.as_ref()?.1, slot)))
        .collect();
    kept.sort_unstable();
    let mut place = vec![0u32; keep];
    for (at, &(_, slot)) in (0u32..).zip(&kept) {
        place[slot as usize] = at;
    }
    for slot in &mut merge.slots {
        *slot = place[*slot as usize];
    }
    (kept.into_iter().map(|(token, _)| token).collect(), merge)
}

#[cfg(test)]
mod tests {
    use super::super::testing::grid_places;
    use super::*;

    #[test]
    fn neighbours_of_pictures_and_parts_of_them_are_found() {
        assert_eq!(
            neighbours(&grid_places(2, 2, 2)),
            [
                (0, 1),
                (0, 2),
                (1, 3),
                (2, 3),
                (4, 5),
                (4, 6),
                (5, 7),
                (6, 7)
            ]
        );
        let mut places = grid_places(1, 3, 3);
        places.retain(|place| place.column < 2);
        let expected = [(0, 1), (0, 2), (1, 3), (2, 3), (2, 4), (3, 5), (4, 5)];
        assert_eq!(neighbours(&places), expected);
    }

    #[test]
    fn similarity_averages_what_is_alike_and_leaves_the_rest() {
        // Five tokens in a line, the middle one of another kind.
        let rows = [1.0, 0.0, 1.0, 0.1, 0.0, 1.0, 1.0, 0.2, 1.0, 0.3];
        let inputs = Inputs {
            features: Features::new(&rows, 2).expect("rows"),
            places: &[],
            question: None,
            saliency: None,
        };
        let kept = Similarity.choose(&inputs, 3).expect("choice");
        // Of two, the one at the greater angle is a little nearer to their average.
        assert_eq!(kept.indices, [1, 2, 4]);
        let merge = kept.merge.expect("averages");
        assert_eq!(merge.slots, [0, 0, 1, 2, 2]);
        assert_eq!(merge.weights, [0.5, 0.5, 1.0, 0.5, 0.5]);
        let averages = merge.apply(&inputs.features, 3);
        assert_eq!(averages, [1.0, 0.05, 0.0, 1.0, 1.0, 0.25]);
    }
}
