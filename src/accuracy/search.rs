//! Finding few layers to leave out so that the rest is good enough.

use std::collections::BTreeSet;

use crate::error::Result;

/// Layers that are tried to be given back once enough are left out.
const MOST_RETURNED: usize = 8;

/// Says whether it is enough to leave these layers out, and what was measured.
pub type Measure<'a, T> = dyn FnMut(&BTreeSet<usize>) -> Result<(bool, T)> + 'a;

/// What a trial said: whether it is good enough, and by how much.
pub struct Trial<T> {
    /// The layers that were left out, by rank.
    pub left_out: BTreeSet<usize>,
    /// Whether that was enough.
    pub holds: bool,
    /// What was measured.
    pub value: T,
}

/// Looks for a small set of the `n` layers, the worst first, without which `measure` says yes.
///
/// 1, 2, 4, 8, … of the worst are left out until it does, or all are. Between the last that was too
/// few and the first that was enough it bisects. What is left out then is given back one by one,
/// the least bad first, where it does no harm; at most eight are tried. What is returned was
/// measured as it is, the first measurement, of nothing left out, beside it.
///
/// # Errors
/// Those of `measure`.
pub fn search<T: Clone>(n: usize, measure: &mut Measure<'_, T>) -> Result<(Trial<T>, T)> {
    let mut trial = |left_out: BTreeSet<usize>| -> Result<Trial<T>> {
        let (holds, value) = measure(&left_out)?;
        Ok(Trial {
            left_out,
            holds,
            value,
        })
    };
    let mut best = trial(BTreeSet::new())?;
    let before = best.value.clone();
    let mut too_few = 0;
    while !best.holds && best.left_out.len() < n {
        too_few = best.left_out.len();
        let more = (2 * too_few).clamp(1, n);
        best = trial((0..more).collect())?;
    }
    if !best.holds || best.left_out.is_empty() {
        return Ok((best, before));
    }
    while best.left_out.len() > too_few + 1 {
        let middle = (too_few + best.left_out.len()) / 2;
        let next = trial((0..middle).collect())?;
        match next.holds {
            true => best = next,
            false => too_few = middle,
        }
    }
    // The last one is needed: without it there were too few.
    let candidates: Vec<usize> = best.left_out.iter().rev().skip(1).copied().collect();
    for layer in candidates.into_iter().take(MOST_RETURNED) {
        let mut fewer = best.left_out.clone();
        fewer.remove(&layer);
        let next = trial(fewer)?;
        if next.holds {
            best = next;
        }
    }
    Ok((best, before))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches `n` layers of which all in `bad` have to be left out; returns what was left out and
    /// the number of trials.
    fn found(n: usize, bad: &[usize]) -> (bool, Vec<usize>, usize) {
        let mut trials = 0;
        let (trial, before) = search(n, &mut |left_out| {
            trials += 1;
            let missing = bad.iter().filter(|b| !left_out.contains(b)).count();
            Ok((missing == 0, missing))
        })
        .expect("search");
        assert_eq!(before, bad.len());
        (trial.holds, trial.left_out.into_iter().collect(), trials)
    }

    #[test]
    fn nothing_is_left_out_of_what_is_good_enough() {
        assert_eq!(found(50, &[]), (true, vec![], 1));
    }

    #[test]
    fn bad_layers_are_found_wherever_they_rank() {
        assert_eq!(found(50, &[0]), (true, vec![0], 2));
        assert_eq!(found(50, &[0, 1, 2]).1, [0, 1, 2]);
        // Not first in the ranking: those before it are given back.
        assert_eq!(found(50, &[4]).1, [4]);
        assert_eq!(found(50, &[2, 5]).1, [2, 5]);
        assert_eq!(found(1, &[0]).1, [0]);
        // Too many to try each: what is left out is enough all the same.
        let (holds, left_out, trials) = found(100, &[60]);
        assert!(holds && left_out.contains(&60) && left_out.len() == 53);
        assert!(trials < 30, "{trials}");
    }

    #[test]
    fn what_never_holds_is_returned_with_everything_left_out() {
        let (holds, left_out, _) = found(6, &[6]);
        assert!(!holds);
        assert_eq!(left_out, [0, 1, 2, 3, 4, 5]);
        assert!(!found(0, &[0]).0);
    }

    #[test]
    fn error_of_a_measurement_ends_the_search() {
        let mut n = 0;
        let result = search::<()>(9, &mut |_| {
            n += 1;
            match n {
                3 => Err(crate::Error::Cancelled),
                _ => Ok((false, ())),
            }
        });
        assert!(result.is_err());
        assert_eq!(n, 3);
    }
}
