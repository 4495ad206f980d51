//! Drop casts that a precision pass decides anew.
//!
//! Casts between float types in a file (around norms and Softmax in FP32 exports, at the borders
//! of FP16 ones) say in which precision somebody else wanted to compute. The passes that set the
//! precision begin without them. Casts to the type that a value has already go, too, and so do
//! `Identity` nodes, which exporters write where two modules share a weight.

use std::collections::HashMap;

use super::types::Types;
use crate::error::Result;
use crate::onnx::OnnxModel;
use crate::onnx::proto::NodeProto;

/// Removes casts from float to float and to the same type, and `Identity` nodes.
///
/// After this pass the float types of inner values are no longer consistent: it is the first
/// half of [`to_fp16`](super::to_fp16) and [`to_fp32`](super::to_fp32), not a pass of its own.
///
/// # Errors
/// As [`Types::infer`].
pub(super) fn drop_casts(model: &mut OnnxModel) -> Result<()> {
    let types = Types::infer(model)?;
    let graph = model.graph_mut();
    let outputs: Vec<String> = graph.output.iter().map(|o| o.name.clone()).collect();
    let fixed: Vec<String> = {
        let inputs = graph.input.iter().map(|i| i.name.clone());
        let constants = graph.initializer.iter().map(|t| t.name.clone());
        inputs.chain(constants).chain(outputs.clone()).collect()
    };
    let mut aliases: HashMap<String, String> = HashMap::new();
    let mut renamed: HashMap<String, String> = HashMap::new();
    for node in &mut graph.node {
        if !is_alias(node, &types) {
            continue;
        }
        let (from, to) = (node.input[0].clone(), node.output[0].clone());
        let from = resolve(&aliases, &from).to_owned();
        if !outputs.contains(&to) {
            aliases.insert(to, from);
        } else if !fixed.contains(&from) && !renamed.contains_key(&from) {
            // The value behind an output takes the output's name.
            renamed.insert(from, to);
        } else {
            node.op_type = "Identity".to_owned();
            node.attribute.clear();
            node.input[0] = from;
        }
    }
    graph.node.retain(|node| {
        let to = node.output.first().map_or("", String::as_str);
        let from = node.input.first().map_or("", String::as_str);
        let moved = renamed.get(resolve(&aliases, from)).map(String::as_str) == Some(to);
        !(is_alias(node, &types) && (aliases.contains_key(to) || moved))
    });
    for name in graph.node.iter_mut().flat_map(|node| &mut node.output) {
        if let Some(to) = renamed.get(name) {
            name.clone_from(to);
        }
    }
    aliases.extend(renamed);
    graph.redirect(&aliases);
    Ok(())
}

/// True if the node's output holds the same numbers as its input, rounding aside.
fn is_alias(node: &NodeProto, types: &Types) -> bool {
    let (Some(from), Some(to)) = (node.input.first(), node.output.first()) else {
        return false;
    };
    match node.op().as_str() {
        "Identity" => true,
        "Cast" => (types.is_float(from) && types.is_float(to)) || types.get(from) == types.get(to),
        _ => false,
    }
}

fn resolve<'a>(aliases: &'a HashMap<String, String>, name: &'a str) -> &'a str {
    let mut name = name;
    while let Some(next) = aliases.get(name) {
        name = next;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::super::testing::{cast, maker, model, ops, scalar, value};
    use super::*;
    use crate::onnx::DataType::{F16, F32, I64};

    #[test]
    fn drop_casts_reconnects_readers_and_keeps_output_names() {
        let mut model = model(
            vec![value("x", F32), value("n", I64)],
            vec![scalar("w", 1.0)],
            vec![
                NodeProto::new("Identity", &["w"], &["w2"]),
                cast("x", "x16", F16),
                cast("x16", "x32", F32),
                NodeProto::new("Mul", &["x32", "w2"], &["m"]),
                cast("m", "y", F16),
                cast("m", "z", F16),
                NodeProto::new("Relu", &["m"], &["r"]),
                cast("n", "n2", I64),
                cast("n2", "nf", F32),
                NodeProto::new("Add", &["r", "nf"], &["v"]),
            ],
            vec![value("y", F16), value("z", F16), value("v", F32)],
        );
        drop_casts(&mut model).expect("pass");
        // `m` took the name of the first output that it is cast to.
        assert_eq!(ops(&model), ["Mul", "Identity", "Relu", "Cast", "Add"]);
        assert_eq!(maker(&model, "y").input, ["x", "w"]);
        assert_eq!(maker(&model, "z").input, ["y"]);
        assert_eq!(maker(&model, "r").input, ["y"]);
        assert_eq!(maker(&model, "nf").input, ["n"]);
    }

    #[test]
    fn drop_casts_of_an_input_that_is_returned_stays_a_node() {
        let mut model = model(
            vec![value("x", F32)],
            vec![],
            vec![cast("x", "y", F16)],
            vec![value("y", F16)],
        );
        drop_casts(&mut model).expect("pass");
        assert_eq!(maker(&model, "y").op_type, "Identity");
    }
}
