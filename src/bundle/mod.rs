//! Bundles: a directory that holds everything a vehicle needs, described by a typed manifest.
//!
//! Position in the flow: `build` -> **`bundle`** -> `backend`.
//!
//! ```text
//! <bundle>/manifest.json      what is in here, for which machine, made of what
//! <bundle>/manifest.sha256    digest of manifest.json, as `sha256sum -c` reads it
//! <bundle>/...                the files that the manifest lists, and no others
//! ```
//!
//! [`BundleWriter`] writes into a temporary directory beside the output and renames it when it is
//! complete, so that a killed build leaves nothing half made under the output's name.
//! [`Bundle::open`] verifies every byte before anybody else reads one. Nothing is written into a
//! bundle after it was built.

mod layout;
mod manifest;
mod reader;
mod swap;
mod target;
mod writer;

pub use crate::digest::{FileDigest, sha256_file};
pub use layout::{MANIFEST, MANIFEST_DIGEST};
pub use manifest::{
    AccuracyInfo, Buckets, Component, EngineSet, Extent, KernelInfo, Manifest, ModelInfo, Origin,
    Part, Precision, Profile, ProfileInput, QuantizationInfo, QuantizedCounts, SCHEMA_VERSION,
    TensorInfo,
};
pub use reader::Bundle;
pub use target::{Engine, Flavour, Target};
pub use writer::BundleWriter;
