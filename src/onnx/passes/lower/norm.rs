//! Norms.
//!
//! RMS norm: `y = x / sqrt(mean(x²) + ε) · γ`, over the last dimension, in FP32. With `Skip`, `x`
//! is the sum of two or three values, and that sum may be an output, too.
//!
//! | operator | operands | outputs |
//! |----------|----------|---------|
//! | `SimplifiedLayerNormalization`, `RMSNormalization` | `x`, `γ` | `y` |
//! | `SkipSimplifiedLayerNormalization` | `x`, `skip`, `γ`, `bias`? | `y`, -, -, sum? |
//! | `SkipLayerNormalization` | `x`, `skip`, `γ`, `β`?, `bias`? | `y`, -, -, sum? |
//!
//! Mean and inverse deviation (outputs 1 and 2) exist for training and are refused where
//! something reads them.

use super::attrs::{Attrs, input, output, required, result};
use super::emit::Emitter;
use crate::onnx::DataType;
use crate::onnx::proto::NodeProto;

/// Lowers `SimplifiedLayerNormalization` and `RMSNormalization`.
pub(super) fn simplified(e: &mut Emitter<'_>, node: &NodeProto) -> Result<(), String> {
    let attrs = Attrs::new(node, &["axis", "epsilon"], &[("stash_type", &[1])])?;
    let x = required(node, 0, "input")?;
    let gamma = required(node, 1, "scale")?;
    let axis = attrs.int("axis", -1)?;
    let last = e.dims.rank(x).map(|rank| rank as i64 - 1);
    if axis != -1 && Some(axis) != last {
        return Err(format!("axis {axis} is not known to be the last"));
    }
    refuse_read(e, node, 1)?;
    let dtype = e.float_type(x)?;
    let epsilon = attrs.float("epsilon", 1e-5)?;
    let wide = e.widen(x, dtype);
    rms(e, &wide, gamma, epsilon, result(node)?, dtype)
}

/// Lowers `SkipSimplifiedLayerNormalization`.
pub(super) fn skip_simplified(e: &mut Emitter<'_>, node: &NodeProto) -> Result<(), String> {
    let attrs = Attrs::new(node, &["epsilon"], &[])?;
    let gamma = required(node, 2, "scale")?;
    let (sum, dtype) = sum(e, node, input(node, 3))?;
    let epsilon = attrs.float("epsilon", 1e-12)?;
    rms(e, &sum, gamma, epsilon, result(node)?, dtype)
}

/// Lowers `SkipLayerNormalization` to a sum and a `LayerNormalization`.
pub(super) fn skip_layer(e: &mut Emitter<'_>, node: &NodeProto) -> Result<(), String> {
    let attrs = Attrs::new(node, &["epsilon"], &[])?;
    let gamma = required(node, 2, "scale")?;
    let (sum, dtype) = sum(e, node, input(node, 4))?;
    let epsilon = attrs.float("epsilon", 1e-12)?;
    let mut operands = vec![sum, e.widen(gamma, dtype)];
    if let Some(beta) = input(node, 3) {
        operands.push(e.widen(beta, dtype));
    }
    let operands: Vec<&str> = operands.iter().map(String::as_str).collect();
    let y = result(node)?;
    let norm = |to: &str| {
        let norm = NodeProto::new("LayerNormalization", &operands, &[to]);
        norm.with_int("axis", -1).with_float("epsilon", epsilon)
    };
    if dtype == DataType::F32 {
        e.push(norm(y));
        return Ok(());
    }
    let normed = e.value("normed");
    e.push(norm(&normed));
    e.cast_to(&normed, y, dtype);
    Ok(())
}

/// `y = x / sqrt(mean(x²) + ε) · γ` for `x` in FP32.
fn rms(
    e: &mut Emitter<'_>,
    x: &str,
    gamma: &str,
    epsilon: f32,
    y: &str,
    dtype: DataType,
) -> Result<(), String> {
    let gamma_type = e.float_type(gamma)?;
    let square = e.op("Mul", &[x, x], "square");
    let mean = e.mean_last(&square);
    let epsilon = e.float(epsilon, DataType::F32);
    let variance = e.op("Add", &[&mean, &epsilon], "variance");
    let root = e.op("Sqrt", &[&variance], "root");
    let normed = e.op("Div", &[x, &root], "normed");
    let gamma = e.widen(gamma, gamma_type);
    e.narrow_to("Mul", &[&normed, &gamma], y, dtype);
    Ok(())
}

/// The sum of input, skip and `bias` in FP32, and the type of the operands; output 3 is made of
/// it if the node has one.
fn sum(
    e: &mut Emitter<'_>,
    node: &NodeProto,
    bias: Option<&str>,
) -> Result<(String, DataType), String> {
    let x = required(node, 0, "input")?;
    let skip = required(node, 1, "skip")?;
    refuse_read(e, node, 1)?;
    refuse_read(e, node, 2)?;
    let dtype = e.float_type(x)?;
    let returned = output(node, 3).map(str::to_owned);
    let (x, skip) = (e.widen(x, dtype), e.widen(skip, dtype));
    let mut operands = (x, skip);
    if let Some(bias) = bias {
        let partial = e.op("Add", &[&operands.0, &operands.1], "partial_sum");
        operands = (partial, e.widen(bias, dtype));
    }
    let sum = match (&returned, dtype) {
        (Some(name), DataType::F32) => {
            e.op_to("Add", &[&operands.0, &operands.1], name);
            name.clone()
        }
        (Some(name), _) => {
            let sum = e.op("Add", &[&operands.0, &operands.1], "sum");
            e.cast_to(&sum, name, dtype);
            sum
        }
        (None, _) => e.op("Add", &[&operands.0, &operands.1], "sum"),
    };
    Ok((sum, dtype))
}

fn refuse_read(e: &Emitter<'_>, node: &NodeProto, index: usize) -> Result<(), String> {
    match output(node, index).filter(|name| e.is_read(name)) {
        Some(_) => Err(format!("output {index} is not supported")),
        None => Ok(()),
    }
}
