//! Multi-head attention of encoders.
//!
//! | operand | shape | |
//! |---------|-------|-|
//! | 0 query | `[b, rows, heads · d]` | |
//! | 1, 2 key, value | `[b, total, heads · d]` | |
//! | 3 bias | `[3 · heads · d]`: of query, key and value | constant, may be left out |
//! | 5 `attention_bias` | broadcasts to `[b, heads, rows, total]` | may be left out |
//!
//! Not supported: packed operands, padding masks, caches, causal attention.

use super::attention::Attention;
use super::attrs::{Attrs, input, no_inputs_from, output, required, result};
use super::emit::Emitter;
use crate::onnx::DataType;
use crate::onnx::proto::{NodeProto, TensorProto};

/// Lowers `com.microsoft.MultiHeadAttention`.
pub(super) fn mha(e: &mut Emitter<'_>, node: &NodeProto) -> Result<(), String> {
    let known = ["num_heads", "scale", "mask_filter_value"];
    let attrs = Attrs::new(node, &known, &[("unidirectional", &[0])])?;
    let heads = attrs.size("num_heads")?;
    if input(node, 4).is_some() {
        return Err("a padding mask is not supported".to_owned());
    }
    no_inputs_from(node, 6, "a cache")?;
    for index in 1..4 {
        if output(node, index).is_some_and(|name| e.is_read(name)) {
            return Err(format!("output {index} is not supported"));
        }
    }
    let names = ["query", "key", "value"];
    let query = required(node, 0, names[0])?;
    let dtype = e.float_type(query)?;
    let biases = biases(e, node, dtype)?;
    let mut operands = Vec::with_capacity(3);
    for (index, what) in names.into_iter().enumerate() {
        let operand = required(node, index, what)?;
        if e.dims.rank(operand) != Some(3) {
            return Err(format!("the rank of its {what} is not known to be 3"));
        }
        let biased = match &biases {
            Some(biases) => e.op("Add", &[operand, &biases[index]], &format!("biased_{what}")),
            None => operand.to_owned(),
        };
        let by_row = e.reshape(&biased, &[0, 0, heads as i64, -1], what);
        operands.push(e.transpose(&by_row, &[0, 2, 1, 3], &format!("{what}_by_head")));
    }
    let mut masks = Vec::new();
    if let Some(bias) = input(node, 5) {
        let bias_type = e.float_type(bias)?;
        masks.push(e.widen(bias, bias_type));
    }
    let scale = match attrs.float("scale", 0.0)? {
        0.0 => {
            let hidden = e.dims.last(query).filter(|n| n % heads == 0 && *n > 0);
            let d = hidden.ok_or("the size of its heads is not known")? / heads;
            1.0 / (d as f32).sqrt()
        }
        scale => scale,
    };
    Attention {
        query: &operands[0],
        key: &operands[1],
        value: &operands[2],
        n_heads: heads,
        n_kv_heads: heads,
        scale,
        masks: &masks,
        dtype,
    }
    .emit(e, result(node)?);
    Ok(())
}

/// The bias of each operand, as a constant of its own.
fn biases(
    e: &mut Emitter<'_>,
    node: &NodeProto,
    dtype: DataType,
) -> Result<Option<[String; 3]>, String> {
    let Some(name) = input(node, 3) else {
        return Ok(None);
    };
    let bias = e.constant(name).ok_or("its bias is no constant")?;
    let n = bias.dims.first().copied().unwrap_or(0);
    let raw = bias.raw_data.as_ref();
    let size = (dtype.bits() / 8) as usize;
    let hidden = usize::try_from(n).unwrap_or(0) / 3;
    let raw = raw.filter(|raw| {
        bias.dims.len() == 1 && hidden > 0 && n % 3 == 0 && raw.len() == 3 * hidden * size
    });
    let raw = raw.ok_or_else(|| format!("its bias has shape {:?}", bias.dims))?;
    for index in 0..3 {
        if let Some(other) = e.dims.last(required(node, index, "operand")?)
            && other != hidden
        {
            return Err(format!("a bias of 3 x {hidden} for an operand of {other}"));
        }
    }
    let mut part = |index: usize, what: &str| {
        let bytes = raw.slice(index * hidden * size..(index + 1) * hidden * size);
        let tensor = TensorProto::from_raw("", dtype, &[hidden as i64], bytes);
        e.store(&format!("{name}_{what}"), tensor)
    };
    Ok(Some([part(0, "query"), part(1, "key"), part(2, "value")]))
}
