//! Blocks of 4-bit weights for the CPU engine: Q/DQ of the standard becomes a packed product.
//!
//! ```text
//! codes i4 [d, n] ─► DequantizeLinear(scales [d / block, n], axis 0, block_size) ─► MatMul
//!     becomes  MatMulNBits(codes u4 [n, d / block, block / 2], scales [n, d / block])
//! ```
//!
//! The numbers are the same: codes of `MatMulNBits` are unsigned around 8. Source of its layout:
//! `docs/ContribOperators.md` of ONNX Runtime 1.31.

use std::collections::HashMap;

use crate::error::Result;
use crate::onnx::graph::Names;
use crate::onnx::proto::{NodeProto, TensorProto};
use crate::onnx::{DataType, OnnxModel};

/// Domain of the packed product, and the version that has it.
const CONTRIB: (&str, i64) = ("com.microsoft", 1);

/// Replaces every product with dequantized 4-bit blocks; returns how many.
///
/// A product is left as it is unless its weight is stored as signed codes without zero points, in
/// blocks along axis 0, and read by products alone.
///
/// # Errors
/// [`Error::Malformed`](crate::Error::Malformed) if the numbers of a weight do not fit its shape.
pub fn pack_blocks(model: &mut OnnxModel) -> Result<usize> {
    let path = model.path().to_path_buf();
    let cancel = model.cancel();
    let graph = model.graph();
    let mut packed = HashMap::new();
    let mut names = Names::of(graph);
    let mut made = Vec::new();
    for node in graph.node.iter().filter(|n| n.op() == "DequantizeLinear") {
        cancel.check()?;
        let Some(weight) = Weight::of(model, node) else {
            continue;
        };
        let scales = weight.scales.to_f32(&path)?;
        let Some((codes, scales)) = weight.packed(&scales) else {
            continue;
        };
        let [codes_name, scales_name] = ["packed", "packed_scales"]
            .map(|what| names.fresh(&format!("{}_{what}", node.input[0])));
        made.push(TensorProto {
            name: codes_name.clone(),
            ..codes
        });
        made.push(TensorProto {
            name: scales_name.clone(),
            ..scales
        });
        let sizes = (weight.d, weight.n, weight.block);
        packed.insert(node.output[0].clone(), (codes_name, scales_name, sizes));
    }
    let graph = model.graph_mut();
    let mut n_packed = 0;
    for node in &mut graph.node {
        let is_product = node.op() == "MatMul" && node.input.len() == 2;
        let Some((codes, scales, (d, n, block))) = node
            .input
            .get(1)
            .filter(|_| is_product)
            .and_then(|weight| packed.get(weight))
        else {
            continue;
        };
        let inputs = [node.input[0].as_str(), codes, scales];
        let product = NodeProto::new("MatMulNBits", &inputs, &[&node.output[0]])
            .with_int("K", *d as i64)
            .with_int("N", *n as i64)
            .with_int("bits", 4)
            .with_int("block_size", *block as i64);
        *node = NodeProto {
            name: std::mem::take(&mut node.name),
            domain: CONTRIB.0.to_owned(),
            ..product
        };
        n_packed += 1;
    }
    if n_packed > 0 {
        graph.initializer.append(&mut made);
        graph.remove_unused();
        model.set_opset(CONTRIB.0, Some(CONTRIB.1));
    }
    Ok(n_packed)
}

/// A weight in blocks.
struct Weight<'a> {
    codes: &'a [u8],
    scales: &'a TensorProto,
    d: usize,
    n: usize,
    block: usize,
}

impl<'a> Weight<'a> {
    /// The weight that `node` dequantizes, if it has the form that can be packed.
    fn of(model: &'a OnnxModel, node: &NodeProto) -> Option<Self> {
        let graph = model.graph();
        let int = |name: &str| node.attr(name).and_then(|a| a.i);
        let block = usize::try_from(int("block_size")?).ok()?;
        let no_zeros = node.input.get(2).is_none_or(String::is_empty);
        let codes = graph.initializer(node.input.first()?)?;
        let scales = graph.initializer(node.input.get(1)?)?;
        let [d, n] = codes.dims[..] else { return None };
        let (d, n) = (usize::try_from(d).ok()?, usize::try_from(n).ok()?);
        let fits = block.is_power_of_two() && block >= 16 && d.is_multiple_of(block);
        let raw = codes.raw_data.as_ref()?;
        let is_blocks = codes.dtype().ok()? == DataType::I4
            && matches!(int("axis"), Some(0 | -2))
            && no_zeros
            && fits
            && n % 2 == 0
            && raw.len() == d.checked_mul(n)? / 2
            && scales.dims == [(d / block) as i64, n as i64];
        let readers = graph.consumers();
        let readers = readers.get(node.output[0].as_str())?;
        let only_products = readers.iter().all(|&index| {
            let reader = &graph.node[index];
            let weight = reader.input.get(1) == Some(&node.output[0]);
            reader.op() == "MatMul" && weight && reader.input[0] != node.output[0]
        });
        (is_blocks && only_products).then_some(Self {
            codes: raw,
            scales,
            d,
            n,
            block,
        })
    }

    /// Codes and scales, column by column; `None` if there are too few scales.
    fn packed(&self, scales: &[f32]) -> Option<(TensorProto, TensorProto)> {
        let blocks = self.d / self.block;
        if scales.len() != blocks * self.n {
            return None;
        }
        let mut bytes = vec![0u8; self.codes.len()];
        // Two rows at a time: their codes of one column are one byte.
        let row_bytes = self.n / 2;
        for (pair, rows) in self.codes.chunks_exact(2 * row_bytes).enumerate() {
            let (first, second) = rows.split_at(row_bytes);
            for (index, (a, b)) in first.iter().zip(second).enumerate() {
                // Flipping the sign bit adds 8 to a code.
                let (a, b) = (a ^ 0x88, b ^ 0x88);
                let at = 2 * index * (self.d / 2) + pair;
                bytes[at] = (a & 0xf) | (b << 4);
                bytes[at + self.d / 2] = (a >> 4) | (b & 0xf0);
            }
        }
        let mut by_column = Vec::with_capacity(scales.len());
        for column in 0..self.n {
            by_column.extend((0..blocks).map(|block| scales[block * self.n + column]));
        }
        let (n, blocks) = (self.n as i64, blocks as i64);
        let dims = [n, blocks, self.block as i64 / 2];
        Some((
            TensorProto::from_raw("", DataType::U8, &dims, bytes),
            TensorProto::from_f32("", &[n, blocks], &by_column),
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::testing::{model, ops, value};
    use super::super::{LowerOptions, lower};
    use super::*;
    use crate::onnx::DataType::F32;

    /// A product with 32 x 4 codes in blocks of 16.
    fn product(zeros: bool) -> OnnxModel {
        let codes: Vec<u8> = (0..64u32).map(|i| (i * 37 + 11) as u8).collect();
        let scales: Vec<f32> = (1..=8).map(|i| i as f32 / 4.0).collect();
        let mut constants = vec![
            TensorProto::from_raw("codes", DataType::I4, &[32, 4], codes),
            TensorProto::from_f32("scales", &[2, 4], &scales),
        ];
        let mut inputs = vec!["codes", "scales"];
        if zeros {
            constants.push(TensorProto::from_raw(
                "zeros",
                DataType::I4,
                &[2, 4],
                vec![0x11; 4],
            ));
            inputs.push("zeros");
        }
        let blocks = NodeProto::new("DequantizeLinear", &inputs, &["w"]);
        let blocks = blocks.with_int("axis", 0).with_int("block_size", 16);
        let product = NodeProto::new("MatMul", &["x", "w"], &["y"]);
        let mut model = model(
            vec![value("x", F32)],
            constants,
            vec![blocks, product],
            vec![value("y", F32)],
        );
        model.set_opset("", Some(21));
        model
    }

    #[test]
    fn packed_weight_dequantizes_to_the_same_numbers() {
        let mut model = product(false);
        let code = |row: usize, col: usize| {
            let byte = ((row * 2 + col / 2) as u32 * 37 + 11) as u8;
            let nibble = byte >> (4 * (col % 2)) & 0xf;
            f32::from(((nibble << 4) as i8) >> 4)
        };
        assert_eq!(pack_blocks(&mut model).expect("pass"), 1);
        assert_eq!(ops(&model), ["MatMulNBits"]);
        assert_eq!(model.opset("com.microsoft"), Some(1));
        // Lowering unpacks what packing made.
        lower(&mut model, &LowerOptions::default()).expect("lower");
        let weight = &model.graph().node[0].input[1];
        let weight = model.graph().initializer(weight).expect("weight");
        assert_eq!(weight.dims, [32, 4]);
        let found = weight.to_f32(Path::new("t")).expect("floats");
        for row in 0..32 {
            for col in 0..4 {
                let scale = (row / 16 * 4 + col + 1) as f32 / 4.0;
                assert_eq!(found[row * 4 + col], code(row, col) * scale, "{row} {col}");
            }
        }
        assert_eq!(pack_blocks(&mut model).expect("again"), 0);
    }

    #[test]
    fn blocks_with_zero_points_or_other_readers_are_left() {
        let mut zeros = product(true);
        assert_eq!(pack_blocks(&mut zeros).expect("pass"), 0);
        let mut read_twice = product(false);
        let other = NodeProto::new("Neg", &["w"], &["z"]);
        read_twice.graph_mut().node.push(other);
        assert_eq!(pack_blocks(&mut read_twice).expect("pass"), 0);
        assert_eq!(ops(&read_twice), ["DequantizeLinear", "MatMul", "Neg"]);
    }
}
