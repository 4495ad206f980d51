//! Handing a rewritten graph to rten without a second copy of its weights (an unsafe fence: see
//! `tests/house.rs`).
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::path::Path;

use rten::{Model, ModelOptions};

use crate::error::{Error, Result};
use crate::onnx::proto::TensorProto;
use crate::onnx::{DataType, OnnxModel};

/// Tensors of fewer bytes travel inside the graph.
const INLINE_BYTES: usize = 1024;

/// Loads a graph that passes may have rewritten.
///
/// rten takes external weights from files beside the graph, so that the graph goes into a
/// temporary folder with links to the files that hold the weights. They are mapped if that saves
/// a copy, and read tensor by tensor otherwise (weights inside an ONNX file are rarely aligned,
/// FP16 ones are widened).
pub(super) fn load(model: &OnnxModel) -> Result<Model> {
    let dir = tempfile::Builder::new()
        .prefix("trtvlm-")
        .tempdir()
        .map_err(Error::io(std::env::temp_dir()))?;
    let mapped = is_worth_mapping(model);
    let mut used = BTreeSet::new();
    let graph = model.encode(|tensor| {
        let raw = tensor.raw_data.as_ref()?;
        if raw.len() < INLINE_BYTES {
            return None;
        }
        let location = model.locate(raw)?;
        // rten refuses to map what is not aligned; inside the graph it is copied.
        if mapped && !is_aligned(tensor.dtype().ok()?, location.offset) {
            return None;
        }
        used.insert(location.source);
        Some((link_name(location.source), location.offset))
    });
    for source in used {
        let target = &model.sources()[source].path;
        let target = target.canonicalize().map_err(Error::io(target))?;
        let link = dir.path().join(link_name(source));
        std::os::unix::fs::symlink(&target, &link).map_err(Error::io(&link))?;
    }
    let path = dir.path().join("graph.onnx");
    std::fs::write(&path, graph).map_err(Error::io(&path))?;
    open(&path, mapped, &model.path().display().to_string())
}

/// Loads a graph that stands on disk as it is to be run, its weights mapped.
pub(super) fn load_file(path: &Path) -> Result<Model> {
    open(path, true, &path.display().to_string())
}

fn open(path: &Path, mapped: bool, name: &str) -> Result<Model> {
    let mut options = ModelOptions::with_all_ops();
    let options = options.prepack_weights(false);
    let load = || {
        if mapped {
            // SAFETY: rten's condition is that the file does not change while it is mapped,
            // which is the rule that `onnx::map` states for all model files.
            unsafe { options.load_mmap(path) }
        } else {
            options.load_file(path)
        }
    };
    super::session::guard(name, load)
}

fn link_name(source: usize) -> String {
    // rten opens external data only from files with an extension that begins with `data`.
    format!("{source}.data")
}

/// True if rten can use more than half of the weights where they lie.
fn is_worth_mapping(model: &OnnxModel) -> bool {
    let in_place = |tensor: &TensorProto| -> Option<usize> {
        let raw = tensor.raw_data.as_ref()?;
        let dtype = tensor.dtype().ok()?;
        let native = matches!(
            dtype,
            DataType::F32 | DataType::I32 | DataType::U8 | DataType::I8
        );
        let aligned = is_aligned(dtype, model.locate(raw)?.offset);
        (native && aligned).then_some(raw.len())
    };
    let weights = &model.graph().initializer;
    let usable: usize = weights.iter().filter_map(in_place).sum();
    usable as u64 * 2 > model.weight_bytes()
}

/// True if a tensor of this type may lie at `offset` of a mapped file.
fn is_aligned(dtype: DataType, offset: u64) -> bool {
    offset.is_multiple_of(u64::from(dtype.bits() / 8).max(1))
}
