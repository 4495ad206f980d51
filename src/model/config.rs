//! What the JSON files of a folder or bundle say about the model.

use std::path::Path;

use super::family::{FAMILIES, FamilySpec, Source, TokenRule};
use super::json::{Json, dotted};
use crate::limits;
use crate::{Error, Result};

/// Sizes and ids of one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelConfig {
    /// Name of the folder.
    pub name: String,
    /// The family it belongs to.
    pub family: &'static FamilySpec,
    /// Side of the vision tower's input, in pixels.
    pub image_size: usize,
    /// Visual tokens of one picture.
    pub tokens_per_tile: usize,
    /// The id that stands for one visual token in a prompt.
    pub image_token_id: u32,
    /// The ids that end an answer, at least one.
    pub eos: Vec<u32>,
    /// The id that fills up, if the model has one.
    pub pad: Option<u32>,
    /// Length of an answer in tokens, if the model says.
    pub max_new_tokens: Option<usize>,
    /// Width of the decoder.
    pub d_model: usize,
    /// Layers of the decoder.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Rows of the embedding table and columns of the logits; every id is below it.
    pub vocab: usize,
    /// Positions of prompt and answer together, at most [`limits::CONTEXT_TOKENS`].
    pub max_positions: usize,
}

impl ModelConfig {
    /// Reads `config.json` and, where they are needed or there, `generation_config.json` and
    /// `preprocessor_config.json`.
    ///
    /// # Errors
    /// [`Error::Io`] if `config.json` cannot be read; [`Error::Malformed`] naming file and key if
    /// an entry is missing, of the wrong kind or contradicts another; [`Error::TooLarge`] if a
    /// size is above its limit.
    pub fn load(dir: &Path) -> Result<Self> {
        let config = Json::load(&dir.join("config.json"))?;
        let generation = Json::load_optional(&dir.join("generation_config.json"))?;
        let preprocessor = Json::load_optional(&dir.join("preprocessor_config.json"))?;
        Self::parse(
            folder_name(dir),
            &config,
            generation.as_ref(),
            preprocessor.as_ref(),
        )
    }

    /// Describes a model from its JSON files.
    ///
    /// # Errors
    /// Those of [`ModelConfig::load`], less reading.
    pub fn parse(
        name: String,
        config: &Json,
        generation: Option<&Json>,
        preprocessor: Option<&Json>,
    ) -> Result<Self> {
        let family = family_of(config)?;
        let text = TextEntries { config, family };

        let d_model = text.size("hidden_size", limits::MODEL_WIDTH)?;
        let n_heads = text.size("num_attention_heads", limits::MODEL_WIDTH)?;
        let n_kv_heads = text
            .optional_size("num_key_value_heads", limits::MODEL_WIDTH)?
            .unwrap_or(n_heads);
        if n_heads % n_kv_heads != 0 {
            return Err(config.malformed(format!(
                "`num_attention_heads` is {n_heads}, not a multiple of `num_key_value_heads`, {n_kv_heads}"
            )));
        }
        let head_dim = match text.optional_size("head_dim", limits::MODEL_WIDTH)? {
            Some(n) => n,
            None if d_model % n_heads == 0 => d_model / n_heads,
            None => {
                return Err(config.malformed(format!(
                    "`head_dim` is missing, and `hidden_size`, {d_model}, is not a multiple of `num_attention_heads`, {n_heads}"
                )));
            }
        };
        let vocab = text.size("vocab_size", limits::VOCABULARY)?;
        // Longer contexts than ours are no error: published ones go to a million.
        let max_positions = text
            .size("max_position_embeddings", usize::MAX)?
            .min(limits::CONTEXT_TOKENS);

        let image_size = image_size(config, preprocessor, family)?;
        let this = Self {
            name,
            family,
            image_size,
            tokens_per_tile: tokens_per_tile(config, family, image_size)?,
            image_token_id: image_token(config, family)?,
            eos: text.ids(generation, "eos_token_id")?.unwrap_or_default(),
            pad: text
                .ids(generation, "pad_token_id")?
                .and_then(|ids| ids.first().copied()),
            max_new_tokens: match generation {
                Some(g) => optional_size(g, &["/max_new_tokens"], usize::MAX)?
                    .map(|n| n.min(limits::CONTEXT_TOKENS)),
                None => None,
            },
            d_model,
            n_layers: text.size("num_hidden_layers", limits::DECODER_LAYERS)?,
            n_heads,
            n_kv_heads,
            head_dim,
            vocab,
            max_positions,
        };
        this.check_ids(config)?;
        this.check_memory(config)?;
        Ok(this)
    }

    /// What the sizes, each of them allowed, come to together.
    fn check_memory(&self, config: &Json) -> Result<()> {
        let bytes = |factors: &[usize]| {
            let product = factors.iter().map(|&n| n as u64);
            product.fold(size_of::<f32>() as u64, u64::saturating_mul)
        };
        let kv = bytes(&[
            2,
            self.n_layers,
            self.n_kv_heads,
            self.head_dim,
            self.max_positions,
        ]);
        for (what, actual, limit) in [
            ("KV cache in bytes", kv, limits::KV_CACHE_BYTES),
            (
                "embedding table in bytes",
                bytes(&[self.vocab, self.d_model]),
                limits::EMBEDDING_BYTES,
            ),
        ] {
            if actual > limit {
                return Err(Error::TooLarge {
                    what: format!("{}: {what}", config.path().display()),
                    actual,
                    limit,
                });
            }
        }
        Ok(())
    }

    /// Every id is a row of the embedding table, and an answer can end.
    fn check_ids(&self, config: &Json) -> Result<()> {
        if self.eos.is_empty() {
            return Err(config.missing(&["/eos_token_id"]));
        }
        let named = [("image token", self.image_token_id)]
            .into_iter()
            .chain(self.eos.iter().map(|id| ("`eos_token_id`", *id)))
            .chain(self.pad.iter().map(|id| ("`pad_token_id`", *id)));
        for (what, id) in named {
            if id as usize >= self.vocab {
                return Err(config.malformed(format!(
                    "{what} {id} is outside the vocabulary of {}",
                    self.vocab
                )));
            }
        }
        if self.eos.contains(&self.image_token_id) {
            return Err(config.malformed("the image token ends the answer"));
        }
        Ok(())
    }
}

/// The decoder's entries: nested in one generation of a format, flat in another.
struct TextEntries<'a> {
    config: &'a Json,
    family: &'static FamilySpec,
}

impl TextEntries<'_> {
    fn pointers(&self, key: &str) -> Vec<String> {
        let prefixes = self.family.text_config.iter();
        prefixes.map(|p| format!("{p}/{key}")).collect()
    }

    fn optional_size(&self, key: &str, limit: usize) -> Result<Option<usize>> {
        let pointers = self.pointers(key);
        let pointers: Vec<&str> = pointers.iter().map(String::as_str).collect();
        optional_size(self.config, &pointers, limit)
    }

    fn size(&self, key: &str, limit: usize) -> Result<usize> {
        let pointers = self.pointers(key);
        let pointers: Vec<&str> = pointers.iter().map(String::as_str).collect();
        optional_size(self.config, &pointers, limit)?.ok_or_else(|| self.config.missing(&pointers))
    }

    /// Ids of the generation configuration, else the configuration's own.
    fn ids(&self, generation: Option<&Json>, key: &str) -> Result<Option<Vec<u32>>> {
        if let Some(g) = generation
            && let Some(ids) = g.token_ids(&format!("/{key}"))?
        {
            return Ok(Some(ids));
        }
        for pointer in self.pointers(key) {
            if let Some(ids) = self.config.token_ids(&pointer)? {
                return Ok(Some(ids));
            }
        }
        Ok(None)
    }
}

fn family_of(config: &Json) -> Result<&'static FamilySpec> {
    let model_type = config
        .text("/model_type")?
        .ok_or_else(|| config.missing(&["/model_type"]))?;
    FamilySpec::of(model_type).ok_or_else(|| {
        let known: Vec<&str> = FAMILIES
            .iter()
            .flat_map(|f| f.model_types)
            .copied()
            .collect();
        let shown: String = model_type.chars().take(60).collect();
        config.malformed(format!(
            "`model_type` is {shown:?}; known are {}",
            known.join(", ")
        ))
    })
}

fn image_size(
    config: &Json,
    preprocessor: Option<&Json>,
    family: &'static FamilySpec,
) -> Result<usize> {
    for source in family.image_size {
        let (json, pointer) = match source {
            Source::Config(p) => (Some(config), *p),
            Source::Preprocessor(p) => (preprocessor, *p),
        };
        // `crop_size` is a number in old files and an object in newer ones.
        if let Some(json) = json
            && json.at(pointer).is_some_and(|v| !v.is_object())
            && let Some(side) = optional_size(json, &[pointer], limits::VISION_SIDE)?
        {
            return Ok(side);
        }
    }
    let keys: Vec<String> = family
        .image_size
        .iter()
        .map(|s| match s {
            Source::Config(p) => format!("`{}`", dotted(p)),
            Source::Preprocessor(p) => format!("preprocessor_config.json `{}`", dotted(p)),
        })
        .collect();
    Err(config.malformed(format!(
        "no side of the vision tower's input: none of {} is there",
        keys.join(", ")
    )))
}

fn tokens_per_tile(config: &Json, family: &FamilySpec, image_size: usize) -> Result<usize> {
    let per_side = match family.tokens {
        TokenRule::Stride { keys, stride } => {
            if let Some(n) = optional_size(config, keys, limits::CONTEXT_TOKENS)? {
                return Ok(n);
            }
            image_size / stride
        }
        TokenRule::Shuffle { patch, shuffle } => {
            let one = |pointers: &[&str]| {
                optional_size(config, pointers, limits::VISION_SIDE)?
                    .ok_or_else(|| config.missing(pointers))
            };
            image_size / one(patch)? / one(shuffle)?
        }
    };
    // The side is at most `VISION_SIDE`, so its square fits.
    let n = per_side * per_side;
    match n {
        0 => Err(config.malformed(format!(
            "pictures of {image_size} pixels a side give no visual token"
        ))),
        n if n > limits::CONTEXT_TOKENS => Err(too_large(
            config,
            "visual tokens of a tile",
            n as u64,
            limits::CONTEXT_TOKENS,
        )),
        n => Ok(n),
    }
}

fn image_token(config: &Json, family: &FamilySpec) -> Result<u32> {
    let id = config
        .whole(family.image_token)?
        .ok_or_else(|| config.missing(family.image_token))?;
    u32::try_from(id).map_err(|_| too_large(config, "image token", id, u32::MAX as usize))
}

/// A size of at least 1 and at most `limit`.
fn optional_size(json: &Json, pointers: &[&str], limit: usize) -> Result<Option<usize>> {
    let Some((pointer, value)) = json.first(pointers) else {
        return Ok(None);
    };
    match json.whole(&[pointer])? {
        Some(0) => Err(json.wrong(pointer, "at least 1", value)),
        Some(n) => match usize::try_from(n) {
            Ok(n) if n <= limit => Ok(Some(n)),
            _ => {
                let what = format!("`{}`", dotted(pointer));
                Err(too_large(json, &what, n, limit))
            }
        },
        None => Ok(None),
    }
}

fn too_large(json: &Json, what: &str, actual: u64, limit: usize) -> Error {
    Error::TooLarge {
        what: format!("{}: {what}", json.path().display()),
        actual,
        limit: limit as u64,
    }
}

/// The folder's own name, also for `.` and `..`; in a hub's cache, where folders are called after
/// commits (`models--<owner>--<name>/snapshots/<commit>`), the repository's.
fn folder_name(dir: &Path) -> String {
    let full = dir.canonicalize();
    let full = full.as_deref().unwrap_or(dir);
    let name = |path: &Path| Some(path.file_name()?.to_string_lossy().into_owned());
    let repository = || {
        let snapshots = full.parent().filter(|above| above.ends_with("snapshots"))?;
        let folder = name(snapshots.parent()?)?;
        let (_, repository) = folder.strip_prefix("models--")?.split_once("--")?;
        Some(repository.to_owned())
    };
    repository()
        .or_else(|| name(full))
        .unwrap_or_else(|| "model".into())
}

#[cfg(test)]
mod tests;
