//! Token ids to text as they come, in complete characters.

use std::sync::Arc;

use super::vocabulary::Vocabulary;
use crate::Result;

/// Puts the bytes of tokens together to UTF-8.
///
/// A token may end inside a character. Such bytes wait for the rest of it; bytes that can no
/// longer become a character come out as U+FFFD, as in a decoding of all bytes at once, so the
/// pieces joined are what [`Text::decode`](super::Text::decode) gives. At most three bytes wait.
#[derive(Debug, Clone)]
pub struct TextStream {
    vocabulary: Arc<Vocabulary>,
    pending: Vec<u8>,
}

impl TextStream {
    pub(super) fn new(vocabulary: Arc<Vocabulary>) -> Self {
        Self {
            vocabulary,
            pending: Vec::new(),
        }
    }

    /// Takes one token and gives the text that is complete with it. Special tokens give none.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) if the id is outside the model's vocabulary.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        let mut text = String::new();
        self.push_to(id, &mut text)?;
        Ok((!text.is_empty()).then_some(text))
    }

    /// Takes one token and appends the text that is complete with it.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn push_to(&mut self, id: u32, text: &mut String) -> Result<()> {
        self.vocabulary.append_bytes(id, &mut self.pending)?;
        take_complete(&mut self.pending, text);
        Ok(())
    }

    /// Gives what still waits, as U+FFFD since its rest never came, and starts afresh.
    pub fn finish(&mut self) -> Option<String> {
        let mut text = String::new();
        self.finish_to(&mut text);
        (!text.is_empty()).then_some(text)
    }

    /// Appends what still waits, as U+FFFD since its rest never came, and starts afresh.
    pub fn finish_to(&mut self, text: &mut String) {
        // At most three bytes: the beginning of one character.
        if !self.pending.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
        self.pending.clear();
    }

    /// Makes room for tokens of at most so many bytes.
    pub fn reserve(&mut self, longest: usize) {
        self.pending.reserve(longest + 3);
    }

    /// Starts afresh.
    pub fn restart(&mut self) {
        self.pending.clear();
    }
}

/// Takes everything that later bytes cannot change, and appends it to `text`.
fn take_complete(bytes: &mut Vec<u8>, text: &mut String) {
    let mut from = 0;
    while from < bytes.len() {
        let error = match std::str::from_utf8(&bytes[from..]) {
            Ok(valid) => {
                text.push_str(valid);
                from = bytes.len();
                break;
            }
            Err(e) => e,
        };
        let (valid, rest) = bytes[from..].split_at(error.valid_up_to());
        // `valid` is UTF-8 as the error says, so nothing is replaced here.
        text.push_str(&String::from_utf8_lossy(valid));
        from += valid.len();
        match error.error_len() {
            Some(n) => {
                text.push(char::REPLACEMENT_CHARACTER);
                from += n.min(rest.len());
            }
            None => break,
        }
    }
    bytes.drain(..from);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn taken(pending: &mut Vec<u8>) -> String {
        let mut text = String::new();
        take_complete(pending, &mut text);
        text
    }

    /// Feeds bytes in pieces of the given sizes, then ends.
    fn streamed(bytes: &[u8], sizes: &[usize]) -> String {
        let (mut pending, mut out, mut from) = (Vec::new(), String::new(), 0);
        for n in sizes.iter().cycle() {
            if from == bytes.len() {
                break;
            }
            let to = (from + n.max(&1)).min(bytes.len());
            pending.extend_from_slice(&bytes[from..to]);
            take_complete(&mut pending, &mut out);
            assert!(pending.len() <= 3, "{pending:?}");
            from = to;
        }
        out + &String::from_utf8_lossy(&pending)
    }

    #[test]
    fn character_in_pieces_comes_out_whole() {
        for c in ["é", "漢", "🙂", "\u{10ffff}"] {
            let mut pending = Vec::new();
            let (last, first) = c.as_bytes().split_last().expect("bytes");
            for b in first {
                pending.push(*b);
                assert_eq!(taken(&mut pending), "");
            }
            pending.push(*last);
            assert_eq!(taken(&mut pending), c);
            assert!(pending.is_empty());
        }
    }

    #[test]
    fn byte_that_completes_nothing_is_replaced_once_that_is_sure() {
        let mut pending = vec![0xf0, 0x9f];
        assert_eq!(taken(&mut pending), "");
        pending.push(b'a');
        assert_eq!(taken(&mut pending), "\u{fffd}a");
        pending.push(0x80);
        assert_eq!(taken(&mut pending), "\u{fffd}");
    }

    proptest! {
        #[test]
        fn stream_of_any_bytes_equals_decoding_at_once(
            bytes in proptest::collection::vec(any::<u8>(), 0..80),
            sizes in proptest::collection::vec(1usize..6, 1..8),
        ) {
            prop_assert_eq!(streamed(&bytes, &sizes), String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn stream_of_any_text_has_no_replacement(text in "\\PC{0,40}", size in 1usize..5) {
            prop_assume!(!text.contains(char::REPLACEMENT_CHARACTER));
            prop_assert_eq!(streamed(text.as_bytes(), &[size]), text);
        }
    }
}
