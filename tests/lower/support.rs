//! Small graphs, and what the CPU engine makes of them.

use proptest::test_runner::TestCaseError;
use prost::Message;
use rten::{Value, ValueOrView};
use rten_tensor::Tensor;
use rten_tensor::prelude::*;
use trtvlm::cpu::Session;
use trtvlm::onnx::passes::{LowerOptions, LowerReport, lower};
use trtvlm::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    attribute_type,
};
use trtvlm::onnx::{DataType, Dim, OnnxModel, ValueType};

/// Floats of a tensor with their shape.
pub type Floats = (Vec<usize>, Vec<f32>);

/// A graph with what it is run on.
#[derive(Debug, Clone, Default)]
pub struct Case {
    pub nodes: Vec<NodeProto>,
    pub constants: Vec<TensorProto>,
    pub floats: Vec<(&'static str, Floats)>,
    pub ints: Vec<(&'static str, DataType, Vec<usize>, Vec<i32>)>,
    pub outputs: Vec<&'static str>,
    pub opset: i64,
}

/// A node of the contrib domain.
pub fn contrib(op_type: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        domain: "com.microsoft".to_owned(),
        ..NodeProto::new(op_type, inputs, outputs)
    }
}

/// The node with a text attribute.
pub fn with_text(mut node: NodeProto, name: &str, text: &'static str) -> NodeProto {
    node.attribute.push(AttributeProto {
        name: name.to_owned(),
        s: Some(bytes::Bytes::from_static(text.as_bytes())),
        r#type: Some(attribute_type::STRING),
        ..AttributeProto::default()
    });
    node
}

/// Numbers between -1 and 1 that look random, the same for the same seed.
pub fn numbers(seed: u64, shape: &[usize]) -> Floats {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let n: usize = shape.iter().product();
    (shape.to_vec(), (0..n).map(|_| next()).collect())
}

/// Bytes that look random.
pub fn noise(seed: u64, n: usize) -> Vec<u8> {
    let values = numbers(seed, &[n]).1.into_iter();
    values.map(|v| ((v + 1.0) * 127.9) as u8).collect()
}

/// A constant of these numbers.
pub fn constant(name: &str, (shape, values): &Floats) -> TensorProto {
    let dims: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
    TensorProto::from_f32(name, &dims, values)
}

impl Case {
    /// The graph as a model; sizes other than the last are not stated.
    pub fn model(&self) -> OnnxModel {
        let input = |name: &str, dtype, shape: &[usize]| {
            let last = shape.len().saturating_sub(1);
            let dim = |(axis, &n): (usize, &usize)| match axis == last && n > 0 {
                true => Dim::Fixed(n),
                false => Dim::Named(format!("{name}_{axis}")),
            };
            ValueType {
                name: name.to_owned(),
                dtype: Some(dtype),
                dims: Some(shape.iter().enumerate().map(dim).collect()),
            }
        };
        let floats = self.floats.iter();
        let floats = floats.map(|(name, (shape, _))| input(name, DataType::F32, shape));
        let ints = self.ints.iter();
        let ints = ints.map(|(name, dtype, shape, _)| input(name, *dtype, shape));
        let output = |name: &&str| ValueType {
            name: (*name).to_owned(),
            dtype: Some(DataType::F32),
            dims: None,
        };
        let import = |domain: &str, version| OperatorSetIdProto {
            domain: domain.to_owned(),
            version: Some(version),
        };
        let proto = ModelProto {
            ir_version: Some(8),
            opset_import: vec![import("", self.opset.max(17)), import("com.microsoft", 1)],
            graph: Some(GraphProto {
                name: "case".to_owned(),
                node: self.nodes.clone(),
                initializer: self.constants.clone(),
                input: floats.chain(ints).map(|v| (&v).into()).collect(),
                output: self
                    .outputs
                    .iter()
                    .map(output)
                    .map(|v| (&v).into())
                    .collect(),
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        };
        let path = std::path::Path::new("case.onnx");
        OnnxModel::parse(path, proto.encode_to_vec().into()).expect("graph")
    }

    /// The lowered graph, which has operators of the default domain only.
    pub fn lowered(&self) -> (OnnxModel, LowerReport) {
        let mut model = self.model();
        let report = lower(&mut model, &LowerOptions::default()).expect("lowered");
        for node in &model.graph().node {
            assert!(node.domain.is_empty(), "{}", node.op());
        }
        assert_eq!(model.opset("com.microsoft"), None);
        (model, report)
    }

    /// Runs a form of the graph.
    pub fn run(&self, model: &OnnxModel) -> Vec<Floats> {
        // The engine reads large weights from files.
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("case.onnx");
        model.save(&path).expect("save");
        let session = Session::load(&OnnxModel::load(&path).expect("load")).expect("session");
        let mut inputs: Vec<(_, ValueOrView<'_>)> = Vec::new();
        for (name, (shape, values)) in &self.floats {
            let value: Value = Tensor::from_data(shape.as_slice(), values.clone()).into();
            inputs.push((session.input(name).expect("input"), value.into()));
        }
        for (name, _, shape, values) in &self.ints {
            if session.has_input(name) {
                let value: Value = Tensor::from_data(shape.as_slice(), values.clone()).into();
                inputs.push((session.input(name).expect("input"), value.into()));
            }
        }
        let outputs = self.outputs.iter();
        let ids: Vec<_> = outputs
            .map(|o| session.output(o).expect("output"))
            .collect();
        let values = session.run(inputs, &ids).expect("run").into_iter();
        let floats = |value: Value| {
            let tensor = value.into_tensor::<f32>().expect("floats");
            (tensor.shape().to_vec(), tensor.into_data())
        };
        values.map(floats).collect()
    }

    /// Compares the graph with its lowered form on the engine.
    pub fn compare(&self, tolerance: f32) -> Result<(), TestCaseError> {
        let (lowered, _) = self.lowered();
        close(&self.run(&self.model()), &self.run(&lowered), tolerance)
    }
}

/// Fails if a value is further from what is expected than `tolerance` times the largest.
pub fn close(expected: &[Floats], actual: &[Floats], tolerance: f32) -> Result<(), TestCaseError> {
    let fail = |text: String| Err(TestCaseError::fail(text));
    if expected.len() != actual.len() {
        return fail(format!("{} and {} outputs", expected.len(), actual.len()));
    }
    for (index, (expected, actual)) in expected.iter().zip(actual).enumerate() {
        if expected.0 != actual.0 {
            return fail(format!(
                "output {index}: {:?} and {:?}",
                expected.0, actual.0
            ));
        }
        let largest = expected.1.iter().fold(0f32, |max, v| max.max(v.abs()));
        for (at, (a, b)) in expected.1.iter().zip(&actual.1).enumerate() {
            let near = (a - b).abs() <= tolerance * largest.max(1e-3);
            if !near {
                return fail(format!("output {index}, element {at}: {a} and {b}"));
            }
        }
    }
    Ok(())
}
