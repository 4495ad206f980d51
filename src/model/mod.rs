//! A model folder, as published on a hub, as a typed description.
//!
//! Position in the pipeline: folder -> **`model`** -> `text`, `preprocess`, `onnx`, `backend`.
//!
//! | file | gives |
//! |------|-------|
//! | `config.json` | family, decoder sizes, image token, end of sequence |
//! | `generation_config.json` (optional) | end of sequence, padding, answer length |
//! | `preprocessor_config.json` | side of the vision tower's input, where `config.json` has none |
//! | `onnx/*.onnx` | the three components, by variant |
//!
//! Families are rows of a table ([`FAMILIES`]): tensor names, configuration keys, how an image
//! stands in a prompt. What a key is called in which generation of a format is data; what must be
//! there is checked, and a missing or absurd value is an error that names file and key.

mod companions;
mod config;
mod drafts;
mod family;
mod files;
mod folder;
mod json;
mod trained;

pub use companions::{OPTIONAL_FILES, REQUIRED_FILES, companions};
pub use config::ModelConfig;
pub use drafts::{
    DRAFTS_FOLDER, DraftKind, DraftSpec, TargetFile, fingerprint, graph_path, spec_path,
};
pub use family::{FAMILIES, FamilySpec, Source, TileMarks, TokenRule};
pub use files::{ModelFiles, Refusal, Variants, file_names};
pub use folder::Model;
pub use json::{Json, read_bytes, read_text};
pub use trained::{TrainedFile, TrainedKind, TrainedSpec, TrainedTensor, trained_bytes};
