//! Drafts by looking up how the text went on where it read like this before.

use super::draft::{Accepted, Draft, Drafter, MAX_DRAFT, Outlook};
use super::suffixes::{BREAK, LONGEST, Match, Suffixes};
use crate::backend::Prefill;
use crate::error::Result;

/// Most tokens of earlier answers that are remembered, with what led to them.
const HISTORY_TOKENS: usize = 4096;

/// Looks up the longest end of the text, up to eight tokens, in the prompt, in this answer and in earlier
/// answers of the session, and proposes what followed its newest occurrence there. The longer match
/// wins; of equal ones that in the text at hand. Slots of visual tokens match nothing.
///
/// A token costs a fixed number of look-ups, whatever the length of the texts.
///
/// Source: prompt lookup decoding (`PromptLookupCandidateGenerator` of `transformers`), with a history.
#[derive(Debug, Default)]
pub struct Ngram {
    /// Prompt and answer.
    text: Suffixes,
    n_prompt: usize,
    /// Earlier answers, each after a break and the end of its prompt.
    earlier: Suffixes,
    found: Option<Found>,
}

/// Where the text may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Found {
    at: Match,
    in_text: bool,
}

impl Ngram {
    /// A drafter that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    fn push(&mut self, token: u32) {
        let in_text = self.text.push(token);
        let earlier = self.earlier.find(self.text.text());
        let found = |at, in_text| Found { at, in_text };
        self.found = match (in_text, earlier) {
            (Some(a), Some(b)) if b.len > a.len => Some(found(b, false)),
            (Some(a), _) => Some(found(a, true)),
            (None, Some(b)) => Some(found(b, false)),
            (None, None) => None,
        };
    }

    /// The tokens that followed what was found, at most `n`.
    fn following(&self, n: usize) -> impl Iterator<Item = u32> {
        let (text, in_text, start) = match self.found {
            Some(found) if found.in_text => (self.text.text(), true, found.at.end),
            Some(found) => (self.earlier.text(), false, found.at.end),
            None => (&[][..], false, 0),
        };
        let token = move |at: usize| match text.get(at) {
            Some(&token) => Some(token),
            // The text at hand ends here: what repeats itself is taken to go on so.
            None if in_text => {
                let period = text.len().checked_sub(start).filter(|&period| period > 0)?;
                text.get(start + (at - start) % period).copied()
            }
            None => None,
        };
        let tokens = (start..start.saturating_add(n)).map_while(token);
        tokens.take_while(|&token| token != BREAK)
    }

    /// Forgets the oldest answers until `n_more` tokens fit.
    fn make_room(&mut self, n_more: usize) {
        let text = self.earlier.text();
        if text.len() + n_more <= HISTORY_TOKENS {
            return;
        }
        // Half of it at once: what stays is read again, which is then rare enough.
        let least = text.len().saturating_sub(HISTORY_TOKENS / 2);
        let kept: Vec<u32> = match text[least..].iter().position(|&token| token == BREAK) {
            Some(at) => text[least + at..].to_vec(),
            None => Vec::new(),
        };
        self.earlier.clear();
        for token in kept {
            self.earlier.push(token);
        }
    }
}

impl Drafter for Ngram {
    fn name(&self) -> &'static str {
        "ngram"
    }

    fn begin(&mut self, prompt: &Prefill<'_>) -> Result<()> {
        self.text.clear();
        self.found = None;
        for &id in prompt.ids {
            self.push(if id == prompt.image_token { BREAK } else { id });
        }
        self.n_prompt = prompt.ids.len();
        Ok(())
    }

    fn accept(&mut self, tokens: Accepted<'_>) -> Result<()> {
        for &id in tokens.ids {
            self.push(id);
        }
        Ok(())
    }

    fn outlook(&mut self) -> Option<Outlook> {
        let found = self.found?;
        let n = self.following(MAX_DRAFT).count();
        (n > 0).then_some(Outlook {
            n,
            class: (found.at.len - 1).min(Outlook::CLASSES - 1),
        })
    }

    fn propose(&mut self, n: usize, draft: &mut Draft) -> Result<()> {
        draft.ids.extend(self.following(n));
        Ok(())
    }

    fn end(&mut self) {
        // The end of the prompt is what the first tokens of an answer are found by.
        let text = self.text.text();
        let before = &text[self.n_prompt.saturating_sub(LONGEST - 1)..self.n_prompt];
        let from = before.iter().rposition(|&token| token == BREAK);
        let before = &before[from.map_or(0, |at| at + 1)..];
        let answer = &text[self.n_prompt..];
        let answer = &answer[..answer.len().min(HISTORY_TOKENS / 2)];
        let kept = [&[BREAK], before, answer].concat();
        self.make_room(kept.len());
        for token in kept {
            self.earlier.push(token);
        }
    }

    fn forget(&mut self) {
        self.earlier.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::suffixes::tests::naive;
    use super::*;

    const IMAGE: u32 = 99;

    fn begin(drafter: &mut Ngram, ids: &[u32]) {
        let positions: Vec<u32> = (0..ids.len() as u32).collect();
        let prompt = Prefill {
            ids,
            positions: &positions,
            visual: &[],
            image_token: IMAGE,
            reserve: 0,
        };
        drafter.begin(&prompt).expect("begin");
    }

    fn accept(drafter: &mut Ngram, ids: &[u32]) {
        drafter
            .accept(Accepted { ids, hidden: None })
            .expect("accept");
    }

    fn proposal(drafter: &mut Ngram, n: usize) -> Vec<u32> {
        let mut draft = Draft::default();
        drafter.propose(n, &mut draft).expect("propose");
        draft.ids
    }

    #[test]
    fn draft_continues_as_the_prompt_did() {
        let mut drafter = Ngram::new();
        begin(&mut drafter, &[1, 2, 3, 4, 5, 6, 9]);
        assert_eq!(drafter.outlook(), None, "9 is new");
        accept(&mut drafter, &[2, 3]);
        assert_eq!(drafter.outlook(), Some(Outlook { n: 8, class: 1 }));
        assert_eq!(proposal(&mut drafter, 3), [4, 5, 6]);
        // Beyond the end of the text it repeats itself.
        assert_eq!(proposal(&mut drafter, 8), [4, 5, 6, 9, 2, 3, 4, 5]);
    }

    #[test]
    fn draft_of_visual_slots_is_none() {
        let mut drafter = Ngram::new();
        begin(&mut drafter, &[1, IMAGE, IMAGE, IMAGE, 2, 1]);
        assert_eq!(drafter.outlook(), None, "a slot follows the 1");
        begin(&mut drafter, &[1, 5, IMAGE, 2, IMAGE, 1]);
        assert_eq!(proposal(&mut drafter, 8), [5]);
    }

    #[test]
    fn earlier_answers_are_found_by_the_end_of_the_prompt() {
        let mut drafter = Ngram::new();
        begin(&mut drafter, &[IMAGE, 10, 11, 12]);
        accept(&mut drafter, &[1, 2, 3]);
        drafter.end();
        begin(&mut drafter, &[IMAGE, 20, 11, 12]);
        // Before a token is there: what followed the same two.
        assert_eq!(drafter.outlook(), Some(Outlook { n: 3, class: 1 }));
        assert_eq!(proposal(&mut drafter, 8), [1, 2, 3]);
        accept(&mut drafter, &[1]);
        assert_eq!(drafter.outlook(), Some(Outlook { n: 2, class: 2 }));
        accept(&mut drafter, &[2, 3]);
        assert_eq!(drafter.outlook(), None, "the answer ended there");
        // An answer that was not ended is not remembered.
        begin(&mut drafter, &[7]);
        accept(&mut drafter, &[8]);
        begin(&mut drafter, &[7]);
        assert_eq!(drafter.outlook(), None);
    }

    #[test]
    fn history_is_bounded_and_keeps_the_newest_answers() {
        let mut drafter = Ngram::new();
        for n in 0..500u32 {
            begin(&mut drafter, &[1, 2]);
            let answer: Vec<u32> = (0..37).map(|i| 1000 + n * 37 + i).collect();
            accept(&mut drafter, &answer);
            drafter.end();
            assert!(drafter.earlier.text().len() <= HISTORY_TOKENS);
            assert_eq!(drafter.earlier.text()[0], BREAK, "whole answers only");
        }
        let is_known = |n: u32| drafter.earlier.find(&[1000 + n * 37 + 5]).is_some();
        assert!((460..500).all(is_known) && !is_known(300));
        // One answer that is longer than all that may be remembered.
        begin(&mut drafter, &[1, 2]);
        accept(&mut drafter, &vec![5; 3 * HISTORY_TOKENS]);
        drafter.end();
        assert!(drafter.earlier.text().len() <= HISTORY_TOKENS);
        assert!(drafter.earlier.find(&[5]).is_some());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn draft_is_what_a_naive_search_gives(
            answers in prop::collection::vec(
                (prop::collection::vec(0..4u32, 1..12), prop::collection::vec(0..4u32, 0..20)),
                1..6,
            ),
        ) {
            let mut drafter = Ngram::new();
            let mut earlier = Vec::new();
            for (prompt, answer) in answers {
                // Id 3 is a slot.
                let prompt: Vec<u32> = prompt.iter().map(|&id| if id == 3 { IMAGE } else { id }).collect();
                begin(&mut drafter, &prompt);
                let mut text: Vec<u32> = prompt.iter().map(|&id| if id == IMAGE { BREAK } else { id }).collect();
                for &id in &answer {
                    accept(&mut drafter, &[id]);
                    text.push(id);
                    let own = naive(&text, &text, text.len());
                    let other = naive(&earlier, &text, earlier.len() + 1);
                    let (n_own, n_other) = (own.map_or(0, |m| m.len), other.map_or(0, |m| m.len));
                    let mut expected = Vec::new();
                    if n_own >= n_other && let Some(own) = own {
                        // A copy that may read what it has just written.
                        let mut copy = text.clone();
                        for at in own.end..own.end + 8 {
                            expected.push(copy[at]);
                            copy.push(copy[at]);
                        }
                    } else if let Some(other) = other {
                        expected.extend(earlier[other.end..].iter().take(8));
                    }
                    let end = expected.iter().position(|&id| id == BREAK).unwrap_or(expected.len());
                    expected.truncate(end);
                    prop_assert_eq!(&proposal(&mut drafter, 8), &expected);
                    let class = n_own.max(n_other).saturating_sub(1);
                    let outlook = (!expected.is_empty()).then_some(Outlook { n: expected.len(), class });
                    prop_assert_eq!(drafter.outlook(), outlook);
                }
                drafter.end();
                earlier.push(BREAK);
                let tail: Vec<u32> = text[..prompt.len()].rsplit(|&id| id == BREAK).next().expect("one").to_vec();
                earlier.extend(&tail[tail.len().saturating_sub(7)..]);
                earlier.extend(&answer);
            }
        }
    }
}
