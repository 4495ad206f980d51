//! Norms, activations, rotary embeddings and packed weights over random shapes.

use proptest::prelude::*;
use trtvlm::onnx::DataType::{I64, U8};
use trtvlm::onnx::proto::{NodeProto, TensorProto};

use crate::support::{Case, close, constant, contrib, noise, numbers, with_text};

/// Other orders of summation, and `x / root` for `x · (1 / root)`.
const TOLERANCE: f32 = 2e-6;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn lowered_norms_equal_the_operators_of_the_engine(
        kind in 0usize..3,
        (rows, d) in (1usize..5, 1usize..40),
        (bias, returned) in any::<(bool, bool)>(),
        opset in prop::sample::select(vec![17i64, 21]),
        seed in 1u64..1000,
    ) {
        let mut case = Case {
            floats: vec![("x", numbers(seed, &[1, rows, d]))],
            constants: vec![constant("gamma", &numbers(seed + 1, &[d]))],
            outputs: vec!["y"],
            opset,
            ..Case::default()
        };
        let mut names = vec!["x"];
        if kind > 0 {
            case.floats.push(("skip", numbers(seed + 2, &[1, rows, d])));
            names.push("skip");
        }
        names.push("gamma");
        if kind == 2 {
            case.constants.push(constant("beta", &numbers(seed + 3, &[d])));
            names.push("beta");
        }
        if kind > 0 && bias {
            case.constants.push(constant("bias", &numbers(seed + 4, &[d])));
            names.push("bias");
        }
        let mut outputs = vec!["y"];
        if kind > 0 && returned {
            outputs.extend(["", "", "sum"]);
            case.outputs.push("sum");
        }
        let node = match kind {
            0 => NodeProto::new("SimplifiedLayerNormalization", &names, &outputs),
            1 => contrib("SkipSimplifiedLayerNormalization", &names, &outputs),
            _ => contrib("SkipLayerNormalization", &names, &outputs),
        };
        case.nodes = vec![node.with_float("epsilon", 1e-5)];
        case.compare(TOLERANCE)?;
    }

    #[test]
    fn lowered_activations_equal_the_operators_of_the_engine(
        kind in 0usize..6,
        d in 1usize..40,
        bias in any::<bool>(),
        seed in 1u64..1000,
    ) {
        let (shape, x) = numbers(seed, &[1, 3, d]);
        let mut case = Case {
            floats: vec![("x", (shape, x.into_iter().map(|v| 5.0 * v).collect()))],
            outputs: vec!["y"],
            opset: 20,
            ..Case::default()
        };
        let mut names = vec!["x"];
        if kind == 1 || (kind == 2 && bias) {
            names.push("bias");
            case.constants.push(constant("bias", &numbers(seed + 1, &[d])));
        }
        case.nodes = vec![match kind {
            0 => contrib("Gelu", &names, &["y"]),
            1 => contrib("BiasGelu", &names, &["y"]),
            2 => contrib("FastGelu", &names, &["y"]),
            3 => contrib("QuickGelu", &names, &["y"]).with_float("alpha", 1.5),
            4 => NodeProto::new("Gelu", &names, &["y"]),
            _ => with_text(NodeProto::new("Gelu", &names, &["y"]), "approximate", "tanh"),
        }];
        // The engine approximates erf and tanh in single operators and in fused ones alike.
        case.compare(TOLERANCE)?;
    }

    #[test]
    fn lowered_rotary_equals_the_operator_of_the_engine(
        (heads, pairs, rest, rows) in (1usize..5, 1usize..9, prop_oneof![Just(0usize), 1usize..5], 1usize..7),
        (four, interleaved, offset, counted) in any::<(bool, bool, bool, bool)>(),
        seed in 1u64..1000,
    ) {
        let d = 2 * pairs + rest;
        let shape = if four { vec![1, heads, rows, d] } else { vec![1, rows, heads * d] };
        let angles = numbers(seed + 1, &[32, pairs]);
        let table = |f: fn(f32) -> f32| (angles.0.clone(), angles.1.iter().map(|&a| f(3.0 * a)).collect());
        let positions = match offset {
            true => ("positions", I64, vec![1], vec![5]),
            false => ("positions", I64, vec![1, rows], (0..rows as i32).map(|r| (7 * r) % 32).collect()),
        };
        let mut node = contrib("RotaryEmbedding", &["x", "positions", "cos", "sin"], &["y"])
            .with_int("interleaved", i64::from(interleaved))
            .with_int("num_heads", if counted || rest > 0 { heads as i64 } else { 0 });
        if rest > 0 {
            node = node.with_int("rotary_embedding_dim", 2 * pairs as i64);
        }
        let case = Case {
            nodes: vec![node],
            constants: vec![constant("cos", &table(f32::cos)), constant("sin", &table(f32::sin))],
            floats: vec![("x", numbers(seed, &shape))],
            ints: vec![positions],
            outputs: vec!["y"],
            opset: 17,
        };
        case.compare(TOLERANCE)?;
    }

    /// The engine takes weights of four bits without zero points and bias; `n_bits` has its own
    /// tests, and `compare_lowered.py` compares all forms with ONNX Runtime.
    #[test]
    fn lowered_packed_weights_equal_the_operator_of_the_engine(
        (n, k, block) in (1usize..400, 1usize..12, prop::sample::select(vec![16usize, 32, 64])),
        seed in 1u64..1000,
    ) {
        let (k, blocks) = (k * block, k);
        let dims = [n as i64, blocks as i64, block as i64 / 2];
        let case = Case {
            nodes: vec![
                contrib("MatMulNBits", &["x", "codes", "scales"], &["y"])
                    .with_int("N", n as i64)
                    .with_int("K", k as i64)
                    .with_int("bits", 4)
                    .with_int("block_size", block as i64),
            ],
            constants: vec![
                TensorProto::from_raw("codes", U8, &dims, noise(seed + 1, n * k / 2)),
                constant("scales", &numbers(seed + 2, &[n, blocks])),
            ],
            floats: vec![("x", numbers(seed, &[1, 3, k]))],
            outputs: vec!["y"],
            ..Case::default()
        };
        case.compare(TOLERANCE)?;
    }
}

/// The engine has neither of these: `compare_lowered.py` compares them with ONNX Runtime, and here
/// small numbers do.
#[test]
fn lowered_fused_product_and_packed_table_are_what_they_say() {
    let a = (vec![1, 2, 2], vec![1.0, 2.0, 3.0, 4.0]);
    let weight = (vec![1, 2], vec![10.0, 1.0]);
    let product = Case {
        nodes: vec![
            contrib("FusedMatMul", &["a", "w"], &["y"])
                .with_int("transA", 1)
                .with_int("transB", 1)
                .with_float("alpha", 0.5),
        ],
        constants: vec![constant("w", &weight)],
        floats: vec![("a", a)],
        outputs: vec!["y"],
        ..Case::default()
    };
    let (lowered, _) = product.lowered();
    let expected = (vec![1, 2, 1], vec![6.5, 12.0]);
    close(&[expected], &product.run(&lowered), 0.0).expect("product");

    let table: Vec<u8> = (0..16).map(|i| i * 16 + i).collect();
    let lookup = Case {
        nodes: vec![
            contrib("GatherBlockQuantized", &["table", "ids", "scales"], &["y"])
                .with_int("block_size", 16)
                .with_int("quantize_axis", 1),
        ],
        constants: vec![
            TensorProto::from_raw("table", U8, &[2, 8], table),
            constant("scales", &(vec![2, 1], vec![1.0, 2.0])),
        ],
        ints: vec![("ids", I64, vec![1, 1], vec![1])],
        outputs: vec!["y"],
        ..Case::default()
    };
    let (lowered, _) = lookup.lowered();
    let row = (0..16).map(|i| 2.0 * (f64::from(8 + i / 2) - 8.0) as f32);
    let expected = (vec![1, 1, 16], row.collect());
    close(&[expected], &lookup.run(&lowered), 0.0).expect("row");
}
