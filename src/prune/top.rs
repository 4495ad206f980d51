//! The greatest of a list.

/// Indices of the `k` greatest scores, ascending; of equal ones the lower index.
///
/// `scores` are finite, `k` is at most their number.
pub(super) fn top_k(scores: &[f32], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    let before = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
    if k > 0 && k < order.len() {
        order.select_nth_unstable_by(k - 1, before);
    }
    order.truncate(k);
    order.sort_unstable();
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn top_k_with_ties_keeps_lower_index() {
        let scores = [1.0, 3.0, 2.0, 3.0, 2.0, 2.0];
        let cases: [(usize, &[usize]); 5] = [
            (0, &[]),
            (1, &[1]),
            (3, &[1, 2, 3]),
            (4, &[1, 2, 3, 4]),
            (6, &[0, 1, 2, 3, 4, 5]),
        ];
        for (k, expected) in cases {
            assert_eq!(top_k(&scores, k), expected, "{k}");
        }
    }
}
