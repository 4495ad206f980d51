//! What backends have in common when they ask a policy which visual rows stay.

use super::Prune;
use crate::cpu::Embedding;
use crate::error::Result;
use crate::prune::{Features, Inputs, Kept};

/// Asks the policy of a request about the candidates' rows; returns what stays, and what becomes of it where the
/// policy averages, `[kept, d]`.
///
/// # Errors
/// Those of the policy.
pub(super) fn ask_policy(
    request: &Prune<'_>,
    features: Features<'_>,
    embedding: &Embedding,
    saliency: Option<&[f32]>,
) -> Result<(Kept, Option<Vec<f32>>)> {
    let question = match request.policy.needs().question {
        true => Some(embedding.mean(request.question)?),
        false => None,
    };
    let inputs = Inputs {
        features,
        places: request.places,
        question: question.as_deref(),
        saliency,
    };
    let kept = request.policy.choose(&inputs, request.keep)?;
    let merge = kept.merge.as_ref();
    let merged = merge.map(|merge| merge.apply(&features, kept.indices.len()));
    Ok((kept, merged))
}
