//! Fold factors of channels into the convolution before them.
//!
//! Networks with layer scale multiply what a convolution returns by a constant per channel before
//! the residual is added: `x + g · (w ∗ h + b)`. `w` and `b` can hold that factor, which leaves a
//! convolution and an addition that an engine computes as one. The value keeps the name of the
//! product, so that ranges observed before are found after.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use crate::error::Result;
use crate::onnx::OnnxModel;
use crate::onnx::graph::Names;
use crate::onnx::proto::{GraphProto, TensorProto};

/// Folds constant factors of channels into convolutions. Returns how many were folded.
///
/// A factor is folded if weights (and biases) are stored constants, and nothing but the product
/// reads what the convolution returns.
///
/// # Errors
/// [`Error::Malformed`](crate::Error::Malformed) if a weight's bytes do not fit its shape.
pub fn fold_scales(model: &mut OnnxModel) -> Result<usize> {
    let path = model.path().to_path_buf();
    let found = find(model.graph());
    let graph = model.graph_mut();
    let mut names = Names::of(graph);
    let mut dropped = HashSet::new();
    for fold in &found {
        let constants = graph.constants();
        let factors = constants[fold.factor.as_str()].to_f32(&path)?;
        let mut made = Vec::new();
        for name in &graph.node[fold.conv].input[1..] {
            let scaled = scale(constants[name.as_str()], &factors, &path)?;
            let fresh = names.fresh(&format!("{name}_scaled"));
            made.push(TensorProto {
                name: fresh,
                ..scaled
            });
        }
        let output = graph.node[fold.product].output[0].clone();
        let conv = &mut graph.node[fold.conv];
        for (input, tensor) in conv.input[1..].iter_mut().zip(&made) {
            input.clone_from(&tensor.name);
        }
        conv.output[0] = output;
        graph.initializer.append(&mut made);
        dropped.insert(fold.product);
    }
    if !found.is_empty() {
        let mut index = 0;
        graph.node.retain(|_| {
            index += 1;
            !dropped.contains(&(index - 1))
        });
        graph.remove_unused();
    }
    Ok(found.len())
}

/// A factor that can be folded.
struct Fold {
    conv: usize,
    product: usize,
    factor: String,
}

fn find(graph: &GraphProto) -> Vec<Fold> {
    let constants = graph.constants();
    let consumers = graph.consumers();
    let outputs: HashSet<&str> = graph.output.iter().map(|o| o.name.as_str()).collect();
    let mut found = Vec::new();
    for (conv, node) in graph.node.iter().enumerate() {
        let stored = |name: &String| constants.contains_key(name.as_str());
        if node.op_type != "Conv" || !node.input.iter().skip(1).all(stored) {
            continue;
        }
        let Some(result) = node.output.first().map(String::as_str) else {
            continue;
        };
        let readers = consumers.get(result).map_or(&[][..], Vec::as_slice);
        let [product] = *readers else { continue };
        let mul = &graph.node[product];
        if mul.op_type != "Mul" || mul.input.len() != 2 || outputs.contains(result) {
            continue;
        }
        let factor = mul.input.iter().find(|name| stored(name));
        let channels = weight_of(&constants, node.input.get(1)).map(|w| (w.dims[0], w.dims.len()));
        if let (Some(factor), Some((channels, rank))) = (factor, channels)
            && is_per_channel(&constants[factor.as_str()].dims, channels, rank)
        {
            found.push(Fold {
                conv,
                product,
                factor: factor.clone(),
            });
        }
    }
    found
}

fn weight_of<'a>(
    constants: &HashMap<&str, &'a TensorProto>,
    name: Option<&String>,
) -> Option<&'a TensorProto> {
    let weight = constants.get(name?.as_str())?;
    (weight.dims.len() >= 3).then_some(*weight)
}

/// True for `[channels, 1, …]` with one dimension less than the result, `[1, channels, 1, …]`, and
/// a single number of at most as many dimensions.
fn is_per_channel(dims: &[i64], channels: i64, rank: usize) -> bool {
    let ones = |dims: &[i64]| dims.iter().all(|&dim| dim == 1);
    let single = dims.len() <= rank && ones(dims);
    let lacks_batch = dims.len() == rank - 1 && dims[0] == channels && ones(&dims[1..]);
    let whole = dims.len() == rank && dims[0] == 1 && dims[1] == channels && ones(&dims[2..]);
    single || lacks_batch || whole
}

/// The constant with its outermost dimension multiplied by the factors.
fn scale(tensor: &TensorProto, factors: &[f32], path: &Path) -> Result<TensorProto> {
    let mut values = tensor.to_f32(path)?;
    let channels = usize::try_from(tensor.dims.first().copied().unwrap_or(1)).unwrap_or(1);
    let inner = (values.len() / channels.max(1)).max(1);
    for (channel, values) in values.chunks_mut(inner).enumerate() {
        let factor = factors[channel.min(factors.len() - 1)];
        values.iter_mut().for_each(|value| *value *= factor);
    }
    Ok(TensorProto::from_f32("", &tensor.dims, &values))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{maker, model, ops, value};
    use super::*;
    use crate::onnx::DataType::F32;
    use crate::onnx::proto::NodeProto;

    fn scaled(factor: TensorProto, outputs: &[&str]) -> OnnxModel {
        let node = |op: &str, inputs: &[&str], output: &str| NodeProto::new(op, inputs, &[output]);
        model(
            vec![value("x", F32)],
            vec![
                TensorProto::from_f32("w", &[2, 1, 1, 1], &[1.0, -2.0]),
                TensorProto::from_f32("b", &[2], &[0.5, 4.0]),
                factor,
            ],
            vec![
                node("Conv", &["x", "w", "b"], "h"),
                node("Mul", &["h", "g"], "s"),
                node("Add", &["x", "s"], "y"),
            ],
            outputs.iter().map(|name| value(name, F32)).collect(),
        )
    }

    #[test]
    fn factors_of_channels_and_single_ones_are_folded() {
        for (dims, values, weight, bias) in [
            (vec![2, 1, 1], vec![3.0, 0.5], [3.0, -1.0], [1.5, 2.0]),
            (vec![1, 2, 1, 1], vec![3.0, 0.5], [3.0, -1.0], [1.5, 2.0]),
            (vec![], vec![2.0], [2.0, -4.0], [1.0, 8.0]),
        ] {
            let mut graph = scaled(TensorProto::from_f32("g", &dims, &values), &["y"]);
            assert_eq!(fold_scales(&mut graph).expect("pass"), 1);
            assert_eq!(ops(&graph), ["Conv", "Add"]);
            let conv = maker(&graph, "s");
            let read = |index: usize| {
                let tensor = graph.graph().initializer(&conv.input[index]);
                tensor.expect("stored").to_f32(graph.path()).expect("f32")
            };
            assert_eq!((read(1), read(2)), (weight.to_vec(), bias.to_vec()));
            assert_eq!(graph.graph().initializer.len(), 2);
        }
    }

    #[test]
    fn factors_that_are_not_of_channels_or_values_that_are_returned_stay() {
        let along_rows = TensorProto::from_f32("g", &[2], &[3.0, 0.5]);
        assert_eq!(fold_scales(&mut scaled(along_rows, &["y"])).expect("p"), 0);
        let single = TensorProto::from_f32("g", &[], &[3.0]);
        let returned = fold_scales(&mut scaled(single, &["y", "h"]));
        assert_eq!(returned.expect("pass"), 0);
    }
}
