//! Which visual tokens the model reads.

use super::answer::VisualTokens;
use super::open::Pipeline;
use crate::backend::{Prefill, Prune};
use crate::error::{Error, Result};
use crate::preprocess::View;
use crate::prune::{Keep, Place, Policy, Pruner, places};

/// Where visual tokens stand in the sequence once others were dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Positions {
    /// Where they stood, with gaps between.
    #[default]
    Original,
    /// One behind the other.
    Packed,
}

/// Which visual tokens the model reads; [`Pruning::default`] is all that see the frame.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Pruning {
    /// The share of them that stays.
    pub keep: Keep,
    /// Who chooses.
    pub pruner: Pruner,
    /// Where those that stay stand.
    pub positions: Positions,
    /// Seed of a policy that draws.
    pub seed: u64,
}

impl Pruning {
    /// The policy, if something is to be dropped.
    pub(super) fn policy(&self) -> Option<Box<dyn Policy>> {
        (self.keep < Keep::ALL).then(|| self.pruner.policy(self.seed))
    }
}

/// Visual tokens of a frame that was encoded.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    /// Where the frame's pixels went.
    pub(super) view: View,
    /// How many tokens there are.
    pub(super) total: usize,
}

impl Pipeline {
    /// Chooses the visual tokens that the decoder reads; returns them and the prompt's ids and their
    /// positions without the others.
    ///
    /// Those that see nothing but padding never stay; of the rest `policy` chooses, if there is one.
    pub(super) fn prune(
        &mut self,
        pruning: &Pruning,
        policy: Option<&dyn Policy>,
        question: &str,
        all_ids: &[u32],
        seen: Seen,
    ) -> Result<(VisualTokens, Vec<u32>, Vec<u32>)> {
        let Seen { view, total } = seen;
        let image_token = self.config.image_token_id;
        let takes_positions = self.backend.takes_positions();
        let all_places = places(&view, total);
        let candidates = match (&all_places, takes_positions) {
            (Some(places), true) => visible(&view, places),
            _ => (0..total).collect(),
        };
        let (ids, positions) = drop_slots(all_ids, image_token, &candidates, total)?;
        let mut visual = VisualTokens {
            total,
            kept: candidates.len(),
            view: Some(view),
            ..VisualTokens::default()
        };
        let Some(policy) = policy.filter(|_| !candidates.is_empty()) else {
            visual.indices = candidates;
            return Ok((visual, ids, positions));
        };
        let keep = pruning.keep.count(candidates.len(), total);
        if pruning.keep.is_below_one(candidates.len()) {
            tracing::warn!(
                "--keep {} is less than one of {} visual tokens: one is kept",
                pruning.keep.share(),
                candidates.len()
            );
        }
        let at = |&token: &usize| all_places.as_ref().and_then(|all| all.get(token).copied());
        let places: Option<Vec<Place>> = candidates.iter().map(at).collect();
        let question = match policy.needs().question {
            true => self.text.question(question)?,
            false => Vec::new(),
        };
        let chosen = self.backend.prune(&Prune {
            policy,
            keep,
            candidates: &candidates,
            places: places.as_deref().unwrap_or_default(),
            question: &question,
            prompt: Prefill {
                ids: &ids,
                positions: &positions,
                visual: &candidates,
                image_token,
                reserve: 0,
            },
        })?;
        if !chosen.scores.is_empty() {
            visual.scores = vec![f32::NAN; total];
            for (&token, score) in candidates.iter().zip(chosen.scores) {
                visual.scores[token] = score;
            }
        }
        visual.indices = chosen.indices.iter().map(|&i| candidates[i]).collect();
        visual.kept = visual.indices.len();
        visual.pruner = Some(policy.name());
        let (ids, mut positions) = drop_slots(all_ids, image_token, &visual.indices, total)?;
        if pruning.positions == Positions::Packed || !takes_positions {
            positions = (0u32..).take(ids.len()).collect();
        }
        Ok((visual, ids, positions))
    }
}

/// Visual tokens that see at least one pixel of the frame: padding is dropped before prefill.
fn visible(view: &View, places: &[Place]) -> Vec<usize> {
    let side = places.iter().map(|place| place.column + 1).max();
    let cell = view.side / side.unwrap_or(1);
    let sees = |place: &Place| {
        let [x0, y0, x1, y1] = view.content_of(place.picture);
        let (x, y) = (place.column * cell, place.row * cell);
        x < x1 && x + cell > x0 && y < y1 && y + cell > y0
    };
    let tokens = places.iter().enumerate();
    tokens
        .filter(|(_, place)| sees(place))
        .map(|(token, _)| token)
        .collect()
}

/// Ids and positions without the slots of visual tokens that were dropped.
fn drop_slots(
    ids: &[u32],
    image_token: u32,
    kept: &[usize],
    total: usize,
) -> Result<(Vec<u32>, Vec<u32>)> {
    let slots = ids.iter().filter(|&&id| id == image_token).count();
    if slots != total {
        return Err(Error::Shape {
            name: "image_features".to_owned(),
            expected: format!("{slots} visual tokens, as the prompt has slots"),
            actual: total.to_string(),
        });
    }
    let mut slot = 0;
    let mut kept = kept.iter().peekable();
    let stays = |&(_, id): &(u32, u32)| {
        if id != image_token {
            return true;
        }
        slot += 1;
        kept.next_if(|&&token| token == slot - 1).is_some()
    };
    let (positions, ids) = (0u32..).zip(ids.iter().copied()).filter(stays).unzip();
    Ok((ids, positions))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(n_pictures: usize, grid: Option<(usize, usize)>, content: [usize; 4]) -> View {
        View {
            n_pictures,
            side: 8,
            grid,
            content,
            shown: [0.0, 0.0, 8.0, 8.0],
        }
    }

    fn visible_of(view: &View, total: usize) -> Option<Vec<usize>> {
        Some(visible(view, &places(view, total)?))
    }

    #[test]
    fn visible_tokens_see_at_least_one_pixel_of_the_frame() {
        let cases: [([usize; 4], &[usize]); 3] = [
            (
                [0, 0, 8, 8],
                &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
            ),
            ([0, 2, 8, 5], &[4, 5, 6, 7, 8, 9, 10, 11]),
            ([3, 0, 4, 8], &[1, 5, 9, 13]),
        ];
        for (content, kept) in cases {
            assert_eq!(
                visible_of(&view(1, None, content), 16).as_deref(),
                Some(kept),
                "{content:?}"
            );
        }
    }

    /// Two by two tiles of 8 x 8 pixels and the whole frame, four tokens each.
    #[test]
    fn visible_tokens_of_tiles_are_those_of_each_tile() {
        let cases: [([usize; 4], &[usize]); 3] = [
            (
                [0, 0, 16, 16],
                &[
                    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19,
                ],
            ),
            // Rows 5 to 9: the lower half of the upper tiles, the upper half of the lower ones.
            ([0, 5, 16, 10], &[2, 3, 6, 7, 8, 9, 12, 13, 16, 17, 18, 19]),
            // All of it in the tile at top left.
            ([1, 1, 4, 4], &[0, 16]),
        ];
        for (content, kept) in cases {
            let view = view(5, Some((2, 2)), content);
            assert_eq!(visible_of(&view, 20).as_deref(), Some(kept), "{content:?}");
            // A tower that left a picture out, or has other tokens: nobody knows which is which.
            for total in [16, 15, 0] {
                assert_eq!(visible_of(&view, total), None);
            }
        }
    }

    #[test]
    fn drop_slots_keeps_original_positions() {
        let (ids, positions) = drop_slots(&[5, 9, 9, 9, 6], 9, &[1], 3).expect("slots");
        assert_eq!(
            (ids.as_slice(), positions.as_slice()),
            ([5, 9, 6].as_slice(), [0, 2, 4].as_slice())
        );
        assert!(matches!(
            drop_slots(&[5, 9], 9, &[0], 2),
            Err(Error::Shape { .. })
        ));
    }
}
