//! Handing a rewritten graph to rten without a second copy of its weights (an unsafe fence: see
//! `tests/house.rs`).
#![allow(unsafe_code)]

use std::borrow::Cow;
use std::collections::BTreeSet;

use bytes::Bytes;
use rten::{Model, ModelOptions};

use super::session;
use crate::error::Result;
use crate::host::{Memory, resident_bytes};
use crate::huge_pages::{self, Hold};
use crate::onnx::passes::pad_integer_convs;
use crate::onnx::{DataType, OnnxModel};

/// Tensors of fewer bytes travel inside the graph.
const INLINE_BYTES: usize = 1024;

/// The part of the memory that is left, as 1/n, that a graph may not have: small blocks, stacks and
/// page tables live in it.
const RESERVE: u64 = 16;

/// A graph in the engine, and the mapped files that its weights lie in.
pub(super) struct Loaded {
    model: Model,
    /// Declared after `model`, so that it is dropped after it.
    _weights: Vec<Bytes>,
}

impl Loaded {
    /// The graph.
    pub(super) fn model(&self) -> &Model {
        &self.model
    }
}

/// Loads a graph that passes may have rewritten.
///
/// The graph is encoded without its weights, which rten takes from memory: where they lie in the
/// mapped files or in the tensor, or from a copy of one that is not aligned there (weights inside
/// an ONNX file rarely are). Nothing is written to disk.
///
/// Integer convolutions are padded by a node of their own ([`pad_integer_convs`]).
///
/// With `optimize` the engine fuses and folds nodes; without, every value of the graph is computed
/// as the graph says.
///
/// # Errors
/// [`Error::TooLarge`](crate::Error::TooLarge) or [`Error::Unsupported`](crate::Error::Unsupported)
/// for graphs that the engine may not be asked to load, [`Error::Cpu`](crate::Error::Cpu) for
/// those that it refuses.
pub(super) fn load(model: &OnnxModel, optimize: bool) -> Result<Loaded> {
    super::sizes::check(model)?;
    let model = &*mend(model)?;
    let name = model.path().display().to_string();
    let _hold = hold(model);
    let mut options = ModelOptions::with_all_ops();
    options.prepack_weights(false).enable_optimization(optimize);
    let mut used = BTreeSet::new();
    let mut copies = 0usize;
    let mut owned: Vec<Bytes> = Vec::new();
    let graph = model.encode(|tensor| {
        let raw = tensor.raw_data.as_ref()?;
        if raw.len() < INLINE_BYTES {
            return None;
        }
        let location = model.locate(raw);
        if can_stay(tensor.dtype().ok(), raw) {
            if let Some(location) = location {
                used.insert(location.source);
                return Some((file_name(location.source), location.offset));
            }
            owned.push(raw.clone());
            return Some((format!("own{}.data", owned.len()), 0));
        }
        copies += 1;
        let name = format!("copy{copies}.data");
        options.external_data(&name, raw.to_vec());
        release(model, raw);
        Some((name, 0))
    });
    let files = used
        .into_iter()
        .map(|source| (file_name(source), model.sources()[source].bytes().clone()));
    let named = owned
        .into_iter()
        .enumerate()
        .map(|(index, bytes)| (format!("own{}.data", index + 1), bytes));
    let mut weights = Vec::new();
    for (file, bytes) in files.chain(named) {
        // SAFETY: `bytes` is moved into `Loaded` beside the model, is dropped after it, and never
        // moves or changes what it points to. rten keeps the slice in the constants of its graph
        // only; what its runs return is owned.
        let slice: &'static [u8] =
            unsafe { std::slice::from_raw_parts(bytes.as_ptr(), bytes.len()) };
        options.external_data_static(&file, slice);
        weights.push(bytes);
    }
    let model = session::guard(&name, || options.load(graph))?;
    Ok(Loaded {
        model,
        _weights: weights,
    })
}

/// The graph without what the engine computes wrongly.
fn mend(model: &OnnxModel) -> Result<Cow<'_, OnnxModel>> {
    let mut nodes = model.graph().node.iter();
    if !nodes.any(|node| node.op_type == "ConvInteger") {
        return Ok(Cow::Borrowed(model));
    }
    let mut mended = model.clone();
    pad_integer_convs(&mut mended)?;
    Ok(Cow::Owned(mended))
}

/// Refuses memory beyond what the machine has left now, while weights are copied: they are most of
/// what a graph needs.
pub(super) fn hold(model: &OnnxModel) -> Hold {
    if let Some(memory) = Memory::read() {
        let left = memory.left_for(resident_bytes());
        huge_pages::bound(left - left / RESERVE);
    }
    Hold::new(&session::label(&model.path().display().to_string()))
}

/// Gives back the memory of a weight that was copied from a mapped file: else it is in memory twice,
/// as far as anybody counts.
pub(super) fn release(model: &OnnxModel, raw: &Bytes) {
    if let Some(location) = model.locate(raw) {
        let start = location.offset as usize;
        model.sources()[location.source].release(start..start + raw.len());
    }
}

fn file_name(source: usize) -> String {
    // rten takes external data only under names with an extension that begins with `data`.
    format!("{source}.data")
}

/// True if rten can read a tensor's bytes where they lie: it uses some types in place, looks at
/// FP16 as a slice, and converts the others byte by byte.
pub(super) fn can_stay(dtype: Option<DataType>, raw: &Bytes) -> bool {
    let align = match dtype {
        Some(DataType::F32 | DataType::I32) => 4,
        Some(DataType::F16) => 2,
        _ => 1,
    };
    raw.as_ptr().addr().is_multiple_of(align)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use prost::Message;
    use rten_tensor::Tensor;
    use rten_tensor::prelude::*;

    use super::super::Session;
    use super::*;
    use crate::onnx::proto::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};

    /// `y = x + w` with 512 weights, stored inside the file after `pad` bytes of text.
    fn model(dtype: DataType, raw: Vec<u8>, pad: usize) -> OnnxModel {
        let value = |name: &str| ValueInfoProto {
            name: name.to_owned(),
            ..ValueInfoProto::default()
        };
        let mut nodes = vec![NodeProto::new("Cast", &["w"], &["v"]).with_int("to", 1)];
        nodes.push(NodeProto::new("Add", &["x", "v"], &["y"]));
        let proto = ModelProto {
            producer_name: " ".repeat(pad),
            graph: Some(GraphProto {
                node: nodes,
                initializer: vec![TensorProto::from_raw("w", dtype, &[512], raw)],
                input: vec![value("x")],
                output: vec![value("y")],
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        };
        OnnxModel::parse(Path::new("sum.onnx"), proto.encode_to_vec().into()).expect("parse")
    }

    #[test]
    fn weights_of_every_type_and_alignment_are_those_of_the_file() {
        let numbers = 0..512i16;
        let raw = |dtype| -> Vec<u8> {
            let bytes = |n: i16| match dtype {
                DataType::F32 => f32::from(n).to_le_bytes().to_vec(),
                DataType::F16 => half::f16::from_f32(f32::from(n)).to_le_bytes().to_vec(),
                DataType::I32 => i32::from(n).to_le_bytes().to_vec(),
                _ => i64::from(n).to_le_bytes().to_vec(),
            };
            numbers.clone().flat_map(bytes).collect()
        };
        for dtype in [DataType::F32, DataType::F16, DataType::I32, DataType::I64] {
            for pad in 0..4 {
                let model = model(dtype, raw(dtype), pad);
                let session = Session::load(&model).expect("load");
                // The session keeps what it reads from.
                drop(model);
                let x = Tensor::<f32>::full(&[512], 0.5);
                let inputs = vec![(session.input("x").expect("x"), x.into())];
                let outputs = session.run(inputs, &[session.output("y").expect("y")]);
                let y = outputs.expect("run").remove(0).into_tensor::<f32>();
                let expected: Vec<f32> = numbers.clone().map(|n| f32::from(n) + 0.5).collect();
                let y: Vec<f32> = y.expect("f32").iter().copied().collect();
                assert_eq!(y, expected, "{dtype} after {pad} bytes");
            }
        }
    }
}
