//! Nets of drafts as ONNX graphs (shapes: `backend::draft`).

use std::path::Path;

use bytes::Bytes;
use candle_core::Tensor;
use prost::Message;

use super::failed;
use super::net::{HEAD_DIM, NORM_EPSILON, Net};
use super::params::Params;
use crate::backend::draft::{
    DRAFT_EMBEDS, DRAFT_HIDDEN_IN, DRAFT_HIDDEN_OUT, DRAFT_LOGITS, DRAFT_PAST, DRAFT_PRESENT,
};
use crate::error::Result;
use crate::model::DraftKind;
use crate::onnx::passes::store_weights_fp16;
use crate::onnx::proto::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
};
use crate::onnx::{DataType, Dim, OnnxModel, ValueType};

/// Every parser that we know takes it.
const OPSET: i64 = 17;

/// Writes the graph of a net, weights in FP16.
pub(super) fn export(net: &Net, params: &Params, path: &Path) -> Result<()> {
    let mut writer = Writer::default();
    let (d, w) = (net.d_model as i64, net.width as i64);
    let rows = || {
        vec![
            Dim::Fixed(1),
            Dim::Named("rows".to_owned()),
            Dim::Fixed(net.d_model),
        ]
    };
    let one = |n: usize| vec![Dim::Fixed(1), Dim::Fixed(1), Dim::Fixed(n)];
    writer.constant_f32("epsilon", NORM_EPSILON as f32);
    for name in ["last", "axis"] {
        writer.constants.push(TensorProto::from_i64(
            name,
            &[1],
            &[if name == "last" { -1 } else { 1 }],
        ));
    }
    writer
        .constants
        .push(TensorProto::from_i64("end", &[1], &[i64::MAX]));
    for (name, value) in params_in_order(net, params)? {
        let dims: Vec<i64> = value.dims().iter().map(|&n| n as i64).collect();
        let values = value
            .flatten_all()
            .and_then(|v| v.to_vec1::<f32>())
            .map_err(failed)?;
        writer
            .constants
            .push(TensorProto::from_f32(&weight(name), &dims, &values));
    }
    if net.kind == DraftKind::Head {
        let n_heads = w / HEAD_DIM as i64;
        let cache = |name: &str| {
            let n = Dim::Named(name.to_owned());
            let heads = Dim::Fixed(n_heads as usize);
            vec![Dim::Fixed(1), heads, n, Dim::Fixed(HEAD_DIM)]
        };
        writer.input(DRAFT_EMBEDS, rows());
        writer.input(DRAFT_HIDDEN_IN, rows());
        writer.norm(DRAFT_EMBEDS, "embeds");
        writer.norm(DRAFT_HIDDEN_IN, "states");
        let both = NodeProto::new("Concat", &["embeds", "states"], &["both"]);
        writer.nodes.push(both.with_int("axis", 2));
        writer.matmul("both", "in", "x");
        writer.norm("x", "y");
        let by_head = [0, 0, n_heads, HEAD_DIM as i64];
        writer
            .constants
            .push(TensorProto::from_i64("by_head", &[4], &by_head));
        for ((name, past), present) in ["k", "v"].into_iter().zip(DRAFT_PAST).zip(DRAFT_PRESENT) {
            writer.input(past, cache("past"));
            writer.heads("y", name);
            let all = NodeProto::new("Concat", &[past, &format!("{name}_heads")], &[present]);
            writer.nodes.push(all.with_int("axis", 2));
        }
        // Only the last row is asked: it sees all others, so that nothing needs a mask.
        writer.last_row("x", "x_last");
        writer.last_row("y", "y_last");
        writer.heads("y_last", "q");
        let [keys, values] = DRAFT_PRESENT;
        let turned = NodeProto::new("Transpose", &[keys], &["keys_t"]);
        writer.nodes.push(turned.with_ints("perm", &[0, 1, 3, 2]));
        writer.constant_f32("scale", 1.0 / (HEAD_DIM as f32).sqrt());
        writer.node("Mul", &["q_heads", "scale"], "q_scaled");
        writer.node("MatMul", &["q_scaled", "keys_t"], "scores");
        let softmax = NodeProto::new("Softmax", &["scores"], &["shares"]);
        writer.nodes.push(softmax.with_int("axis", -1));
        writer.node("MatMul", &["shares", values], "mixed_heads");
        let turned = NodeProto::new("Transpose", &["mixed_heads"], &["mixed_rows"]);
        writer.nodes.push(turned.with_ints("perm", &[0, 2, 1, 3]));
        writer
            .constants
            .push(TensorProto::from_i64("flat", &[3], &[0, 0, w]));
        writer.node("Reshape", &["mixed_rows", "flat"], "mixed");
        writer.matmul("mixed", "o", "attention");
        writer.node("Add", &["x_last", "attention"], "a");
    } else {
        writer.input(DRAFT_HIDDEN_IN, rows());
        writer.last_row(DRAFT_HIDDEN_IN, "state");
        writer.norm("state", "state_normed");
        writer.matmul("state_normed", "in", "a");
    }
    writer.norm("a", "z");
    writer.matmul("z", "gate", "gate_in");
    writer.node("Sigmoid", &["gate_in"], "gate_share");
    writer.node("Mul", &["gate_in", "gate_share"], "gate_out");
    writer.matmul("z", "up", "up_out");
    writer.node("Mul", &["gate_out", "up_out"], "inner");
    writer.matmul("inner", "down", "down_out");
    writer.node("Add", &["a", "down_out"], "f");
    writer.norm("f", "f_normed");
    writer.matmul("f_normed", "out", DRAFT_LOGITS);
    writer.output(DRAFT_LOGITS, one(net.vocabulary.len()));
    if net.kind == DraftKind::Head {
        writer.matmul("f", "back", DRAFT_HIDDEN_OUT);
        writer.output(DRAFT_HIDDEN_OUT, one(d as usize));
        for name in DRAFT_PRESENT {
            let heads = Dim::Fixed(net.width / HEAD_DIM);
            let all = Dim::Named("past_and_rows".to_owned());
            writer.output(name, vec![Dim::Fixed(1), heads, all, Dim::Fixed(HEAD_DIM)]);
        }
    }
    writer.save(net.kind, path)
}

/// Weights in the order of their names, so that the same weights give the same file.
fn params_in_order<'a>(net: &Net, params: &'a Params) -> Result<Vec<(&'static str, &'a Tensor)>> {
    let head = [
        "in", "q", "k", "v", "o", "back", "gate", "up", "down", "out",
    ];
    let exit = ["in", "gate", "up", "down", "out"];
    let names: &[&'static str] = match net.kind {
        DraftKind::Head => &head,
        DraftKind::EarlyExit => &exit,
    };
    names
        .iter()
        .map(|&name| Ok((name, params.get(name)?)))
        .collect()
}

fn weight(name: &str) -> String {
    format!("{name}.weight")
}

#[derive(Default)]
struct Writer {
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
    inputs: Vec<ValueInfoProto>,
    outputs: Vec<ValueInfoProto>,
}

impl Writer {
    fn node(&mut self, op: &str, inputs: &[&str], output: &str) {
        self.nodes.push(NodeProto::new(op, inputs, &[output]));
    }

    fn constant_f32(&mut self, name: &str, value: f32) {
        self.constants
            .push(TensorProto::from_f32(name, &[], &[value]));
    }

    fn matmul(&mut self, x: &str, name: &str, output: &str) {
        self.node("MatMul", &[x, &weight(name)], output);
    }

    fn norm(&mut self, x: &str, output: &str) {
        let [square, mean, sum, root] =
            ["square", "mean", "sum", "root"].map(|part| format!("{output}/{part}"));
        self.node("Mul", &[x, x], &square);
        let reduce = NodeProto::new("ReduceMean", &[&square], &[&mean]);
        self.nodes
            .push(reduce.with_ints("axes", &[-1]).with_int("keepdims", 1));
        self.node("Add", &[&mean, "epsilon"], &sum);
        self.node("Sqrt", &[&sum], &root);
        self.node("Div", &[x, &root], output);
    }

    fn last_row(&mut self, x: &str, output: &str) {
        self.node("Slice", &[x, "last", "end", "axis"], output);
    }

    /// `<name>_heads` `[1, heads, rows, head_dim]`.
    fn heads(&mut self, x: &str, name: &str) {
        let [flat, rows, heads] = ["flat", "rows", "heads"].map(|part| format!("{name}_{part}"));
        self.matmul(x, name, &flat);
        self.node("Reshape", &[&flat, "by_head"], &rows);
        let turned = NodeProto::new("Transpose", &[&rows], &[&heads]);
        self.nodes.push(turned.with_ints("perm", &[0, 2, 1, 3]));
    }

    fn input(&mut self, name: &str, dims: Vec<Dim>) {
        self.inputs.push(value(name, dims));
    }

    fn output(&mut self, name: &str, dims: Vec<Dim>) {
        self.outputs.push(value(name, dims));
    }

    fn save(self, kind: DraftKind, path: &Path) -> Result<()> {
        let proto = ModelProto {
            producer_name: "trtvlm".to_owned(),
            producer_version: env!("CARGO_PKG_VERSION").to_owned(),
            opset_import: vec![OperatorSetIdProto {
                domain: String::new(),
                version: Some(OPSET),
            }],
            graph: Some(GraphProto {
                name: kind.to_string(),
                node: self.nodes,
                initializer: self.constants,
                input: self.inputs,
                output: self.outputs,
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        };
        let mut model = OnnxModel::parse(path, Bytes::from(proto.encode_to_vec()))?;
        store_weights_fp16(&mut model)?;
        model.save_published(path)
    }
}

fn value(name: &str, dims: Vec<Dim>) -> ValueInfoProto {
    ValueInfoProto::from(&ValueType {
        name: name.to_owned(),
        dtype: Some(DataType::F32),
        dims: Some(dims),
    })
}
