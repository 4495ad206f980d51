//! Store large FP32 weights in half the bytes; arithmetic stays FP32.
//!
//! Each initializer of at least [`LARGE_ELEMENTS`] elements becomes FP16, with a Cast to FP32
//! behind it. For engines that compute in FP32 anyway (the CPU's), this is what FP16 can give: a
//! bundle of half the size. Unlike [`to_fp16`](super::to_fp16) it takes every operator.

use std::collections::HashSet;

use super::narrow::{count_beyond_f16, to_half};
use crate::error::Result;
use crate::onnx::graph::Names;
use crate::onnx::proto::NodeProto;
use crate::onnx::{DataType, OnnxModel};

/// Smaller weights are not worth a node: biases, scales, shapes.
const LARGE_ELEMENTS: u64 = 4096;

/// Rounds large FP32 weights to FP16 for storage; weights beyond FP16's range stay as they are.
/// Returns how many were rounded.
///
/// # Errors
/// [`Error::Malformed`](crate::Error::Malformed) if a weight's bytes do not fit its shape.
pub fn store_weights_fp16(model: &mut OnnxModel) -> Result<usize> {
    let path = model.path().to_path_buf();
    let cancel = model.cancel();
    let graph = model.graph_mut();
    let mut names = Names::of(graph);
    let mut stored = HashSet::new();
    let mut casts = Vec::new();
    for index in 0..graph.initializer.len() {
        cancel.check()?;
        let weight = &graph.initializer[index];
        let large = weight.dtype()? == DataType::F32 && weight.len(&path)? >= LARGE_ELEMENTS;
        if !large || count_beyond_f16(weight, &path)? > 0 {
            continue;
        }
        let name = weight.name.clone();
        let mut half = to_half(weight, &path)?.tensor;
        half.name = names.fresh(&format!("{name}_fp16"));
        let cast = NodeProto::new("Cast", &[&half.name], &[&name]);
        casts.push(cast.with_int("to", DataType::F32 as i64));
        stored.insert(name);
        graph.initializer[index] = half;
    }
    let n_stored = casts.len();
    // Files older than IR 4 list weights as inputs, too.
    graph.input.retain(|input| !stored.contains(&input.name));
    graph.node.splice(0..0, casts);
    Ok(n_stored)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use prost::Message;

    use super::*;
    use crate::onnx::proto::{GraphProto, ModelProto, TensorProto, ValueInfoProto};

    #[test]
    fn large_weights_are_halved_and_the_rest_left() {
        let n = LARGE_ELEMENTS as usize;
        let mut wide = vec![0.25; n];
        wide[7] = 1e6;
        let proto = ModelProto {
            graph: Some(GraphProto {
                node: vec![NodeProto::new("Sum", &["large", "wide", "small"], &["y"])],
                initializer: vec![
                    TensorProto::from_f32("large", &[n as i64], &vec![0.1; n]),
                    TensorProto::from_f32("wide", &[n as i64], &wide),
                    TensorProto::from_f32("small", &[1], &[0.1]),
                ],
                output: vec![ValueInfoProto {
                    name: "y".to_owned(),
                    ..ValueInfoProto::default()
                }],
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        };
        let bytes = proto.encode_to_vec().into();
        let mut model = OnnxModel::parse(Path::new("w.onnx"), bytes).expect("parse");
        assert_eq!(store_weights_fp16(&mut model).expect("pass"), 1);
        let graph = model.graph();
        assert_eq!(graph.initializer[0].dtype().expect("type"), DataType::F16);
        assert_eq!(graph.initializer[0].raw_len(), 2 * n);
        assert_eq!(graph.initializer[1].dtype().expect("type"), DataType::F32);
        let cast = &graph.node[0];
        assert_eq!(
            (cast.op_type.as_str(), cast.output[0].as_str()),
            ("Cast", "large")
        );
        assert_eq!(cast.input[0], graph.initializer[0].name);
        assert_eq!(graph.node[1].input, ["large", "wide", "small"]);
        assert_eq!(store_weights_fp16(&mut model).expect("again"), 0);
    }
}
