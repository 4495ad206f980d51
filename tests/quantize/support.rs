//! Models, ranges and graphs that the tests share.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use prost::Message;
use rten::ValueOrView;
use rten_tensor::Tensor;
use rten_tensor::prelude::*;
use trtvlm::calibrate::{CalibrateOptions, calibrate};
use trtvlm::cpu::Session;
use trtvlm::items::{Item, read_items};
use trtvlm::model::Model;
use trtvlm::onnx::proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto};
use trtvlm::onnx::{DataType, OnnxModel, ValueType};
use trtvlm::quantize::{Method, Scales};

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn demo() -> PathBuf {
    root().join("onnx/uav-tiny")
}

pub fn tiny(name: &str) -> PathBuf {
    root().join("tests/data/tiny").join(name)
}

pub fn items() -> Vec<Item> {
    read_items(&root().join("calibration")).expect("items")
}

/// Scales of a model folder, observed on the first `n` items.
pub fn observe(dir: &Path, n: usize) -> Scales {
    let model = Model::load(dir, None).expect("model");
    let folder = tempfile::tempdir().expect("folder");
    let out = folder.path().join("scales.json");
    let items = &items()[..n];
    let options = CalibrateOptions {
        items,
        method: Method::Mse,
        percentile: 99.99,
        max_tokens: 8,
        out: &out,
        force: false,
        cancel: Arc::new(|| false),
    };
    calibrate(&model, &options, &mut |_| {}).expect("calibrate");
    Scales::load(&out).expect("scales")
}

/// Scales of the demo model, observed once.
pub fn demo_scales() -> &'static Scales {
    static SCALES: OnceLock<Scales> = OnceLock::new();
    SCALES.get_or_init(|| observe(&demo(), 16))
}

/// A graph `x` -> `y` of these nodes and constants.
pub fn graph(node: Vec<NodeProto>, initializer: Vec<TensorProto>) -> OnnxModel {
    let value = |name: &str| {
        (&ValueType {
            name: name.to_owned(),
            dtype: Some(DataType::F32),
            dims: None,
        })
            .into()
    };
    let proto = ModelProto {
        ir_version: Some(9),
        opset_import: vec![OperatorSetIdProto {
            domain: String::new(),
            version: Some(19),
        }],
        graph: Some(GraphProto {
            name: "case".to_owned(),
            node,
            initializer,
            input: vec![value("x")],
            output: vec![value("y")],
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    };
    OnnxModel::parse(Path::new("case.onnx"), proto.encode_to_vec().into()).expect("parse")
}

/// What the CPU engine makes of float inputs.
pub fn run(model: &OnnxModel, inputs: &[(&str, &[usize], &[f32])], output: &str) -> Vec<f32> {
    let session = Session::load(model).expect("load");
    let inputs = inputs.iter().map(|(name, shape, data)| {
        let tensor = Tensor::from_data(shape, data.to_vec());
        let value: ValueOrView<'_> = tensor.into();
        (session.input(name).expect("input"), value)
    });
    let outputs = [session.output(output).expect("output")];
    let values = session.run(inputs.collect(), &outputs).expect("run");
    let tensor = values
        .into_iter()
        .next()
        .expect("value")
        .into_tensor::<f32>();
    tensor.expect("floats").iter().copied().collect()
}

/// 10 log10 of the power of `expected` over that of the difference.
pub fn sqnr_db(expected: &[f32], found: &[f32]) -> f64 {
    assert_eq!(expected.len(), found.len());
    let power = |x: f32| f64::from(x).powi(2);
    let signal: f64 = expected.iter().map(|&x| power(x)).sum();
    let noise: f64 = expected
        .iter()
        .zip(found)
        .map(|(&x, &y)| power(x - y))
        .sum();
    10.0 * (signal / noise.max(f64::MIN_POSITIVE)).log10()
}

/// Golden tensors by case and name.
pub struct Golden(serde_json::Value);

impl Golden {
    pub fn load() -> Self {
        let path = root().join("tests/golden/quantize/qdq.json");
        let text = std::fs::read_to_string(path).expect("golden");
        Self(serde_json::from_str(&text).expect("json"))
    }

    pub fn shape(&self, case: &str, name: &str) -> Vec<usize> {
        let shape = self.0[case][name]["shape"].as_array().expect("shape");
        shape
            .iter()
            .map(|n| n.as_u64().expect("n") as usize)
            .collect()
    }

    pub fn floats(&self, case: &str, name: &str) -> Vec<f32> {
        let data = self.0[case][name]["data"].as_array().expect("data");
        data.iter()
            .map(|v| v.as_f64().expect("number") as f32)
            .collect()
    }

    pub fn tensor(&self, case: &str, name: &str) -> TensorProto {
        let dims: Vec<i64> = self.shape(case, name).iter().map(|&n| n as i64).collect();
        TensorProto::from_f32(name, &dims, &self.floats(case, name))
    }
}

/// Constants of a graph by name.
pub fn constants(model: &OnnxModel) -> HashMap<&str, &TensorProto> {
    let tensors = model.graph().initializer.iter();
    tensors.map(|t| (t.name.as_str(), t)).collect()
}
