//! Products with packed weights, and look-ups in packed tables.
//!
//! | operator | operands |
//! |----------|----------|
//! | `MatMulNBits` | `A [.., K]`, codes `[N, blocks, bytes]`, scales, zero points?, -, bias `[N]`? |
//! | `GatherBlockQuantized` | table of codes `[n, d]`, indices, scales, zero points? |
//! | `FusedMatMul` | `A`, `B`: `alpha · A · B`, either with its last two dimensions swapped |

use super::attrs::{Attrs, input, no_inputs_from, required, result};
use super::driver::PackedWeights;
use super::emit::Emitter;
use super::n_bits::{Blocks, Sizes};
use crate::onnx::DataType;
use crate::onnx::proto::{NodeProto, TensorProto};

/// Lowers `MatMulNBits` to a MatMul with the dequantized weight `[K, N]`.
pub(super) fn matmul_n_bits(e: &mut Emitter<'_>, node: &NodeProto) -> Result<(), String> {
    let known = ["K", "N", "bits", "block_size", "accuracy_level"];
    let attrs = Attrs::new(node, &known, &[("weight_prepacked", &[0])])?;
    let a = required(node, 0, "operand A")?;
    let codes = required(node, 1, "operand B")?;
    if input(node, 4).is_some() {
        return Err("`g_idx` is not supported".to_owned());
    }
    no_inputs_from(node, 6, "one more operand")?;
    let dtype = e.float_type(a)?;
    let (n, k) = (attrs.size("N")?, attrs.size("K")?);
    let sizes = Sizes::new(n, k, attrs.int("bits", 4)?, attrs.int("block_size", 0)?)?;
    let weight = match e.options.packed {
        PackedWeights::Floats => None,
        _ => kept_blocks(e, node, sizes, dtype).transpose(),
    };
    let weight = weight.unwrap_or_else(|| {
        dequantized(e, node, [1, 2, 3], sizes, dtype, |blocks, wanted| {
            blocks.dequantize_transposed(wanted)
        })
    });
    let (weight, y) = (
        weight.map_err(|reason| format!("`{codes}`: {reason}"))?,
        result(node)?,
    );
    let Some(bias) = input(node, 5) else {
        e.op_to("MatMul", &[a, &weight], y);
        return Ok(());
    };
    let product = e.op("MatMul", &[a, &weight], "product");
    e.op_to("Add", &[&product, bias], y);
    Ok(())
}

/// Lowers `GatherBlockQuantized` to a Gather from the dequantized table.
pub(super) fn gather_blocks(e: &mut Emitter<'_>, node: &NodeProto) -> Result<(), String> {
    let known = ["bits", "block_size", "quantize_axis"];
    let attrs = Attrs::new(node, &known, &[("gather_axis", &[0])])?;
    let table = required(node, 0, "table")?;
    let indices = required(node, 1, "indices")?;
    let dtype = e.float_type(required(node, 2, "scales")?)?;
    let codes = e.constant(table).ok_or("its table is no constant")?;
    let axis = attrs.int("quantize_axis", 1)?;
    let [rows, stored] = codes.dims[..] else {
        return Err(format!(
            "a table of shape {:?} is not supported",
            codes.dims
        ));
    };
    if ![1, -1].contains(&axis) {
        return Err(format!("blocks along axis {axis} are not supported"));
    }
    let size = |n: i64| usize::try_from(n).map_err(|_| format!("a table of {n} rows or columns"));
    let bits = attrs.int("bits", 4)?;
    // Bytes hold several codes, types of 4 bits one.
    let per_element = match codes.dtype() {
        Ok(DataType::U8) if bits == 4 => 2,
        _ => 1,
    };
    let cols = size(stored)?.saturating_mul(per_element);
    let mut sizes = Sizes::new(size(rows)?, cols, bits, attrs.int("block_size", 128)?)?;
    sizes.stored = cols;
    let table = dequantized(e, node, [0, 2, 3], sizes, dtype, |blocks, wanted| {
        blocks.dequantize(wanted)
    })?;
    let gather = NodeProto::new("Gather", &[&table, indices], &[result(node)?]);
    e.push(gather.with_int("axis", 0));
    Ok(())
}

/// The weight `[K, N]` of a `MatMulNBits` as a value of type `dtype`, dequantized in the graph from
/// codes and scales as they are; `None` if signed codes without zero points do not say the same.
fn kept_blocks(
    e: &mut Emitter<'_>,
    node: &NodeProto,
    sizes: Sizes,
    dtype: DataType,
) -> Result<Option<String>, String> {
    let constant = |name: &str| e.constant(name).ok_or("its weight is no constant");
    let codes = constant(required(node, 1, "codes")?)?;
    let scales = constant(required(node, 2, "scales")?)?;
    let zeros = input(node, 3).map(constant).transpose()?;
    let wanted = e.options.weights.unwrap_or(dtype);
    let zeros_name = zeros.map_or("", |zeros| zeros.name.as_str());
    let key = format!(
        "blocks {} {} {zeros_name} {dtype} {wanted} {sizes:?}",
        codes.name, scales.name
    );
    let blocks = Blocks::new(sizes, codes, scales, zeros, e.path)?;
    let Some((codes, scales)) = blocks.signed_transposed(wanted, e.options.packed) else {
        return Ok(None);
    };
    let stem = node.input[1].clone();
    Ok(Some(e.once(key, |e| {
        let codes = e.store(&format!("{stem}_int4"), codes);
        let scales = e.store(&format!("{stem}_scale"), scales);
        let value = e.op_with("DequantizeLinear", &[&codes, &scales], "weight", |node| {
            let block = i64::try_from(sizes.block).unwrap_or(0);
            node.with_int("axis", 0).with_int("block_size", block)
        });
        match wanted == dtype {
            true => value,
            false => e.cast(&value, dtype),
        }
    })))
}

/// The matrix whose codes, scales and zero points are the operands `at`, as a value of type
/// `dtype`: stored in the type that weights are to have, once for all nodes that read it.
fn dequantized(
    e: &mut Emitter<'_>,
    node: &NodeProto,
    at: [usize; 3],
    sizes: Sizes,
    dtype: DataType,
    dequantize: impl FnOnce(&Blocks, DataType) -> TensorProto,
) -> Result<String, String> {
    let constant = |name: &str, what: &str| {
        let tensor = e.constant(name);
        tensor.ok_or_else(|| format!("its {what} are no constant"))
    };
    let codes = constant(required(node, at[0], "codes")?, "codes")?;
    let scales = constant(required(node, at[1], "scales")?, "scales")?;
    let zeros = input(node, at[2]).map(|zeros| constant(zeros, "zero points"));
    let zeros = zeros.transpose()?;
    let wanted = e.options.weights.unwrap_or(dtype);
    let zeros_name = zeros.map_or("", |zeros| zeros.name.as_str());
    let key = format!(
        "dequantized {} {} {zeros_name} {dtype} {wanted} {} {sizes:?}",
        codes.name, scales.name, node.op_type
    );
    let blocks = Blocks::new(sizes, codes, scales, zeros, e.path)?;
    let name = e.once(key, |e| {
        let tensor = dequantize(&blocks, wanted);
        let stored = tensor.data_type;
        let name = e.store(&format!("{}_dequantized", codes.name), tensor);
        match stored == Some(dtype as i32) {
            true => name,
            false => e.cast(&name, dtype),
        }
    });
    Ok(name)
}

/// Lowers `FusedMatMul`.
pub(super) fn fused_matmul(e: &mut Emitter<'_>, node: &NodeProto) -> Result<(), String> {
    let known = ["alpha", "transA", "transB"];
    let fixed: [(&str, &[i64]); 2] = [("transBatchA", &[0]), ("transBatchB", &[0])];
    let attrs = Attrs::new(node, &known, &fixed)?;
    let alpha = attrs.float("alpha", 1.0)?;
    let mut operands = Vec::with_capacity(2);
    for (index, flag) in ["transA", "transB"].into_iter().enumerate() {
        let operand = required(node, index, "operand")?;
        operands.push(match attrs.flag(flag)? {
            true => swapped(e, operand)?,
            false => operand.to_owned(),
        });
    }
    let dtype = e.float_type(&node.input[0])?;
    let y = result(node)?;
    if alpha == 1.0 {
        e.op_to("MatMul", &[&operands[0], &operands[1]], y);
        return Ok(());
    }
    let product = e.op("MatMul", &[&operands[0], &operands[1]], "product");
    let alpha = e.float(alpha, dtype);
    e.op_to("Mul", &[&product, &alpha], y);
    Ok(())
}

/// The value with its last two dimensions swapped; a weight is stored so.
fn swapped(e: &mut Emitter<'_>, name: &str) -> Result<String, String> {
    if let Some(weight) = e.constant(name).filter(|weight| weight.dims.len() == 2) {
        let dtype = e.float_type(name)?;
        let size = (dtype.bits() / 8) as usize;
        let [rows, cols] = [weight.dims[0], weight.dims[1]];
        let (n, m) = (rows.max(0) as usize, cols.max(0) as usize);
        let raw = weight.raw_data.as_ref();
        let raw = raw.filter(|raw| Some(raw.len()) == n.checked_mul(m).map(|len| len * size));
        if let Some(raw) = raw {
            return Ok(e.once(format!("swapped {name}"), |e| {
                let mut bytes = Vec::with_capacity(raw.len());
                for col in 0..m {
                    for row in 0..n {
                        let at = (row * m + col) * size;
                        bytes.extend_from_slice(&raw[at..at + size]);
                    }
                }
                let tensor = TensorProto::from_raw("", dtype, &[cols, rows], bytes);
                e.store(&format!("{name}_swapped"), tensor)
            }));
        }
    }
    let rank = e.dims.rank(name).filter(|&rank| rank >= 2);
    let rank = rank.ok_or_else(|| format!("the rank of `{name}` is not known"))? as i64;
    let mut order: Vec<i64> = (0..rank).collect();
    order.swap(rank as usize - 2, rank as usize - 1);
    Ok(e.transpose(name, &order, "swapped"))
}
