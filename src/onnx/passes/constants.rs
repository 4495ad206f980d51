//! Turn `Constant` nodes into initializers.
//!
//! Exporters write small constants as nodes and large ones as initializers. With all of them in
//! one place, every later pass finds a constant in one way. Names of values stay as they are.

use crate::error::Result;
use crate::onnx::proto::{AttributeProto, NodeProto, TensorProto};
use crate::onnx::{DataType, OnnxModel};

/// Makes every `Constant` node an initializer of the same name, and drops inputs that are only
/// default values of initializers (files older than IR 4).
///
/// Constants that the graph returns as they are, and those that hold strings or sparse tensors,
/// stay nodes.
///
/// # Errors
/// None today; the signature is that of all passes.
pub fn lift_constants(model: &mut OnnxModel) -> Result<()> {
    let graph = model.graph_mut();
    let outputs: Vec<String> = graph.output.iter().map(|o| o.name.clone()).collect();
    let mut lifted = Vec::new();
    graph.node.retain_mut(|node| match tensor_of(node) {
        Some(tensor) if !outputs.contains(&tensor.name) => {
            lifted.push(tensor);
            false
        }
        _ => true,
    });
    graph.initializer.append(&mut lifted);
    let callers: Vec<String> = graph.inputs().into_iter().map(|i| i.name).collect();
    graph.input.retain(|input| callers.contains(&input.name));
    Ok(())
}

/// The constant that `node` makes, with the name of its output.
fn tensor_of(node: &NodeProto) -> Option<TensorProto> {
    if node.op() != "Constant" || node.attribute.len() != 1 {
        return None;
    }
    let name = node.output.first().filter(|name| !name.is_empty())?;
    tensor_of_attribute(name, &node.attribute[0])
}

fn tensor_of_attribute(name: &str, attribute: &AttributeProto) -> Option<TensorProto> {
    let floats = |dims: &[i64], values: &[f32]| TensorProto::from_f32(name, dims, values);
    let ints = |dims: &[i64], values: &[i64]| TensorProto::from_i64(name, dims, values);
    Some(match attribute.name.as_str() {
        "value" => {
            let tensor = attribute.t.clone()?;
            if tensor.dtype().ok()? == DataType::String {
                return None;
            }
            TensorProto {
                name: name.to_owned(),
                ..tensor
            }
        }
        "value_float" => floats(&[], &[attribute.f?]),
        "value_floats" => floats(&[attribute.floats.len() as i64], &attribute.floats),
        "value_int" => ints(&[], &[attribute.i?]),
        "value_ints" => ints(&[attribute.ints.len() as i64], &attribute.ints),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{constant, maker, model, ops, scalar, value};
    use super::*;

    #[test]
    fn lift_constants_keeps_names_and_values() {
        let mut ints = NodeProto::new("Constant", &[], &["shape"]);
        ints.attribute.push(AttributeProto {
            name: "value_ints".to_owned(),
            ints: vec![1, -1],
            ..AttributeProto::default()
        });
        let mut model = model(
            vec![value("x", DataType::F32), value("bias", DataType::F32)],
            vec![scalar("bias", 1.0)],
            vec![
                constant(scalar("two", 2.0)),
                NodeProto::new("Mul", &["x", "two"], &["m"]),
                ints,
                NodeProto::new("Reshape", &["m", "shape"], &["y"]),
                constant(scalar("k", 3.0)),
            ],
            vec![value("y", DataType::F32), value("k", DataType::F32)],
        );
        lift_constants(&mut model).expect("pass");
        assert_eq!(ops(&model), ["Mul", "Reshape", "Constant"]);
        assert_eq!(maker(&model, "k").op_type, "Constant");
        let path = model.path().to_path_buf();
        let two = model.graph().initializer("two").expect("lifted");
        assert_eq!(two.to_f32(&path).expect("values"), [2.0]);
        let shape = model.graph().initializer("shape").expect("lifted");
        assert_eq!(shape.to_i64(&path).expect("values"), [1, -1]);
        assert_eq!(model.graph().input.len(), 1);
    }
}
