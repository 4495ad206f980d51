//! Forms that are not lowered are refused, all at once, by name.

use trtvlm::Error;
use trtvlm::onnx::passes::{LowerOptions, lower};
use trtvlm::onnx::proto::{NodeProto, TensorProto};

use crate::support::{Case, constant, contrib, numbers, with_text};

fn attention() -> NodeProto {
    let names = ["q", "k", "v", "past_k", "past_v", "lens", "total"];
    contrib("GroupQueryAttention", &names, &["y", "key", "value"])
        .with_int("num_heads", 4)
        .with_int("kv_num_heads", 2)
}

/// A graph of these nodes with every operand that they may name.
fn case(nodes: Vec<NodeProto>) -> Case {
    use trtvlm::onnx::DataType::{I32, I64};
    Case {
        nodes,
        constants: vec![
            constant("cos", &numbers(1, &[16, 4])),
            constant("wide", &numbers(1, &[16, 8])),
            constant("sink", &numbers(1, &[4])),
            constant("gamma", &numbers(1, &[32])),
            TensorProto::from_i64("codes", &[1], &[0]),
        ],
        floats: vec![
            ("q", numbers(1, &[1, 3, 32])),
            ("k", numbers(1, &[1, 3, 16])),
            ("v", numbers(1, &[1, 3, 16])),
            ("past_k", numbers(1, &[1, 2, 2, 8])),
            ("past_v", numbers(1, &[1, 2, 2, 8])),
        ],
        ints: vec![
            ("lens", I32, vec![1], vec![4]),
            ("total", I32, vec![], vec![5]),
            ("positions", I64, vec![1, 3], vec![0, 1, 2]),
        ],
        outputs: vec!["y"],
        ..Case::default()
    }
}

/// What the error says of the node that makes `y`.
fn refusal(node: NodeProto) -> String {
    let mut model = case(vec![node]).model();
    let error = lower(&mut model, &LowerOptions::default()).expect_err("refused");
    match error {
        Error::Unsupported { reason, .. } => reason,
        other => panic!("{other}"),
    }
}

#[test]
fn lower_of_a_form_that_is_not_lowered_says_what_of_it() {
    let with_inputs = |node: NodeProto, at: usize, name: &str| {
        let mut node = node;
        node.input
            .resize(node.input.len().max(at + 1), String::new());
        node.input[at] = name.to_owned();
        node
    };
    let rotary = |cos: &str| contrib("RotaryEmbedding", &["q", "positions", cos, "cos"], &["y"]);
    let mha = || contrib("MultiHeadAttention", &["q", "q", "q"], &["y"]).with_int("num_heads", 4);
    let norm = || {
        contrib(
            "SkipSimplifiedLayerNormalization",
            &["q", "q", "gamma"],
            &["y"],
        )
    };
    let packed = || contrib("MatMulNBits", &["q", "codes", "gamma"], &["y"]);
    let sizes = |node: NodeProto, bits, block| {
        let node = node
            .with_int("N", 4)
            .with_int("K", 32)
            .with_int("bits", bits);
        node.with_int("block_size", block)
    };
    let cases = [
        (attention().with_float("softcap", 30.0), "softcap"),
        (
            attention().with_int("local_window_size", 128),
            "local_window_size",
        ),
        (attention().with_int("causal", 0), "causal"),
        (attention().with_int("smooth_softmax", 1), "smooth_softmax"),
        (attention().with_int("wobble", 0), "wobble"),
        (
            with_text(attention(), "k_quant_type", "PER_TENSOR"),
            "quantized cache",
        ),
        (attention().with_int("do_rotary", 1), "cos_cache"),
        (with_inputs(attention(), 11, "sink"), "sink"),
        (with_inputs(attention(), 2, ""), "not both"),
        (with_inputs(attention(), 4, ""), "one kind"),
        (with_inputs(attention(), 5, ""), "seqlens_k"),
        (
            contrib("GroupQueryAttention", &attention_inputs(), &["y"]).with_int("num_heads", 4),
            "kv_num_heads",
        ),
        (
            contrib("GroupQueryAttention", &attention_inputs(), &["y"])
                .with_int("num_heads", 4)
                .with_int("kv_num_heads", 3),
            "share",
        ),
        (rotary("wide"), "differ in width"),
        (rotary("gamma"), "no table"),
        (
            rotary("cos").with_int("rotary_embedding_dim", 8),
            "num_heads",
        ),
        (rotary("cos").with_float("scale", 2.0), "scale"),
        (with_inputs(mha(), 4, "positions"), "padding mask"),
        (with_inputs(mha(), 6, "past_k"), "cache"),
        (with_inputs(mha(), 1, "past_k"), "rank"),
        (mha().with_int("unidirectional", 1), "unidirectional"),
        (norm().with_int("axis", 1), "axis"),
        (sizes(packed(), 3, 32), "4 and 8 bits"),
        (sizes(packed(), 4, 24), "power of two"),
        (sizes(packed(), 4, 32), "codes of type i64"),
        (sizes(with_inputs(packed(), 4, "codes"), 4, 32), "g_idx"),
        (sizes(with_inputs(packed(), 1, "q"), 4, 32), "no constant"),
        (
            contrib("FastGelu", &["q"], &["y"]).with_int("fast", 1),
            "fast",
        ),
        (
            NodeProto::new("MatMulInteger", &["positions", "positions"], &["y"]),
            "no lowering",
        ),
    ];
    for (node, expected) in cases {
        let op = node.op();
        let reason = refusal(node);
        assert!(reason.contains(expected), "{op}: {reason}");
    }
}

fn attention_inputs() -> [&'static str; 7] {
    ["q", "k", "v", "past_k", "past_v", "lens", "total"]
}

#[test]
fn lower_names_all_nodes_that_it_refuses_in_one_error() {
    let named = |node: NodeProto, name: &str, output: &str| NodeProto {
        name: name.to_owned(),
        output: vec![output.to_owned()],
        ..node
    };
    let nodes = vec![
        named(attention().with_int("causal", 0), "layer 0", "a"),
        named(attention(), "layer 1", "b"),
        named(attention().with_float("softcap", 1.0), "layer 2", "c"),
        named(
            contrib("FastGelu", &["q"], &["g"]).with_int("fast", 1),
            "gate",
            "g",
        ),
        NodeProto::new("Sum", &["a", "b", "c", "g"], &["y"]),
    ];
    let mut model = case(nodes).model();
    let error = lower(&mut model, &LowerOptions::default()).expect_err("refused");
    let Error::Unsupported { node, op, reason } = &error else {
        panic!("{error}");
    };
    assert_eq!(node, "layer 0`, `layer 2`, `gate");
    assert_eq!(
        op,
        "com.microsoft.FastGelu, com.microsoft.GroupQueryAttention"
    );
    assert!(
        reason.contains("causal") && reason.contains("softcap"),
        "{reason}"
    );
}

#[test]
fn lower_of_an_older_opset_than_it_writes_is_malformed() {
    let mut model = case(vec![attention()]).model();
    model.set_opset("", Some(12));
    let error = lower(&mut model, &LowerOptions::default()).expect_err("opset");
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
}

#[test]
fn lower_of_a_node_with_an_endless_name_does_not_repeat_all_of_it() {
    let mut node = attention();
    node.name = "n".repeat(1 << 20);
    let mut model = case(vec![node]).model();
    lower(&mut model, &LowerOptions::default()).expect("lowered");
    let longest = model.graph().node.iter().map(|n| n.name.len()).max();
    assert!(longest < Some(1000), "{longest:?}");
}
