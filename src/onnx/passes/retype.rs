//! Carry out a plan of precisions: convert constants, insert casts, type inputs and outputs.
//!
//! A value has one type where it is made; readers that want another one read a cast of it. A
//! constant is stored in each type that is read.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use super::fp16::Fp16Report;
use super::narrow::{to_half, to_single};
use super::ops::{Rule, operator};
use super::precision::{Plan, Precision};
use super::types::{Types, check_types};
use crate::error::{Error, Result};
use crate::onnx::graph::Names;
use crate::onnx::proto::{NodeProto, TensorProto, ValueInfoProto};
use crate::onnx::{Cancel, DataType, OnnxModel};

/// Carries out `plan`; `types` are those of the graph as it is.
pub(super) fn apply(
    model: &mut OnnxModel,
    types: Types,
    plan: Plan,
    io: DataType,
) -> Result<Fp16Report> {
    let path = model.path().to_path_buf();
    let cancel = model.cancel();
    let graph = model.graph_mut();
    let names = Names::of(graph);
    let constants = std::mem::take(&mut graph.initializer);
    let mut rewriter = Rewriter {
        path,
        cancel,
        names,
        constants: constants.into_iter().map(|t| (t.name.clone(), t)).collect(),
        old: types,
        new: Types::default(),
        variants: HashMap::new(),
        stored: HashSet::new(),
        renamed: HashMap::new(),
        output_casts: Vec::new(),
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
    rewriter.rename(io);
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
    cancel: Cancel,
    names: Names,
    /// Constants as the file has them, until the first reader takes them.
    constants: HashMap<String, TensorProto>,
    /// Types before.
    old: Types,
    /// Types of what was rewritten so far.
    new: Types,
    /// Name of each value in each type that it was converted to.
    variants: HashMap<(String, DataType), String>,
    /// Constants that were stored in some type already.
    stored: HashSet<String>,
    /// New names of values whose own name goes to an output of another type.
    renamed: HashMap<String, String>,
    /// Casts that make an output of a renamed value: from, to.
    output_casts: Vec<(String, String)>,
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
        let taken = constant.is_none() || !self.stored.insert(name.to_owned());
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
        self.cancel.check()?;
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
        self.renamed.insert(name.to_owned(), inner.clone());
        self.new.set(&inner, dtype);
        self.new.set(name, io);
        match cast {
            Some(cast) => {
                self.renamed.insert(cast, name.to_owned());
            }
            None => self.output_casts.push((inner, name.to_owned())),
        }
        Ok(())
    }

    /// Carries out what [`Rewriter::output`] decided, for all outputs at once.
    fn rename(&mut self, io: DataType) {
        let values = self.nodes.iter_mut();
        for value in values.flat_map(|n| n.input.iter_mut().chain(&mut n.output)) {
            if let Some(name) = self.renamed.get(value) {
                value.clone_from(name);
            }
        }
        for (from, to) in std::mem::take(&mut self.output_casts) {
            self.cast(&from, &to, io);
        }
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
    use super::super::testing::{model, scalar, value};
    use super::super::{Fp16Options, to_fp16};
    use super::*;

    /// Time that grew with the square of the nodes would be seen here: minutes instead of moments.
    #[test]
    fn large_graph_with_many_constants_and_outputs_is_converted() {
        const N: usize = 100_000;
        let name = |i: usize| match i {
            0 => "x".to_owned(),
            i => format!("v{i}"),
        };
        let nodes =
            (0..N).map(|i| NodeProto::new("Add", &[&name(i), &format!("c{i}")], &[&name(i + 1)]));
        let constants = (0..N).map(|i| scalar(&format!("c{i}"), 0.5));
        let outputs = (N - 1000..=N).map(|i| value(&name(i), DataType::F32));
        let mut model = model(
            vec![value("x", DataType::F32)],
            constants.collect(),
            nodes.collect(),
            outputs.collect(),
        );
        let options = Fp16Options {
            io: DataType::F32,
            ..Fp16Options::default()
        };
        to_fp16(&mut model, &options).expect("pass");
        let types = check_types(&model).expect("types");
        assert_eq!(model.graph().output.len(), 1001);
        for output in &model.graph().output {
            assert_eq!(
                types.get(&output.name),
                Some(DataType::F32),
                "{}",
                output.name
            );
        }
    }

    #[test]
    fn conversion_of_a_cancelled_model_stops() {
        let mut model = model(
            vec![value("x", DataType::F32)],
            vec![scalar("c", 0.5)],
            vec![NodeProto::new("Add", &["x", "c"], &["y"])],
            vec![value("y", DataType::F32)],
        );
        model.cancel_with(std::sync::Arc::new(true.into()));
        let stopped = to_fp16(&mut model, &Fp16Options::default());
        assert!(matches!(stopped, Err(Error::Cancelled)), "{stopped:?}");
    }
}
