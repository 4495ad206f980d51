//! Tests of [`super::precision`].

use super::Fp16Options;
use super::precision::Precision::{self, Half, Single};
use super::precision::{Plan, plan};
use super::testing::{cast, model, scalar, value};
use super::types::Types;
use crate::onnx::DataType::{self, Bool, F32, I8, I64};
use crate::onnx::OnnxModel;
use crate::onnx::proto::{NodeProto, TensorProto};

/// Plans a graph with inputs `x`, `z` (f32), `n` (i64), `b` (bool), constants `w` (an FP16
/// one) and `huge`, and returns the precision of the node that makes each value.
fn planned(nodes: Vec<NodeProto>, outputs: &[&str], options: &Fp16Options) -> Planned {
    let model = model(
        vec![
            value("x", F32),
            value("z", F32),
            value("n", I64),
            value("b", Bool),
        ],
        vec![
            scalar("w", 0.5),
            scalar("huge", 1e6),
            TensorProto::from_i64("i", &[1], &[0]),
            TensorProto::from_raw("i8", I8, &[], vec![0]),
            TensorProto::from_raw("codes", I8, &[1, 1], vec![1]),
        ],
        nodes,
        outputs.iter().map(|name| value(name, F32)).collect(),
    );
    let types = Types::infer(&model).expect("types");
    let plan = plan(model.graph(), &types, options, &mut |name| {
        Ok(u64::from(name == "huge"))
    });
    Planned {
        plan: plan.expect("plan"),
        model,
    }
}

struct Planned {
    model: OnnxModel,
    plan: Plan,
}

impl Planned {
    fn of(&self, value: &str) -> Option<Precision> {
        self.plan[self.model.graph().producers()[value]]
    }
}

#[track_caller]
fn expect(nodes: Vec<NodeProto>, outputs: &[&str], expected: &[(&str, Precision)]) {
    let planned = planned(nodes, outputs, &Fp16Options::default());
    for (value, precision) in expected {
        assert_eq!(planned.of(value), Some(*precision), "{value}");
    }
}

fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto::new(op, inputs, &[output])
}

#[test]
fn rms_norm_is_single_from_its_square_to_the_next_product() {
    let norm = vec![
        node("MatMul", &["x", "w"], "h"),
        node("Mul", &["h", "h"], "square"),
        node("ReduceMean", &["square"], "mean"),
        node("Add", &["mean", "w"], "eps"),
        node("Sqrt", &["eps"], "root"),
        node("Div", &["w", "root"], "inverse"),
        node("Mul", &["h", "inverse"], "normed"),
        node("Mul", &["w", "normed"], "weighted"),
        node("MatMul", &["weighted", "w"], "product"),
        node("Add", &["h", "product"], "residual"),
    ];
    expect(
        norm,
        &["residual"],
        &[
            ("h", Half),
            ("square", Single),
            ("mean", Single),
            ("inverse", Single),
            ("normed", Single),
            ("weighted", Single),
            ("product", Half),
            ("residual", Half),
        ],
    );
}

#[test]
fn scores_are_single_between_the_product_and_softmax() {
    let attention = || {
        vec![
            node("MatMul", &["x", "z"], "scores"),
            node("Mul", &["scores", "w"], "scaled"),
            node("Where", &["b", "w", "w"], "mask"),
            node("Add", &["scaled", "mask"], "masked"),
            node("Softmax", &["masked"], "weights"),
            node("MatMul", &["weights", "z"], "y"),
        ]
    };
    let single = [
        ("scores", Half),
        ("scaled", Single),
        ("mask", Single),
        ("masked", Single),
        ("weights", Single),
        ("y", Half),
    ];
    expect(attention(), &["y"], &single);
    let options = Fp16Options {
        softmax: DataType::F16,
        ..Fp16Options::default()
    };
    let half = planned(attention(), &["y"], &options);
    for value in ["scaled", "masked", "weights"] {
        assert_eq!(half.of(value), Some(Half), "{value}");
    }
}

#[test]
fn seen_values_decide_whether_a_gated_product_and_its_readers_are_half() {
    let graph = || {
        vec![
            node("MatMul", &["x", "w"], "gate"),
            node("MatMul", &["x", "w"], "up"),
            node("Sigmoid", &["gate"], "sigmoid"),
            node("Mul", &["gate", "sigmoid"], "silu"),
            node("Mul", &["silu", "up"], "product"),
            node("MatMul", &["product", "w"], "down"),
            node("Add", &["x", "down"], "sum"),
            node("MatMul", &["sum", "w"], "y"),
        ]
    };
    // Product, sum: what was seen; silu, product, down, sum, y: their precisions.
    for (product, sum, expected) in [
        (None, None, [Single, Single, Half, Half, Half]),
        (Some(16000.0), Some(16000.0), [Half; 5]),
        (Some(17000.0), None, [Single, Single, Single, Single, Half]),
        (Some(f32::NAN), None, [Single, Single, Single, Single, Half]),
        (Some(1.0), Some(70000.0), [Half, Half, Half, Single, Single]),
    ] {
        let seen = [("product", product), ("sum", sum)];
        let seen = seen
            .iter()
            .filter_map(|(n, v)| Some((n.to_string(), (*v)?)));
        let options = Fp16Options {
            seen: seen.collect(),
            ..Fp16Options::default()
        };
        let planned = planned(graph(), &["y"], &options);
        let found = ["silu", "product", "down", "sum", "y"].map(|v| planned.of(v));
        assert_eq!(found, expected.map(Some), "{product:?} {sum:?}");
    }
}

#[test]
fn gated_product_is_single_and_a_plain_silu_is_not() {
    let gated = vec![
        node("MatMul", &["x", "w"], "gate"),
        node("MatMul", &["x", "w"], "up"),
        node("Sigmoid", &["gate"], "sigmoid"),
        node("Mul", &["gate", "sigmoid"], "silu"),
        node("Mul", &["silu", "up"], "product"),
        node("MatMul", &["product", "w"], "down"),
        // Squeeze-excite: a factor between 0 and 1.
        node("Sigmoid", &["down"], "excite"),
        node("Mul", &["x", "excite"], "excited"),
        node("Sigmoid", &["excited"], "sigmoid2"),
        node("Mul", &["sigmoid2", "excited"], "silu2"),
        node("Mul", &["silu2", "w"], "y"),
    ];
    expect(
        gated,
        &["y"],
        &[
            ("gate", Half),
            ("sigmoid", Single),
            ("silu", Single),
            ("product", Single),
            ("down", Half),
            ("excite", Half),
            ("excited", Half),
            ("silu2", Half),
            ("y", Half),
        ],
    );
}

#[test]
fn positions_are_single_until_they_meet_activations() {
    let rotary = vec![
        cast("n", "position", F32),
        node("Mul", &["position", "w"], "angle"),
        node("Cos", &["angle"], "cos"),
        node("Unsqueeze", &["cos", "i"], "cos4"),
        node("Mul", &["x", "cos4"], "rotated"),
        node("Less", &["position", "w"], "bucket"),
        node("MatMul", &["angle", "w"], "embedded"),
        cast("b", "factor", F32),
        node("Mul", &["x", "factor"], "masked"),
    ];
    expect(
        rotary,
        &["rotated", "bucket", "embedded", "masked"],
        &[
            ("position", Single),
            ("angle", Single),
            ("cos", Single),
            // The cast comes before the move, and at the boolean itself.
            ("cos4", Half),
            ("rotated", Half),
            ("bucket", Single),
            ("embedded", Single),
            ("factor", Half),
            ("masked", Half),
        ],
    );
}

#[test]
fn looked_up_rows_and_their_moves_are_half() {
    let lookup = vec![
        node("Gather", &["w", "n"], "row"),
        node("LayerNormalization", &["row", "w", "w"], "norm"),
        node("Transpose", &["norm"], "moved"),
        node("Conv", &["moved", "w"], "conv"),
        node("Transpose", &["norm"], "kept"),
        node("ReduceMean", &["kept"], "mean"),
    ];
    expect(
        lookup,
        &["conv", "mean"],
        &[
            ("row", Half),
            ("norm", Single),
            ("moved", Half),
            ("conv", Half),
            ("kept", Single),
            ("mean", Single),
        ],
    );
}

#[test]
fn tanh_gelu_is_single_because_of_its_cube_and_erf_gelu_is_half() {
    let gelu = vec![
        node("MatMul", &["x", "w"], "h"),
        node("Mul", &["h", "h"], "h2"),
        node("Mul", &["h", "h2"], "h3"),
        node("Add", &["h", "h3"], "inner"),
        node("Tanh", &["inner"], "tanh"),
        node("Mul", &["h", "tanh"], "gelu"),
        node("MatMul", &["gelu", "w"], "g"),
        node("Div", &["g", "w"], "d"),
        node("Erf", &["d"], "erf"),
        node("Mul", &["g", "erf"], "y"),
    ];
    expect(
        gelu,
        &["y"],
        &[
            ("h", Half),
            ("h3", Single),
            ("gelu", Single),
            ("g", Half),
            ("erf", Half),
            ("y", Half),
        ],
    );
}

#[test]
fn constants_beyond_range_and_named_nodes_keep_their_readers_single() {
    let nodes = || {
        vec![
            node("MatMul", &["x", "huge"], "a"),
            node("MatMul", &["x", "w"], "b2"),
            node("Add", &["a", "b2"], "c"),
            node("MatMul", &["c", "w"], "y"),
        ]
    };
    let all = [("a", Single), ("b2", Half), ("c", Single), ("y", Half)];
    expect(nodes(), &["y"], &all);
    let options = Fp16Options {
        keep: vec!["y/MatMul".to_owned()],
        ..Fp16Options::default()
    };
    assert_eq!(planned(nodes(), &["y"], &options).of("y"), Some(Single));
}

#[test]
fn quantization_follows_its_operand_and_dequantization_its_readers() {
    let nodes = |keep: &str| {
        let nodes = vec![
            node("Sqrt", &["x"], "root"),
            node("QuantizeLinear", &["root", "w", "i8"], "q"),
            node("DequantizeLinear", &["q", "w", "i8"], "d"),
            node("DequantizeLinear", &["codes", "w"], "weight"),
            node("MatMul", &["d", "weight"], "product"),
            node("QuantizeLinear", &["product", "w", "i8"], "q2"),
            node("DequantizeLinear", &["q2", "w", "i8"], "d2"),
            node("Relu", &["d2"], "y"),
        ];
        let options = Fp16Options {
            keep: vec![keep.to_owned()],
            ..Fp16Options::default()
        };
        planned(nodes, &["y"], &options)
    };
    let usual = nodes("");
    let expected = [
        ("q", Single),
        ("d", Half),
        ("weight", Half),
        ("product", Half),
        ("q2", Half),
        ("d2", Half),
    ];
    for (value, precision) in expected {
        assert_eq!(usual.of(value), Some(precision), "{value}");
    }
    let kept = nodes("product/MatMul");
    for value in ["d", "weight", "product", "q2"] {
        assert_eq!(kept.of(value), Some(Single), "{value}");
    }
    assert_eq!(kept.of("d2"), Some(Half));
}

#[test]
fn operators_to_be_lowered_are_refused_by_name() {
    let mut attention = node("GroupQueryAttention", &["x", "z"], "a");
    attention.domain = "com.microsoft".to_owned();
    let quantize = node("MatMulInteger", &["a", "w"], "y");
    let model = model(
        vec![value("x", F32), value("z", F32)],
        vec![scalar("w", 1.0)],
        vec![attention, quantize],
        vec![value("y", F32)],
    );
    let types = Types::infer(&model).expect("types");
    let options = Fp16Options::default();
    let error = plan(model.graph(), &types, &options, &mut |_| Ok(0)).expect_err("refused");
    let error = error.to_string();
    assert!(
        error.contains("a/GroupQuery") && error.contains("y/MatMulInteger"),
        "{error}"
    );
}
