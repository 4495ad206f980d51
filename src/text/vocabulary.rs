//! The tokenizer of a model folder: text to ids in pieces, ids to bytes.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::{
    AddedToken, AddedVocabulary, OffsetReferential, OffsetType, PostProcessorWrapper, Tokenizer,
};

use super::check;
use crate::model::{Json, ModelConfig, read_bytes};
use crate::{Error, Result};

/// A piece of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// A special token. `eats_before` and `eats_after` say that it swallows white space there.
    Special {
        id: u32,
        eats_before: bool,
        eats_after: bool,
    },
    /// Text, as it was written.
    Text(String),
}

/// A byte-level BPE vocabulary with its added tokens.
pub(super) struct Vocabulary {
    path: PathBuf,
    /// Encodes with special tokens disabled.
    plain: Tokenizer,
    /// The same added tokens, with special ones enabled.
    added: AddedVocabulary,
    special: HashSet<u32>,
    /// Bytes of all ids, one behind the other, and where each ends.
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vocabulary")
            .field("path", &self.path)
            .field("n_ids", &self.ends.len())
            .finish_non_exhaustive()
    }
}

impl Vocabulary {
    /// Reads `tokenizer.json`; `names` is `tokenizer_config.json`, which may name more special
    /// tokens.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::TooLarge`], [`Error::Malformed`] naming the file; the last also if
    /// the image token of the configuration is not in it.
    pub fn load(path: &Path, names: Option<&Json>, config: &ModelConfig) -> Result<Self> {
        Self::parse(path, &read_bytes(path)?, names, config)
    }

    /// Makes a vocabulary from the bytes of `tokenizer.json`.
    ///
    /// # Errors
    /// Those of [`Vocabulary::load`], less reading.
    pub fn parse(
        path: &Path,
        bytes: &[u8],
        names: Option<&Json>,
        config: &ModelConfig,
    ) -> Result<Self> {
        let bad = |reason: String| Error::malformed(path, reason);
        let head = check::check(path, bytes)?;
        let mut plain = Tokenizer::from_bytes(bytes)
            .map_err(|e| bad(format!("not a tokenizer: {}", short(&e.to_string()))))?;
        for token in &head {
            let actual = plain.token_to_id(&token.content);
            if actual != Some(token.id) {
                let actual = actual.map_or("no id".to_owned(), |id| id.to_string());
                return Err(bad(format!(
                    "the added token {:?} has the id {}, and {actual} in the vocabulary",
                    short(&token.content),
                    token.id
                )));
            }
        }
        // A file may carry the padding and cutting that it was last used with.
        plain.with_padding(None);
        plain
            .with_truncation(None)
            .map_err(|e| bad(format!("truncation: {e}")))?;
        plain.with_post_processor(None::<PostProcessorWrapper>);

        let image = plain.id_to_token(config.image_token_id).ok_or_else(|| {
            bad(format!(
                "no token has the id {} of the image token",
                config.image_token_id
            ))
        })?;
        if plain.token_to_id(&image) != Some(config.image_token_id) {
            return Err(bad(format!("the image token {image:?} has two ids")));
        }
        mark_special(&mut plain, image, names, config).map_err(|e| bad(e.to_string()))?;

        let mut added = plain.get_added_vocabulary().clone();
        added.set_encode_special_tokens(false);
        plain.set_encode_special_tokens(true);
        let special = added
            .get_added_tokens_decoder()
            .iter()
            .filter(|(_, token)| added.is_special_token(&token.content))
            .map(|(id, _)| *id)
            .collect();
        let (bytes, ends) = bytes_of_all(&plain, &special, config.vocab);
        Ok(Self {
            path: path.to_path_buf(),
            plain,
            added,
            special,
            bytes,
            ends,
        })
    }

    /// Most bytes of a token.
    pub fn longest(&self) -> usize {
        let starts = std::iter::once(&0).chain(&self.ends);
        let lengths = starts.zip(&self.ends).map(|(start, end)| end - start);
        lengths.max().unwrap_or(0)
    }

    /// The token of an id, as it is written in a template.
    pub fn word(&self, id: u32) -> Option<String> {
        self.plain.id_to_token(id)
    }

    /// Whether a word is one special token.
    pub fn is_special_word(&self, word: &str) -> bool {
        self.added.is_special_token(word)
    }

    /// Splits a template's text at its special tokens.
    pub fn split(&self, text: &str) -> Vec<Piece> {
        let found = self
            .added
            .extract_and_normalize(self.plain.get_normalizer(), text);
        let mut pieces = Vec::new();
        let mut from = 0;
        for (_, (start, end), tokens) in
            found.get_splits(OffsetReferential::Original, OffsetType::Byte)
        {
            // Tokens that are added but not special stay text: they may join with their
            // neighbours when the text is encoded.
            let Some([token]) = tokens.as_deref() else {
                continue;
            };
            if !self.special.contains(&token.id) {
                continue;
            }
            if from < start {
                pieces.push(Piece::Text(text[from..start].to_string()));
            }
            let rule = self.added.get_added_tokens_decoder().get(&token.id);
            pieces.push(Piece::Special {
                id: token.id,
                eats_before: rule.is_some_and(|t| t.lstrip),
                eats_after: rule.is_some_and(|t| t.rstrip),
            });
            from = end;
        }
        if from < text.len() {
            pieces.push(Piece::Text(text[from..].to_string()));
        }
        pieces
    }

    /// Appends the ids of a text in which no special token is recognised.
    ///
    /// # Errors
    /// [`Error::Malformed`] naming the tokenizer if it gives a special id nevertheless, or one
    /// that the model does not have.
    pub fn encode(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        let encoding = self
            .plain
            .encode_fast(text, false)
            .map_err(|e| Error::malformed(&self.path, short(&e.to_string())))?;
        for id in encoding.get_ids() {
            self.known(*id)?;
            // A vocabulary whose ordinary merges spell a special token.
            if self.special.contains(id) {
                return Err(Error::malformed(
                    &self.path,
                    format!("ordinary text gives the special token {id}"),
                ));
            }
        }
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    /// Refuses an id of the tokenizer that the model has no row for.
    ///
    /// # Errors
    /// [`Error::Malformed`] naming the tokenizer.
    pub fn known(&self, id: u32) -> Result<()> {
        if (id as usize) < self.ends.len() {
            return Ok(());
        }
        let reason = format!(
            "token {id} is outside the model's vocabulary, {}",
            self.ends.len()
        );
        Err(Error::malformed(&self.path, reason))
    }

    /// Appends the bytes of a token; special tokens, and ids that are only padding of the
    /// embedding table, have none.
    ///
    /// # Errors
    /// [`Error::Argument`] if the id is outside the model's vocabulary.
    pub fn append_bytes(&self, id: u32, bytes: &mut Vec<u8>) -> Result<()> {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else {
            return Err(Error::Argument {
                name: "token id",
                reason: format!(
                    "{id} is outside the model's vocabulary, {}",
                    self.ends.len()
                ),
            });
        };
        let start = id.checked_sub(1).map_or(0, |before| self.ends[before]);
        bytes.extend_from_slice(&self.bytes[start..end]);
        Ok(())
    }
}

/// The bytes of ids below `n_ids`, one behind the other, and where each ends.
fn bytes_of_all(plain: &Tokenizer, special: &HashSet<u32>, n_ids: usize) -> (Vec<u8>, Vec<usize>) {
    let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(n_ids));
    for id in (0u32..).take(n_ids) {
        if !special.contains(&id)
            && let Some(word) = plain.id_to_token(id)
        {
            append_word(&word, &mut bytes);
        }
        ends.push(bytes.len());
    }
    (bytes, ends)
}

/// Appends the bytes of a word in byte-level letters.
fn append_word(word: &str, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    for c in word.chars() {
        match byte_of(c) {
            Some(b) => bytes.push(b),
            // An added word that is written as it is, not in byte-level letters.
            None => {
                bytes.truncate(start);
                bytes.extend_from_slice(word.as_bytes());
                break;
            }
        }
    }
}

/// Makes special what the configuration says is special, among the added tokens: named tokens,
/// those listed as such, the ids that steer decoding. The image token always is.
///
/// A word of the ordinary vocabulary never becomes special (some files name `!` for padding): it
/// could no longer be asked about.
fn mark_special(
    plain: &mut Tokenizer,
    image: String,
    names: Option<&Json>,
    config: &ModelConfig,
) -> tokenizers::Result<()> {
    let known = plain.get_added_tokens_decoder();
    let mut words: HashSet<String> = HashSet::new();
    if let Some(names) = names {
        for key in ["/bos_token", "/eos_token", "/pad_token", "/unk_token"] {
            words.extend(special_name(names, key));
        }
        let listed = names.at("/added_tokens_decoder");
        for token in listed
            .and_then(Value::as_object)
            .into_iter()
            .flat_map(|m| m.values())
        {
            if token["special"].as_bool() == Some(true) {
                words.extend(content(token));
            }
        }
        let more = names.at("/additional_special_tokens");
        words.extend(
            more.and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(content),
        );
    }
    let steering: HashSet<&u32> = config.eos.iter().chain(&config.pad).collect();
    let mut tokens: Vec<AddedToken> = known
        .iter()
        .filter(|(id, token)| {
            **id == config.image_token_id || steering.contains(id) || words.contains(&token.content)
        })
        .map(|(_, token)| token.clone().special(true))
        .collect();
    if !known.contains_key(&config.image_token_id) {
        tokens.push(AddedToken::from(image, true));
    }
    plain.add_special_tokens(tokens).map(|_| ())
}

/// A special token of `tokenizer_config.json`: a string, or an object with its content.
pub(super) fn special_name(names: &Json, pointer: &str) -> Option<String> {
    content(names.at(pointer)?)
}

fn content(token: &Value) -> Option<String> {
    let word = token.as_str().or_else(|| token["content"].as_str());
    word.map(str::to_string)
}

/// The byte that a letter of byte-level BPE stands for (GPT-2's `bytes_to_unicode`, inverted):
/// printable Latin-1 letters stand for themselves, the other bytes for U+0100 and up, in order.
fn byte_of(c: char) -> Option<u8> {
    match c as u32 {
        n @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(n).ok(),
        n @ 0x100..=0x120 => u8::try_from(n - 0x100).ok(),
        n @ 0x121..=0x142 => u8::try_from(n - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// The beginning of a message that may carry a whole file.
pub(super) fn short(text: &str) -> String {
    match text.char_indices().nth(200) {
        Some((n, _)) => format!("{}…", &text[..n]),
        None => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_letters_cover_every_byte_once() {
        let bytes: Vec<u8> = ('\0'..='\u{1ff}').filter_map(byte_of).collect();
        let mut sorted = bytes.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..=255).collect::<Vec<u8>>());
        for (letter, byte) in [
            ('Ġ', b' '),
            ('Ċ', b'\n'),
            ('ĉ', b'\t'),
            ('A', b'A'),
            ('Ń', 0xad),
        ] {
            assert_eq!(byte_of(letter), Some(byte));
        }
        assert_eq!(byte_of(' '), None);
    }
}
