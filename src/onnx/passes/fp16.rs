//! Give every float of a graph its type: FP16, or FP32 where FP16 does not do.
//!
//! The result is what a strongly typed TensorRT network computes, operator by operator: weights
//! are stored as FP16, casts stand where the precision changes, and nothing else decides. Which
//! operators stay FP32 is decided in [`super::precision`].
//!
//! Position in the order of passes: after those that change what is computed
//! ([`super::clamp_mask_fill`], [`super::scale_query`]), before nothing.

use std::collections::HashMap;
use std::path::PathBuf;

use serde::Serialize;

use super::casts::drop_casts;
use super::constants::lift_constants;
use super::narrow::{count_beyond_f16, to_half, to_single};
use super::ops::{Rule, operator};
use super::order::sort_nodes;
use super::precision::{Plan, Precision, all_single, plan};
use super::types::{Types, check_types};
use crate::error::{Error, Result};
use crate::onnx::graph::Names;
use crate::onnx::proto::{NodeProto, TensorProto, ValueInfoProto};
use crate::onnx::{DataType, OnnxModel};

/// How to make an FP16 graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fp16Options {
    /// Type of float inputs and outputs: F16, as a GPU runtime wants caches and embeddings, or
    /// F32 with casts at the border.
    pub io: DataType,
    /// Type in which Softmax is computed: F32, or F16 where casts around it keep an engine from
    /// fusing attention.
    pub softmax: DataType,
    /// Names of nodes to be computed in FP32, for measured reasons.
    pub keep: Vec<String>,
}

impl Default for Fp16Options {
    fn default() -> Self {
        Self {
            io: DataType::F16,
            softmax: DataType::F32,
            keep: Vec::new(),
        }
    }
}

/// What [`to_fp16`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Fp16Report {
    /// Nodes that compute in FP16.
    pub n_half: usize,
    /// Nodes that compute in FP32.
    pub n_single: usize,
    /// Casts between float types.
    pub n_casts: usize,
    /// Constants stored as FP16.
    pub n_half_constants: usize,
    /// Elements of those that were not zero and are now.
    pub n_flushed: u64,
    /// Bytes of all weights.
    pub weight_bytes: u64,
    /// Constants with elements beyond ±65504, whose readers stay FP32, with the number of those
    /// elements.
    pub beyond_range: Vec<(String, u64)>,
}

/// Makes an FP32 graph, or one that is FP16 in parts, into a strongly typed FP16 graph.
///
/// Names of inputs, outputs and existing values stay; nodes stay in topological order; a value is
/// cast to a type at most once; constants are converted, never cast; casts between floats that
/// the file had are dropped first. Integer and boolean values are not touched.
///
/// # Errors
/// [`Error::Unsupported`] naming all nodes with unknown operators, subgraphs, or contrib and
/// quantized operators that are lowered before; [`Error::Argument`] if `options` name another
/// type than F16 or F32; [`Error::Malformed`] for a graph that does not hang together.
pub fn to_fp16(model: &mut OnnxModel, options: &Fp16Options) -> Result<Fp16Report> {
    for dtype in [options.io, options.softmax] {
        if !matches!(dtype, DataType::F16 | DataType::F32) {
            return Err(Error::Argument {
                name: "precision",
                reason: format!("{dtype} is neither f16 nor f32"),
            });
        }
    }
    sort_nodes(model)?;
    lift_constants(model)?;
    drop_casts(model)?;
    let types = Types::infer(model)?;
    let path = model.path().to_path_buf();
    let mut counted: HashMap<String, u64> = HashMap::new();
    let plan = {
        let constants = model.graph().constants();
        let mut beyond = |name: &str| match (counted.get(name), constants.get(name)) {
            (Some(&n), _) => Ok(n),
            (None, Some(tensor)) => {
                let n = count_beyond_f16(tensor, &path)?;
                counted.insert(name.to_owned(), n);
                Ok(n)
            }
            (None, None) => Ok(0),
        };
        plan(model.graph(), &types, options, &mut beyond)?
    };
    let mut report = apply(model, types, plan, options.io)?;
    report.beyond_range = counted.into_iter().filter(|(_, n)| *n > 0).collect();
    report.beyond_range.sort();
    Ok(report)
}

/// Makes every float of a graph FP32, inputs and outputs included: FP16 weights are widened.
///
/// # Errors
/// As [`to_fp16`], contrib and quantized operators excepted.
pub fn to_fp32(model: &mut OnnxModel) -> Result<()> {
    sort_nodes(model)?;
    lift_constants(model)?;
    drop_casts(model)?;
    let types = Types::infer(model)?;
    let plan = all_single(model.graph(), &types);
    apply(model, types, plan, DataType::F32)?;
    Ok(())
}

/// Carries out `plan`; `types` are those of the graph as it is.
fn apply(model: &mut OnnxModel, types: Types, plan: Plan, io: DataType) -> Result<Fp16Report> {
    let path = model.path().to_path_buf();
    let graph = model.graph_mut();
    let names = Names::of(graph);
    let constants = std::mem::take(&mut graph.initializer);
    let mut rewriter = Rewriter {
        path,
        names,
        constants: constants.into_iter().map(|t| (t.name.clone(), t)).collect(),
        old: types,
        new: Types::default(),
        variants: HashMap::new(),
        converted: Vec::new(),
        nodes: Vec::with_capacity(graph.node.len()),
        report: Fp16Report::default(),
    };
    for input in &mut graph.input {
        rewriter.border(input, io);
        if let Some(dtype) = dtype_of(input) {
            rewriter.new.set(&input.name, dtype);
        }
    }
    for (node, precision) in std::mem::take(&mut graph.node).into_iter().zip(plan) {
        rewriter.node(node, precision)?;
    }
    for output in &mut graph.output {
        rewriter.output(&output.name, io)?;
        rewriter.border(output, io);
    }
    let mut report = rewriter.report;
    graph.node = rewriter.nodes;
    graph.initializer = rewriter.converted;
    for info in &mut graph.value_info {
        set_dtype(info, rewriter.new.get(&info.name));
    }
    graph.remove_unused();
    let half = |t: &&TensorProto| t.data_type == Some(DataType::F16 as i32);
    report.n_half_constants = graph.initializer.iter().filter(half).count();
    report.weight_bytes = model.weight_bytes();
    check_types(model)?;
    Ok(report)
}

struct Rewriter {
    path: PathBuf,
    names: Names,
    /// Constants as the file has them, until the first reader takes them.
    constants: HashMap<String, TensorProto>,
    /// Types before.
    old: Types,
    /// Types of what was rewritten so far.
    new: Types,
    /// Name of each value in each type that it was converted to.
    variants: HashMap<(String, DataType), String>,
    converted: Vec<TensorProto>,
    nodes: Vec<NodeProto>,
    report: Fp16Report,
}

impl Rewriter {
    /// Rewrites one node: operands in the type that it computes in, then the node itself.
    fn node(&mut self, mut node: NodeProto, precision: Option<Precision>) -> Result<()> {
        let op = operator(&node).ok_or_else(|| Error::Unsupported {
            node: node.label().to_owned(),
            op: node.op(),
            reason: "unknown operator".to_owned(),
        })?;
        for index in 0..node.input.len() {
            let name = node.input[index].clone();
            if name.is_empty() {
                continue;
            }
            let wanted = match precision {
                Some(precision) if op.group.contains(index) => Some(precision.dtype()),
                // Scales and regions of a Resize, thresholds and the like.
                _ if self.constants.contains_key(&name) && op.rule != Rule::Lower => {
                    Some(DataType::F32)
                }
                _ => None,
            };
            node.input[index] = self.variant(&name, wanted)?;
        }
        if let Some(precision) = precision {
            match precision {
                Precision::Half => self.report.n_half += 1,
                Precision::Single => self.report.n_single += 1,
            }
            if op.rule == Rule::Make {
                self.set_made_type(&mut node, precision.dtype())?;
            }
        }
        let malformed = |reason| Error::malformed(&self.path, reason);
        self.new.add_outputs(&node, op).map_err(malformed)?;
        self.nodes.push(node);
        Ok(())
    }

    /// The name under which `name` has the type `wanted`; values that are not floats, and those
    /// nobody wants in a certain type, stay as they are.
    fn variant(&mut self, name: &str, wanted: Option<DataType>) -> Result<String> {
        let wanted = wanted.filter(|_| self.old.is_float(name));
        let constant = self.old_constant(name);
        let dtype = match (wanted, constant) {
            (Some(dtype), _) => dtype,
            (None, Some(dtype)) => dtype,
            (None, None) => return Ok(name.to_owned()),
        };
        let key = (name.to_owned(), dtype);
        if let Some(variant) = self.variants.get(&key) {
            return Ok(variant.clone());
        }
        if constant.is_none() && self.new.get(name) == Some(dtype) {
            return Ok(name.to_owned());
        }
        let taken = constant.is_none() || self.variants.keys().any(|(n, _)| n == name);
        let variant = match taken {
            true => self.names.fresh(&format!("{name}_{dtype}")),
            false => name.to_owned(),
        };
        if constant.is_some() {
            self.convert(name, &variant, dtype)?;
        } else {
            self.cast(name, &variant, dtype);
        }
        self.new.set(&variant, dtype);
        self.variants.insert(key, variant.clone());
        Ok(variant)
    }

    /// Type of the constant of that name, if it is one.
    fn old_constant(&self, name: &str) -> Option<DataType> {
        self.constants.get(name).and(self.old.get(name))
    }

    /// Stores a constant as `variant` in type `dtype`.
    fn convert(&mut self, name: &str, variant: &str, dtype: DataType) -> Result<()> {
        let Some(constant) = self.constants.get(name) else {
            return Ok(());
        };
        let tensor = if constant.dtype()? == dtype {
            constant.clone()
        } else if dtype == DataType::F16 {
            let narrowed = to_half(constant, &self.path)?;
            self.report.n_flushed += narrowed.n_flushed;
            narrowed.tensor
        } else {
            to_single(constant, &self.path)?
        };
        self.converted.push(TensorProto {
            name: variant.to_owned(),
            ..tensor
        });
        Ok(())
    }

    fn cast(&mut self, from: &str, to: &str, dtype: DataType) {
        let cast = NodeProto::new("Cast", &[from], &[to]).with_int("to", dtype as i64);
        self.nodes.push(cast);
        self.report.n_casts += 1;
    }

    /// Sets the type of what a [`Rule::Make`] operator makes.
    fn set_made_type(&self, node: &mut NodeProto, dtype: DataType) -> Result<()> {
        if node.op_type == "Cast" {
            node.set_int("to", dtype as i64);
            return Ok(());
        }
        let value = node.attribute.iter_mut().find(|a| a.name == "value");
        match value.and_then(|a| a.t.as_mut()) {
            Some(tensor) if tensor.dtype()? == dtype => {}
            Some(tensor) if dtype == DataType::F16 => {
                *tensor = to_half(tensor, &self.path)?.tensor;
            }
            Some(tensor) => *tensor = to_single(tensor, &self.path)?,
            None if dtype == DataType::F32 => {}
            // Without a value the operator makes FP32 zeros.
            None => {
                let zero = TensorProto::from_raw("", DataType::F16, &[1], vec![0u8; 2]);
                node.set_tensor("value", zero);
            }
        }
        Ok(())
    }

    /// Makes output `name` of type `io`; if it is computed in another type, that value gets
    /// another name.
    fn output(&mut self, name: &str, io: DataType) -> Result<()> {
        if !self.old.is_float(name) {
            return Ok(());
        }
        if self.constants.contains_key(name) {
            return Err(Error::Unsupported {
                node: name.to_owned(),
                op: "output".to_owned(),
                reason: "a constant is returned as it is".to_owned(),
            });
        }
        let Some(dtype) = self.new.get(name).filter(|&dtype| dtype != io) else {
            return Ok(());
        };
        let inner = self.names.fresh(&format!("{name}_{dtype}"));
        let cast = self.variants.get(&(name.to_owned(), io)).cloned();
        for value in self
            .nodes
            .iter_mut()
            .flat_map(|n| n.input.iter_mut().chain(&mut n.output))
        {
            if value == name {
                value.clone_from(&inner);
            } else if Some(&*value) == cast.as_ref() {
                name.clone_into(value);
            }
        }
        self.new.set(&inner, dtype);
        self.new.set(name, io);
        if cast.is_none() {
            self.cast(&inner, name, io);
        }
        Ok(())
    }

    /// Declares a float input or output as `io`.
    fn border(&self, value: &mut ValueInfoProto, io: DataType) {
        if self.old.is_float(&value.name) {
            set_dtype(value, Some(io));
        }
    }
}

fn dtype_of(value: &ValueInfoProto) -> Option<DataType> {
    let tensor = value.r#type.as_ref()?.tensor_type.as_ref()?;
    DataType::from_code(tensor.elem_type?)
}

fn set_dtype(value: &mut ValueInfoProto, dtype: Option<DataType>) {
    let tensor = value.r#type.as_mut().and_then(|t| t.tensor_type.as_mut());
    if let (Some(tensor), Some(dtype)) = (tensor, dtype) {
        tensor.elem_type = Some(dtype as i32);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{cast, maker, model, ops, scalar, value};
    use super::*;
    use crate::onnx::DataType::{Bool, F16, F32, I64};

    fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
        NodeProto::new(op, inputs, &[output])
    }

    fn dtype(model: &OnnxModel, name: &str) -> Option<DataType> {
        check_types(model).expect("consistent").get(name)
    }

    /// A normed product whose input, a residual and an output are read in both types.
    fn normed() -> OnnxModel {
        model(
            vec![value("x", F32)],
            vec![scalar("w", 0.5), scalar("gamma", 2.0)],
            vec![
                node("ReduceMean", &["x"], "mean"),
                node("Sub", &["x", "mean"], "centred"),
                node("Mul", &["centred", "gamma"], "normed"),
                node("MatMul", &["normed", "w"], "q"),
                node("MatMul", &["normed", "w"], "k"),
                node("Add", &["q", "k"], "y"),
            ],
            vec![value("y", F32), value("normed", F32)],
        )
    }

    #[test]
    fn to_fp16_casts_each_value_once_and_keeps_names_and_order() {
        let mut model = normed();
        let report = to_fp16(&mut model, &Fp16Options::default()).expect("pass");
        assert_eq!(
            ops(&model),
            [
                "Cast",
                "ReduceMean",
                "Sub",
                "Mul",
                "Cast",
                "MatMul",
                "MatMul",
                "Add"
            ]
        );
        assert_eq!((report.n_casts, report.n_half, report.n_single), (2, 3, 3));
        // The output that is computed in FP32 is the FP16 cast that its readers have anyway.
        assert_eq!(maker(&model, "q").input[0], "normed");
        assert_eq!(maker(&model, "normed").op_type, "Cast");
        assert_eq!(dtype(&model, "normed"), Some(F16));
        assert_eq!(dtype(&model, "normed_f32"), Some(F32));
        assert_eq!(dtype(&model, "w"), Some(F16));
        assert_eq!(dtype(&model, "gamma"), Some(F32));
        assert_eq!(report.n_half_constants, 1);
        assert_eq!(model.graph().inputs()[0].dtype, Some(F16));
        assert!(model.graph().outputs().iter().all(|o| o.dtype == Some(F16)));
    }

    #[test]
    fn to_fp16_with_fp32_borders_casts_there() {
        let mut model = normed();
        let options = Fp16Options {
            io: F32,
            ..Fp16Options::default()
        };
        to_fp16(&mut model, &options).expect("pass");
        assert_eq!(dtype(&model, "x"), Some(F32));
        assert_eq!(maker(&model, "mean").input[0], "x");
        assert_eq!(maker(&model, "normed").op_type, "Mul");
        let last = maker(&model, "y");
        assert_eq!(
            (last.op_type.as_str(), last.input[0].as_str()),
            ("Cast", "y_f16")
        );
        assert_eq!(maker(&model, "y_f16").op_type, "Add");
    }

    #[test]
    fn to_fp16_of_its_own_result_changes_nothing() {
        let mut model = normed();
        let options = Fp16Options::default();
        let first = to_fp16(&mut model, &options).expect("first");
        let ops_before = ops(&model).join(" ");
        let second = to_fp16(&mut model, &options).expect("second");
        assert_eq!(first, second);
        assert_eq!(ops(&model).join(" "), ops_before);
    }

    #[test]
    fn to_fp16_stores_a_constant_in_each_type_that_is_read() {
        let mut model = model(
            vec![value("x", F32)],
            vec![scalar("w", 1e-9)],
            vec![
                node("Sqrt", &["x"], "root"),
                node("Mul", &["root", "w"], "a"),
                node("MatMul", &["x", "w"], "b"),
                node("Add", &["a", "b"], "y"),
            ],
            vec![value("y", F32)],
        );
        let report = to_fp16(&mut model, &Fp16Options::default()).expect("pass");
        assert_eq!(dtype(&model, "w"), Some(F32));
        assert_eq!(dtype(&model, "w_f16"), Some(F16));
        assert_eq!((report.n_flushed, report.weight_bytes), (1, 6));
        let casts = model.graph().node.iter().filter(|n| n.op_type == "Cast");
        assert!(casts.into_iter().all(|n| n.input[0] != "w"));
    }

    #[test]
    fn to_fp16_reports_constants_beyond_range_and_keeps_them() {
        let mut model = model(
            vec![value("x", F32)],
            vec![scalar("w", 7e4)],
            vec![node("MatMul", &["x", "w"], "y")],
            vec![value("y", F32)],
        );
        let report = to_fp16(&mut model, &Fp16Options::default()).expect("pass");
        assert_eq!(report.beyond_range, [("w".to_owned(), 1)]);
        assert_eq!(dtype(&model, "w"), Some(F32));
        assert_eq!(ops(&model), ["Cast", "MatMul", "Cast"]);
    }

    #[test]
    fn to_fp16_leaves_integers_and_booleans_and_types_what_is_made() {
        let mut model = model(
            vec![value("x", F32), value("n", I64), value("b", Bool)],
            vec![],
            vec![
                node("Add", &["n", "n"], "m"),
                node("Not", &["b"], "nb"),
                cast("nb", "factor", F32),
                node("ConstantOfShape", &["n"], "zeros"),
                node("Where", &["b", "x", "zeros"], "chosen"),
                node("Mul", &["chosen", "factor"], "y"),
            ],
            vec![value("y", F32), value("m", I64)],
        );
        let report = to_fp16(&mut model, &Fp16Options::default()).expect("pass");
        assert_eq!(report.n_casts, 0);
        assert_eq!(dtype(&model, "factor"), Some(F16));
        assert_eq!(dtype(&model, "zeros"), Some(F16));
        assert_eq!(dtype(&model, "m"), Some(I64));
        assert_eq!(model.graph().outputs()[1].dtype, Some(I64));
    }

    #[test]
    fn to_fp32_widens_fp16_files() {
        let mut model = normed();
        to_fp16(&mut model, &Fp16Options::default()).expect("fp16");
        to_fp32(&mut model).expect("fp32");
        assert!(!ops(&model).contains(&"Cast"));
        for name in ["x", "y", "normed", "w", "gamma"] {
            assert_eq!(dtype(&model, name), Some(F32), "{name}");
        }
    }

    #[test]
    fn to_fp16_of_a_returned_constant_or_another_type_is_refused() {
        let mut returned = model(
            vec![value("x", F32)],
            vec![scalar("w", 1.0)],
            vec![node("Relu", &["x"], "y")],
            vec![value("y", F32), value("w", F32)],
        );
        let error = to_fp16(&mut returned, &Fp16Options::default()).expect_err("constant");
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        let options = Fp16Options {
            io: I64,
            ..Fp16Options::default()
        };
        let error = to_fp16(&mut normed(), &options).expect_err("type");
        assert!(matches!(error, Error::Argument { .. }), "{error}");
    }
}
