//! The demo model and its scales, for tests.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use super::{Choice, Subject};
use crate::build::{ComponentKind, Quantization};
use crate::bundle::Precision;
use crate::calibrate::{CalibrateOptions, calibrate};
use crate::items::{Item, read_items, spread};
use crate::model::Model;
use crate::quantize::{Method, Scales};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The demo model.
pub fn model() -> Model {
    Model::load(&root().join("onnx/uav-tiny"), None).expect("demo model")
}

/// `n` of its sample items.
pub fn items(n: usize) -> Vec<Item> {
    spread(read_items(&root().join("calibration")).expect("items"), n)
}

/// What calibration finds on four of them.
pub fn scales() -> &'static Scales {
    static SCALES: OnceLock<Scales> = OnceLock::new();
    SCALES.get_or_init(|| {
        let dir = tempfile::tempdir().expect("dir");
        let out = dir.path().join("scales.json");
        let options = CalibrateOptions {
            items: &items(4),
            method: Method::Entropy,
            percentile: 99.99,
            max_tokens: 4,
            out: &out,
            force: false,
            cancel: Arc::new(|| false),
        };
        calibrate(&model(), &options, &mut |_| {}).expect("calibration");
        Scales::load(Path::new(&out)).expect("scales")
    })
}

/// Those, damaged: one tensor's range is `factor` times what it was.
pub fn damaged_scales(component: &str, tensor: &str, factor: f32) -> Scales {
    let mut scales = scales().clone();
    let graph = scales.graphs.get_mut(component).expect("component");
    let scale = graph.tensors.get_mut(tensor).expect("tensor");
    scale.amax.values_mut().for_each(|amax| *amax *= factor);
    scales
}

/// INT8 by these scales, without the layers that suffer most on this model.
pub fn int8(scales: &Scales) -> Quantization {
    let mut int8 = Quantization::with_scales(scales.clone(), Method::Entropy).expect("method");
    int8.options.exclude = vec!["*down_proj*".parse().expect("pattern")];
    int8
}

/// The label of the last product of a component, and the tensor that it alone reads.
pub fn last_product(subject: &Subject<'_>, kind: ComponentKind, name: &str) -> [String; 2] {
    let graph = subject.graph(kind, Choice::Nothing).expect("graph").graph;
    let nodes = graph.graph().node.iter();
    let mut products = nodes.filter(|n| n.op_type == "MatMul" && n.label().contains(name));
    let node = products.next_back().expect("a product");
    [node.label().to_owned(), node.input[0].clone()]
}

/// The demo model in INT8.
pub fn subject<'a>(model: &'a Model, quantization: &'a Quantization) -> Subject<'a> {
    Subject {
        model,
        precision: Precision::Int8,
        quantization,
        cancel: Arc::new(AtomicBool::new(false)),
    }
}
