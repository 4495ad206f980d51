//! Carry out a plan: Q/DQ in front of operators, weights stored as integers.
//!
//! ```text
//! x ─► QuantizeLinear(scale, 0) ─► DequantizeLinear(scale, 0) ─► op     one pair a tensor, whoever reads it
//! codes i8 ─► DequantizeLinear(scales [n], zeros [n], axis) ─────┘     one a weight
//! ```
//!
//! Weights of 4 bits are stored in blocks: `DequantizeLinear(codes i4 [d, n], scales [d / block, n])` with
//! `axis` 0 and `block_size`, of opset 21.
//!
//! Values that other nodes read, and the graph's outputs, keep their names.

use std::collections::HashMap;
use std::path::Path;

use super::blocks::{BlockCodes, quantize_blocks};
use super::plan::{Action, Activation, Plan, Weight};
use super::weights::{Codes, Factors, quantize_weight, transpose};
use crate::error::{Error, Result};
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto};
use crate::onnx::{DataType, Names, OnnxModel};

/// What was inserted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Inserted {
    /// Q/DQ pairs of activations.
    pub n_tensors: usize,
    /// Weights stored as integers.
    pub n_weights: usize,
    /// Channels of weights whose scale is the smallest there is.
    pub n_clamped: usize,
}

/// Carries out `plan`, which was made for this graph as it is. Weights are multiplied with their
/// `factors` before they become integers; those that stay floats keep theirs in `factors`.
pub(super) fn insert(
    model: &mut OnnxModel,
    plan: &Plan,
    factors: &mut HashMap<String, Factors>,
) -> Result<Inserted> {
    let path = model.path().to_path_buf();
    let cancel = model.cancel();
    let graph = model.graph_mut();
    let mut inserter = Inserter::new(&path, graph);
    for decision in &plan.decisions {
        let Action::Quantize { activation, weight } = &decision.action else {
            continue;
        };
        if let Some(activation) = activation {
            let name = inserter.activation(activation);
            graph.node[decision.index].input[activation.input] = name;
        }
        if let Some(weight) = weight {
            cancel.check()?;
            let of_weight = factors.remove(&weight.tensor);
            let name = inserter.weight(graph, weight, of_weight.as_ref())?;
            let node = &mut graph.node[decision.index];
            node.input[weight.input] = name;
            if weight.transpose {
                node.set_int("transB", 0);
            }
        }
    }
    let Inserter {
        made,
        mut pairs,
        dequantize,
        inserted,
        ..
    } = inserter;
    graph.initializer.extend(made);
    // Weights first, then each pair right behind what makes its tensor.
    let mut nodes = dequantize;
    for input in &graph.input {
        nodes.extend(pairs.remove(input.name.as_str()).into_iter().flatten());
    }
    for node in std::mem::take(&mut graph.node) {
        let outputs = node.output.clone();
        nodes.push(node);
        for name in &outputs {
            nodes.extend(pairs.remove(name.as_str()).into_iter().flatten());
        }
    }
    graph.node = nodes;
    graph.remove_unused();
    Ok(inserted)
}

struct Inserter<'a> {
    path: &'a Path,
    names: Names,
    /// Dequantized names of activations.
    activations: HashMap<String, String>,
    /// Dequantized names of weights, by how they are stored.
    weights: HashMap<(String, usize, bool), String>,
    /// Zero points by their number, 0 for a single one without dimensions.
    zeros: HashMap<usize, String>,
    made: Vec<TensorProto>,
    /// Q/DQ nodes by the tensor that they read.
    pairs: HashMap<String, [NodeProto; 2]>,
    dequantize: Vec<NodeProto>,
    inserted: Inserted,
}

impl<'a> Inserter<'a> {
    fn new(path: &'a Path, graph: &GraphProto) -> Self {
        Self {
            path,
            names: Names::of(graph),
            activations: HashMap::new(),
            weights: HashMap::new(),
            zeros: HashMap::new(),
            made: Vec::new(),
            pairs: HashMap::new(),
            dequantize: Vec::new(),
            inserted: Inserted::default(),
        }
    }

    fn activation(&mut self, activation: &Activation) -> String {
        let tensor = &activation.tensor;
        if let Some(name) = self.activations.get(tensor) {
            return name.clone();
        }
        let [scale, quantized, dequantized] = ["scale", "quantized", "dequantized"]
            .map(|what| self.names.fresh(&format!("{tensor}/{what}")));
        let zero = self.zero(0);
        let stored = TensorProto::from_f32(&scale, &[], &[activation.scale]);
        self.made.push(stored);
        let pair = [
            NodeProto::new("QuantizeLinear", &[tensor, &scale, &zero], &[&quantized]),
            NodeProto::new(
                "DequantizeLinear",
                &[&quantized, &scale, &zero],
                &[&dequantized],
            ),
        ];
        self.pairs.insert(tensor.clone(), pair);
        self.activations.insert(tensor.clone(), dequantized.clone());
        self.inserted.n_tensors += 1;
        dequantized
    }

    fn weight(
        &mut self,
        graph: &GraphProto,
        weight: &Weight,
        factors: Option<&Factors>,
    ) -> Result<String> {
        let key = (weight.tensor.clone(), weight.axis, weight.transpose);
        if let Some(name) = self.weights.get(&key) {
            return Ok(name.clone());
        }
        let tensor = &weight.tensor;
        let stored = graph.initializer(tensor).ok_or_else(|| {
            Error::malformed(self.path, format!("has no constant `{tensor}` to quantize"))
        })?;
        if let Some(block) = weight.block {
            let codes = quantize_blocks(stored, block, self.path)?;
            let name = self.store_blocks(tensor, codes, block);
            self.weights.insert(key, name.clone());
            return Ok(name);
        }
        let codes = quantize_weight(stored, weight.axis, factors, self.path)?;
        let axis = match weight.transpose {
            true => 1 - weight.axis,
            false => weight.axis,
        };
        let name = self.store(tensor, codes, axis, weight.transpose)?;
        self.weights.insert(key, name.clone());
        Ok(name)
    }

    /// Stores codes and scales and appends what dequantizes them; returns the name of the result.
    fn store(
        &mut self,
        tensor: &str,
        codes: Codes,
        axis: usize,
        transposed: bool,
    ) -> Result<String> {
        let [stored, scales, dequantized] = ["int8", "scale", "dequantized"]
            .map(|what| self.names.fresh(&format!("{tensor}/{what}")));
        let n = codes.scales.dims[0] as usize;
        let zeros = self.zero(n);
        let integers = match transposed {
            true => transpose(&codes.codes).ok_or_else(|| {
                Error::malformed(self.path, format!("weight `{tensor}` is no matrix"))
            })?,
            false => codes.codes,
        };
        self.made.push(TensorProto {
            name: stored.clone(),
            ..integers
        });
        self.made.push(TensorProto {
            name: scales.clone(),
            ..codes.scales
        });
        let inputs = [stored.as_str(), &scales, &zeros];
        let node = NodeProto::new("DequantizeLinear", &inputs, &[&dequantized]);
        self.dequantize.push(node.with_int("axis", axis as i64));
        self.inserted.n_weights += 1;
        self.inserted.n_clamped += codes.n_clamped;
        Ok(dequantized)
    }

    /// As `store`, for blocks along axis 0; zero points are left out, as they are zero.
    fn store_blocks(&mut self, tensor: &str, codes: BlockCodes, block: usize) -> String {
        let [stored, scales, dequantized] = ["int4", "scale", "dequantized"]
            .map(|what| self.names.fresh(&format!("{tensor}/{what}")));
        self.made.push(TensorProto {
            name: stored.clone(),
            ..codes.codes
        });
        self.made.push(TensorProto {
            name: scales.clone(),
            ..codes.scales
        });
        let node = NodeProto::new("DequantizeLinear", &[&stored, &scales], &[&dequantized]);
        let node = node
            .with_int("axis", 0)
            .with_int("block_size", block as i64);
        self.dequantize.push(node);
        self.inserted.n_weights += 1;
        self.inserted.n_clamped += codes.n_clamped;
        dequantized
    }

    /// `n` zero points in a row, or a single one.
    fn zero(&mut self, n: usize) -> String {
        if let Some(name) = self.zeros.get(&n) {
            return name.clone();
        }
        let name = self.names.fresh("quantize/zero");
        let dims: &[i64] = if n == 0 { &[] } else { &[n as i64] };
        let zeros = TensorProto::from_raw(&name, DataType::I8, dims, vec![0u8; n.max(1)]);
        self.made.push(zeros);
        self.zeros.insert(n, name.clone());
        name
    }
}

/// Stores the table of a graph that looks up rows (`Gather` along axis 0) as integers with a scale
/// per row. Returns how many tables were stored so.
pub(super) fn insert_tables(model: &mut OnnxModel) -> Result<Inserted> {
    let path = model.path().to_path_buf();
    let graph = model.graph_mut();
    let mut inserter = Inserter::new(&path, graph);
    for index in 0..graph.node.len() {
        let node = &graph.node[index];
        let is_lookup =
            node.op_type == "Gather" && node.attr("axis").and_then(|a| a.i).unwrap_or(0) == 0;
        let Some(name) = node.input.first().filter(|_| is_lookup).cloned() else {
            continue;
        };
        let table = graph.initializer(&name).filter(|table| {
            matches!(table.dtype(), Ok(DataType::F32 | DataType::F16)) && table.dims.len() == 2
        });
        if table.is_none() {
            continue;
        }
        let weight = Weight {
            input: 0,
            tensor: name,
            axis: 0,
            transpose: false,
            block: None,
        };
        let name = inserter.weight(graph, &weight, None)?;
        graph.node[index].input[0] = name;
    }
    let Inserter {
        made,
        dequantize,
        inserted,
        ..
    } = inserter;
    graph.initializer.extend(made);
    graph.node.splice(0..0, dequantize);
    graph.remove_unused();
    Ok(inserted)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use prost::Message;

    use super::super::{
        GraphRanges, QuantizeOptions, Scheme, TensorRange, quantize, quantize_embedding,
    };
    use super::*;
    use crate::onnx::ValueType;
    use crate::onnx::passes::{Fp16Options, check_types, to_fp16};
    use crate::onnx::proto::{ModelProto, OperatorSetIdProto, ValueInfoProto};

    fn value(name: &str, dtype: DataType) -> ValueInfoProto {
        ValueInfoProto::from(&ValueType {
            name: name.to_owned(),
            dtype: Some(dtype),
            dims: None,
        })
    }

    fn model(node: Vec<NodeProto>, initializer: Vec<TensorProto>) -> OnnxModel {
        let proto = ModelProto {
            ir_version: Some(9),
            opset_import: vec![OperatorSetIdProto {
                domain: String::new(),
                version: Some(19),
            }],
            graph: Some(GraphProto {
                node,
                initializer,
                input: vec![value("x", DataType::F32), value("ids", DataType::I64)],
                output: vec![value("y", DataType::F32)],
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        };
        OnnxModel::parse(Path::new("t.onnx"), Bytes::from(proto.encode_to_vec())).expect("parse")
    }

    fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
        NodeProto::new(op, inputs, &[output])
    }

    /// Two products of one normed value with one weight, and a Gemm that reads it transposed.
    fn products() -> OnnxModel {
        model(
            vec![
                node("Sqrt", &["x"], "h"),
                node("MatMul", &["h", "w"], "a"),
                node("MatMul", &["h", "w"], "b"),
                node("Add", &["a", "b"], "c"),
                node("Gemm", &["c", "w"], "g").with_int("transB", 1),
                node("Add", &["g", "h"], "y"),
            ],
            vec![TensorProto::from_f32(
                "w",
                &[2, 2],
                &[1.0, -0.5, 0.25, 127.0],
            )],
        )
    }

    fn ranges() -> GraphRanges {
        let range = TensorRange {
            amax: 127.0,
            min: -127.0,
            max: 127.0,
            channel_amax: Vec::new(),
        };
        let tensors = ["h", "c"].map(|name| (name.to_owned(), range.clone()));
        GraphRanges {
            source_sha256: String::new(),
            tensors: BTreeMap::from(tensors),
        }
    }

    fn raw(model: &OnnxModel, name: &str) -> Vec<i8> {
        let tensor = model.graph().initializer(name).expect(name);
        let bytes = tensor.raw_data.as_ref().expect("raw");
        bytes.iter().map(|&byte| byte as i8).collect()
    }

    #[test]
    fn pairs_and_weights_are_shared_by_their_readers() {
        let mut model = products();
        let options = QuantizeOptions::new(Scheme::Int8);
        let report = quantize(&mut model, Some(&ranges()), &options).expect("quantize");
        let ops: Vec<_> = model.graph().node.iter().map(NodeProto::op).collect();
        let expected = [
            "DequantizeLinear",
            "DequantizeLinear",
            "Sqrt",
            "QuantizeLinear",
            "DequantizeLinear",
            "MatMul",
            "MatMul",
            "Add",
            "QuantizeLinear",
            "DequantizeLinear",
            "Gemm",
            "Add",
        ];
        assert_eq!(ops, expected);
        assert_eq!((report.n_tensors, report.n_weights), (2, 2));
        let graph = model.graph();
        assert_eq!(graph.node[5].input, ["h/dequantized", "w/dequantized"]);
        assert_eq!(graph.node[5].input, graph.node[6].input);
        assert_eq!(
            graph.node[11].input,
            ["g", "h"],
            "others read what they did"
        );
        // [d, n] along axis 1, in both; the Gemm's is stored transposed.
        for (index, codes) in [(0, [127, 0, 32, 127]), (1, [127, 0, -64, 127])] {
            let made = &graph.node[index];
            assert_eq!(made.attr("axis").and_then(|a| a.i), Some(1));
            assert_eq!(raw(&model, &made.input[0]), codes);
            assert_eq!(raw(&model, &made.input[2]), [0, 0]);
        }
        assert_eq!(graph.node[10].attr("transB").and_then(|a| a.i), Some(0));
        assert!(graph.initializer("w").is_none(), "the floats are gone");
        assert_eq!(
            (report.bytes_before, report.bytes_after),
            (16, 2 * (4 + 8) + 2 * 4 + 2 + 1)
        );
    }

    #[test]
    fn quantized_graph_becomes_strongly_typed_fp16() {
        let mut model = products();
        let options = QuantizeOptions::new(Scheme::Int8);
        quantize(&mut model, Some(&ranges()), &options).expect("quantize");
        to_fp16(&mut model, &Fp16Options::default()).expect("fp16");
        let types = check_types(&model).expect("types");
        let graph = model.graph();
        let quantize = |index: usize| {
            let nodes = graph.node.iter().filter(|n| n.op_type == "QuantizeLinear");
            nodes.skip(index).map(|n| &n.input).next().expect("Q")
        };
        // What a square root made is quantized in FP32, what a product made in FP16.
        for (index, dtype) in [(0, DataType::F32), (1, DataType::F16)] {
            for input in &quantize(index)[..2] {
                assert_eq!(types.get(input), Some(dtype), "{input}");
            }
        }
        for node in graph
            .node
            .iter()
            .filter(|n| n.op_type == "DequantizeLinear")
        {
            assert_eq!(types.get(&node.input[0]), Some(DataType::I8));
            assert_eq!(types.get(&node.output[0]), Some(DataType::F16));
        }
    }

    #[test]
    fn tables_are_stored_with_a_scale_per_row() {
        let table = TensorProto::from_f32("table", &[3, 2], &[1.0, 2.0, -4.0, 0.0, 0.0, 0.0]);
        let mut graph = model(vec![node("Gather", &["table", "ids"], "y")], vec![table]);
        assert_eq!(quantize_embedding(&mut graph).expect("pass"), 1);
        let nodes = &graph.graph().node;
        assert_eq!(nodes.len(), 2);
        assert_eq!(nodes[0].attr("axis").and_then(|a| a.i), Some(0));
        assert_eq!(nodes[1].input, [nodes[0].output[0].as_str(), "ids"]);
        assert_eq!(raw(&graph, &nodes[0].input[0]), [64, 127, -127, 0, 0, 0]);
    }

    #[test]
    fn ranges_that_lack_a_tensor_are_refused_by_name() {
        let mut ranges = ranges();
        ranges.tensors.remove("c");
        let options = QuantizeOptions::new(Scheme::Int8);
        let error = quantize(&mut products(), Some(&ranges), &options).expect_err("refused");
        let error = error.to_string();
        assert!(error.contains("`c`") && error.contains("g/Gemm"), "{error}");
    }
}
