//! The table of model families: everything that differs between them, as data.

/// Where a number of the configuration stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A pointer into `config.json`.
    Config(&'static str),
    /// A pointer into `preprocessor_config.json`.
    Preprocessor(&'static str),
}

/// How many visual tokens one picture (tile) gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenRule {
    /// What one of `keys` says, else `(image_size / stride)^2`.
    Stride {
        /// Pointers into `config.json`.
        keys: &'static [&'static str],
        /// Pixels of the input per token, along one side.
        stride: usize,
    },
    /// `(image_size / patch / shuffle)^2`: patches, joined by a pixel shuffle.
    Shuffle {
        /// Pointers into `config.json` for the patch side in pixels.
        patch: &'static [&'static str],
        /// Pointers into `config.json` for the shuffle factor.
        shuffle: &'static [&'static str],
    },
}

/// The words around the tiles of one image in a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TileMarks {
    /// Before every tile, and after the last.
    pub fence: &'static str,
    /// Before the view of the whole image.
    pub global: &'static str,
    /// Before a tile; `{r}` and `{c}` are its row and column, counted from 1.
    pub tile: &'static str,
}

/// One family of models: names, shapes and slots.
///
/// | tensor | shape | dtype |
/// |--------|-------|-------|
/// | `pixel_values` | `[1, 3, s, s]`, tiled `[1, tiles, 3, s, s]` | f32 |
/// | `pixel_attention_mask` (tiled) | `[1, tiles, s, s]` | bool |
/// | `image_features` | `[pictures, tokens_per_tile, d_model]` | f32 |
/// | `inputs_embeds` | `[1, n, d_model]` | f32 |
/// | past and present keys and values | `[1, n_kv_heads, n, head_dim]` | f32 or f16 |
/// | `logits` | `[1, n, vocab]` | f32 |
#[derive(Debug, PartialEq, Eq)]
pub struct FamilySpec {
    /// Name of the family.
    pub name: &'static str,
    /// Values of `model_type` in `config.json` that belong to it.
    pub model_types: &'static [&'static str],

    /// Vision input: the pixels.
    pub pixel_values: &'static str,
    /// Vision input: which pixels are not padding, if the tower asks for it.
    pub pixel_attention_mask: Option<&'static str>,
    /// Vision output.
    pub image_features: &'static str,
    /// Embedding input.
    pub input_ids: &'static str,
    /// Embedding output and decoder input.
    pub inputs_embeds: &'static str,
    /// Decoder input: ones for every position, past included.
    pub attention_mask: &'static str,
    /// Decoder input: position of every new row.
    pub position_ids: &'static str,
    /// Decoder output.
    pub logits: &'static str,
    /// Decoder inputs `<prefix>.N.key|value`.
    pub past_prefix: &'static str,
    /// Decoder outputs `<prefix>.N.key|value`.
    pub present_prefix: &'static str,

    /// Whether one image becomes several pictures: then `pixel_values` has a dimension of tiles.
    pub tiled: bool,
    /// Words around the tiles in a prompt, if the family has any.
    pub tile_marks: Option<TileMarks>,

    /// Side of the vision tower's input in pixels: the first that is there.
    pub image_size: &'static [Source],
    /// Visual tokens a tile.
    pub tokens: TokenRule,
    /// Pointers into `config.json` for the id that stands for one visual token.
    pub image_token: &'static [&'static str],
    /// Objects of `config.json` that may hold the decoder's entries, the likeliest first; `""` is
    /// the file itself.
    pub text_config: &'static [&'static str],
}

impl FamilySpec {
    /// The family of a `model_type`.
    pub fn of(model_type: &str) -> Option<&'static Self> {
        FAMILIES
            .iter()
            .find(|f| f.model_types.contains(&model_type))
    }

    /// Decoder input: cached keys of a layer.
    pub fn past_key(&self, layer: usize) -> String {
        format!("{}.{layer}.key", self.past_prefix)
    }

    /// Decoder input: cached values of a layer.
    pub fn past_value(&self, layer: usize) -> String {
        format!("{}.{layer}.value", self.past_prefix)
    }

    /// Decoder output: keys of a layer, past and new.
    pub fn present_key(&self, layer: usize) -> String {
        format!("{}.{layer}.key", self.present_prefix)
    }

    /// Decoder output: values of a layer, past and new.
    pub fn present_value(&self, layer: usize) -> String {
        format!("{}.{layer}.value", self.present_prefix)
    }
}

/// Tensor names of the hub's three-file ONNX layout, for families to start from.
const HUB: FamilySpec = FamilySpec {
    name: "",
    model_types: &[],
    pixel_values: "pixel_values",
    pixel_attention_mask: None,
    image_features: "image_features",
    input_ids: "input_ids",
    inputs_embeds: "inputs_embeds",
    attention_mask: "attention_mask",
    position_ids: "position_ids",
    logits: "logits",
    past_prefix: "past_key_values",
    present_prefix: "present",
    tiled: false,
    tile_marks: None,
    image_size: &[],
    tokens: TokenRule::Stride {
        keys: &[],
        stride: 1,
    },
    image_token: &["/image_token_id", "/image_token_index"],
    text_config: &["/text_config", ""],
};

/// All families, in the order in which they are looked through.
pub static FAMILIES: &[FamilySpec] = &[
    FamilySpec {
        name: "fastvlm",
        model_types: &["llava_qwen2", "fast_vlm"],
        image_size: &[
            Source::Config("/vision_config/image_size"),
            Source::Preprocessor("/crop_size/height"),
            Source::Preprocessor("/crop_size"),
            Source::Preprocessor("/size/height"),
            Source::Preprocessor("/size/shortest_edge"),
        ],
        tokens: TokenRule::Stride {
            keys: &["/image_seq_length"],
            stride: 64,
        },
        ..HUB
    },
    FamilySpec {
        name: "smolvlm",
        model_types: &["idefics3", "smolvlm"],
        pixel_attention_mask: Some("pixel_attention_mask"),
        tiled: true,
        tile_marks: Some(TileMarks {
            fence: "<fake_token_around_image>",
            global: "<global-img>",
            tile: "<row_{r}_col_{c}>",
        }),
        image_size: &[
            Source::Config("/vision_config/image_size"),
            Source::Preprocessor("/max_image_size/longest_edge"),
        ],
        tokens: TokenRule::Shuffle {
            patch: &["/vision_config/patch_size"],
            shuffle: &["/scale_factor", "/text_config/pixel_shuffle_factor"],
        },
        ..HUB
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn family_of_published_model_types_is_found() {
        for (model_type, name) in [
            ("llava_qwen2", "fastvlm"),
            ("fast_vlm", "fastvlm"),
            ("idefics3", "smolvlm"),
            ("smolvlm", "smolvlm"),
        ] {
            assert_eq!(FamilySpec::of(model_type).map(|f| f.name), Some(name));
        }
        assert_eq!(FamilySpec::of("llama"), None);
        assert_eq!(FamilySpec::of(""), None);
    }

    #[test]
    fn family_rows_are_whole_and_distinct() {
        let mut types = Vec::new();
        for f in FAMILIES {
            assert!(!f.name.is_empty() && !f.image_size.is_empty(), "{}", f.name);
            assert_eq!(f.tiled, f.tile_marks.is_some(), "{}", f.name);
            types.extend_from_slice(f.model_types);
        }
        let n = types.len();
        types.sort_unstable();
        types.dedup();
        assert_eq!(types.len(), n);
    }

    #[test]
    fn tensor_names_follow_the_hub() {
        let f = &FAMILIES[0];
        assert_eq!(f.past_key(3), "past_key_values.3.key");
        assert_eq!(f.past_value(0), "past_key_values.0.value");
        assert_eq!(f.present_key(11), "present.11.key");
        assert_eq!(f.present_value(2), "present.2.value");
    }
}
