//! Split the LM head into parts.
//!
//! An engine may want one contiguous block of scratch for a product, in proportion to its weight:
//! for FastVLM-0.5B's head (152 k x 896) about 1.5 times its 272 MB, which a busy board does not
//! have in one piece. Parts of it are products of their own, concatenated:
//! `h W = [h W₁ | h W₂ | …]`, the same numbers.

use super::logit_rows::lm_head;
use crate::error::{Error, Result};
use crate::onnx::OnnxModel;
use crate::onnx::graph::Names;
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto};

/// What stands between the name of the head and the number of a part of it.
const PART: &str = "/part";

/// The label of the node that a node is a part of, or its own.
pub(crate) fn whole_label(label: &str) -> &str {
    match label.rsplit_once(PART) {
        Some((whole, number))
            if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) =>
        {
            whole
        }
        _ => label,
    }
}

/// Splits the LM head of `logits` by columns so that no part's weight has more than `max_elements`
/// elements. Returns the number of parts; 1 if nothing had to be split.
///
/// A weight that is stored in 4-bit blocks is split with its scales.
///
/// # Errors
/// [`Error::Unsupported`] if the head is not a `MatMul` with a constant `[d, vocab]` weight that
/// lies in the file as it is or in blocks, [`Error::Argument`] if two columns alone are larger.
pub fn split_lm_head(model: &mut OnnxModel, max_elements: u64) -> Result<usize> {
    let path = model.path().to_path_buf();
    let graph = model.graph();
    let unsupported = |reason: &str| Error::Unsupported {
        node: "logits".to_owned(),
        op: "LM head".to_owned(),
        reason: format!("{}: {reason}", path.display()),
    };
    let head = lm_head(graph, "logits")
        .filter(|&index| graph.node[index].op_type == "MatMul")
        .ok_or_else(|| unsupported("no MatMul found above `logits`"))?;
    let node = graph.node[head].clone();
    let (dequantize, tensors) = weight(graph, &node.input[1])
        .ok_or_else(|| unsupported("the weight is not a matrix that is stored"))?;
    for tensor in &tensors {
        tensor.len(&path)?;
    }
    let (depth, columns) = (tensors[0].dims[0], tensors[0].dims[1]);
    let (depth, columns) = (depth.max(0) as u64, columns.max(0) as usize);
    if depth.saturating_mul(columns as u64) <= max_elements {
        return Ok(1);
    }
    let width = usize::try_from(max_elements / depth.max(1)).unwrap_or(columns);
    // Two codes of 4 bits share a byte: parts begin at even columns.
    let width = width & !1;
    if width == 0 {
        return Err(Error::Argument {
            name: "head-mib",
            reason: format!("too little for two columns of {depth} weights of the LM head"),
        });
    }
    // Parts of equal width, as far as they go: the last one is not a sliver.
    let n_parts = columns.div_ceil(width);
    let width = columns.div_ceil(n_parts).next_multiple_of(2);

    let mut names = Names::of(graph);
    let mut made = Vec::new();
    let (mut parts, mut nodes) = (Vec::new(), Vec::new());
    for (index, start) in (0..columns).step_by(width).enumerate() {
        let n = width.min(columns - start);
        let mut stored = Vec::with_capacity(tensors.len());
        for tensor in &tensors {
            let mut part = columns_of(tensor, start, n)
                .ok_or_else(|| unsupported("the weight is not stored as raw bytes"))?;
            part.name = names.fresh(&format!("{}_part{index}", tensor.name));
            stored.push(part.name.clone());
            made.push(part);
        }
        let mut operand = stored[0].clone();
        if let Some(dequantize) = &dequantize {
            operand = names.fresh(&format!("{}_part{index}", node.input[1]));
            nodes.push(NodeProto {
                name: format!("{operand}/DequantizeLinear"),
                input: stored,
                output: vec![operand.clone()],
                ..dequantize.clone()
            });
        }
        let part = names.fresh(&format!("{}_part{index}", node.output[0]));
        nodes.push(NodeProto {
            name: format!("{}{PART}{index}", node.label()),
            ..NodeProto::new("MatMul", &[&node.input[0], &operand], &[&part])
        });
        parts.push(part);
    }
    let n_parts = parts.len();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    nodes.push(NodeProto::new("Concat", &parts, &[&node.output[0]]).with_int("axis", -1));
    let graph = model.graph_mut();
    graph.initializer.append(&mut made);
    graph.node.splice(head..=head, nodes);
    graph.remove_unused();
    Ok(n_parts)
}

/// The matrices that a weight is stored in, each with its columns, and what makes one of them.
fn weight(graph: &GraphProto, name: &str) -> Option<(Option<NodeProto>, Vec<TensorProto>)> {
    let matrix = |name: &String| {
        let tensor = graph.initializer(name);
        tensor.filter(|tensor| tensor.dims.len() == 2).cloned()
    };
    if let Some(tensor) = matrix(&name.to_owned()) {
        return Some((None, vec![tensor]));
    }
    let node = graph
        .node
        .iter()
        .find(|n| n.output.iter().any(|o| o == name))?;
    let blocks = node.op() == "DequantizeLinear" && node.attr("block_size").is_some();
    let tensors: Option<Vec<_>> = node.input.iter().map(matrix).collect();
    let tensors = tensors.filter(|_| blocks)?;
    let same = tensors
        .iter()
        .all(|tensor| tensor.dims[1] == tensors[0].dims[1]);
    same.then(|| (Some(node.clone()), tensors))
}

/// `n` columns of a matrix, from `start` on; `None` if its bytes are not all there, or a column
/// begins inside a byte.
fn columns_of(tensor: &TensorProto, start: usize, n: usize) -> Option<TensorProto> {
    let dtype = tensor.dtype().ok()?;
    let bits = dtype.bits() as usize;
    let (rows, columns) = (tensor.dims[0] as usize, tensor.dims[1] as usize);
    let bytes = |columns: usize| {
        (columns * bits)
            .is_multiple_of(8)
            .then_some(columns * bits / 8)
    };
    let (row, from, to) = (bytes(columns)?, bytes(start)?, bytes(start + n)?);
    let raw = tensor.raw_data.as_ref()?;
    if row == 0 || raw.len() != rows * row {
        return None;
    }
    let mut part = Vec::with_capacity(rows * (to - from));
    for row in raw.chunks_exact(row) {
        part.extend_from_slice(&row[from..to]);
    }
    Some(TensorProto::from_raw(
        "",
        dtype,
        &[tensor.dims[0], n as i64],
        part,
    ))
}

#[cfg(test)]
mod tests {
    use rten::ValueOrView;
    use rten_tensor::NdTensor;

    use super::super::testing::{model, ops, value};
    use super::*;
    use crate::cpu::Session;
    use crate::onnx::DataType::{F32, I4};

    const DEPTH: usize = 3;
    const COLUMNS: usize = 9;

    fn decoder() -> OnnxModel {
        let weight: Vec<f32> = (0..DEPTH * COLUMNS).map(|i| i as f32 - 9.5).collect();
        model(
            vec![value("h", F32)],
            vec![TensorProto::from_f32(
                "w",
                &[DEPTH as i64, COLUMNS as i64],
                &weight,
            )],
            vec![
                NodeProto::new("MatMul", &["h", "w"], &["y"]),
                NodeProto::new("Identity", &["y"], &["logits"]),
            ],
            vec![value("logits", F32)],
        )
    }

    fn logits(model: &OnnxModel) -> Vec<f32> {
        let session = Session::load(model).expect("session");
        let hidden = NdTensor::from_data([2, DEPTH], vec![0.5f32, -1.0, 2.0, 3.0, 0.25, -0.75]);
        let input = session.input("h").expect("h");
        let output = session.output("logits").expect("logits");
        let values = session.run(vec![(input, ValueOrView::Value(hidden.into()))], &[output]);
        let value = values.expect("run").remove(0);
        value.into_tensor::<f32>().expect("floats").into_data()
    }

    #[test]
    fn split_lm_head_gives_the_same_logits_from_parts_below_the_bound() {
        let whole = logits(&decoder());
        for (max_elements, n_parts) in [(27, 1), (26, 2), (18, 2), (12, 3), (6, 5), (11, 5)] {
            let mut model = decoder();
            let n = split_lm_head(&mut model, max_elements).expect("pass");
            assert_eq!(n, n_parts, "{max_elements}");
            assert_eq!(logits(&model), whole, "{max_elements}");
            let weights = model.graph().initializer.iter();
            let largest = weights.map(|w| w.raw_len() as u64 / 4).max();
            assert!(largest.is_some_and(|n| n <= max_elements));
            let products = ops(&model).iter().filter(|op| **op == "MatMul").count();
            assert_eq!(products, n_parts);
            let nodes = model.graph().node.iter();
            let mut products = nodes.filter(|node| node.op_type == "MatMul");
            assert!(products.all(|node| whole_label(node.label()) == "y/MatMul"));
        }
    }

    #[test]
    fn split_lm_head_in_blocks_takes_codes_and_scales_apart() {
        let codes: Vec<u8> = (0..96u32).map(|i| (i * 29 + 3) as u8).collect();
        let scales: Vec<f32> = (1..=12).map(|i| i as f32).collect();
        let blocks = NodeProto::new("DequantizeLinear", &["codes", "scales"], &["w"]);
        let mut model = model(
            vec![value("h", F32)],
            vec![
                TensorProto::from_raw("codes", I4, &[32, 6], codes.clone()),
                TensorProto::from_f32("scales", &[2, 6], &scales),
            ],
            vec![
                blocks.with_int("axis", 0).with_int("block_size", 16),
                NodeProto::new("MatMul", &["h", "w"], &["logits"]),
            ],
            vec![value("logits", F32)],
        );
        assert_eq!(split_lm_head(&mut model, 32 * 4).expect("pass"), 2);
        let graph = model.graph();
        let (mut found, mut found_scales) = (vec![Vec::new(); 32], vec![Vec::new(); 2]);
        for node in graph
            .node
            .iter()
            .filter(|n| n.op_type == "DequantizeLinear")
        {
            assert_eq!(node.attr("block_size").and_then(|a| a.i), Some(16));
            let part = graph.initializer(&node.input[0]).expect("codes");
            let raw = part.raw_data.as_ref().expect("raw");
            for (row, bytes) in found.iter_mut().zip(raw.chunks(part.dims[1] as usize / 2)) {
                row.extend_from_slice(bytes);
            }
            let part = graph.initializer(&node.input[1]).expect("scales");
            let values = part.to_f32(model.path()).expect("floats");
            for (row, values) in found_scales
                .iter_mut()
                .zip(values.chunks(part.dims[1] as usize))
            {
                row.extend_from_slice(values);
            }
        }
        assert_eq!(found.concat(), codes);
        assert_eq!(found_scales.concat(), scales);
    }

    #[test]
    fn whole_label_leaves_other_names_alone() {
        assert_eq!(whole_label("/head/MatMul/part12"), "/head/MatMul");
        for label in ["/head/MatMul", "/a/part", "/a/part1b", "/part1/MatMul"] {
            assert_eq!(whole_label(label), label);
        }
    }

    #[test]
    fn split_lm_head_below_two_columns_is_refused() {
        let error = split_lm_head(&mut decoder(), 5).expect_err("too small");
        assert!(error.to_string().contains("head-mib"), "{error}");
    }
}
