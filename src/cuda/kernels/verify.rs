//! Greedy verification of drafts in one launch.
//!
//! | argument | shape | dtype | |
//! |----------|-------|-------|-|
//! | `step` | - | [`Step`](super::Step) | moved on |
//! | `best` | `[9]` | u64 | zeros, before and after |
//! | `out` | `[max_out]` | i32 | the answer's tokens, written from `n_out` on |
//! | `logits` | `[rows, vocab]` | f16 or f32 | row `i` follows the first `i` drafts; rows beyond the drafts are not read |
//!
//! Takes the longest prefix of the drafts that the argmax of the rows agrees with, and the argmax behind
//! it; the lowest id among equals. A closing id or the length limit ends the answer early, NaN and
//! rows without a number above minus infinity end it, too. After the end launches do nothing.
//!
//! Floor: the bytes of the rows that are read, once: 1.52 MB for five rows of 151,936 halves.
//!
//! Matches `decode::generate` without drafter probabilities (temperature 0).

use super::Dims;

/// Threads of a block, as in `verify.cu`.
const THREADS: u32 = 256;

/// Logits that a block reads, about: four packs of 16 bytes a thread.
const SHARE: u32 = THREADS * 4 * 8;

/// Launch for `rows` rows of `vocab` logits.
pub fn dims(vocab: u32, rows: u32) -> Dims {
    Dims {
        grid: [vocab.div_ceil(SHARE).max(1), rows, 1],
        threads: THREADS,
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::super::machines::{Arg, Machine, Numbers, bytes, gpu_machine, host_machine};
    use super::super::{MAX_DRAFT, MAX_EOS, Step, Stop};
    use super::*;

    /// Written where nothing may be written.
    const UNTOUCHED: i32 = -7;

    /// What the kernel computes.
    fn reference(step: &mut Step, logits: &[f32], vocab: usize, out: &mut [i32]) {
        if step.stop != Stop::Running as i32 {
            return;
        }
        step.taken = 0;
        let n_draft = step.n_draft as usize;
        for row in 0..=n_draft {
            let logits = &logits[row * vocab..][..vocab];
            let mut best = (f32::NEG_INFINITY, None);
            for (id, &logit) in logits.iter().enumerate() {
                if logit > best.0 {
                    best = (logit, Some(id as i32));
                }
            }
            let is_nan = logits.iter().any(|logit| logit.is_nan());
            let (false, Some(id)) = (is_nan, best.1) else {
                let stop = if is_nan {
                    Stop::NanLogits
                } else {
                    Stop::NoLogits
                };
                step.stop = stop as i32;
                break;
            };
            out[step.n_out as usize] = id;
            step.n_out += 1;
            step.cache_len += 1;
            step.position += 1;
            step.taken += 1;
            step.newest = id;
            if step.eos[..step.n_eos as usize].contains(&id) {
                step.stop = Stop::Eos as i32;
            } else if step.n_out >= step.max_out {
                step.stop = Stop::Length as i32;
            }
            let is_accepted = row < n_draft && step.draft[row] == id;
            if step.stop != Stop::Running as i32 || !is_accepted {
                break;
            }
        }
        step.n_draft = 0;
    }

    struct Case {
        step: Step,
        rows: usize,
        logits: Vec<f32>,
    }

    /// Rows that often agree with the drafts, with ties, sometimes broken.
    fn case(numbers: &mut Numbers, vocab: usize) -> Case {
        let rows = [1, 3, 5, 9][numbers.below(4)];
        let n_draft = numbers.below(rows);
        let mut logits: Vec<f32> = (0..rows * vocab)
            .map(|_| numbers.below(64) as f32 / 4.0 - 12.0)
            .collect();
        let mut draft = [0; MAX_DRAFT];
        for row in 0..n_draft {
            let id = numbers.below(vocab);
            draft[row] = id as i32;
            if numbers.below(4) > 0 {
                logits[row * vocab + id] = 20.0;
            }
        }
        let broken = numbers.below(rows);
        match numbers.below(12) {
            0 => logits[broken * vocab + numbers.below(vocab)] = f32::NAN,
            1 => logits[broken * vocab..][..vocab].fill(f32::NEG_INFINITY),
            2 => logits[broken * vocab..][..vocab].fill(-0.0),
            _ => {}
        }
        let n_out = numbers.below(4) as i32;
        let step = Step {
            cache_len: numbers.below(100) as i32,
            position: numbers.below(1000) as i32,
            newest: 3,
            n_draft: n_draft as i32,
            draft,
            n_out,
            max_out: n_out + 1 + numbers.below(12) as i32,
            stop: if numbers.below(10) == 0 { 1 } else { 0 },
            taken: 2,
            n_eos: 2,
            eos: [0; MAX_EOS].map(|_| numbers.below(vocab) as i32),
            ticket: 0,
        };
        Case { step, rows, logits }
    }

    fn check(machine: &Machine<'_>, seed: u64, is_half: bool) {
        let mut numbers = Numbers(seed);
        for vocab in [1, 31, 32, 33, 255, 1025, 20_000] {
            for _ in 0..6 {
                let mut case = case(&mut numbers, vocab);
                let n_out = case.step.max_out as usize;
                let (mut out, mut expected_out) =
                    (vec![UNTOUCHED; n_out + 4], vec![UNTOUCHED; n_out + 4]);
                let mut expected = case.step;
                reference(&mut expected, &case.logits, vocab, &mut expected_out);

                let mut words = case.step.to_words();
                let mut best = [0u64; MAX_DRAFT + 1];
                // Every logit of a case is a half.
                let mut halves: Vec<f16> = case.logits.iter().map(|&l| f16::from_f32(l)).collect();
                let logits = match is_half {
                    true => bytes(&mut halves),
                    false => bytes(&mut case.logits),
                };
                let entry = if is_half { "verify_f16" } else { "verify_f32" };
                let mut args = [
                    Arg::Memory(bytes(&mut words)),
                    Arg::Memory(bytes(&mut best)),
                    Arg::Memory(bytes(&mut out)),
                    Arg::Memory(logits),
                    Arg::Int(vocab as i32),
                ];
                machine(entry, dims(vocab as u32, case.rows as u32), &mut args);
                let what = format!(
                    "seed {seed}, {} rows of {vocab}: {:?}",
                    case.rows, case.step
                );
                assert_eq!(Step::from_words(&words), expected, "{what}");
                assert_eq!(out, expected_out, "{what}");
                assert_eq!(best, [0; MAX_DRAFT + 1], "{what}");
            }
        }
    }

    #[test]
    fn verify_on_the_host_takes_what_the_reference_takes_in_any_order_of_threads() {
        for seed in 0..4 {
            let machine = host_machine(seed);
            check(&machine, u64::from(seed), seed % 2 == 0);
        }
    }

    #[test]
    #[ignore = "needs a GPU"]
    fn gpu_verify_takes_what_the_reference_takes() {
        let machine = gpu_machine();
        for seed in 0..16 {
            check(&machine, seed, seed % 2 == 0);
        }
    }

    #[test]
    fn state_is_read_back_as_it_was_written() {
        let words: [i32; Step::WORDS] = std::array::from_fn(|at| at as i32 + 1);
        assert_eq!(Step::from_words(&words).to_words(), words);
        assert_eq!(Step::from_words(&words).ticket, Step::WORDS as i32);
        assert_eq!(Step::WORDS, 10 + MAX_DRAFT + MAX_EOS);
    }
}
