//! What the decoder reads for a prompt, in one launch: embeddings of its ids, and rows of the frame in
//! the slots.
//!
//! | argument | shape | dtype | |
//! |----------|-------|-------|-|
//! | `rows` | `[n, d]` | f16 or f32 | written |
//! | `source` | `[n]` | i32 | an id, or `-1 - r` for visual row `r`, or [`THERE`] for a row that stays as it is |
//! | `table` | `[vocab, d]` | f32, f16 or i8 | embeddings |
//! | `scales` | `[vocab]` | f32 | factor of each row, with i8; else not read |
//! | `visual` | `[m, d]` | as `rows` | rows of the frame |
//!
//! An id that the table does not have is embedded as zeros; that a visual row is there is the caller's
//! to see to.
//!
//! Floor: each row is read and written once.

use super::Dims;

/// Source of a row that another kernel has written.
pub const THERE: i32 = i32::MIN;

/// Threads of a block.
const THREADS: u32 = 256;

/// Launch for a prompt of `n` rows.
pub fn dims(n: u32) -> Dims {
    Dims {
        grid: [n.max(1), 1, 1],
        threads: THREADS,
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::super::machines::{Arg, Machine, Numbers, bytes, gpu_machine, host_machine};
    use super::*;

    /// Elements of a row.
    const D: usize = 300;
    const VOCAB: usize = 20;
    const VISUAL: usize = 7;

    fn check(machine: &Machine<'_>, seed: u64) {
        let mut numbers = Numbers(seed);
        for (table_type, out_type) in [
            ("f32", "f32"),
            ("f16", "f32"),
            ("i8", "f32"),
            ("f16", "f16"),
            ("i8", "f16"),
        ] {
            let n = 1 + numbers.below(30);
            // Sometimes an id that is none of the table's.
            let from =
                |numbers: &mut Numbers| numbers.below(VOCAB + 2 + VISUAL) as i32 - VISUAL as i32;
            let mut source: Vec<i32> = (0..n).map(|_| from(&mut numbers)).collect();
            source[numbers.below(n)] = THERE;
            let mut codes: Vec<i8> = (0..VOCAB * D).map(|_| numbers.below(255) as i8).collect();
            let mut scales: Vec<f32> = (0..VOCAB)
                .map(|_| 0.25 + numbers.below(7) as f32 / 8.0)
                .collect();
            let mut floats: Vec<f32> = codes.iter().map(|&c| f32::from(c) / 8.0).collect();
            let mut halves: Vec<f16> = floats.iter().map(|&f| f16::from_f32(f)).collect();
            let mut visual: Vec<f32> = (0..VISUAL * D)
                .map(|_| numbers.below(64) as f32 / 4.0)
                .collect();
            let mut visual_halves: Vec<f16> = visual.iter().map(|&f| f16::from_f32(f)).collect();
            let element = |from: i32, at: usize| match usize::try_from(from) {
                Err(_) if from == THERE => -1.0,
                Err(_) => visual[(-1 - from) as usize * D + at],
                Ok(id) if id >= VOCAB => 0.0,
                Ok(id) if table_type == "i8" => f32::from(codes[id * D + at]) * scales[id],
                Ok(id) => floats[id * D + at],
            };
            let expected: Vec<f32> = source
                .iter()
                .flat_map(|&from| (0..D).map(move |at| (from, at)))
                .map(|(from, at)| element(from, at))
                .collect();
            let (mut wide, mut narrow) = (vec![-1.0f32; n * D], vec![f16::from_f32(-1.0); n * D]);
            let is_half = out_type == "f16";
            let mut args = [
                Arg::Memory(if is_half {
                    bytes(&mut narrow)
                } else {
                    bytes(&mut wide)
                }),
                Arg::Memory(bytes(&mut source)),
                Arg::Memory(match table_type {
                    "i8" => bytes(&mut codes),
                    "f16" => bytes(&mut halves),
                    _ => bytes(&mut floats),
                }),
                match table_type {
                    "i8" => Arg::Memory(bytes(&mut scales)),
                    _ => Arg::Null,
                },
                Arg::Memory(match is_half {
                    true => bytes(&mut visual_halves),
                    false => bytes(&mut visual),
                }),
                Arg::Int(VOCAB as i32),
                Arg::Int(D as i32),
            ];
            let entry = format!("prompt_rows_{table_type}_{out_type}");
            machine(&entry, dims(n as u32), &mut args);
            if is_half {
                wide = narrow.iter().map(|h| h.to_f32()).collect();
            }
            assert_eq!(wide, expected, "seed {seed}, {entry}");
        }
    }

    #[test]
    fn prompt_rows_on_the_host_are_embeddings_and_visual_rows() {
        for seed in 0..4 {
            check(&host_machine(seed), u64::from(seed));
        }
    }

    #[test]
    #[ignore = "needs a GPU"]
    fn gpu_prompt_rows_are_embeddings_and_visual_rows() {
        let machine = gpu_machine();
        for seed in 0..32 {
            check(&machine, seed);
        }
    }
}
