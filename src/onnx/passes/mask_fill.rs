//! Keep attention masks inside the range of FP16.
//!
//! Exporters fill masked positions with the smallest FP32 (−3.4e38) or FP16 (−65504), or with
//! −inf. In FP16 the first is −inf; two masks added are −inf in any type; and a row that is
//! masked throughout then gives NaN, in FP32, too. −3e4 masks as well (`exp` of it is zero), fits
//! into FP16 twice over, and leaves such a row finite.

use std::collections::{HashMap, HashSet, VecDeque};

use half::f16;

use crate::error::Result;
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto};
use crate::onnx::{DataType, OnnxModel};

/// What masked scores are filled with.
pub const MASK_FILL: f32 = -3e4;

/// Largest finite FP16.
const F16_MAX: f32 = 65504.0;

/// Operators between a mask's constants and the Softmax.
const PATH: [&str; 24] = [
    "Add",
    "Cast",
    "Concat",
    "ConstantOfShape",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Max",
    "Min",
    "Mul",
    "Pad",
    "Reshape",
    "ScatterElements",
    "ScatterND",
    "Slice",
    "Squeeze",
    "Sub",
    "Sum",
    "Tile",
    "Transpose",
    "Trilu",
    "Unsqueeze",
    "Where",
];

/// Replaces constants beyond the range of FP16 by ±3e4 where they get to a Softmax through
/// pointwise operators and moves only, that is, in attention masks. Returns how many constants
/// were changed.
///
/// Weights are not touched: they get to a Softmax through a matrix product. A constant that is
/// also read elsewhere is copied.
///
/// # Errors
/// [`Error::Malformed`](crate::Error::Malformed) if a constant's bytes do not fit its shape.
pub fn clamp_mask_fill(model: &mut OnnxModel) -> Result<usize> {
    let path = model.path().to_path_buf();
    let graph = model.graph();
    let on_path = nodes_above_softmax(graph);
    let constants = graph.constants();
    let mut clamped: HashMap<String, TensorProto> = HashMap::new();
    let mut made_here = Vec::new();
    for &index in &on_path {
        let node = &graph.node[index];
        for name in &node.input {
            let Some(tensor) = constants.get(name.as_str()) else {
                continue;
            };
            if !clamped.contains_key(name)
                && let Some(tensor) = clamp(tensor, &path)?
            {
                clamped.insert(name.clone(), tensor);
            }
        }
        for (position, attribute) in node.attribute.iter().enumerate() {
            let makes = ["Constant", "ConstantOfShape"].contains(&node.op_type.as_str());
            if let Some(tensor) = attribute.t.as_ref().filter(|_| makes)
                && let Some(tensor) = clamp(tensor, &path)?
            {
                made_here.push((index, position, tensor));
            }
        }
    }
    let n_changed = clamped.len() + made_here.len();
    let graph = model.graph_mut();
    for (index, position, tensor) in made_here {
        graph.node[index].attribute[position].t = Some(tensor);
    }
    for (name, tensor) in clamped {
        replace(graph, &on_path, &name, tensor);
    }
    Ok(n_changed)
}

/// Puts `tensor` where the nodes `on_path` read `name`; other readers keep what they have.
fn replace(graph: &mut GraphProto, on_path: &HashSet<usize>, name: &str, tensor: TensorProto) {
    let shared = {
        let consumers = graph.consumers();
        let mut readers = consumers.get(name).into_iter().flatten();
        readers.any(|reader| !on_path.contains(reader))
            || graph.output.iter().any(|output| output.name == name)
    };
    if !shared {
        graph.initializer.retain(|t| t.name != name);
        graph.initializer.push(tensor);
        return;
    }
    let copy = graph.fresh_name(&format!("{name}_mask"));
    for &index in on_path {
        for input in graph.node[index].input.iter_mut().filter(|i| *i == name) {
            input.clone_from(&copy);
        }
    }
    graph.initializer.push(TensorProto {
        name: copy,
        ..tensor
    });
}

/// Indices of the nodes from which a value gets to a Softmax through [`PATH`] only.
fn nodes_above_softmax(graph: &GraphProto) -> HashSet<usize> {
    let producers = graph.producers();
    let mut found = HashSet::new();
    let mut queue: VecDeque<&str> = graph.node.iter().filter_map(mask_input).collect();
    while let Some(value) = queue.pop_front() {
        let Some(&index) = producers.get(value) else {
            continue;
        };
        let node = &graph.node[index];
        let passes = PATH.contains(&node.op_type.as_str()) || node.op_type == "Constant";
        if passes && found.insert(index) {
            queue.extend(node.input.iter().map(String::as_str));
        }
    }
    found
}

/// The input of `node` that masked scores, or a mask, come in by.
fn mask_input(node: &NodeProto) -> Option<&str> {
    let index = match node.op_type.as_str() {
        "Softmax" | "LogSoftmax" => 0,
        "Attention" => 3,
        "GroupQueryAttention" => 10,
        _ => return None,
    };
    node.input.get(index).map(String::as_str)
}

/// The tensor with ±3e4 in place of floats beyond the range of FP16, `None` if it has none.
fn clamp(tensor: &TensorProto, path: &std::path::Path) -> Result<Option<TensorProto>> {
    let dtype = tensor.dtype()?;
    if !matches!(dtype, DataType::F32 | DataType::F16 | DataType::F64) {
        return Ok(None);
    }
    let mut values = tensor.to_f32(path)?;
    let mut changed = false;
    for value in values.iter_mut().filter(|v| v.abs() >= F16_MAX) {
        *value = MASK_FILL.copysign(*value);
        changed = true;
    }
    if !changed {
        return Ok(None);
    }
    let raw: Vec<u8> = match dtype {
        DataType::F16 => values
            .iter()
            .flat_map(|&v| f16::from_f32(v).to_le_bytes())
            .collect(),
        DataType::F64 => values
            .iter()
            .flat_map(|&v| f64::from(v).to_le_bytes())
            .collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    };
    Ok(Some(TensorProto::from_raw(
        &tensor.name,
        dtype,
        &tensor.dims,
        raw,
    )))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{constant, model, scalar, value};
    use super::*;
    use crate::onnx::proto::{AttributeProto, attribute_type};

    fn values(model: &OnnxModel, name: &str) -> Vec<f32> {
        let tensor = model.graph().initializer(name).expect(name);
        tensor.to_f32(model.path()).expect("floats")
    }

    #[test]
    fn clamp_mask_fill_changes_masks_and_leaves_weights() {
        let mut model = model(
            vec![value("x", DataType::F32), value("keep", DataType::Bool)],
            vec![
                scalar("zero", 0.0),
                scalar("min", f32::MIN),
                TensorProto::from_f32("causal", &[1, 2], &[0.0, f32::NEG_INFINITY]),
                scalar("weight", -1e6),
                scalar("small", -1e4),
            ],
            vec![
                NodeProto::new("Add", &["x", "weight"], &["b"]),
                NodeProto::new("MatMul", &["b", "b"], &["scores"]),
                NodeProto::new("Where", &["keep", "zero", "min"], &["mask"]),
                NodeProto::new("Add", &["scores", "mask"], &["s1"]),
                NodeProto::new("Add", &["s1", "causal"], &["s2"]),
                NodeProto::new("Add", &["s2", "small"], &["s3"]),
                NodeProto::new("Softmax", &["s3"], &["y"]),
            ],
            vec![value("y", DataType::F32)],
        );
        assert_eq!(clamp_mask_fill(&mut model).expect("pass"), 2);
        assert_eq!(values(&model, "min"), [MASK_FILL]);
        assert_eq!(values(&model, "causal"), [0.0, MASK_FILL]);
        assert_eq!(values(&model, "weight"), [-1e6]);
        assert_eq!(values(&model, "small"), [-1e4]);
        assert_eq!(clamp_mask_fill(&mut model).expect("again"), 0);
    }

    #[test]
    fn clamp_mask_fill_reaches_constants_in_nodes_and_of_fp16() {
        let mut full = NodeProto::new("ConstantOfShape", &["shape"], &["full"]);
        full.attribute.push(AttributeProto {
            name: "value".to_owned(),
            t: Some(scalar("", f32::MIN)),
            r#type: Some(attribute_type::TENSOR),
            ..AttributeProto::default()
        });
        let half: Vec<u8> = f16::MIN.to_le_bytes().to_vec();
        let mut model = model(
            vec![value("x", DataType::F16), value("shape", DataType::I64)],
            vec![],
            vec![
                full,
                NodeProto::new("Trilu", &["full"], &["upper"]),
                super::super::testing::cast("upper", "upper16", DataType::F16),
                constant(TensorProto::from_raw("min16", DataType::F16, &[], half)),
                NodeProto::new("Add", &["x", "upper16"], &["s"]),
                NodeProto::new("Max", &["s", "min16"], &["t"]),
                NodeProto::new("Softmax", &["t"], &["y"]),
            ],
            vec![value("y", DataType::F16)],
        );
        assert_eq!(clamp_mask_fill(&mut model).expect("pass"), 2);
        let path = model.path().to_path_buf();
        for node in [0, 3] {
            let tensor = model.graph().node[node].attribute[0].t.as_ref();
            let fill = tensor.expect("value").to_f32(&path).expect("floats");
            assert!((fill[0] - MASK_FILL).abs() <= 16.0, "{fill:?}");
        }
    }

    #[test]
    fn clamp_mask_fill_copies_a_constant_that_others_read() {
        let mut model = model(
            vec![value("x", DataType::F32)],
            vec![scalar("min", f32::MIN)],
            vec![
                NodeProto::new("Add", &["x", "min"], &["s"]),
                NodeProto::new("Softmax", &["s"], &["y"]),
                NodeProto::new("Clip", &["x", "min"], &["z"]),
            ],
            vec![value("y", DataType::F32), value("z", DataType::F32)],
        );
        assert_eq!(clamp_mask_fill(&mut model).expect("pass"), 1);
        assert_eq!(values(&model, "min"), [f32::MIN]);
        assert_eq!(model.graph().node[2].input[1], "min");
        assert_eq!(values(&model, "min_mask"), [MASK_FILL]);
    }
}
