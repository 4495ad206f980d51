//! Scales, codes and results against numpy (`tests/golden/quantize/make_qdq.py`).

use std::collections::BTreeMap;

use trtvlm::onnx::OnnxModel;
use trtvlm::onnx::proto::{NodeProto, TensorProto};
use trtvlm::quantize::{GraphRanges, QuantizeOptions, Scheme, TensorRange, quantize};

use super::support::{Golden, constants, graph, run, sqnr_db};

fn ranges(amax: f32, channel_amax: Vec<f32>) -> GraphRanges {
    let range = TensorRange {
        amax,
        min: -amax,
        max: amax,
        channel_amax,
    };
    GraphRanges {
        source_sha256: String::new(),
        tensors: BTreeMap::from([("x".to_owned(), range.clone()), ("h".to_owned(), range)]),
    }
}

fn bytes(tensor: &TensorProto) -> Vec<f32> {
    let raw = tensor.raw_data.as_ref().expect("raw");
    raw.iter().map(|&byte| f32::from(byte as i8)).collect()
}

fn check(golden: &Golden, case: &str, mut model: OnnxModel) {
    let amax = golden.floats(case, "amax")[0];
    let options = QuantizeOptions::new(Scheme::Int8);
    let report = quantize(&mut model, Some(&ranges(amax, vec![])), &options).expect("quantize");
    assert_eq!((report.n_tensors, report.n_weights), (1, 1), "{case}");
    let stored = constants(&model);
    assert_eq!(
        bytes(stored["w/int8"]),
        golden.floats(case, "w_codes"),
        "{case}"
    );
    let floats = |name: &str| stored[name].to_f32(model.path()).expect("floats");
    assert_eq!(floats("w/scale"), golden.floats(case, "w_scale"), "{case}");
    assert_eq!(floats("x/scale"), golden.floats(case, "x_scale"), "{case}");
    let (shape, x) = (golden.shape(case, "x"), golden.floats(case, "x"));
    let y = run(&model, &[("x", &shape, &x)], "y");
    let db = sqnr_db(&golden.floats(case, "y"), &y);
    // The same integers; sums in FP32 instead of FP64.
    assert!(db > 110.0, "{case}: {db} dB");
}

#[test]
fn products_are_those_of_an_independent_program() {
    let golden = Golden::load();
    let node = NodeProto::new("MatMul", &["x", "w"], &["y"]);
    check(
        &golden,
        "matmul",
        graph(vec![node], vec![golden.tensor("matmul", "w")]),
    );
}

#[test]
fn convolutions_are_those_of_an_independent_program() {
    let golden = Golden::load();
    for (case, groups) in [("conv", 1), ("conv_groups", 4)] {
        let node = NodeProto::new("Conv", &["x", "w", "b"], &["y"])
            .with_ints("pads", &[1, 1, 1, 1])
            .with_ints("strides", &[1, 1])
            .with_ints("dilations", &[1, 1])
            .with_int("group", groups);
        let weights = ["w", "b"].map(|name| golden.tensor(case, name));
        check(&golden, case, graph(vec![node], weights.to_vec()));
    }
}

#[test]
fn smoothing_factors_are_those_of_an_independent_program() {
    let golden = Golden::load();
    let gain = TensorProto::from_f32("gain", &[16], &[1.0; 16]);
    let mut model = graph(
        vec![
            NodeProto::new("Mul", &["x", "gain"], &["h"]),
            NodeProto::new("MatMul", &["h", "w"], &["y"]),
        ],
        vec![gain, golden.tensor("smooth", "w")],
    );
    let ranges = ranges(50.0, golden.floats("smooth", "amax"));
    let options = QuantizeOptions::new(Scheme::Int8);
    let report = quantize(&mut model, Some(&ranges), &options).expect("quantize");
    assert_eq!(report.smoothed, ["h"]);
    let stored = constants(&model);
    let gain = stored["gain/smoothed"]
        .to_f32(model.path())
        .expect("floats");
    for (found, factor) in gain.iter().zip(golden.floats("smooth", "factors")) {
        assert!((found * factor - 1.0).abs() < 1e-5, "{found} {factor}");
    }
}
