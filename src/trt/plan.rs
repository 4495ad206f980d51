//! What a plan holds.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use cxx::UniquePtr;
use serde::Serialize;

use super::builder::describe;
use super::error::from_shim;
use super::events::{Event, Events, LogLevel, trace};
use super::ffi::shim;
use super::flavour::{Flavour, Version};
use super::library::{self, Opened};
use super::search::candidates;
use super::spec::{DimRange, Profile, TensorDesc};
use crate::cuda::{self, LibraryPath};
use crate::error::{Error, Result};

/// A plan, described.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlanDesc {
    /// The flavour that took it.
    pub flavour: Flavour,
    /// That library's version.
    pub version: Version,
    /// Inputs and outputs.
    pub io: Vec<TensorDesc>,
    /// Optimization profiles, a range for every input.
    pub profiles: Vec<Profile>,
    /// Scratch memory that one execution context needs on the GPU.
    pub device_memory_bytes: i64,
    /// Number of layers after fusion.
    pub n_layers: i32,
}

/// Describes the plan at `path` with the first library that takes it.
///
/// # Errors
/// [`Error::Unavailable`] without a CUDA driver, a GPU or a TensorRT: no runtime is made before
/// the driver has answered. [`Error::Io`] and [`Error::Malformed`] for the file,
/// [`Error::Engine`] with what the last library said if none takes the plan.
pub fn describe_plan(path: &Path) -> Result<PlanDesc> {
    let meta = std::fs::metadata(path).map_err(Error::io(path))?;
    if !meta.is_file() || meta.len() == 0 {
        return Err(Error::malformed(path, "not a plan: empty or no file"));
    }
    let driver = cuda::probe()?;
    tracing::debug!(?driver, "CUDA driver");
    let mut refused = None;
    for candidate in candidates(&LibraryPath::from_env()) {
        let Some(Ok(opened)) = library::open(&candidate) else {
            continue;
        };
        match describe_with(&opened, path) {
            Ok(described) => return Ok(described),
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.unwrap_or_else(|| Error::Unavailable {
        what: "a TensorRT runtime".to_owned(),
        reason: "no library was found that this program can use: run `make sdk`, or set \
                 TENSORRT_LIB_DIR"
            .to_owned(),
    }))
}

fn describe_with(opened: &Opened, path: &Path) -> Result<PlanDesc> {
    let Some(text) = path.to_str() else {
        return Err(Error::malformed(path, "its name is not UTF-8"));
    };
    let log = |event| {
        if let Event::Log { level, message } = event {
            trace(level, &message);
        }
    };
    let events = Events::new(
        opened.abi,
        LogLevel::Info,
        Arc::new(log),
        Arc::new(AtomicBool::new(false)),
    );
    let library = opened.library.clone();
    let plan = shim::open_plan(opened.abi.key, library, text, Box::new(events))
        .map_err(|e| from_shim("deserializeCudaEngine", &e))?;
    let call = "describe";
    Ok(PlanDesc {
        flavour: opened.info.flavour,
        version: opened.version,
        io: describe(plan.io(), opened.abi)?,
        profiles: profiles(&plan)?,
        device_memory_bytes: plan
            .device_memory_bytes()
            .map_err(|e| from_shim(call, &e))?,
        n_layers: plan.n_layers().map_err(|e| from_shim(call, &e))?,
    })
}

pub(super) fn profiles(plan: &UniquePtr<shim::Plan>) -> Result<Vec<Profile>> {
    let call = "getProfileShape";
    let n = plan.n_profiles().map_err(|e| from_shim(call, &e))?;
    let profile = |index| {
        let ranges = plan.profile(index).map_err(|e| from_shim(call, &e))?;
        let dims = ranges.into_iter().map(|range| DimRange {
            input: range.input,
            min: range.min,
            opt: range.opt,
            max: range.max,
        });
        Ok(Profile {
            dims: dims.collect(),
        })
    };
    (0..n).map(profile).collect()
}
