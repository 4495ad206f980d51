//! What `tokenizer.json` must be before the tokenizer library may build it.
//!
//! The library trusts its file: merges longer than any word of the vocabulary, or a prefix of
//! subwords, end in a panic there; a chain of replacing or byte-level steps doubles every text at
//! each link. Everything it has not to be is refused here first, in one pass that keeps nothing
//! of the vocabulary.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::Value;

use crate::limits;
use crate::{Error, Result};

/// Normalizers that change a text's length by a constant factor at most, whatever their order.
const NORMALIZERS: [&str; 5] = ["NFC", "NFD", "NFKC", "NFKD", "Lowercase"];

/// Steps that only split, beside the one `ByteLevel`.
const SPLITTERS: [&str; 5] = [
    "Split",
    "Digits",
    "Punctuation",
    "Whitespace",
    "WhitespaceSplit",
];

/// Most steps of a normalizer or pre-tokenizer.
const STEPS: usize = 8;

/// An entry of `added_tokens`, as far as it is checked against what the library makes of it.
#[derive(Debug, Deserialize)]
pub(super) struct AddedHead {
    pub id: u32,
    pub content: String,
}

#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    added_tokens: Vec<AddedHead>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    decoder: Option<Value>,
    model: ModelHead,
}

#[derive(Deserialize)]
struct ModelHead {
    #[serde(rename = "type")]
    kind: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    dropout: Option<f64>,
    vocab: Words,
    merges: Merges,
}

/// Checks the bytes of a `tokenizer.json`, and returns its added tokens.
///
/// # Errors
/// [`Error::Malformed`] if it is not one, or not byte-level BPE; [`Error::TooLarge`] if it has more
/// words than [`limits::VOCABULARY`].
pub(super) fn check(path: &Path, bytes: &[u8]) -> Result<Vec<AddedHead>> {
    let bad = |reason: String| Error::malformed(path, reason);
    let head: Head =
        serde_json::from_slice(bytes).map_err(|e| bad(format!("not a tokenizer: {e}")))?;
    let model = &head.model;
    if let Some(kind) = &model.kind
        && kind != "BPE"
    {
        return Err(bad(format!(
            "the model is {kind:?}, only \"BPE\" is supported"
        )));
    }
    // The ids of a vocabulary are as many as it has words, unless it has gaps.
    let n_words = (model.vocab.largest + 1).max(model.vocab.count + head.added_tokens.len());
    if n_words > limits::VOCABULARY {
        return Err(Error::TooLarge {
            what: format!("{}: number of token ids", path.display()),
            actual: n_words as u64,
            limit: limits::VOCABULARY as u64,
        });
    }
    for (key, value) in [
        (
            "continuing_subword_prefix",
            &model.continuing_subword_prefix,
        ),
        ("end_of_word_suffix", &model.end_of_word_suffix),
    ] {
        if value.as_ref().is_some_and(|v| !v.is_empty()) {
            return Err(bad(format!("`{key}` is not supported")));
        }
    }
    if model.dropout.is_some_and(|p| p != 0.0) {
        return Err(bad("`dropout` would make prompts random".into()));
    }
    if model.merges.longest > model.vocab.longest {
        return Err(bad("a merge is longer than any word".into()));
    }
    let normalizers = steps(head.normalizer.as_ref(), "normalizers");
    if let Some(step) = normalizers
        .iter()
        .find(|s| !NORMALIZERS.contains(&s.as_str()))
    {
        return Err(bad(format!("normalizer {step:?} is not supported")));
    }
    let splitters = steps(head.pre_tokenizer.as_ref(), "pretokenizers");
    let byte_levels = splitters.iter().filter(|s| *s == "ByteLevel").count();
    if let Some(step) = splitters
        .iter()
        .find(|s| *s != "ByteLevel" && !SPLITTERS.contains(&s.as_str()))
    {
        return Err(bad(format!("pre-tokenizer {step:?} is not supported")));
    }
    if byte_levels != 1 || normalizers.len() > STEPS || splitters.len() > STEPS {
        return Err(bad(format!(
            "expected one byte-level pre-tokenizer and at most {STEPS} steps"
        )));
    }
    if steps(head.decoder.as_ref(), "decoders") != ["ByteLevel"] {
        return Err(bad("expected a byte-level decoder".into()));
    }
    Ok(head.added_tokens)
}

/// The types of a step, or of the steps of a sequence; sequences are not opened twice.
fn steps(value: Option<&Value>, list: &str) -> Vec<String> {
    let kind = |v: &Value| v["type"].as_str().unwrap_or("?").to_string();
    match value {
        None => Vec::new(),
        Some(v) if kind(v) == "Sequence" => {
            let parts = v[list].as_array().map_or(&[][..], Vec::as_slice);
            parts.iter().map(kind).collect()
        }
        Some(v) => vec![kind(v)],
    }
}

/// Number of the words of a vocabulary, bytes of the longest, and the largest id.
struct Words {
    count: usize,
    longest: usize,
    largest: usize,
}

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Words;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a map from words to ids")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Words, A::Error> {
                let (mut count, mut longest, mut largest) = (0, 0, 0);
                let mut seen = Vec::new();
                while let Some(length) = map.next_key_seed(Length)? {
                    let id = map.next_value::<u32>()? as usize;
                    largest = largest.max(id);
                    if id >= limits::VOCABULARY {
                        continue;
                    }
                    if seen.len() <= id {
                        seen.resize(id + 1, false);
                    }
                    // Which of the two would be shown is left to chance in the library.
                    if std::mem::replace(&mut seen[id], true) {
                        return Err(A::Error::custom(format!("two words have the id {id}")));
                    }
                    count += 1;
                    longest = longest.max(length);
                }
                Ok(Words {
                    count,
                    longest,
                    largest,
                })
            }
        }
        d.deserialize_map(Visit)
    }
}

/// The longest result of a list of merges, in bytes.
struct Merges {
    longest: usize,
}

impl<'de> Deserialize<'de> for Merges {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Merges;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a list of merges")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merges, A::Error> {
                let mut longest = 0;
                while let Some(length) = seq.next_element_seed(MergeLength)? {
                    longest = longest.max(length);
                }
                Ok(Merges { longest })
            }
        }
        d.deserialize_seq(Visit)
    }
}

/// Bytes of a string, without keeping it.
struct Length;

impl<'de> DeserializeSeed<'de> for Length {
    type Value = usize;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<usize, D::Error> {
        d.deserialize_str(self)
    }
}

impl Visitor<'_> for Length {
    type Value = usize;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a string")
    }
    fn visit_str<E>(self, v: &str) -> Result<usize, E> {
        Ok(v.len())
    }
}

/// Bytes of what a merge gives: `"a b"` in old files, `["a", "b"]` in newer ones.
struct MergeLength;

impl<'de> DeserializeSeed<'de> for MergeLength {
    type Value = usize;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<usize, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for MergeLength {
    type Value = usize;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a pair of words")
    }
    fn visit_str<E>(self, v: &str) -> Result<usize, E> {
        Ok(v.len().saturating_sub(1))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<usize, A::Error> {
        let mut sum = 0;
        for _ in 0..2 {
            sum += seq.next_element_seed(Length)?.unwrap_or_default();
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(sum)
    }
}
