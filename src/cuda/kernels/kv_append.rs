//! New rows of the KV cache to their slots, in one launch for all layers.
//!
//! | argument | shape | dtype | |
//! |----------|-------|-------|-|
//! | `step` | - | [`Step`](super::Step) | read: `cache_len`, `n_draft`, `stop` |
//! | `cache` | `[heads, capacity, packs]` | 16 bytes | keys and values of all layers and heads |
//! | `fresh` | `[heads, rows, packs]` | 16 bytes | the decoder's new rows, in the same order |
//!
//! Row `i` of the newest token and its drafts goes to slot `cache_len + i`. Rows beyond the drafts are not
//! read, slots beyond the capacity not written. What `verify` does not take is overwritten by the next
//! pass: rolling back moves no data.
//!
//! Floor: each new row is read and written once.

use super::Dims;

/// Threads of a block.
const THREADS: u32 = 256;

/// Launch for `rows` new rows of `packs` times 16 bytes in each of `heads` heads; `None` if that is
/// more than a launch can have.
pub fn dims(heads: u32, rows: u32, packs: u32) -> Option<Dims> {
    let n = u64::from(heads) * u64::from(rows) * u64::from(packs);
    let blocks = u32::try_from(n.div_ceil(u64::from(THREADS))).ok()?;
    (blocks <= i32::MAX as u32).then_some(Dims {
        grid: [blocks.max(1), 1, 1],
        threads: THREADS,
    })
}

#[cfg(test)]
mod tests {
    use super::super::Step;
    use super::super::machines::{Arg, Machine, Numbers, bytes, gpu_machine, host_machine};
    use super::*;

    fn check(machine: &Machine<'_>, seed: u64) {
        let mut numbers = Numbers(seed);
        for _ in 0..12 {
            let heads = [1, 2, 33][numbers.below(3)];
            let rows = [1, 3, 5, 9][numbers.below(4)];
            let packs = [1, 8, 31][numbers.below(3)];
            let capacity = rows + numbers.below(40);
            let step = Step {
                // Sometimes too full for all rows.
                cache_len: numbers.below(capacity + 1) as i32,
                n_draft: numbers.below(rows) as i32,
                max_out: 1,
                stop: i32::from(numbers.below(6) == 0),
                ..Step::default()
            };
            let mut any = |n: usize| -> Vec<u32> {
                (0..n * 4).map(|_| numbers.below(1 << 30) as u32).collect()
            };
            let (mut cache, mut fresh) = (any(heads * capacity * packs), any(heads * rows * packs));
            let mut expected = cache.clone();
            let width = packs * 4;
            for head in 0..heads {
                for row in 0..=step.n_draft as usize {
                    let slot = step.cache_len as usize + row;
                    if step.stop == 0 && slot < capacity {
                        expected[(head * capacity + slot) * width..][..width]
                            .copy_from_slice(&fresh[(head * rows + row) * width..][..width]);
                    }
                }
            }
            let mut words = step.to_words();
            let dims = dims(heads as u32, rows as u32, packs as u32).expect("few");
            let mut args = [
                Arg::Memory(bytes(&mut words)),
                Arg::Memory(bytes(&mut cache)),
                Arg::Memory(bytes(&mut fresh)),
                Arg::Int(heads as i32),
                Arg::Int(capacity as i32),
                Arg::Int(rows as i32),
                Arg::Int(packs as i32),
            ];
            machine("kv_append", dims, &mut args);
            assert_eq!(
                cache, expected,
                "seed {seed}: {heads} x {rows} x {packs}, {step:?}"
            );
            assert_eq!(words, step.to_words());
        }
    }

    #[test]
    fn kv_append_on_the_host_fills_the_slots_of_the_rows_that_were_fed() {
        for seed in 0..4 {
            check(&host_machine(seed), u64::from(seed));
        }
    }

    #[test]
    #[ignore = "needs a GPU"]
    fn gpu_kv_append_fills_the_slots_of_the_rows_that_were_fed() {
        let machine = gpu_machine();
        for seed in 0..16 {
            check(&machine, seed);
        }
    }

    #[test]
    fn launch_that_is_too_large_is_none() {
        assert!(dims(u32::MAX, u32::MAX, 1).is_none());
        assert_eq!(dims(48, 5, 8).expect("small").grid, [8, 1, 1]);
    }
}
