//! The text side of a model: prompts and answers.

use std::path::Path;
use std::sync::Arc;

use super::slot::{self, ImageSlot};
use super::stream::TextStream;
use super::template::Template;
use super::vocabulary::{Piece, Vocabulary};
use crate::model::{Json, ModelConfig};
use crate::{Error, Result, limits};

/// A question with its images, as the model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Token ids. Every occurrence of the configuration's image token is one visual token, in the
    /// order of the images; none of them comes from the question.
    pub ids: Vec<u32>,
    /// The same as text.
    pub text: String,
}

/// Tokenizer and chat template of one model.
#[derive(Debug)]
pub struct Text {
    config: ModelConfig,
    vocabulary: Arc<Vocabulary>,
    template: Template,
    image: String,
}

impl Text {
    /// Reads `tokenizer.json`, `tokenizer_config.json` (optional) and the chat template of a
    /// folder or bundle.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::TooLarge`]; [`Error::Malformed`] naming the file that is not what
    /// it has to be, or lacks what the model's configuration says.
    pub fn load(dir: &Path, config: &ModelConfig) -> Result<Self> {
        let names = Json::load_optional(&dir.join("tokenizer_config.json"))?;
        let path = dir.join("tokenizer.json");
        let vocabulary = Vocabulary::load(&path, names.as_ref(), config)?;
        if let Some(marks) = config.family.tile_marks {
            for word in [marks.fence, marks.global] {
                if !vocabulary.is_special_word(word) {
                    return Err(Error::malformed(
                        path,
                        format!("no special token {word:?}, as {} needs", config.family.name),
                    ));
                }
            }
        }
        // Loading has checked that there is one.
        let image = vocabulary.word(config.image_token_id).unwrap_or_default();
        Ok(Self {
            template: Template::load(dir, names.as_ref(), &image)?,
            vocabulary: Arc::new(vocabulary),
            config: config.clone(),
            image,
        })
    }

    /// Writes a prompt: the images in their order, then the question.
    ///
    /// Whatever the question contains is text: no part of it becomes a special token. That the
    /// prompt fits the model's context is for the caller to check.
    ///
    /// # Errors
    /// [`Error::Prompt`] for a question without anything but white space, [`Error::TooLarge`]
    /// above [`limits::PROMPT_BYTES`] or for more visual tokens than
    /// [`limits::CONTEXT_TOKENS`], [`Error::Argument`] for tiles where the family has none.
    pub fn prompt(&self, question: &str, images: &[ImageSlot]) -> Result<Prompt> {
        Self::check_question(question)?;
        slot::check(images, &self.config)?;
        let images: Vec<ImageSlot> = images
            .iter()
            .copied()
            .filter(|slot| *slot != ImageSlot::None)
            .collect();
        let frame = self.template.frame(images.len())?;
        let mut images = images.into_iter();
        let before = self.expand(&frame.before, &mut images);
        let after = self.expand(&frame.after, &mut images);
        let question = self.template.shown(question);
        Ok(Prompt {
            ids: self.encode(&before, question, &after)?,
            text: before + question + &after,
        })
    }

    /// Refuses what no model can be asked, before one is loaded.
    ///
    /// # Errors
    /// [`Error::Prompt`] for a question without anything but white space, [`Error::TooLarge`]
    /// above [`limits::PROMPT_BYTES`].
    pub fn check_question(question: &str) -> Result<()> {
        if question.len() > limits::PROMPT_BYTES {
            return Err(Error::TooLarge {
                what: "size in bytes of the prompt".into(),
                actual: question.len() as u64,
                limit: limits::PROMPT_BYTES as u64,
            });
        }
        if question.trim().is_empty() {
            return Err(Error::Prompt {
                reason: "it is empty".into(),
            });
        }
        Ok(())
    }

    /// Ids of a question alone, as no prompt contains it: what a pruner compares pictures with.
    ///
    /// # Errors
    /// Those of [`check_question`](Self::check_question); [`Error::Malformed`] naming the tokenizer.
    pub fn question(&self, question: &str) -> Result<Vec<u32>> {
        Self::check_question(question)?;
        let mut ids = Vec::new();
        self.vocabulary
            .encode(self.template.shown(question), &mut ids)?;
        Ok(ids)
    }

    /// The text of token ids, special tokens left out.
    ///
    /// # Errors
    /// [`Error::Argument`] if an id is outside the model's vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let mut bytes = Vec::new();
        for id in ids {
            self.vocabulary.append_bytes(*id, &mut bytes)?;
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Starts a new answer that comes token by token.
    pub fn stream(&self) -> TextStream {
        TextStream::new(Arc::clone(&self.vocabulary))
    }

    /// Replaces the image words of a template's text by those of the images, in order.
    fn expand(&self, text: &str, images: &mut impl Iterator<Item = ImageSlot>) -> String {
        let marks = self.config.family.tile_marks.as_ref();
        let mut parts = text.split(self.image.as_str());
        let mut out = parts.next().unwrap_or_default().to_string();
        for part in parts {
            // The template's frame has as many words as there are images.
            let slot = images.next().unwrap_or(ImageSlot::None);
            out += &slot::words(slot, &self.image, self.config.tokens_per_tile, marks);
            out += part;
        }
        out
    }

    /// Encodes the template's pieces with special tokens and the question without, the text on
    /// both sides of the question together with it.
    fn encode(&self, before: &str, question: &str, after: &str) -> Result<Vec<u32>> {
        let mut left = self.vocabulary.split(before);
        let mut right = self.vocabulary.split(after);
        let mut joined = match left.last() {
            Some(Piece::Text(_)) => match left.pop() {
                Some(Piece::Text(tail)) => tail + question,
                _ => question.to_string(),
            },
            Some(Piece::Special {
                eats_after: true, ..
            }) => question.trim_start().to_string(),
            _ => question.to_string(),
        };
        match right.first() {
            Some(Piece::Text(head)) => {
                joined += head;
                right.remove(0);
            }
            Some(Piece::Special {
                eats_before: true, ..
            }) => joined.truncate(joined.trim_end().len()),
            _ => {}
        }
        left.push(Piece::Text(joined));
        left.append(&mut right);

        let mut ids = Vec::new();
        for piece in &left {
            match piece {
                Piece::Special { id, .. } => {
                    self.vocabulary.known(*id)?;
                    ids.push(*id);
                }
                Piece::Text(text) => self.vocabulary.encode(text, &mut ids)?,
            }
        }
        Ok(ids)
    }
}
