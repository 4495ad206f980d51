//! The text side of a model: prompts and answers.

use std::path::Path;
use std::sync::Arc;

use super::slot::{self, ImageSlot};
use super::stream::TextStream;
use super::surroundings::Surroundings;
use super::template::Template;
use super::vocabulary::Vocabulary;
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

/// Kinds of images whose surroundings are kept: as many as a camera of one size and some others need.
const SLOTS: usize = 8;

/// Room for the ids of a prompt, used again for the next one.
#[derive(Debug, Default)]
pub struct PromptRoom {
    around: Vec<(ImageSlot, Surroundings)>,
    joined: String,
    ids: Vec<u32>,
}

impl PromptRoom {
    /// Makes room for so many ids, and so many bytes of text.
    pub fn reserve(&mut self, n_ids: usize, n_bytes: usize) {
        self.ids.reserve(n_ids);
        self.joined.reserve(n_bytes);
    }
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
        let (before, after) = self.around(&images)?;
        let question = self.template.shown(question);
        let around = Surroundings::new(&self.vocabulary, &before, &after)?;
        let mut ids = Vec::new();
        around.encode(&self.vocabulary, question, &mut String::new(), &mut ids)?;
        Ok(Prompt {
            ids,
            text: before + question + &after,
        })
    }

    /// Writes the ids of a prompt with one image into `room`, as [`prompt`](Self::prompt) gives them.
    ///
    /// What does not depend on the question is rendered and encoded the first time that an image of this kind is
    /// shown, and kept there: a template that shows the date shows that of its first prompt.
    ///
    /// # Errors
    /// As [`prompt`](Self::prompt).
    pub fn write_ids<'a>(
        &self,
        question: &str,
        image: ImageSlot,
        room: &'a mut PromptRoom,
    ) -> Result<&'a [u32]> {
        Self::check_question(question)?;
        let at = match room.around.iter().position(|(slot, _)| *slot == image) {
            Some(at) => at,
            None => {
                slot::check(&[image], &self.config)?;
                let (before, after) = self.around(&[image])?;
                let around = Surroundings::new(&self.vocabulary, &before, &after)?;
                if room.around.len() == SLOTS {
                    room.around.remove(0);
                }
                room.around.push((image, around));
                room.around.len() - 1
            }
        };
        let around = &room.around[at].1;
        let question = self.template.shown(question);
        around.encode(&self.vocabulary, question, &mut room.joined, &mut room.ids)?;
        Ok(&room.ids)
    }

    /// The template's text before and after the question, with the words of the images.
    fn around(&self, images: &[ImageSlot]) -> Result<(String, String)> {
        let frame = self.template.frame(images.len())?;
        let mut images = images.iter().copied();
        let before = self.expand(&frame.before, &mut images);
        let after = self.expand(&frame.after, &mut images);
        Ok((before, after))
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

    /// Most bytes that a token has.
    pub fn longest_token(&self) -> usize {
        self.vocabulary.longest()
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
}
