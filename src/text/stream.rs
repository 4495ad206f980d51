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
        self.vocabulary.append_bytes(id, &mut self.pending)?;
        let text = take_complete(&mut self.pending);
        Ok((!text.is_empty()).then_some(text))
    }

    /// Gives what still waits, as U+FFFD since its rest never came, and starts afresh.
    pub fn finish(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.pending);
        (!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).into_owned())
    }
}

/// Takes everything that later bytes cannot change.
fn take_complete(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut from = 0;
    while from < bytes.len() {
        let error = match std::str::from_utf8(&bytes[from..]) {
            Ok(valid) => {
                text += valid;
                from = bytes.len();
                break;
            }
            Err(e) => e,
        };
        let (valid, rest) = bytes[from..].split_at(error.valid_up_to());
        // `valid` is UTF-8 as the error says, so nothing is replaced here.
        text += &String::from_utf8_lossy(valid);
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
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds bytes in pieces of the given sizes, then ends.
    fn streamed(bytes: &[u8], sizes: &[usize]) -> String {
        let (mut pending, mut out, mut from) = (Vec::new(), String::new(), 0);
        for n in sizes.iter().cycle() {
            if from == bytes.len() {
                break;
            }
            let to = (from + n.max(&1)).min(bytes.len());
            pending.extend_from_slice(&bytes[from..to]);
            out += &take_complete(&mut pending);
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
                assert_eq!(take_complete(&mut pending), "");
            }
            pending.push(*last);
            assert_eq!(take_complete(&mut pending), c);
            assert!(pending.is_empty());
        }
    }

    #[test]
    fn byte_that_completes_nothing_is_replaced_once_that_is_sure() {
        let mut pending = vec![0xf0, 0x9f];
        assert_eq!(take_complete(&mut pending), "");
        pending.push(b'a');
        assert_eq!(take_complete(&mut pending), "\u{fffd}a");
        pending.push(0x80);
        assert_eq!(take_complete(&mut pending), "\u{fffd}");
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
