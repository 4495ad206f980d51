//! Sizes of a build: what is fixed, what varies, and within which bounds.

use std::collections::BTreeMap;

use super::component::ComponentKind;
use crate::bundle::{Profile, ProfileInput};
use crate::error::{Error, Result};
use crate::limits;
use crate::model::ModelConfig;
use crate::onnx::passes::{LOGIT_ROWS, SALIENCY_ROWS};
use crate::onnx::{Dim, OnnxModel, ValueType};

/// Context of a build where the user does not say: prompt and answer of every frame mode fit.
const DEFAULT_CONTEXT: usize = 2048;

/// Tokens of a usual question with the template around it, for the shape that kernels are chosen
/// for.
const USUAL_TEXT_TOKENS: usize = 32;

/// Most rows whose attention is averaged: a long question.
const SALIENT_ROWS: usize = 256;

/// Largest sizes that a bundle can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Positions of prompt and answer.
    pub max_context: usize,
    /// Draft tokens that one step can verify.
    pub draft_tokens: usize,
    /// Pictures of one frame.
    pub max_tiles: usize,
}

impl Capacity {
    /// Sizes for a model; `max_context` as the user asked, else as the model allows, at most 2048.
    ///
    /// # Errors
    /// [`Error::Argument`] if a size is zero, above the model's, or too small for one picture.
    pub fn new(
        config: &ModelConfig,
        max_context: Option<usize>,
        draft_tokens: usize,
        max_tiles: usize,
    ) -> Result<Self> {
        let argument = |name, reason| Err(Error::Argument { name, reason });
        let max_context = max_context.unwrap_or(config.max_positions.min(DEFAULT_CONTEXT));
        if max_context > config.max_positions {
            let reason = format!(
                "{max_context}, the model has {} positions",
                config.max_positions
            );
            return argument("max-context", reason);
        }
        const MAX_DRAFT: usize = 15;
        if draft_tokens > MAX_DRAFT {
            return argument(
                "draft-tokens",
                format!("{draft_tokens}, at most {MAX_DRAFT}"),
            );
        }
        let least = config.tokens_per_tile + draft_tokens + 2;
        if max_context < least {
            let reason = format!("{max_context}, one picture and one token need {least}");
            return argument("max-context", reason);
        }
        let max_tiles = if config.family.tiled { max_tiles } else { 1 };
        if !(1..=limits::TILES).contains(&max_tiles) {
            return argument("tiles", format!("{max_tiles}, from 1 to {}", limits::TILES));
        }
        Ok(Self {
            max_context,
            draft_tokens,
            max_tiles,
        })
    }

    /// Bytes of a KV cache with elements of `element_bytes`.
    pub fn kv_bytes(&self, config: &ModelConfig, element_bytes: u64) -> u64 {
        let row = config.n_layers * 2 * config.n_kv_heads * config.head_dim;
        row as u64 * self.max_context as u64 * element_bytes
    }
}

/// What one dimension of an input is in a build.
enum Size {
    Fixed(usize),
    /// min, opt, max
    Range([usize; 3]),
}

/// Sizes of every input's dimensions in one profile.
fn input_sizes(
    kind: ComponentKind,
    name: &str,
    config: &ModelConfig,
    capacity: &Capacity,
    phase: Phase,
) -> Option<Vec<Size>> {
    use Size::{Fixed, Range};
    let family = config.family;
    let s = config.image_size;
    let (rows, past, total, logit_rows) = phase.bounds(config, capacity);
    let sizes = match kind {
        ComponentKind::Vision => {
            let tiles = Range([1, 1, capacity.max_tiles]);
            match name {
                n if n == family.pixel_values && family.tiled => {
                    vec![Fixed(1), tiles, Fixed(3), Fixed(s), Fixed(s)]
                }
                n if n == family.pixel_values => vec![Fixed(1), Fixed(3), Fixed(s), Fixed(s)],
                n if Some(n) == family.pixel_attention_mask => {
                    vec![Fixed(1), tiles, Fixed(s), Fixed(s)]
                }
                _ => return None,
            }
        }
        ComponentKind::Embed => match name {
            n if n == family.input_ids => {
                let usual = config.tokens_per_tile + USUAL_TEXT_TOKENS;
                vec![
                    Fixed(1),
                    Range([1, usual.min(capacity.max_context), capacity.max_context]),
                ]
            }
            _ => return None,
        },
        ComponentKind::Decoder => match name {
            n if n == family.inputs_embeds => vec![Fixed(1), Range(rows), Fixed(config.d_model)],
            n if n == family.attention_mask => vec![Fixed(1), Range(total)],
            n if n == family.position_ids => vec![Fixed(1), Range(rows)],
            LOGIT_ROWS => vec![Range(logit_rows)],
            SALIENCY_ROWS => {
                let most = rows[2].min(SALIENT_ROWS);
                vec![Range([1, USUAL_TEXT_TOKENS.min(most), most])]
            }
            n if n.starts_with(family.past_prefix) => vec![
                Fixed(1),
                Fixed(config.n_kv_heads),
                Range(past),
                Fixed(config.head_dim),
            ],
            _ => return None,
        },
    };
    Some(sizes)
}

/// What a decoder pass is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Prefill,
    Step,
}

impl Phase {
    const ALL: [Self; 2] = [Self::Prefill, Self::Step];

    fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Step => "step",
        }
    }

    /// New rows, cached rows, their sum, and rows of logits, each as min, opt, max.
    fn bounds(
        self,
        config: &ModelConfig,
        capacity: &Capacity,
    ) -> ([usize; 3], [usize; 3], [usize; 3], [usize; 3]) {
        let max = capacity.max_context;
        let usual = (config.tokens_per_tile + USUAL_TEXT_TOKENS).min(max);
        let k = capacity.draft_tokens + 1;
        match self {
            // Nothing is cached before a prompt. Its last row is all that is asked for, but a
            // fixed 1 would make the builder keep the LM head a second time, in another layout.
            Self::Prefill => ([1, usual, max], [0, 0, 0], [1, usual, max], [1, 1, k]),
            // The cache is bound whole, whatever part of it is used.
            Self::Step => ([1, 1, k], [max; 3], [max + 1, max + 1, max + k], [1, 1, k]),
        }
    }
}

/// Named dimensions of a graph that a build fixes, with their sizes.
///
/// # Errors
/// [`Error::Shape`] if an input is none that the family has, or a name stands for two sizes.
pub fn fixed_dims(
    kind: ComponentKind,
    graph: &OnnxModel,
    config: &ModelConfig,
    capacity: &Capacity,
) -> Result<BTreeMap<String, usize>> {
    let mut fixed = BTreeMap::new();
    for input in graph.graph().inputs() {
        let sizes = sizes_of(kind, &input, graph, config, capacity, Phase::Prefill)?;
        let dims = input.dims.iter().flatten();
        for (dim, size) in dims.zip(&sizes) {
            let (Dim::Named(name), Size::Fixed(n)) = (dim, size) else {
                continue;
            };
            if let Some(other) = fixed.insert(name.clone(), *n).filter(|other| other != n) {
                return Err(Error::Shape {
                    name: input.name.clone(),
                    expected: format!("one size of `{name}` in {}", graph.path().display()),
                    actual: format!("{other} and {n}"),
                });
            }
        }
    }
    Ok(fixed)
}

/// Optimization profiles of a graph whose fixed dimensions are numbers already; none if nothing
/// varies.
///
/// # Errors
/// As [`fixed_dims`].
pub fn profiles(
    kind: ComponentKind,
    graph: &OnnxModel,
    config: &ModelConfig,
    capacity: &Capacity,
) -> Result<Vec<Profile>> {
    let phases: &[Phase] = match kind {
        ComponentKind::Decoder => &Phase::ALL,
        _ => &[Phase::Prefill],
    };
    let mut profiles = Vec::new();
    for &phase in phases {
        let mut inputs = Vec::new();
        for input in graph.graph().inputs() {
            let varies = |dim: &Dim| !matches!(dim, Dim::Fixed(_));
            if !input
                .dims
                .as_ref()
                .is_some_and(|dims| dims.iter().any(varies))
            {
                continue;
            }
            let sizes = sizes_of(kind, &input, graph, config, capacity, phase)?;
            let bound = |i: usize| {
                let of = |size: &Size| match size {
                    Size::Fixed(n) => *n as u64,
                    Size::Range(bounds) => bounds[i] as u64,
                };
                sizes.iter().map(of).collect()
            };
            inputs.push(ProfileInput {
                name: input.name.clone(),
                min: bound(0),
                opt: bound(1),
                max: bound(2),
            });
        }
        if !inputs.is_empty() {
            profiles.push(Profile {
                name: match kind {
                    ComponentKind::Decoder => phase.name().to_owned(),
                    _ => kind.name().to_owned(),
                },
                inputs,
            });
        }
    }
    Ok(profiles)
}

fn sizes_of(
    kind: ComponentKind,
    input: &ValueType,
    graph: &OnnxModel,
    config: &ModelConfig,
    capacity: &Capacity,
    phase: Phase,
) -> Result<Vec<Size>> {
    let rank = input.dims.as_ref().map(Vec::len);
    input_sizes(kind, &input.name, config, capacity, phase)
        .filter(|sizes| rank == Some(sizes.len()))
        .ok_or_else(|| Error::Shape {
            name: input.name.clone(),
            expected: format!("an input of a {} {}", config.family.name, kind.name()),
            actual: format!("{input} in {}", graph.path().display()),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;

    fn model(name: &str) -> Model {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        Model::load(&dir, None).expect(name)
    }

    #[test]
    fn decoder_has_a_prefill_and_a_step_profile_that_agree_in_rank() {
        let model = model("onnx/uav-tiny");
        let capacity = Capacity::new(&model.config, None, 4, 17).expect("capacity");
        assert_eq!((capacity.max_context, capacity.max_tiles), (1024, 1));
        let graph = OnnxModel::load(&model.files.decoder).expect("graph");
        let made = profiles(ComponentKind::Decoder, &graph, &model.config, &capacity);
        let made = made.expect("profiles");
        let names: Vec<&str> = made.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["prefill", "step"]);
        for profile in &made {
            for input in &profile.inputs {
                let ordered = (0..input.min.len())
                    .all(|i| input.min[i] <= input.opt[i] && input.opt[i] <= input.max[i]);
                assert!(ordered, "{}: {input:?}", profile.name);
            }
            // New and cached rows are as many as the mask is wide, at each bound.
            let at = |name: &str, axis: usize| {
                let input = profile.inputs.iter().find(|i| i.name == name).expect(name);
                [input.min[axis], input.opt[axis], input.max[axis]]
            };
            let (rows, past) = (at("inputs_embeds", 1), at("past_key_values.0.key", 2));
            let total = at("attention_mask", 1);
            for i in 0..3 {
                assert_eq!(rows[i] + past[i], total[i], "{} {i}", profile.name);
            }
        }
    }

    #[test]
    fn vision_varies_in_tiles_only_where_the_family_has_them() {
        for (name, n_profiles) in [
            ("onnx/uav-tiny", 0),
            ("tests/data/tiny/smolvlm-tiny-plain", 1),
        ] {
            let model = model(name);
            let capacity = Capacity::new(&model.config, None, 0, 5).expect("capacity");
            let mut graph = OnnxModel::load(&model.files.vision).expect("graph");
            let fixed = fixed_dims(ComponentKind::Vision, &graph, &model.config, &capacity);
            let fixed = fixed.expect("dims");
            let fixed: Vec<(&str, usize)> = fixed.iter().map(|(n, d)| (n.as_str(), *d)).collect();
            crate::onnx::passes::set_dims(&mut graph, &fixed).expect("pass");
            let made = profiles(ComponentKind::Vision, &graph, &model.config, &capacity);
            assert_eq!(made.expect("profiles").len(), n_profiles, "{name}");
        }
    }

    #[test]
    fn capacity_outside_the_model_is_refused() {
        let config = model("onnx/uav-tiny").config;
        for (context, draft) in [(Some(10), 4), (Some(2000), 4), (None, 16), (Some(0), 0)] {
            assert!(
                Capacity::new(&config, context, draft, 1).is_err(),
                "{context:?} {draft}"
            );
        }
    }
}
