//! Activation functions, computed in FP32.
//!
//! | operator | formula | defaults |
//! |----------|---------|----------|
//! | `Gelu` (both domains), `BiasGelu` | `x/2 · (1 + erf(x/√2))` | `approximate` none |
//! | `FastGelu`, `Gelu` with `approximate` tanh | `x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))` | |
//! | `QuickGelu` | `x · sigmoid(α x)` | α 1.702 |
//!
//! `BiasGelu` and `FastGelu` add a bias to `x` first. The cube is written as `x · x²`, which the
//! precision passes know to leave the range of FP16.

use super::attrs::{Attrs, input, required, result};
use super::emit::Emitter;
use crate::onnx::DataType::F32;
use crate::onnx::proto::NodeProto;

/// Lowers `Gelu`.
pub(super) fn gelu(e: &mut Emitter<'_>, node: &NodeProto) -> Result<(), String> {
    let attrs = Attrs::new(node, &["approximate"], &[])?;
    match attrs.text("approximate", "none")?.as_str() {
        "none" => erf(e, node),
        "tanh" => tanh(e, node),
        other => Err(format!("`approximate` {other} is not supported")),
    }
}

/// Lowers `BiasGelu`.
pub(super) fn bias_gelu(e: &mut Emitter<'_>, node: &NodeProto) -> Result<(), String> {
    Attrs::new(node, &[], &[])?;
    required(node, 1, "bias")?;
    erf(e, node)
}

/// Lowers `FastGelu`.
pub(super) fn fast_gelu(e: &mut Emitter<'_>, node: &NodeProto) -> Result<(), String> {
    Attrs::new(node, &[], &[])?;
    tanh(e, node)
}

/// Lowers `QuickGelu`.
pub(super) fn quick_gelu(e: &mut Emitter<'_>, node: &NodeProto) -> Result<(), String> {
    let attrs = Attrs::new(node, &["alpha"], &[])?;
    let alpha = attrs.float("alpha", 1.702)?;
    let dtype = e.float_type(required(node, 0, "input")?)?;
    let x = argument(e, node)?;
    let alpha = e.float(alpha, F32);
    let scaled = e.op("Mul", &[&x, &alpha], "scaled");
    let gate = e.op("Sigmoid", &[&scaled], "gate");
    e.narrow_to("Mul", &[&x, &gate], result(node)?, dtype);
    Ok(())
}

fn erf(e: &mut Emitter<'_>, node: &NodeProto) -> Result<(), String> {
    let x = argument(e, node)?;
    let factor = e.float(std::f32::consts::FRAC_1_SQRT_2, F32);
    let scaled = e.op("Mul", &[&x, &factor], "scaled");
    let erf = e.op("Erf", &[&scaled], "erf");
    halve(e, node, &x, &erf)
}

fn tanh(e: &mut Emitter<'_>, node: &NodeProto) -> Result<(), String> {
    let x = argument(e, node)?;
    let square = e.op("Mul", &[&x, &x], "square");
    let cube = e.op("Mul", &[&x, &square], "cube");
    let small = e.float(0.044_715, F32);
    let bent = e.op("Mul", &[&cube, &small], "bent");
    let inner = e.op("Add", &[&x, &bent], "inner");
    let factor = e.float((2.0 / std::f32::consts::PI).sqrt(), F32);
    let scaled = e.op("Mul", &[&inner, &factor], "scaled");
    let tanh = e.op("Tanh", &[&scaled], "tanh");
    halve(e, node, &x, &tanh)
}

/// `x/2 · (1 + f)`.
fn halve(e: &mut Emitter<'_>, node: &NodeProto, x: &str, f: &str) -> Result<(), String> {
    let dtype = e.float_type(required(node, 0, "input")?)?;
    let (one, half) = (e.float(1.0, F32), e.float(0.5, F32));
    let gate = e.op("Add", &[f, &one], "gate");
    let half_x = e.op("Mul", &[x, &half], "half");
    e.narrow_to("Mul", &[&half_x, &gate], result(node)?, dtype);
    Ok(())
}

/// `x`, or `x` + bias, in FP32.
fn argument(e: &mut Emitter<'_>, node: &NodeProto) -> Result<String, String> {
    let x = required(node, 0, "input")?;
    let dtype = e.float_type(x)?;
    let wide = e.widen(x, dtype);
    let Some(bias) = input(node, 1) else {
        return Ok(wide);
    };
    let bias = e.widen(bias, dtype);
    Ok(e.op("Add", &[&wide, &bias], "biased"))
}
