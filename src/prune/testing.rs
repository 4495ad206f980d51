//! What tests of several policies share, and the tests that concern all of them.

use proptest::prelude::*;
use serde::Deserialize;

use super::{Features, Inputs, Kept, Learned, Merge, Place, Policy, Pruner};
use crate::error::Error;

/// Places of all tokens of `pictures` pictures.
pub(super) fn grid_places(pictures: usize, height: usize, width: usize) -> Vec<Place> {
    let place = |i: usize| Place {
        picture: i / (height * width),
        row: i / width % height,
        column: i % width,
    };
    (0..pictures * height * width).map(place).collect()
}

/// Numbers from -0.5 to 0.5, the same as `tests/golden/prune/make.py` makes.
pub(super) fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let number = |i: u64| {
        let mixed = (seed * 1_000_003 + i).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((mixed >> 40) as f64 / (1u64 << 24) as f64 - 0.5) as f32
    };
    (0..n as u64).map(number).collect()
}

/// A policy for rows of width `d`, the learned one with weights that nobody trained.
fn policy(pruner: Pruner, seed: u64, d: usize) -> Box<dyn Policy> {
    let learned = Learned::drawn(d, 0.5);
    pruner.policy(seed, Some(&learned)).expect("policy")
}

#[derive(Deserialize)]
struct Golden {
    seed: u64,
    pictures: usize,
    height: usize,
    width: usize,
    d: usize,
    keep: usize,
    policy: String,
    indices: Vec<usize>,
    slots: Option<Vec<u32>>,
    weights: Option<Vec<f32>>,
}

#[test]
fn policies_choose_what_an_independent_program_does() {
    let cases: Vec<Golden> =
        serde_json::from_str(include_str!("../../tests/golden/prune/choices.json"))
            .expect("golden");
    assert!(cases.len() >= 40);
    for case in cases {
        let places = grid_places(case.pictures, case.height, case.width);
        let (n, d) = (places.len(), case.d);
        let rows = numbers(case.seed, n * d);
        let (question, saliency) = (numbers(case.seed + 1, d), numbers(case.seed + 2, n));
        let inputs = Inputs {
            features: Features::new(&rows, d).expect("rows"),
            places: &places,
            question: Some(&question),
            saliency: Some(&saliency),
        };
        let pruner: Pruner = case.policy.parse().expect("policy");
        let kept = policy(pruner, 0, d)
            .choose(&inputs, case.keep)
            .expect("choice");
        let label = format!("{pruner}, {n} x {d}, {}", case.keep);
        assert_eq!(kept.indices, case.indices, "{label}");
        let merge = case.slots.zip(case.weights);
        let merge = merge.map(|(slots, weights)| Merge { slots, weights });
        assert_eq!(kept.merge, merge, "{label}");
    }
}

fn inputs<'a>(
    rows: &'a [f32],
    d: usize,
    places: &'a [Place],
    question: &'a [f32],
    saliency: &'a [f32],
) -> Inputs<'a> {
    Inputs {
        features: Features::new(rows, d).expect("rows"),
        places,
        question: Some(question),
        saliency: Some(saliency),
    }
}

/// What holds of every choice.
fn check(pruner: Pruner, kept: &Kept, n: usize, keep: usize) {
    assert_eq!(kept.indices.len(), keep.min(n), "{pruner}");
    assert!(kept.indices.is_sorted_by(|a, b| a < b), "{pruner}");
    assert!(kept.indices.iter().all(|&i| i < n), "{pruner}");
    assert!(kept.scores.is_empty() || kept.scores.len() == n, "{pruner}");
    assert!(kept.scores.iter().all(|x| x.is_finite()), "{pruner}");
    let Some(merge) = &kept.merge else { return };
    assert_eq!((merge.slots.len(), merge.weights.len()), (n, n), "{pruner}");
    let mut sums = vec![0f32; kept.indices.len()];
    for (slot, weight) in merge.slots.iter().zip(&merge.weights) {
        sums[*slot as usize] += weight;
    }
    assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-4), "{sums:?}");
    for (slot, &row) in (0u32..).zip(&kept.indices) {
        assert_eq!(
            merge.slots[row], slot,
            "a kept row goes into its own average"
        );
    }
}

proptest! {
    #[test]
    fn choices_have_the_count_the_order_and_are_the_same_again(
        seed in 0u64..1000,
        pictures in 1usize..4,
        height in 1usize..7,
        width in 1usize..7,
        d in 1usize..20,
        keep in 1usize..200,
        coarse in any::<bool>(),
    ) {
        let places = grid_places(pictures, height, width);
        let n = places.len();
        let mut rows = numbers(seed, n * d);
        if coarse {
            // Rows that are equal, zero, or span little: ties everywhere.
            rows.iter_mut().for_each(|x| *x = (*x * 3.0).round());
        }
        let (question, saliency) = (numbers(seed + 1, d), numbers(seed + 2, n));
        for places in [places.as_slice(), &[]] {
            let inputs = inputs(&rows, d, places, &question, &saliency);
            for pruner in Pruner::ALL {
                let policy = policy(pruner, 7, d);
                let kept = policy.choose(&inputs, keep).expect("choice");
                check(pruner, &kept, n, keep);
                prop_assert_eq!(&kept, &policy.choose(&inputs, keep).expect("again"));
            }
        }
    }

    /// Policies that look at rows alone choose the same rows wherever they stand.
    #[test]
    fn choices_by_rows_follow_a_permutation(seed in 0u64..1000, n in 2usize..40, keep in 1usize..40) {
        let d = 8;
        let rows = numbers(seed, n * d);
        let (question, saliency) = (numbers(seed + 1, d), numbers(seed + 2, n));
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by_key(|&i| numbers(seed + 3, n)[i].to_bits());
        let moved: Vec<f32> = order.iter().flat_map(|&i| rows[i * d..][..d].to_vec()).collect();
        let moved_saliency: Vec<f32> = order.iter().map(|&i| saliency[i]).collect();
        for pruner in [Pruner::Attention, Pruner::Norm, Pruner::Diverse] {
            // More rows than dimensions are spanned by others: those are chosen by their order.
            if pruner == Pruner::Diverse && keep >= d {
                continue;
            }
            let policy = policy(pruner, 0, d);
            let kept = policy.choose(&inputs(&rows, d, &[], &question, &saliency), keep);
            let there = policy.choose(&inputs(&moved, d, &[], &question, &moved_saliency), keep);
            let mut back: Vec<usize> = there.expect("choice").indices.iter().map(|&i| order[i]).collect();
            back.sort_unstable();
            prop_assert_eq!(kept.expect("choice").indices, back, "{}", pruner);
        }
    }
}

#[test]
fn one_row_and_rows_that_are_all_equal_are_chosen_from() {
    for (n, value) in [(1, 0.5), (9, 0.5), (9, 0.0), (9, -2.0)] {
        let rows = vec![value; n * 4];
        let inputs = inputs(&rows, 4, &[], &[1.0; 4], &rows[..n]);
        for pruner in Pruner::ALL {
            for keep in [1, 2, 9, 20] {
                let kept = policy(pruner, 1, 4).choose(&inputs, keep).expect("choice");
                check(pruner, &kept, n, keep);
            }
        }
    }
}

#[test]
fn numbers_that_are_none_and_parts_that_are_missing_are_typed_errors() {
    let good = numbers(1, 36);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30] {
        let mut rows = good.clone();
        rows[13] = bad;
        for pruner in Pruner::ALL {
            let inputs = inputs(&rows, 4, &[], &good[..4], &rows[8..17]);
            let policy = policy(pruner, 0, 4);
            let chosen = policy.choose(&inputs, 3);
            match chosen {
                Err(error) => {
                    assert!(matches!(error, Error::Shape { .. }), "{pruner}: {error}");
                    assert!(error.to_string().contains("row"), "{pruner}: {error}");
                }
                // Who does not compare numbers, or compares large ones, may choose.
                Ok(kept) => {
                    assert!(matches!(pruner, Pruner::Grid | Pruner::Random) || bad == 1e30);
                    check(pruner, &kept, 9, 3);
                }
            }
        }
    }
    let whole = inputs(&good, 4, &[], &good[..4], &good[..9]);
    let missing = [
        (
            Pruner::Learned,
            Inputs {
                question: None,
                ..whole
            },
        ),
        (
            Pruner::Diverse,
            Inputs {
                question: None,
                ..whole
            },
        ),
        (
            Pruner::Diverse,
            Inputs {
                question: Some(&good[..3]),
                ..whole
            },
        ),
        (
            Pruner::Attention,
            Inputs {
                saliency: None,
                ..whole
            },
        ),
        (
            Pruner::Attention,
            Inputs {
                saliency: Some(&good[..8]),
                ..whole
            },
        ),
        (
            Pruner::Grid,
            Inputs {
                places: &grid_places(1, 2, 2),
                ..whole
            },
        ),
    ];
    for (pruner, inputs) in missing {
        let error = policy(pruner, 0, 4)
            .choose(&inputs, 3)
            .expect_err("refused");
        assert!(matches!(error, Error::Shape { .. }), "{pruner}: {error}");
    }
    let error = policy(Pruner::Norm, 0, 4)
        .choose(&whole, 0)
        .expect_err("none");
    assert!(
        matches!(error, Error::Argument { name: "keep", .. }),
        "{error}"
    );
    assert!("best".parse::<Pruner>().is_err());
    let error = Pruner::Learned.policy(0, None).err().expect("not trained");
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
}

#[test]
fn random_choice_depends_on_seed_and_rows_alone() {
    let (rows, others) = (numbers(1, 400), numbers(2, 400));
    let choose = |rows: &[f32], seed| {
        let inputs = inputs(rows, 4, &[], &[1.0; 4], &rows[..100]);
        policy(Pruner::Random, seed, 4)
            .choose(&inputs, 10)
            .expect("choice")
            .indices
    };
    assert_eq!(choose(&rows, 3), choose(&rows, 3));
    assert_ne!(choose(&rows, 3), choose(&rows, 4));
    assert_ne!(choose(&rows, 3), choose(&others, 3));
}
