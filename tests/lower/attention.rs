//! Attention over random shapes.

use proptest::prelude::*;
use trtvlm::onnx::DataType::I32;
use trtvlm::onnx::passes::MASK_FILL;

use crate::support::{Case, Floats, close, constant, contrib, numbers};

/// Other orders of summation over up to a hundred products.
const TOLERANCE: f32 = 2e-6;

/// Shapes and settings of grouped-query attention.
#[derive(Debug, Clone)]
struct Gqa {
    kv_heads: usize,
    group: usize,
    /// Pairs of elements that are turned, and elements that are not.
    pairs: usize,
    rest: usize,
    rows: usize,
    past: usize,
    /// Rows of the sequence that are not valid.
    padding: usize,
    rotary: bool,
    interleaved: bool,
    packed: bool,
    bias: bool,
    n_inputs: usize,
    scale: Option<f32>,
    opset: i64,
    seed: u64,
}

prop_compose! {
    fn gqa()(
        (kv_heads, group) in (1usize..4, 1usize..5),
        (pairs, rest) in (1usize..9, prop_oneof![Just(0usize), 1usize..5]),
        (rows, past) in (1usize..7, 0usize..7),
        padding in 0usize..3,
        (rotary, interleaved, packed, bias) in any::<(bool, bool, bool, bool)>(),
        n_inputs in prop::sample::select(vec![7usize, 9, 12]),
        scale in prop::option::of(0.1f32..1.0),
        opset in prop::sample::select(vec![17i64, 21]),
        seed in 1u64..1000,
    ) -> Gqa {
        // Without tables nothing is turned; a bias is operand 10; new rows are always valid.
        let bias = bias && n_inputs == 12;
        let padding = if bias { 0 } else { padding.min(past) };
        Gqa { kv_heads, group, pairs, rest, rows, past, padding, rotary, interleaved, packed, bias, n_inputs, scale, opset, seed }
    }
}

impl Gqa {
    fn d(&self) -> usize {
        2 * self.pairs + self.rest
    }

    fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    fn total(&self) -> usize {
        self.past + self.rows
    }

    /// Rows of the cache that are valid.
    fn cached(&self) -> usize {
        self.past - self.padding
    }

    fn angles(&self) -> Floats {
        let (shape, angles) = numbers(self.seed + 9, &[16, self.pairs]);
        (shape, angles.into_iter().map(|a| 3.0 * a).collect())
    }

    fn case(&self) -> Case {
        let (d, rows) = (self.d(), self.rows);
        let hidden = |heads: usize| [1, rows, heads * d];
        let cache = [1, self.kv_heads, self.past, d];
        let query = if self.packed {
            self.heads() + 2 * self.kv_heads
        } else {
            self.heads()
        };
        let mut names = vec!["q", "", "", "past_k", "past_v", "lens", "total"];
        let mut case = Case {
            floats: vec![
                ("q", numbers(self.seed, &hidden(query))),
                ("past_k", numbers(self.seed + 1, &cache)),
                ("past_v", numbers(self.seed + 2, &cache)),
            ],
            ints: vec![
                (
                    "lens",
                    I32,
                    vec![1],
                    vec![(self.cached() + rows) as i32 - 1],
                ),
                ("total", I32, vec![], vec![self.total() as i32]),
            ],
            outputs: vec!["y", "key", "value"],
            opset: self.opset,
            ..Case::default()
        };
        if !self.packed {
            (names[1], names[2]) = ("k", "v");
            let shape = hidden(self.kv_heads);
            case.floats.push(("k", numbers(self.seed + 3, &shape)));
            case.floats.push(("v", numbers(self.seed + 4, &shape)));
        }
        if self.rotary {
            names.extend(["cos", "sin"]);
            let (shape, angles) = self.angles();
            let table = |f: fn(f32) -> f32| (shape.clone(), angles.iter().map(|&a| f(a)).collect());
            case.constants = vec![
                constant("cos", &table(f32::cos)),
                constant("sin", &table(f32::sin)),
            ];
        }
        if names.len() < self.n_inputs {
            names.resize(self.n_inputs, "");
        }
        if self.bias {
            names[10] = "bias";
            case.floats.push(("bias", self.bias_values()));
        }
        let mut node = contrib("GroupQueryAttention", &names, &["y", "key", "value"])
            .with_int("num_heads", self.heads() as i64)
            .with_int("kv_num_heads", self.kv_heads as i64)
            .with_int("do_rotary", i64::from(self.rotary))
            .with_int("rotary_interleaved", i64::from(self.interleaved))
            .with_int("local_window_size", -1)
            .with_float("softcap", 0.0);
        if let Some(scale) = self.scale {
            node = node.with_float("scale", scale);
        }
        case.nodes = vec![node];
        case
    }

    fn bias_values(&self) -> Floats {
        numbers(self.seed + 5, &[1, 1, self.rows, self.total()])
    }

    /// The definition, head by head and row by row.
    fn reference(&self) -> Floats {
        let (d, rows, past) = (self.d(), self.rows, self.past);
        let case = self.case();
        let input = |name: &str| {
            let found = case.floats.iter().find(|(other, _)| *other == name);
            &found.expect("input").1.1
        };
        let all_heads = self.heads() + 2 * self.kv_heads;
        // Head `head` of the operand `part`, row `row`.
        let head_of = |part: usize, head: usize, row: usize| -> Vec<f32> {
            let (data, n, first) = match (self.packed, part) {
                (true, 0) => (input("q"), all_heads, 0),
                (true, 1) => (input("q"), all_heads, self.heads()),
                (true, _) => (input("q"), all_heads, self.heads() + self.kv_heads),
                (false, 0) => (input("q"), self.heads(), 0),
                (false, 1) => (input("k"), self.kv_heads, 0),
                (false, _) => (input("v"), self.kv_heads, 0),
            };
            let at = (row * n + first + head) * d;
            data[at..at + d].to_vec()
        };
        let angles = self.angles().1;
        let turned = |mut x: Vec<f32>, row: usize| {
            let position = self.cached() + row;
            for pair in (0..self.pairs).filter(|_| self.rotary) {
                let (a, b) = match self.interleaved {
                    true => (2 * pair, 2 * pair + 1),
                    false => (pair, pair + self.pairs),
                };
                let (sin, cos) = angles[position * self.pairs + pair].sin_cos();
                (x[a], x[b]) = (x[a] * cos - x[b] * sin, x[b] * cos + x[a] * sin);
            }
            x
        };
        let cached = |name: &str, head: usize, row: usize| {
            let at = (head * past + row) * d;
            input(name)[at..at + d].to_vec()
        };
        let scale = self.scale.unwrap_or(1.0 / (d as f32).sqrt());
        let mut out = vec![0f32; rows * self.heads() * d];
        for head in 0..self.heads() {
            let shared = head / self.group;
            for row in 0..rows {
                let query = turned(head_of(0, head, row), row);
                let old = (0..self.cached())
                    .map(|j| (j, cached("past_k", shared, j), cached("past_v", shared, j)));
                let new = (0..=row).map(|j| {
                    let key = turned(head_of(1, shared, j), j);
                    (past + j, key, head_of(2, shared, j))
                });
                let keys: Vec<_> = old.chain(new).collect();
                let scores = keys.iter().map(|(at, key, _)| {
                    let bias = match self.bias {
                        true => self.bias_values().1[row * self.total() + at],
                        false => 0.0,
                    };
                    let dot: f32 = query.iter().zip(key).map(|(a, b)| a * b).sum();
                    (dot * scale + bias).exp()
                });
                let weights: Vec<f32> = scores.collect();
                let sum: f32 = weights.iter().sum();
                let at = (row * self.heads() + head) * d;
                for (weight, (_, _, value)) in weights.iter().zip(&keys) {
                    for (out, v) in out[at..at + d].iter_mut().zip(value) {
                        *out += weight / sum * v;
                    }
                }
            }
        }
        (vec![1, rows, self.heads() * d], out)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn lowered_gqa_equals_its_definition(gqa in gqa()) {
        // Heads that are turned in part need tables that say so.
        let case = gqa.case();
        let (lowered, report) = case.lowered();
        prop_assert_eq!(report.masks.len(), 1);
        prop_assert_eq!(report.positions.len(), usize::from(gqa.rotary));
        let outputs = case.run(&lowered);
        close(&[gqa.reference()], &outputs[..1], TOLERANCE)?;
        prop_assert_eq!(&outputs[1].0, &[1, gqa.kv_heads, gqa.total(), gqa.d()]);
    }

    #[test]
    fn lowered_gqa_equals_the_operator_of_the_engine(gqa in gqa()) {
        let whole = Gqa { padding: 0, rest: 0, ..gqa };
        whole.case().compare(TOLERANCE)?;
    }

    #[test]
    fn lowered_mha_equals_the_operator_of_the_engine(
        (heads, d, rows, keys) in (1usize..5, 1usize..17, 1usize..7, 1usize..7),
        (bias, mask, per_head) in any::<(bool, bool, bool)>(),
        scale in prop::option::of(0.1f32..1.0),
        seed in 1u64..1000,
    ) {
        let hidden = heads * d;
        let mut names = vec!["q", "k", "v"];
        let mut case = Case {
            floats: vec![
                ("q", numbers(seed, &[1, rows, hidden])),
                ("k", numbers(seed + 1, &[1, keys, hidden])),
                ("v", numbers(seed + 2, &[1, keys, hidden])),
            ],
            outputs: vec!["y"],
            ..Case::default()
        };
        if bias {
            names.push("bias");
            case.constants.push(constant("bias", &numbers(seed + 3, &[3 * hidden])));
        }
        if mask {
            names.resize(5, "");
            names.push("mask");
            let n = if per_head { heads } else { 1 };
            case.floats.push(("mask", numbers(seed + 4, &[1, n, rows, keys])));
        }
        let mut node = contrib("MultiHeadAttention", &names, &["y"]).with_int("num_heads", heads as i64);
        if let Some(scale) = scale {
            node = node.with_float("scale", scale);
        }
        case.nodes = vec![node];
        case.compare(TOLERANCE)?;
    }
}

#[test]
fn lowered_gqa_layers_share_one_mask_of_half_range_and_never_repeat_keys() {
    let gqa = Gqa {
        kv_heads: 2,
        group: 3,
        pairs: 4,
        rest: 0,
        rows: 3,
        past: 2,
        padding: 0,
        rotary: true,
        interleaved: false,
        packed: true,
        bias: false,
        n_inputs: 9,
        scale: None,
        opset: 17,
        seed: 1,
    };
    let mut case = gqa.case();
    let mut second = case.nodes[0].clone();
    second.name = "second".to_owned();
    second.output = vec!["y2".to_owned(), String::new(), String::new()];
    case.nodes.push(second);
    case.outputs = vec!["y", "y2"];
    let (model, report) = case.lowered();
    assert_eq!(report.masks, ["gqa/mask"]);
    assert_eq!(report.positions, ["gqa/positions"]);
    assert_eq!(report.lowered["com.microsoft.GroupQueryAttention"], 2);
    let count = |op: &str| {
        model
            .graph()
            .node
            .iter()
            .filter(|n| n.op_type == op)
            .count()
    };
    assert_eq!(
        (count("Where"), count("Softmax"), count("MatMul")),
        (1, 2, 4)
    );
    assert_eq!(count("Gather"), 4, "two sizes, and the tables once");
    assert_eq!(count("Expand") + count("Tile"), 0);
    let fills = model
        .graph()
        .initializer
        .iter()
        .filter(|t| t.dims.is_empty());
    let fills = fills.filter_map(|t| t.to_f32(model.path()).ok());
    assert!(fills.into_iter().any(|v| v == [MASK_FILL]));
    let outputs = case.run(&model);
    assert_eq!(outputs[0], outputs[1]);
}
