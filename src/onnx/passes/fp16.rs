//! Give every float of a graph its type: FP16, or FP32 where FP16 does not do.
//!
//! The result is what a strongly typed TensorRT network computes, operator by operator: weights
//! are stored as FP16, casts stand where the precision changes, and nothing else decides. Which
//! operators stay FP32 is decided in [`super::precision`], and carried out in [`super::retype`].
//!
//! Position in the order of passes: after those that change what is computed
//! ([`super::clamp_mask_fill`], [`super::scale_query`]), before nothing.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::casts::drop_casts;
use super::constants::lift_constants;
use super::narrow::count_beyond_f16;
use super::order::sort_nodes;
use super::precision::{all_single, plan};
use super::retype::apply;
use super::types::Types;
use crate::error::{Error, Result};
use crate::onnx::{DataType, OnnxModel};

/// How to make an FP16 graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Fp16Options {
    /// Type of float inputs and outputs: F16, as a GPU runtime wants caches and embeddings, or
    /// F32 with casts at the border.
    pub io: DataType,
    /// Type in which Softmax is computed: F32, or F16 where casts around it keep an engine from
    /// fusing attention.
    pub softmax: DataType,
    /// Names of nodes to be computed in FP32, for measured reasons.
    pub keep: Vec<String>,
    /// Largest absolute values that were seen, by the names of the values in this graph; of others
    /// nothing is known, and the rules are careful.
    pub seen: BTreeMap<String, f32>,
}

impl Default for Fp16Options {
    fn default() -> Self {
        Self {
            io: DataType::F16,
            softmax: DataType::F32,
            keep: Vec::new(),
            seen: BTreeMap::new(),
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
/// integer operators that are lowered before; [`Error::Argument`] if `options` name another
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
/// As [`to_fp16`], contrib and integer operators excepted.
pub fn to_fp32(model: &mut OnnxModel) -> Result<()> {
    sort_nodes(model)?;
    lift_constants(model)?;
    drop_casts(model)?;
    let types = Types::infer(model)?;
    let plan = all_single(model.graph(), &types);
    apply(model, types, plan, DataType::F32)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::check_types;
    use super::super::testing::{cast, maker, model, ops, scalar, value};
    use super::*;
    use crate::onnx::DataType::{Bool, F16, F32, I64};
    use crate::onnx::proto::NodeProto;

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
