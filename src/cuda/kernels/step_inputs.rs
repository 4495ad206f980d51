//! What the decoder reads for a step, in one launch.
//!
//! | argument | shape | dtype | |
//! |----------|-------|-------|-|
//! | `step` | - | [`Step`](super::Step) | read |
//! | `embeds` | `[rows, d]` | f16 or f32 | embeddings of the newest token and its drafts |
//! | `positions` | `[rows]` | i64 | from `position` on |
//! | `mask` | `[capacity + rows]` | i64 | 1 for slots of the cache in use and for rows that are fed |
//! | `table` | `[vocab, d]` | f32, f16 or i8 | embeddings |
//! | `scales` | `[vocab]` | f32 | factor of each row, with i8; else not read |
//!
//! Rows of a bucket beyond the drafts repeat the newest token and are masked. An id that the table does not
//! have is embedded as zeros: it is no draft that could be accepted.

use super::Dims;

/// Threads of a block.
const THREADS: u32 = 256;

/// Launch for `rows` rows.
pub fn dims(rows: u32) -> Dims {
    Dims {
        grid: [rows.max(1), 1, 1],
        threads: THREADS,
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::super::machines::{Arg, Machine, Numbers, bytes, gpu_machine, host_machine};
    use super::super::{MAX_DRAFT, Step};
    use super::*;

    /// Elements of a row.
    const D: usize = 37;
    const VOCAB: usize = 50;

    fn check(machine: &Machine<'_>, seed: u64) {
        let mut numbers = Numbers(seed);
        for (table_type, out_type) in [
            ("f32", "f32"),
            ("f16", "f32"),
            ("i8", "f32"),
            ("f16", "f16"),
            ("i8", "f16"),
        ] {
            let rows = [1, 3, 5, 9][numbers.below(4)];
            let capacity = 1 + numbers.below(700);
            let mut draft = [0; MAX_DRAFT];
            for id in &mut draft {
                // Sometimes none of the table's.
                *id = numbers.below(VOCAB + 4) as i32 - 2;
            }
            let step = Step {
                cache_len: numbers.below(capacity) as i32,
                position: numbers.below(2000) as i32,
                newest: numbers.below(VOCAB) as i32,
                n_draft: numbers.below(rows) as i32,
                draft,
                max_out: 1,
                stop: i32::from(numbers.below(8) == 0),
                ..Step::default()
            };
            let mut codes: Vec<i8> = (0..VOCAB * D).map(|_| numbers.below(255) as i8).collect();
            let mut scales: Vec<f32> = (0..VOCAB)
                .map(|_| 0.25 + numbers.below(7) as f32 / 8.0)
                .collect();
            let mut floats: Vec<f32> = codes.iter().map(|&c| f32::from(c) / 8.0).collect();
            let mut halves: Vec<f16> = floats.iter().map(|&f| f16::from_f32(f)).collect();
            let element = |id: usize, at: usize| match table_type {
                "i8" => f32::from(codes[id * D + at]) * scales[id],
                _ => floats[id * D + at],
            };
            // Halves hold these numbers.
            let mut expected = vec![-1.0f32; rows * D];
            let mut expected_positions = vec![-1i64; rows];
            let mut expected_mask = vec![-1i64; capacity + rows];
            if step.stop == 0 {
                for row in 0..rows {
                    let is_fed = row as i32 <= step.n_draft;
                    let id = if row > 0 && is_fed {
                        step.draft[row - 1]
                    } else {
                        step.newest
                    };
                    for at in 0..D {
                        let known = usize::try_from(id).ok().filter(|&id| id < VOCAB);
                        expected[row * D + at] = known.map_or(0.0, |id| element(id, at));
                    }
                    expected_positions[row] = i64::from(step.position) + row as i64;
                    expected_mask[capacity + row] = i64::from(is_fed);
                }
                for (slot, mask) in expected_mask[..capacity].iter_mut().enumerate() {
                    *mask = i64::from((slot as i32) < step.cache_len);
                }
            }
            let mut words = step.to_words();
            let (mut wide, mut narrow) =
                (vec![-1.0f32; rows * D], vec![f16::from_f32(-1.0); rows * D]);
            let (mut positions, mut mask) = (vec![-1i64; rows], vec![-1i64; capacity + rows]);
            let mut args = [
                Arg::Memory(bytes(&mut words)),
                Arg::Memory(if out_type == "f16" {
                    bytes(&mut narrow)
                } else {
                    bytes(&mut wide)
                }),
                Arg::Memory(bytes(&mut positions)),
                Arg::Memory(bytes(&mut mask)),
                Arg::Memory(match table_type {
                    "i8" => bytes(&mut codes),
                    "f16" => bytes(&mut halves),
                    _ => bytes(&mut floats),
                }),
                if table_type == "i8" {
                    Arg::Memory(bytes(&mut scales))
                } else {
                    Arg::Null
                },
                Arg::Int(VOCAB as i32),
                Arg::Int(D as i32),
                Arg::Int(rows as i32),
                Arg::Int(capacity as i32),
            ];
            let entry = format!("step_inputs_{table_type}_{out_type}");
            machine(&entry, dims(rows as u32), &mut args);
            if out_type == "f16" {
                wide = narrow.iter().map(|h| h.to_f32()).collect();
            }
            let what = format!("seed {seed}, {entry}: {step:?}");
            assert_eq!(wide, expected, "{what}");
            assert_eq!(
                (positions, mask),
                (expected_positions, expected_mask),
                "{what}"
            );
            assert_eq!(words, step.to_words());
        }
    }

    #[test]
    fn step_inputs_on_the_host_are_those_of_the_state() {
        for seed in 0..8 {
            check(&host_machine(seed), u64::from(seed));
        }
    }

    #[test]
    #[ignore = "needs a GPU"]
    fn gpu_step_inputs_are_those_of_the_state() {
        let machine = gpu_machine();
        for seed in 0..32 {
            check(&machine, seed);
        }
    }
}
