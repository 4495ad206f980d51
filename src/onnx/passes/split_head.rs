//! Split the LM head into parts.
//!
//! An engine may want one contiguous block of scratch for a product, in proportion to its weight:
//! for FastVLM-0.5B's head (152 k x 896) about 1.5 times its 272 MB, which a busy board does not
//! have in one piece. Parts of it are products of their own, concatenated:
//! `h W = [h W₁ | h W₂ | …]`, the same numbers.

use crate::error::{Error, Result};
use crate::onnx::OnnxModel;
use crate::onnx::proto::{NodeProto, TensorProto};

use super::logit_rows::lm_head;

/// Splits the LM head of `logits` by columns so that no part's weight has more than
/// `max_bytes` bytes. Returns the number of parts; 1 if nothing had to be split.
///
/// # Errors
/// [`Error::Unsupported`] if the head is not a `MatMul` with a constant `[d, vocab]` weight that
/// lies in the file as it is, [`Error::Argument`] if one column alone is larger.
pub fn split_lm_head(model: &mut OnnxModel, max_bytes: u64) -> Result<usize> {
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
    let weight = graph
        .initializer(&node.input[1])
        .filter(|tensor| tensor.dims.len() == 2)
        .ok_or_else(|| unsupported("the weight is not a matrix"))?;
    let raw = weight
        .raw_data
        .clone()
        .ok_or_else(|| unsupported("the weight is not stored as raw bytes"))?;
    let dtype = weight.dtype()?;
    weight.len(&path)?;
    let (depth, columns) = (weight.dims[0] as usize, weight.dims[1] as usize);
    let element = (dtype.bits() / 8) as usize;
    if raw.len() != depth * columns * element {
        return Err(Error::malformed(
            &path,
            format!("weight `{}` has {} bytes", weight.name, raw.len()),
        ));
    }
    if raw.len() as u64 <= max_bytes {
        return Ok(1);
    }
    let column_bytes = (depth * element) as u64; // not zero: there are more bytes than `max_bytes`
    let width = usize::try_from(max_bytes / column_bytes).unwrap_or(columns);
    if width == 0 {
        return Err(Error::Argument {
            name: "head-bytes",
            reason: format!("{max_bytes}, one column of the LM head has {column_bytes}"),
        });
    }
    // Parts of equal width, as far as they go: the last one is not a sliver.
    let n_parts = columns.div_ceil(width);
    let width = columns.div_ceil(n_parts);

    let name = weight.name.clone();
    let graph = model.graph_mut();
    let mut parts = Vec::with_capacity(n_parts);
    let mut nodes = Vec::with_capacity(n_parts + 1);
    for (index, start) in (0..columns).step_by(width).enumerate() {
        let n = width.min(columns - start);
        let mut bytes = Vec::with_capacity(depth * n * element);
        for row in raw.chunks_exact(columns * element) {
            bytes.extend_from_slice(&row[start * element..(start + n) * element]);
        }
        let weight = graph.fresh_name(&format!("{name}_part{index}"));
        let part = graph.fresh_name(&format!("{}_part{index}", node.output[0]));
        let dims = [depth as i64, n as i64];
        graph
            .initializer
            .push(TensorProto::from_raw(&weight, dtype, &dims, bytes));
        nodes.push(NodeProto::new(
            "MatMul",
            &[&node.input[0], &weight],
            &[&part],
        ));
        parts.push(part);
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    nodes.push(NodeProto::new("Concat", &parts, &[&node.output[0]]).with_int("axis", -1));
    graph.node.splice(head..=head, nodes);
    graph.remove_unused();
    Ok(n_parts)
}

#[cfg(test)]
mod tests {
    use rten::ValueOrView;
    use rten_tensor::NdTensor;

    use super::super::testing::{model, ops, value};
    use super::*;
    use crate::cpu::Session;
    use crate::onnx::DataType::F32;

    const DEPTH: usize = 3;
    const COLUMNS: usize = 7;

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
        for (max_bytes, n_parts) in [(84, 1), (83, 2), (40, 3), (24, 4), (12, 7)] {
            let mut model = decoder();
            let n = split_lm_head(&mut model, max_bytes).expect("pass");
            assert_eq!(n, n_parts, "{max_bytes}");
            assert_eq!(logits(&model), whole, "{max_bytes}");
            let weights = model.graph().initializer.iter();
            let largest = weights.map(TensorProto::raw_len).max();
            assert!(largest.is_some_and(|n| n as u64 <= max_bytes));
            let products = ops(&model).iter().filter(|op| **op == "MatMul").count();
            assert_eq!(products, n_parts);
        }
    }

    #[test]
    fn split_lm_head_below_one_column_is_refused() {
        let error = split_lm_head(&mut decoder(), 11).expect_err("too small");
        assert!(error.to_string().contains("head-bytes"), "{error}");
    }
}
