//! Group queries, instead of repeating keys and values.
//!
//! Exporters write grouped-query attention by expanding the `kv_heads` keys and values to all
//! `heads`: for FastVLM-0.5B every step copies its KV cache seven times. The same products come
//! from queries that are grouped by the key that they share, since heads of a group are adjacent:
//!
//! ```text
//! before   q [b, heads, rows, d] · expand(k) [b, heads, total, d]ᵀ → scores [b, heads, rows, total]
//! after    q [b, kv_heads, group · rows, d] · kᵀ                   → scores [b, kv_heads, group · rows, total]
//! ```
//!
//! The mask `[b, 1, rows, total]` is repeated once for all layers, `group` times along its rows.
//! Sums have the same terms; an engine may add them in another order.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::lift_constants;
use crate::error::Result;
use crate::onnx::OnnxModel;
use crate::onnx::graph::Names;
use crate::onnx::proto::{AttributeProto, GraphProto, NodeProto, TensorProto, attribute_type};

/// Groups the queries of every attention whose keys and values are expanded. Returns how many.
///
/// `heads` and `kv_heads` are those of the model. An attention is left as it is unless nothing but
/// factors, casts, a mask and its Softmax stands between the two products, and nothing else reads
/// what is in between.
///
/// # Errors
/// Those of [`lift_constants`], which runs first.
pub fn group_queries(model: &mut OnnxModel, heads: usize, kv_heads: usize) -> Result<usize> {
    if kv_heads == 0 || heads <= kv_heads || !heads.is_multiple_of(kv_heads) {
        return Ok(0);
    }
    lift_constants(model)?;
    let found = find(model.graph());
    if found.is_empty() {
        return Ok(0);
    }
    let graph = model.graph_mut();
    let mut names = Names::of(graph);
    // The last dimension and the batch are copied; rows are what is left.
    let shape = |name: &str, n: usize| TensorProto::from_i64(name, &[4], &[0, n as i64, -1, 0]);
    let to_groups = names.fresh("grouped_shape");
    let to_heads = names.fresh("heads_shape");
    graph.initializer.push(shape(&to_groups, kv_heads));
    graph.initializer.push(shape(&to_heads, heads));
    // Nodes to insert, with the index of the node that they stand before.
    let mut insert: Vec<(usize, NodeProto)> = Vec::new();
    let mut masks: HashMap<String, String> = HashMap::new();
    for attention in &found {
        let node = &mut graph.node[attention.scores];
        let query = names.fresh(&format!("{}_grouped", node.input[0]));
        let key = names.fresh(&format!("{}_transposed", attention.key));
        let before = attention.scores;
        insert.push((before, reshape(&node.input[0], &to_groups, &query)));
        insert.push((before, transpose(&attention.key, &key)));
        node.input = vec![query, key];

        let (adds, operand) = attention.mask;
        let mask = graph.node[adds].input[operand].clone();
        let grouped = masks.entry(mask).or_insert_with_key(|mask| {
            let name = names.fresh(&format!("{mask}_grouped"));
            let parts = vec![mask.as_str(); heads / kv_heads];
            let concat = NodeProto::new("Concat", &parts, &[&name]).with_int("axis", 2);
            // Right behind what makes the mask: all layers read it.
            let behind = attention.mask_made.map_or(0, |index| index + 1);
            insert.push((behind, concat));
            name
        });
        graph.node[adds].input[operand].clone_from(grouped);

        let node = &mut graph.node[attention.weighted];
        let output = std::mem::take(&mut node.output[0]);
        let grouped = names.fresh(&format!("{output}_grouped"));
        insert.push((
            attention.weighted + 1,
            reshape(&grouped, &to_heads, &output),
        ));
        node.input[1].clone_from(&attention.value);
        node.output[0] = grouped;
    }
    let changed: HashSet<&String> = found.iter().flat_map(|a| &a.inner).collect();
    graph
        .value_info
        .retain(|info| !changed.contains(&info.name));
    insert_before(graph, insert);
    graph.remove_unused();
    Ok(found.len())
}

/// One attention over expanded keys and values.
struct Attention {
    /// The product of queries and keys.
    scores: usize,
    /// The keys before they are expanded, `[b, kv_heads, total, d]`.
    key: String,
    /// The Add of the mask, and which of its operands is the mask.
    mask: (usize, usize),
    /// What makes the mask, unless it is an input.
    mask_made: Option<usize>,
    /// The product of probabilities and values.
    weighted: usize,
    /// The values before they are expanded.
    value: String,
    /// Values between the two products.
    inner: Vec<String>,
}

fn find(graph: &GraphProto) -> Vec<Attention> {
    let search = Search {
        graph,
        producers: graph.producers(),
        consumers: graph.consumers(),
        constants: graph.constants(),
        outputs: graph.output.iter().map(|o| o.name.as_str()).collect(),
    };
    (0..graph.node.len())
        .filter(|&index| graph.node[index].op_type == "Softmax")
        .filter_map(|softmax| search.around(softmax))
        .collect()
}

struct Search<'a> {
    graph: &'a GraphProto,
    producers: HashMap<&'a str, usize>,
    consumers: HashMap<&'a str, Vec<usize>>,
    constants: HashMap<&'a str, &'a TensorProto>,
    outputs: HashSet<&'a str>,
}

impl<'a> Search<'a> {
    fn around(&self, softmax: usize) -> Option<Attention> {
        let mut inner = Vec::new();
        let masked = self.node(softmax).input.first()?;
        let adds = self.only_link(masked, &mut inner)?;
        let add = self.node(adds);
        if add.op_type != "Add" || add.input.len() != 2 {
            return None;
        }
        let (operand, scores) = (0..2).find_map(|operand| {
            let mut above = Vec::new();
            let scores = self.up_to_product(&add.input[1 - operand], &mut above)?;
            inner.append(&mut above);
            Some((operand, scores))
        })?;
        let key = self.made_by(self.node(scores).input.get(1)?)?;
        let is_transposed =
            key.op_type == "Transpose" && key.attr("perm").is_some_and(|a| a.ints == [0, 1, 3, 2]);
        let key = is_transposed.then(|| self.expanded(&key.input[0]))??;

        let weighted = self.down_to_product(self.node(softmax).output.first()?, &mut inner)?;
        let value = self.expanded(self.node(weighted).input.get(1)?)?;
        Some(Attention {
            scores,
            key: key.to_owned(),
            mask: (adds, operand),
            mask_made: self.producers.get(add.input[operand].as_str()).copied(),
            weighted,
            value: value.to_owned(),
            inner,
        })
    }

    fn node(&self, index: usize) -> &'a NodeProto {
        &self.graph.node[index]
    }

    fn made_by(&self, value: &str) -> Option<&'a NodeProto> {
        self.producers.get(value).map(|&index| self.node(index))
    }

    /// What makes a value that is read once and not returned.
    fn only_link(&self, value: &str, inner: &mut Vec<String>) -> Option<usize> {
        let once = self.consumers.get(value).map_or(0, Vec::len) == 1;
        if !once || self.outputs.contains(value) {
            return None;
        }
        inner.push(value.to_owned());
        self.producers.get(value).copied()
    }

    /// The product that `value` comes from.
    fn up_to_product(&self, value: &str, inner: &mut Vec<String>) -> Option<usize> {
        let index = self.only_link(value, inner)?;
        let node = self.node(index);
        if node.op_type == "MatMul" {
            return Some(index);
        }
        self.up_to_product(self.elementwise(node)?, inner)
    }

    /// The product that reads `value` as its left side.
    fn down_to_product(&self, value: &str, inner: &mut Vec<String>) -> Option<usize> {
        self.only_link(value, inner)?;
        let index = self.consumers.get(value)?[0];
        let node = self.node(index);
        if node.op_type == "MatMul" {
            return (node.input[0] == value).then_some(index);
        }
        self.elementwise(node)?;
        self.down_to_product(node.output.first()?, inner)
    }

    /// The input of a node that treats every element alike: a cast, or a factor of one number.
    fn elementwise(&self, node: &'a NodeProto) -> Option<&'a str> {
        let one = |name: &str| {
            let constant = self.constants.get(name);
            constant.is_some_and(|tensor| tensor.dims.iter().all(|&dim| dim == 1))
        };
        match (node.op_type.as_str(), node.input.as_slice()) {
            ("Cast" | "Identity", [x]) => Some(x),
            ("Mul" | "Div", [x, factor]) if one(factor) => Some(x),
            ("Mul", [factor, x]) if one(factor) => Some(x),
            _ => None,
        }
    }

    /// `x` of `Reshape(Expand(Unsqueeze(x, 2), ..), ..)`.
    fn expanded(&self, value: &str) -> Option<&'a str> {
        let mut value = value;
        for op in ["Reshape", "Expand"] {
            let node = self.made_by(value).filter(|node| node.op_type == op)?;
            value = &node.input[0];
        }
        let node = self.made_by(value).filter(|n| n.op_type == "Unsqueeze")?;
        let axes = match node.input.get(1) {
            Some(axes) => self
                .constants
                .get(axes.as_str())?
                .to_i64(Path::new(""))
                .ok()?,
            None => node.attr("axes")?.ints.clone(),
        };
        (axes == [2]).then(|| node.input[0].as_str())
    }
}

fn reshape(from: &str, shape: &str, to: &str) -> NodeProto {
    NodeProto::new("Reshape", &[from, shape], &[to])
}

fn transpose(from: &str, to: &str) -> NodeProto {
    let mut node = NodeProto::new("Transpose", &[from], &[to]);
    node.attribute.push(AttributeProto {
        name: "perm".to_owned(),
        ints: vec![0, 1, 3, 2],
        r#type: Some(attribute_type::INTS),
        ..AttributeProto::default()
    });
    node
}

/// Inserts each node before the one whose index stands with it.
fn insert_before(graph: &mut GraphProto, mut insert: Vec<(usize, NodeProto)>) {
    insert.sort_by_key(|(before, _)| *before);
    let mut insert = insert.into_iter().peekable();
    for (index, node) in std::mem::take(&mut graph.node).into_iter().enumerate() {
        while let Some((_, new)) = insert.next_if(|(before, _)| *before == index) {
            graph.node.push(new);
        }
        graph.node.push(node);
    }
    graph.node.extend(insert.map(|(_, node)| node));
}

#[cfg(test)]
mod tests {
    use super::super::testing::{model, ops, shaped};
    use super::*;
    use crate::onnx::{DataType::F32, Dim};

    /// Attention of 4 heads over 2 expanded keys and values; `tapped` returns the scores, too.
    fn attention(axis: i64, tapped: bool) -> OnnxModel {
        let four = |name: &str| {
            shaped(
                name,
                F32,
                &[Dim::Unknown, Dim::Unknown, Dim::Unknown, Dim::Unknown],
            )
        };
        let ints = |name: &str, values: &[i64]| {
            TensorProto::from_i64(name, &[values.len() as i64], values)
        };
        let mut outputs = vec![four("y")];
        if tapped {
            outputs.push(four("scores"));
        }
        model(
            vec![four("q"), four("k"), four("v"), four("mask")],
            vec![
                ints("axis", &[axis]),
                ints("five", &[1, 2, 2, 3, 8]),
                ints("four", &[1, 4, 3, 8]),
                TensorProto::from_f32("s", &[], &[0.5]),
            ],
            vec![
                NodeProto::new("Unsqueeze", &["k", "axis"], &["k1"]),
                NodeProto::new("Expand", &["k1", "five"], &["k2"]),
                NodeProto::new("Reshape", &["k2", "four"], &["k3"]),
                NodeProto::new("Unsqueeze", &["v", "axis"], &["v1"]),
                NodeProto::new("Expand", &["v1", "five"], &["v2"]),
                NodeProto::new("Reshape", &["v2", "four"], &["v3"]),
                transpose("k3", "k4"),
                NodeProto::new("MatMul", &["q", "k4"], &["scores"]),
                NodeProto::new("Mul", &["scores", "s"], &["scaled"]),
                NodeProto::new("Add", &["scaled", "mask"], &["masked"]),
                NodeProto::new("Softmax", &["masked"], &["p"]),
                NodeProto::new("MatMul", &["p", "v3"], &["y"]),
            ],
            outputs,
        )
    }

    #[test]
    fn group_queries_leaves_one_product_each_over_unexpanded_keys_and_values() {
        let mut model = attention(2, false);
        assert_eq!(group_queries(&mut model, 4, 2).expect("pass"), 1);
        assert_eq!(
            ops(&model),
            [
                "Concat",
                "Reshape",
                "Transpose",
                "MatMul",
                "Mul",
                "Add",
                "Softmax",
                "MatMul",
                "Reshape"
            ]
        );
        assert_eq!(group_queries(&mut model, 4, 2).expect("again"), 0);
    }

    #[test]
    fn group_queries_leaves_what_is_no_such_attention() {
        for (axis, tapped, heads, kv_heads) in [
            (1, false, 4, 2),
            (2, true, 4, 2),
            (2, false, 2, 2),
            (2, false, 4, 3),
            (2, false, 4, 0),
        ] {
            let mut model = attention(axis, tapped);
            let n = group_queries(&mut model, heads, kv_heads).expect("pass");
            assert_eq!(n, 0, "{axis} {tapped} {heads} {kv_heads}");
            assert_eq!(ops(&model).len(), 12);
        }
    }
}
