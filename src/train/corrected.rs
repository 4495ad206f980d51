//! Learning from drafts that the target refused.
//!
//! The target is asked once more, so that a correction brings all that any item does; tokens that a drafter got wrong count
//! more. After arXiv 2510.22641, which learns from what verification refused.

use std::collections::BTreeSet;
use std::path::Path;

use crate::corrections::Correction;
use crate::digest::sha256_file;
use crate::items::Item;
use crate::model::DraftKind;

/// How much a token counts that a drafter got wrong.
const CORRECTED: f32 = 4.0;

/// The corrections that can be learned from: of pictures that are still what they were, and not to be judged.
pub(super) fn usable<'a>(
    corrections: &'a [Correction],
    items: &[Item],
    is_held: &dyn Fn(usize) -> bool,
) -> Vec<&'a Correction> {
    if corrections.is_empty() {
        return Vec::new();
    }
    let digest = |path: &Path| sha256_file(path, |_| {}).map(|digest| digest.sha256);
    let held = items
        .iter()
        .enumerate()
        .filter(|(index, _)| is_held(*index));
    let held: BTreeSet<String> = held.filter_map(|(_, i)| digest(&i.image).ok()).collect();
    let is_usable = |correction: &&Correction| {
        let is_same = digest(&correction.image).is_ok_and(|d| d == correction.image_sha256);
        if !is_same {
            let image = correction.image.display();
            tracing::warn!("skipped: {image}: not the picture of the refused draft any more");
        }
        is_same && !held.contains(&correction.image_sha256)
    };
    corrections.iter().filter(is_usable).collect()
}

/// The picture and the question, to be asked once more.
pub(super) fn item_of(correction: &Correction) -> Item {
    Item {
        image: correction.image.clone(),
        prompt: correction.prompt.clone(),
        answer: None,
        family: None,
        token_ids: None,
        eos: None,
        origin: correction.image.display().to_string(),
    }
}

/// How much each token of an answer counts: more where a draft of this kind was refused, as long as the answer is the one
/// that it was refused in.
pub(super) fn weights(correction: &Correction, answer: &[u32], kind: DraftKind) -> Vec<f32> {
    let mut weights = vec![1.0; answer.len()];
    for refused in &correction.refused {
        let to = ..=refused.index;
        let is_same = answer.get(to).is_some() && answer.get(to) == correction.token_ids.get(to);
        if is_same && refused.drafter == kind.name() {
            weights[refused.index] = CORRECTED;
        }
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corrections::Refused;

    #[test]
    fn refused_tokens_count_more_where_the_answer_is_still_the_same() {
        let refused = |drafter: &str, index, chosen| Refused {
            drafter: drafter.to_owned(),
            index,
            drafted: 99,
            chosen,
        };
        let correction = Correction {
            image: "/1.png".into(),
            image_sha256: String::new(),
            prompt: "a question".to_owned(),
            token_ids: vec![4, 5, 6, 7],
            refused: vec![
                refused("head", 1, 5),
                refused("early-exit", 2, 6),
                refused("head", 3, 7),
            ],
            decoder: String::new(),
        };
        let of = |answer: &[u32]| weights(&correction, answer, DraftKind::Head);
        assert_eq!(of(&[4, 5, 6, 7]), [1.0, CORRECTED, 1.0, CORRECTED]);
        assert_eq!(of(&[4, 5, 8, 7]), [1.0, CORRECTED, 1.0, 1.0]);
        assert_eq!(of(&[9, 5]), [1.0, 1.0]);
        assert_eq!(of(&[]), [0f32; 0]);
    }
}
