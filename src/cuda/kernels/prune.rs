//! Scores of visual rows, the best of them, and these rows together, in one launch.
//!
//! | argument | shape | dtype | |
//! |----------|-------|-------|-|
//! | `features` | `[n, d]` | f16 or f32 | rows of the frame |
//! | `given` | `[n]` | f32 | scores; may be null: a row's score is then minus its length |
//! | `scores` | `[n]` | f32 | written, if none are given |
//! | `ticket` | `[1]` | u32 | zero, before and after |
//! | `kept` | `[k]` | i32 | written: the rows of the `k` largest scores, ascending |
//! | `rows` | `[k, d]` | as `features` | written: these rows; may be null |
//!
//! Of rows with the same score the first ones stay. If a score is not finite, `kept[0]` is -1 - the first such
//! row, and nothing else is written. Rows are whole times 16 bytes, `k` is from 1 to `n`, `n` at most [`MOST_ROWS`].
//!
//! The largest scores are found by their `k`-th: its bits, from the highest on, are those that `k` scores reach. So the
//! work is 32 counts of all scores, whatever `k` is, and no order of threads decides.
//!
//! Floor: the bytes of all rows, once, where scores are not given, and those of the kept ones twice: 0.46 MB and
//! 0.09 MB for 26 of 256 rows of 896 halves.
//!
//! Matches `prune::Norm`, which sums in another order.

use super::Dims;

/// Threads of a block, as in `prune.cu`.
const THREADS: u32 = 512;

/// Rows that a block scores: a warp each.
const ROWS: u32 = THREADS / 32;

/// Most rows of a frame.
pub const MOST_ROWS: usize = 2048;

/// Launch for `n` rows whose scores are given, or to be found.
pub fn dims(n: u32, is_given: bool) -> Dims {
    let blocks = if is_given { 1 } else { n.div_ceil(ROWS).max(1) };
    Dims {
        grid: [blocks, 1, 1],
        threads: THREADS,
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::super::machines::{Arg, Machine, Numbers, bytes, gpu_machine, host_machine};
    use super::*;

    /// Written where nothing may be written.
    const UNTOUCHED: i32 = -7;

    /// What the kernel keeps.
    fn reference(scores: &[f32], k: usize) -> Vec<i32> {
        if let Some(row) = scores.iter().position(|score| !score.is_finite()) {
            let mut kept = vec![UNTOUCHED; k];
            kept[0] = -1 - row as i32;
            return kept;
        }
        let mut order: Vec<usize> = (0..scores.len()).collect();
        // Stable: of equals the first ones stay.
        order.sort_by(|&a, &b| (scores[b] + 0.0).total_cmp(&(scores[a] + 0.0)));
        order.truncate(k);
        order.sort_unstable();
        order.into_iter().map(|row| row as i32).collect()
    }

    struct Case {
        d: usize,
        k: usize,
        features: Vec<f32>,
        given: Option<Vec<f32>>,
    }

    fn case(numbers: &mut Numbers, n: usize, is_half: bool) -> Case {
        let d = (1 + numbers.below(9)) * if is_half { 8 } else { 4 };
        let k = match numbers.below(4) {
            0 => 1,
            1 => n,
            _ => 1 + numbers.below(n),
        };
        // Small whole numbers: sums of squares are exact in any order, and many are equal.
        let mut features: Vec<f32> = (0..n * d).map(|_| numbers.below(3) as f32 - 1.0).collect();
        let mut given = (numbers.below(2) == 0).then(|| {
            let score = |numbers: &mut Numbers| numbers.below(40) as f32 / 8.0 - 2.0;
            (0..n).map(|_| score(numbers)).collect::<Vec<f32>>()
        });
        if numbers.below(5) == 0 {
            let broken = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][numbers.below(3)];
            match &mut given {
                Some(scores) => scores[numbers.below(n)] = broken,
                None => features[numbers.below(n) * d] = broken,
            }
        }
        Case {
            d,
            k,
            features,
            given,
        }
    }

    fn check(machine: &Machine<'_>, seed: u64, is_half: bool) {
        let mut numbers = Numbers(seed);
        for n in [1, 2, 31, 33, 256, 257, 1088, MOST_ROWS] {
            for _ in 0..3 {
                let mut case = case(&mut numbers, n, is_half);
                let (d, k) = (case.d, case.k);
                let length = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>().sqrt();
                let shortness = case.features.chunks_exact(d).map(|row| -length(row));
                let expected_scores = match &case.given {
                    Some(given) => given.clone(),
                    None => shortness.collect(),
                };
                let expected = reference(&expected_scores, k);
                let is_chosen = expected[0] >= 0;

                let mut halves: Vec<f16> =
                    case.features.iter().map(|&x| f16::from_f32(x)).collect();
                let (mut wide, mut narrow) = (vec![9.0f32; k * d], vec![f16::from_f32(9.0); k * d]);
                let (mut scores, mut ticket) = (vec![5.0f32; n], [0u32; 1]);
                let mut kept = vec![UNTOUCHED; k];
                let is_given = case.given.is_some();
                let has_rows = numbers.below(4) > 0;
                let mut args = [
                    Arg::Memory(match is_half {
                        true => bytes(&mut halves),
                        false => bytes(&mut case.features),
                    }),
                    match &mut case.given {
                        Some(given) => Arg::Memory(bytes(given)),
                        None => Arg::Null,
                    },
                    Arg::Memory(bytes(&mut scores)),
                    Arg::Memory(bytes(&mut ticket)),
                    Arg::Memory(bytes(&mut kept)),
                    match (has_rows, is_half) {
                        (false, _) => Arg::Null,
                        (true, true) => Arg::Memory(bytes(&mut narrow)),
                        (true, false) => Arg::Memory(bytes(&mut wide)),
                    },
                    Arg::Int(n as i32),
                    Arg::Int(d as i32),
                    Arg::Int(k as i32),
                ];
                let entry = if is_half { "prune_f16" } else { "prune_f32" };
                machine(entry, dims(n as u32, is_given), &mut args);
                let what = format!("seed {seed}, {k} of {n} rows of {d}, given {is_given}");
                assert_eq!(kept, expected, "{what}");
                assert_eq!(ticket, [0], "{what}");
                if !is_given {
                    let same = scores.iter().zip(&expected_scores);
                    let mut same = same.map(|(a, b)| a == b || !a.is_finite() && !b.is_finite());
                    assert!(same.all(|same| same), "{what}");
                }
                if is_half {
                    wide = narrow.iter().map(|h| h.to_f32()).collect();
                }
                let rows: Vec<f32> = match is_chosen && has_rows {
                    true => kept
                        .iter()
                        .flat_map(|&row| &case.features[row as usize * d..][..d])
                        .copied()
                        .collect(),
                    false => vec![9.0; k * d],
                };
                assert_eq!(wide, rows, "{what}");
            }
        }
    }

    #[test]
    fn prune_on_the_host_keeps_what_the_reference_keeps_in_any_order_of_threads() {
        for seed in 0..4 {
            let machine = host_machine(seed);
            check(&machine, u64::from(seed), seed % 2 == 0);
        }
    }

    #[test]
    #[ignore = "needs a GPU"]
    fn gpu_prune_keeps_what_the_reference_keeps() {
        let machine = gpu_machine();
        for seed in 0..16 {
            check(&machine, seed, seed % 2 == 0);
        }
    }
}
