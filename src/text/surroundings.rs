//! What stands around a question, as ids: everything of a prompt that does not depend on it.

use super::vocabulary::{Piece, Vocabulary};
use crate::error::Result;

/// A prompt without its question.
///
/// The text between the last special token before the question and the first one after it is
/// encoded together with the question; the rest is encoded once, here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Surroundings {
    left: Vec<u32>,
    /// Text that the question follows.
    head: String,
    /// The special token before the question swallows white space.
    trims_start: bool,
    /// Text that follows the question.
    tail: String,
    /// The special token after the question swallows white space.
    trims_end: bool,
    right: Vec<u32>,
}

impl Surroundings {
    /// Of the text of a template before and after the question.
    ///
    /// # Errors
    /// Those of [`Vocabulary::encode`] and [`Vocabulary::known`].
    pub(super) fn new(vocabulary: &Vocabulary, before: &str, after: &str) -> Result<Self> {
        let mut left = vocabulary.split(before);
        let mut right = vocabulary.split(after);
        let (mut head, mut trims_start) = (String::new(), false);
        match left.last_mut() {
            Some(Piece::Text(text)) => {
                head = std::mem::take(text);
                left.pop();
            }
            Some(Piece::Special { eats_after, .. }) => trims_start = *eats_after,
            None => {}
        }
        let (mut tail, mut trims_end) = (String::new(), false);
        match right.first_mut() {
            Some(Piece::Text(text)) => {
                tail = std::mem::take(text);
                right.remove(0);
            }
            Some(Piece::Special { eats_before, .. }) => trims_end = *eats_before,
            None => {}
        }
        Ok(Self {
            left: encode_all(vocabulary, &left)?,
            head,
            trims_start,
            tail,
            trims_end,
            right: encode_all(vocabulary, &right)?,
        })
    }

    /// Writes the ids of the whole prompt; `joined` is room for text.
    ///
    /// # Errors
    /// Those of [`Vocabulary::encode`].
    pub(super) fn encode(
        &self,
        vocabulary: &Vocabulary,
        question: &str,
        joined: &mut String,
        ids: &mut Vec<u32>,
    ) -> Result<()> {
        let question = match self.trims_start {
            true => question.trim_start(),
            false => question,
        };
        joined.clear();
        joined.push_str(&self.head);
        joined.push_str(question);
        joined.push_str(&self.tail);
        if self.trims_end {
            joined.truncate(joined.trim_end().len());
        }
        ids.clear();
        ids.extend_from_slice(&self.left);
        vocabulary.encode(joined, ids)?;
        ids.extend_from_slice(&self.right);
        Ok(())
    }
}

fn encode_all(vocabulary: &Vocabulary, pieces: &[Piece]) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Special { id, .. } => {
                vocabulary.known(*id)?;
                ids.push(*id);
            }
            Piece::Text(text) => vocabulary.encode(text, &mut ids)?,
        }
    }
    Ok(ids)
}
