//! Models from a hub: `hf:<owner>/<name>` becomes a folder in the user's cache.
//!
//! Position in the flow: name -> **`hub`** -> `model`.
//!
//! Only what a run or build reads is fetched: the JSON files, the chat template, what was trained
//! for the model, and the ONNX files of one variant with their external data. The cache is the one
//! that other tools of the hub use (`HF_HOME`, else `~/.cache/huggingface`); `HF_ENDPOINT` and
//! `HF_TOKEN` are honoured. A model that was fetched whole is taken from the cache without asking
//! the hub again: delete its folder there to fetch it anew.
//!
//! Every file is compared with the size that the hub states, and weights with their SHA-256.
//! What was interrupted is resumed.

mod cache;
mod client;
mod fetch;
mod files;
mod options;
mod repo;

pub use fetch::{Progress, fetch};
pub use options::HubOptions;
pub use repo::RepoId;
