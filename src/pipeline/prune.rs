//! Which visual tokens the model reads.

use super::answer::VisualTokens;
use super::open::Pipeline;
use crate::backend::{Backend, Prefill, Prune};
use crate::decode::Paced;
use crate::error::{Error, Result};
use crate::preprocess::View;
use crate::prune::{Keep, Place, Policy, Pruner, write_places};

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
    /// Who chooses; if not said, [`Pruner::Learned`] where the model has it, else [`Pruner::Attention`].
    pub pruner: Option<Pruner>,
    /// Where those that stay stand.
    pub positions: Positions,
    /// Seed of a policy that draws.
    pub seed: u64,
}

impl Pruning {
    /// True if something is to be dropped.
    pub(super) fn drops(&self) -> bool {
        self.keep < Keep::ALL
    }
}

/// The policy of the newest answer that dropped tokens.
pub(super) struct Chooser {
    /// Which, and its seed.
    of: (Option<Pruner>, u64),
    policy: Box<dyn Policy>,
}

/// A prompt with the visual tokens that stay.
#[derive(Debug, Default)]
pub(super) struct Selection {
    /// Ids and their positions.
    pub(super) ids: Vec<u32>,
    pub(super) positions: Vec<u32>,
    /// Where all visual tokens stand, and those that see something.
    all_places: Vec<Place>,
    places: Vec<Place>,
    candidates: Vec<usize>,
    question: Vec<u32>,
}

impl Selection {
    /// Makes room for a prompt of so many ids, of which `n_visual` are visual ones.
    pub(super) fn reserve(&mut self, n_ids: usize, n_visual: usize) {
        self.ids.reserve(n_ids);
        self.positions.reserve(n_ids);
        self.all_places.reserve(n_visual);
        self.places.reserve(n_visual);
        self.candidates.reserve(n_visual);
        self.question.reserve(n_ids);
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
    /// Ids of a question's words alone, as policies read them.
    ///
    /// # Errors
    /// [`Error::Prompt`] if it is empty or too long.
    pub fn question_ids(&self, question: &str) -> Result<Vec<u32>> {
        self.text.question(question)
    }

    /// Makes ready who chooses.
    pub(super) fn prepare_prune(&mut self, pruning: &Pruning) -> Result<()> {
        let of = (pruning.pruner, pruning.seed);
        if self.chooser.as_ref().is_none_or(|known| known.of != of) {
            let policy = self.policy(pruning)?;
            self.chooser = Some(Chooser { of, policy });
        }
        match &self.chooser {
            Some(chooser) => self.backend.prepare_prune(chooser.policy.needs()),
            None => Ok(()),
        }
    }

    /// Chooses the visual tokens that the decoder reads, and writes the prompt's ids and their
    /// positions without the others.
    ///
    /// Those that see nothing but padding never stay; of the rest the policy that was made ready chooses, if
    /// something is to be dropped.
    pub(super) fn prune(
        &mut self,
        pruning: &Pruning,
        question: &str,
        all_ids: &[u32],
        seen: Seen,
        selection: &mut Selection,
        visual: &mut VisualTokens,
    ) -> Result<()> {
        let Seen { view, total } = seen;
        let image_token = self.config.image_token_id;
        let takes_positions = self.backend.takes_positions();
        let are_known = write_places(&view, total, &mut selection.all_places);
        let Selection {
            ids,
            positions,
            all_places,
            places,
            candidates,
            question: words,
        } = selection;
        candidates.clear();
        match are_known && takes_positions {
            true => candidates.extend(visible(&view, all_places)),
            false => candidates.extend(0..total),
        }
        drop_slots(
            all_ids,
            image_token,
            candidates,
            total,
            (&mut *ids, &mut *positions),
        )?;
        visual.total = total;
        visual.kept = candidates.len();
        visual.view = Some(view);
        let chooser = self.chooser.as_ref().filter(|_| pruning.drops());
        let Some(chooser) = chooser.filter(|_| !candidates.is_empty()) else {
            visual.indices.extend_from_slice(candidates);
            return Ok(());
        };
        let policy = chooser.policy.as_ref();
        let keep = pruning.keep.count(candidates.len(), total);
        if pruning.keep.is_below_one(candidates.len()) {
            tracing::warn!(
                "--keep {} is less than one of {} visual tokens: one is kept",
                pruning.keep.share(),
                candidates.len()
            );
        }
        places.clear();
        if are_known {
            places.extend(candidates.iter().map(|&token| all_places[token]));
        }
        words.clear();
        if policy.needs().question {
            words.extend(self.question_ids(question)?);
        }
        let chosen = Paced::new(self.backend.as_mut(), &self.pace).prune(&Prune {
            policy,
            keep,
            candidates,
            places,
            question: words,
            prompt: Prefill {
                ids,
                positions,
                visual: candidates,
                image_token,
                reserve: 0,
            },
        })?;
        if !chosen.scores.is_empty() {
            visual.scores.resize(total, f32::NAN);
            for (&token, score) in candidates.iter().zip(chosen.scores) {
                visual.scores[token] = score;
            }
        }
        let kept = chosen.indices.iter().map(|&i| candidates[i]);
        visual.indices.extend(kept);
        visual.kept = visual.indices.len();
        visual.pruner = Some(policy.name());
        drop_slots(
            all_ids,
            image_token,
            &visual.indices,
            total,
            (&mut *ids, &mut *positions),
        )?;
        if pruning.positions == Positions::Packed || !takes_positions {
            positions.clear();
            positions.extend((0u32..).take(ids.len()));
        }
        Ok(())
    }
}

/// Visual tokens that see at least one pixel of the frame: padding is dropped before prefill.
fn visible(view: &View, places: &[Place]) -> impl Iterator<Item = usize> {
    let side = places.iter().map(|place| place.column + 1).max();
    let cell = view.side / side.unwrap_or(1);
    let sees = move |place: &Place| {
        let [x0, y0, x1, y1] = view.content_of(place.picture);
        let (x, y) = (place.column * cell, place.row * cell);
        x < x1 && x + cell > x0 && y < y1 && y + cell > y0
    };
    let tokens = places.iter().enumerate();
    tokens
        .filter(move |(_, place)| sees(place))
        .map(|(token, _)| token)
}

/// Writes ids and positions without the slots of visual tokens that were dropped.
fn drop_slots(
    all_ids: &[u32],
    image_token: u32,
    kept: &[usize],
    total: usize,
    (ids, positions): (&mut Vec<u32>, &mut Vec<u32>),
) -> Result<()> {
    let slots = all_ids.iter().filter(|&&id| id == image_token).count();
    if slots != total {
        return Err(Error::Shape {
            name: "image_features".to_owned(),
            expected: format!("{slots} visual tokens, as the prompt has slots"),
            actual: total.to_string(),
        });
    }
    let mut slot = 0;
    let mut kept = kept.iter().peekable();
    ids.clear();
    positions.clear();
    for (position, &id) in (0u32..).zip(all_ids) {
        if id == image_token {
            slot += 1;
            if kept.next_if(|&&token| token == slot - 1).is_none() {
                continue;
            }
        }
        ids.push(id);
        positions.push(position);
    }
    Ok(())
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
        let mut places = Vec::new();
        write_places(view, total, &mut places).then(|| visible(view, &places).collect())
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
        let (mut ids, mut positions) = (vec![7; 9], vec![7; 9]);
        let out = (&mut ids, &mut positions);
        drop_slots(&[5, 9, 9, 9, 6], 9, &[1], 3, out).expect("slots");
        assert_eq!(
            (ids.as_slice(), positions.as_slice()),
            ([5, 9, 6].as_slice(), [0, 2, 4].as_slice())
        );
        assert!(matches!(
            drop_slots(&[5, 9], 9, &[0], 2, (&mut ids, &mut positions)),
            Err(Error::Shape { .. })
        ));
    }
}
