//! Fix dimensions that a build does not vary.
//!
//! An engine needs an optimization profile for every dimension that has no number. Batch is
//! always one here, and the number of image tiles is chosen at build time, so that profiles are
//! left for what varies from call to call: rows and the length of the cache.

use std::collections::HashSet;

use crate::error::{Error, Result};
use crate::onnx::proto::{ProtoDim, ValueInfoProto};
use crate::onnx::{Dim, OnnxModel, ValueType};

/// Replaces named dimensions by numbers, wherever inputs, outputs or inner values have them.
///
/// Names that the graph does not have are passed over, so that one list serves exports that
/// name their batch differently. Types of inner values whose dimensions are derived from others
/// (names that no input has) are dropped: they would say less than the graph does.
///
/// Returns how many dimensions of inputs were set.
///
/// # Errors
/// [`Error::Argument`] if a dimension is to be zero.
pub fn set_dims(model: &mut OnnxModel, dims: &[(&str, usize)]) -> Result<usize> {
    if let Some((name, _)) = dims.iter().find(|(_, n)| *n == 0) {
        return Err(Error::Argument {
            name: "dims",
            reason: format!("dimension `{name}` cannot be 0"),
        });
    }
    let graph = model.graph_mut();
    let set = |values: &mut [ValueInfoProto]| values.iter_mut().map(|v| fix(v, dims)).sum();
    let n_set = set(&mut graph.input);
    let _: usize = set(&mut graph.output);
    let _: usize = set(&mut graph.value_info);

    let inputs = graph.inputs();
    let named: HashSet<&str> = inputs.iter().flat_map(names).collect();
    graph.value_info.retain(|info| {
        let value = ValueType::from(info);
        names(&value).all(|name| named.contains(name))
    });
    Ok(n_set)
}

fn fix(value: &mut ValueInfoProto, dims: &[(&str, usize)]) -> usize {
    let tensor = value.r#type.as_mut().and_then(|t| t.tensor_type.as_mut());
    let shape = tensor.and_then(|t| t.shape.as_mut());
    let mut n_set = 0;
    for dim in shape.map_or(&mut [][..], |shape| &mut shape.dim) {
        let Some(ProtoDim::Param(name)) = &dim.value else {
            continue;
        };
        if let Some((_, n)) = dims.iter().find(|(wanted, _)| wanted == name) {
            dim.value = Some(ProtoDim::Value(*n as i64));
            n_set += 1;
        }
    }
    n_set
}

fn names(value: &ValueType) -> impl Iterator<Item = &str> {
    value.dims.iter().flatten().filter_map(|dim| match dim {
        Dim::Named(name) => Some(name.as_str()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{model, shaped};
    use super::*;
    use crate::onnx::DataType::F32;
    use crate::onnx::proto::NodeProto;

    #[test]
    fn set_dims_fixes_every_mention_and_drops_derived_ones() {
        let named = |name: &str| Dim::Named(name.to_owned());
        let mut model = model(
            vec![shaped("x", F32, &[named("batch"), named("rows")])],
            vec![],
            vec![
                NodeProto::new("Relu", &["x"], &["a"]),
                NodeProto::new("Relu", &["a"], &["b"]),
                NodeProto::new("Relu", &["b"], &["y"]),
            ],
            vec![shaped("y", F32, &[named("batch"), named("rows")])],
        );
        model.graph_mut().value_info = vec![
            shaped("a", F32, &[named("batch"), named("rows")]),
            shaped("b", F32, &[named("batch"), named("batch*rows")]),
        ];
        let n_set = set_dims(&mut model, &[("batch", 1), ("batch_size", 1)]).expect("pass");
        assert_eq!(n_set, 1);
        assert_eq!(model.graph().inputs()[0].to_string(), "f32 [1, rows]");
        assert_eq!(model.graph().outputs()[0].to_string(), "f32 [1, rows]");
        let inner: Vec<_> = model.graph().value_info.iter().map(|v| &v.name).collect();
        assert_eq!(inner, ["a"]);
        assert!(set_dims(&mut model, &[("rows", 0)]).is_err());
    }
}
