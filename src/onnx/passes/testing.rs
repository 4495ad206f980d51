//! Small graphs for the tests of passes.

use std::path::Path;

use bytes::Bytes;
use prost::Message;

use crate::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    ValueInfoProto, attribute_type,
};
use crate::onnx::{DataType, Dim, OnnxModel, ValueType};

/// An input or output with unknown dimensions.
pub(super) fn value(name: &str, dtype: DataType) -> ValueInfoProto {
    shaped(name, dtype, &[Dim::Unknown, Dim::Unknown])
}

/// An input or output with these dimensions.
pub(super) fn shaped(name: &str, dtype: DataType, dims: &[Dim]) -> ValueInfoProto {
    ValueInfoProto::from(&ValueType {
        name: name.to_owned(),
        dtype: Some(dtype),
        dims: Some(dims.to_vec()),
    })
}

/// A scalar FP32 constant.
pub(super) fn scalar(name: &str, value: f32) -> TensorProto {
    TensorProto::from_f32(name, &[], &[value])
}

/// A node `Constant`.
pub(super) fn constant(value: TensorProto) -> NodeProto {
    let mut node = NodeProto::new("Constant", &[], &[&value.name]);
    node.attribute.push(AttributeProto {
        name: "value".to_owned(),
        t: Some(TensorProto {
            name: String::new(),
            ..value
        }),
        r#type: Some(attribute_type::TENSOR),
        ..AttributeProto::default()
    });
    node
}

/// A cast to `dtype`.
pub(super) fn cast(from: &str, to: &str, dtype: DataType) -> NodeProto {
    NodeProto::new("Cast", &[from], &[to]).with_int("to", dtype as i64)
}

/// A model of opset 17 with this graph.
pub(super) fn model(
    input: Vec<ValueInfoProto>,
    initializer: Vec<TensorProto>,
    node: Vec<NodeProto>,
    output: Vec<ValueInfoProto>,
) -> OnnxModel {
    let proto = ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto {
            domain: String::new(),
            version: Some(17),
        }],
        graph: Some(GraphProto {
            name: "test".to_owned(),
            node,
            initializer,
            input,
            output,
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    };
    OnnxModel::parse(Path::new("test.onnx"), Bytes::from(proto.encode_to_vec())).expect("parse")
}

/// Operators of the graph, in order.
pub(super) fn ops(model: &OnnxModel) -> Vec<&str> {
    let nodes = model.graph().node.iter();
    nodes.map(|node| node.op_type.as_str()).collect()
}

/// The node that makes `value`.
pub(super) fn maker<'a>(model: &'a OnnxModel, value: &str) -> &'a NodeProto {
    let graph = model.graph();
    &graph.node[graph.producers()[value]]
}
