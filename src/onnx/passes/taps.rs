//! Taps: inner values of a decoder as outputs, for drafters and pruners.
//!
//! | tap | output | shape | what |
//! |-----|--------|-------|------|
//! | `hidden` | `hidden` | `[b, rows, d]` | what the LM head reads, behind the last norm, of every row |
//! | `hidden-rows` | `hidden_rows` | `[b, logit_rows, d]` | the same, of the rows that have logits |
//! | `layer:N` | `layer_N` | `[b, rows, d]` | what layer `N`, counted from 0, hands to the next one: the residual stream |
//! | `saliency:N+M` | `saliency` | `[b, total]` | how much the rows that `saliency_rows` names attend to each row of the sequence: probabilities, mean over these rows, the heads and the layers listed |
//!
//! `saliency_rows` `[n]` i64 is an input that this tap adds: indices of new rows, those of a question
//! for instance. Nobody reads more than `total` numbers for it; a slot of a visual token in the
//! cache, or in the prompt, has its saliency at its own index. The scores of the rows named are
//! looked at before Softmax and go through one of their own, so that the attention of a layer
//! stays in one piece but for one more reader of its scores.
//!
//! The residual stream is found by what it is: every path from the embeddings to the logits
//! leads through it. Of all such values, layer `N` hands on the last that the keys of layer
//! `N + 1` are made of.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::str::FromStr;

use super::logit_rows::lm_head;
use super::types::Types;
use crate::error::{Error, Result};
use crate::onnx::graph::Names;
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto, ValueInfoProto};
use crate::onnx::{DataType, Dim, OnnxModel, ValueType};

/// Name of the input that lists the rows whose attention is averaged.
pub const SALIENCY_ROWS: &str = "saliency_rows";

/// Name of the output with their attention.
pub const SALIENCY: &str = "saliency";

/// Name of the output with what the LM head reads in each row.
pub const HIDDEN: &str = "hidden";

/// An inner value that becomes an output.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tap {
    /// What the LM head reads, of all rows.
    Hidden,
    /// What the LM head reads, of the rows that have logits.
    HiddenRows,
    /// What this layer hands on.
    Layer(usize),
    /// Attention of chosen rows, mean over these layers.
    Saliency(BTreeSet<usize>),
}

impl fmt::Display for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hidden => f.write_str("hidden"),
            Self::HiddenRows => f.write_str("hidden-rows"),
            Self::Layer(layer) => write!(f, "layer:{layer}"),
            Self::Saliency(layers) => {
                let layers: Vec<String> = layers.iter().map(usize::to_string).collect();
                write!(f, "saliency:{}", layers.join("+"))
            }
        }
    }
}

impl FromStr for Tap {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (kind, layers) = text.split_once(':').unwrap_or((text, ""));
        let layers: Option<BTreeSet<usize>> = layers.split('+').map(|n| n.parse().ok()).collect();
        match (kind, layers) {
            ("hidden", None) if text == "hidden" => Ok(Self::Hidden),
            ("hidden-rows", None) if text == "hidden-rows" => Ok(Self::HiddenRows),
            ("layer", Some(layers)) if layers.len() == 1 => {
                Ok(Self::Layer(layers.into_iter().next().unwrap_or(0)))
            }
            ("saliency", Some(layers)) => Ok(Self::Saliency(layers)),
            _ => Err(Error::Argument {
                name: "tap",
                reason: format!("`{text}` is none of hidden, hidden-rows, layer:N, saliency:N+M"),
            }),
        }
    }
}

/// What a decoder's tensors are called, and how large it is.
#[derive(Debug, Clone, Copy)]
pub struct TapNames<'a> {
    /// The input with new rows.
    pub inputs_embeds: &'a str,
    /// Prefix of the inputs that hold the cache.
    pub past: &'a str,
    /// Prefix of the outputs that hold the cache, or its new rows.
    pub present: &'a str,
    /// Layers.
    pub n_layers: usize,
    /// Heads of queries.
    pub n_heads: usize,
}

/// Adds the outputs of `taps` to a lowered decoder that has the input
/// [`LOGIT_ROWS`](super::LOGIT_ROWS); nodes stand in topological order.
///
/// # Errors
/// [`Error::Argument`] for a layer that the model does not have, or a tap that stands twice;
/// [`Error::Unsupported`] if what is tapped is not found.
pub fn add_taps(model: &mut OnnxModel, taps: &[Tap], names: &TapNames<'_>) -> Result<()> {
    if taps.is_empty() {
        return Ok(());
    }
    let types = Types::infer(model)?;
    for (index, tap) in taps.iter().enumerate() {
        let kind = |tap: &Tap| matches!(tap, Tap::Saliency(_));
        let same = |other: &Tap| other == tap || (kind(tap) && kind(other));
        if taps[..index].iter().any(same) {
            return Err(argument(format!("`{tap}` stands twice")));
        }
        match tap {
            Tap::Saliency(layers) => saliency(model, layers, names)?,
            tap => rows(model, tap, names, &types)?,
        }
    }
    Ok(())
}

fn argument(reason: String) -> Error {
    Error::Argument {
        name: "tap",
        reason,
    }
}

fn not_found(model: &OnnxModel, tap: &Tap, reason: &str) -> Error {
    Error::Unsupported {
        node: tap.to_string(),
        op: "tap".to_owned(),
        reason: format!("{}: {reason}", model.path().display()),
    }
}

/// Adds an output with a row for each row of the decoder.
fn rows(model: &mut OnnxModel, tap: &Tap, names: &TapNames<'_>, types: &Types) -> Result<()> {
    let graph = model.graph();
    let missing = |reason| not_found(model, tap, reason);
    lm_head(graph, "logits").ok_or_else(|| missing("no LM head above `logits`"))?;
    // Q/DQ may stand between the rows and the LM head.
    let chooses = |node: &&NodeProto| {
        node.op_type == "Gather" && node.input.get(1).is_some_and(|i| i == super::LOGIT_ROWS)
    };
    let gather = (graph.node.iter().find(chooses))
        .ok_or_else(|| missing("the LM head does not read chosen rows"))?;
    let (hidden, selected) = (gather.input[0].clone(), gather.output[0].clone());
    let (value, output) = match tap {
        Tap::Hidden => (hidden, HIDDEN.to_owned()),
        Tap::HiddenRows => (selected, "hidden_rows".to_owned()),
        Tap::Layer(layer) => {
            if layer + 1 >= names.n_layers {
                let most = names.n_layers.saturating_sub(2);
                let reason =
                    format!("layer {layer}: the first is 0, the last before `hidden` {most}");
                return Err(argument(reason));
            }
            let key = format!("{}.{}.key", names.present, layer + 1);
            let value = residual(graph, names.inputs_embeds, &hidden, &key);
            let value = value.ok_or_else(|| missing("no residual stream found"))?;
            (value.to_owned(), format!("layer_{layer}"))
        }
        Tap::Saliency(_) => return Err(missing("no tap of rows")),
    };
    let dtype = types.get(&value);
    let mut dims = graph
        .inputs()
        .into_iter()
        .find(|input| input.name == names.inputs_embeds)
        .and_then(|input| input.dims);
    if let (Tap::HiddenRows, Some(dims)) = (tap, dims.as_mut().filter(|dims| dims.len() == 3)) {
        dims[1] = Dim::Named(super::LOGIT_ROWS.to_owned());
    }
    let graph = model.graph_mut();
    let node = NodeProto::new("Identity", &[&value], &[&output]);
    graph.node.push(node);
    graph.output.push(ValueInfoProto::from(&ValueType {
        name: output,
        dtype,
        dims,
    }));
    Ok(())
}

/// The last value that everything from `from` to `to` passes through and that `key` is made of.
fn residual<'a>(graph: &'a GraphProto, from: &'a str, to: &str, key: &str) -> Option<&'a str> {
    let derived = graph.derived_from(&[from]);
    let above_key = ancestors(graph, key);
    let above_end = ancestors(graph, to);
    let on_path = |name: &str| derived.contains(name) && above_end.contains(name);
    // The last node that takes a path from each value on.
    let mut last_read: HashMap<&str, usize> = HashMap::new();
    for (index, node) in graph.node.iter().enumerate() {
        if node.output.iter().any(|name| on_path(name)) {
            node.each_read(&mut |name| {
                last_read.insert(name, index);
            });
        }
    }
    let end = |name: &str| last_read.get(name).copied().unwrap_or(usize::MAX);
    let mut found = None;
    // How far paths reach that began before the value looked at.
    let mut open = end(from);
    for (index, node) in graph.node.iter().enumerate() {
        let made = node.output.iter().map(String::as_str);
        for name in made.filter(|name| on_path(name)) {
            if open <= index && above_key.contains(name) {
                found = Some(name);
            }
            open = open.max(end(name));
        }
    }
    found
}

/// The values that `name` is made of, itself included.
fn ancestors<'a>(graph: &'a GraphProto, name: &str) -> HashSet<&'a str> {
    let mut found: HashSet<&str> = HashSet::new();
    for node in graph.node.iter().rev() {
        let mut made = node.output.iter().map(String::as_str);
        if made.any(|output| output == name || found.contains(output)) {
            found.extend(
                node.output
                    .iter()
                    .filter(|o| *o == name)
                    .map(String::as_str),
            );
            node.each_read(&mut |read| {
                found.insert(read);
            });
        }
    }
    found
}

/// Adds the output with the attention of chosen rows.
fn saliency(model: &mut OnnxModel, layers: &BTreeSet<usize>, names: &TapNames<'_>) -> Result<()> {
    let tap = Tap::Saliency(layers.clone());
    if let Some(layer) = layers.iter().find(|&&layer| layer >= names.n_layers) {
        let reason = format!("layer {layer}: the model has {}", names.n_layers);
        return Err(argument(reason));
    }
    let mut scores = Vec::new();
    for layer in layers {
        let key = format!("{}.{layer}.key", names.past);
        let found = attention_scores(model.graph(), &key);
        let found =
            found.ok_or_else(|| not_found(model, &tap, "no Softmax over a layer's keys"))?;
        scores.push(found.to_owned());
    }
    let axes_are_input = model.opset("").unwrap_or(0) >= 18;
    let batch = model
        .graph()
        .inputs()
        .into_iter()
        .find(|input| input.name == names.inputs_embeds)
        .and_then(|input| input.dims?.into_iter().next());
    let graph = model.graph_mut();
    let mut fresh = Names::of(graph);
    let mut value = |what: &str| fresh.fresh(&format!("{SALIENCY}/{what}"));
    let shape = value("by_head_shape");
    // Grouped queries are rows of the key that they share: by head, whatever they were.
    let by_head = [0, names.n_heads as i64, -1, 0];
    graph
        .initializer
        .push(TensorProto::from_i64(&shape, &[4], &by_head));
    let axes = value("axes");
    if axes_are_input {
        graph
            .initializer
            .push(TensorProto::from_i64(&axes, &[2], &[1, 2]));
    }
    let mut sum: Option<String> = None;
    for scores in &scores {
        let [heads, chosen, weights, mean] =
            ["by_head", "chosen", "probabilities", "mean"].map(&mut value);
        graph
            .node
            .push(NodeProto::new("Reshape", &[scores, &shape], &[&heads]));
        let gather = NodeProto::new("Gather", &[&heads, SALIENCY_ROWS], &[&chosen]);
        graph.node.push(gather.with_int("axis", 2));
        let softmax = NodeProto::new("Softmax", &[&chosen], &[&weights]);
        graph.node.push(softmax.with_int("axis", -1));
        let reduce = match axes_are_input {
            true => NodeProto::new("ReduceMean", &[&weights, &axes], &[&mean]),
            false => NodeProto::new("ReduceMean", &[&weights], &[&mean]).with_ints("axes", &[1, 2]),
        };
        graph.node.push(reduce.with_int("keepdims", 0));
        sum = Some(match sum {
            None => mean,
            Some(before) => {
                let both = value("sum");
                graph
                    .node
                    .push(NodeProto::new("Add", &[&before, &mean], &[&both]));
                both
            }
        });
    }
    let sum = sum.ok_or_else(|| argument("saliency of no layer".to_owned()))?;
    let share = value("share");
    let part = 1.0 / scores.len() as f32;
    graph
        .initializer
        .push(TensorProto::from_f32(&share, &[], &[part]));
    graph
        .node
        .push(NodeProto::new("Mul", &[&sum, &share], &[SALIENCY]));
    let info = |name: &str, dtype, dims| {
        ValueInfoProto::from(&ValueType {
            name: name.to_owned(),
            dtype: Some(dtype),
            dims: Some(dims),
        })
    };
    let rows = Dim::Named(SALIENCY_ROWS.to_owned());
    graph
        .input
        .push(info(SALIENCY_ROWS, DataType::I64, vec![rows]));
    let dims = vec![batch.unwrap_or(Dim::Unknown), Dim::Unknown];
    graph.output.push(info(SALIENCY, DataType::F32, dims));
    Ok(())
}

/// The scores, masked and scaled, of the attention that reads the cache `key`.
fn attention_scores<'a>(graph: &'a GraphProto, key: &str) -> Option<&'a str> {
    let key = graph.input.iter().find(|input| input.name == key)?;
    // Whatever else comes of these keys comes of their Softmax.
    let derived = graph.derived_from(&[key.name.as_str()]);
    let softmax = graph.node.iter().find(|node| {
        let read = node.input.first();
        node.op_type == "Softmax" && read.is_some_and(|name| derived.contains(name.as_str()))
    })?;
    let over_keys = matches!(softmax.attr("axis").and_then(|a| a.i).unwrap_or(-1), -1 | 3);
    over_keys.then(|| softmax.input[0].as_str())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{model, shaped};
    use super::*;
    use crate::onnx::DataType::F32;

    const NAMES: TapNames<'static> = TapNames {
        inputs_embeds: "x",
        past: "past",
        present: "new",
        n_layers: 2,
        n_heads: 2,
    };

    /// Two layers of `x + f(attention(norm(x)))`, a last norm and a head.
    fn decoder() -> OnnxModel {
        let node = |op: &str, inputs: &[&str], output: &str| NodeProto::new(op, inputs, &[output]);
        let mut nodes = Vec::new();
        for (layer, stream) in ["x", "r0"].into_iter().enumerate() {
            let name = |what: &str| format!("{what}{layer}");
            let past = format!("past.{layer}.key");
            let new = format!("new.{layer}.key");
            nodes.extend([
                node("Mul", &[stream, stream], &name("square")),
                node("Mul", &[stream, &name("square")], &name("norm")),
                node("Neg", &[&name("norm")], &new),
                node("Concat", &[&past, &new], &name("keys")).with_int("axis", 2),
                node("MatMul", &[&name("norm"), &name("keys")], &name("scores")),
                node("Softmax", &[&name("scores")], &name("p")),
                node("MatMul", &[&name("p"), &name("keys")], &name("a")),
                node("Add", &[stream, &name("a")], &name("m")),
                node("Sigmoid", &[&name("m")], &name("gate")),
                node("Mul", &[&name("m"), &name("gate")], &name("f")),
                node("Add", &[&name("m"), &name("f")], &name("r")),
            ]);
        }
        nodes.extend([
            node("Mul", &["r1", "r1"], "square"),
            node("Mul", &["r1", "square"], "last"),
            node("Gather", &["last", super::super::LOGIT_ROWS], "rows").with_int("axis", 1),
            node("MatMul", &["rows", "w"], "logits"),
        ]);
        let dims = [Dim::Fixed(1), Dim::Named("rows".to_owned()), Dim::Fixed(4)];
        let rows = ValueInfoProto::from(&ValueType {
            name: super::super::LOGIT_ROWS.to_owned(),
            dtype: Some(DataType::I64),
            dims: None,
        });
        model(
            vec![
                shaped("x", F32, &dims),
                shaped("past.0.key", F32, &dims),
                shaped("past.1.key", F32, &dims),
                rows,
            ],
            vec![TensorProto::from_f32("w", &[4, 2], &[0.0; 8])],
            nodes,
            ["logits", "new.0.key", "new.1.key"]
                .map(|name| shaped(name, F32, &dims))
                .to_vec(),
        )
    }

    fn tapped(output: &str, model: &OnnxModel) -> String {
        let graph = model.graph();
        let made = graph.producers()[output];
        graph.node[made].input[0].clone()
    }

    #[test]
    fn taps_are_the_residual_stream_and_both_sides_of_the_gather() {
        let mut model = decoder();
        let taps = [Tap::Hidden, Tap::HiddenRows, Tap::Layer(0)];
        add_taps(&mut model, &taps, &NAMES).expect("taps");
        assert_eq!(tapped("hidden", &model), "last");
        assert_eq!(tapped("hidden_rows", &model), "rows");
        assert_eq!(tapped("layer_0", &model), "r0");
        let outputs = model.graph().outputs();
        let of = |name: &str| {
            outputs
                .iter()
                .find(|o| o.name == name)
                .expect(name)
                .to_string()
        };
        assert_eq!(of("layer_0"), "f32 [1, rows, 4]");
        assert_eq!(of("hidden_rows"), "f32 [1, logit_rows, 4]");
    }

    #[test]
    fn saliency_reads_the_scores_of_its_layers_once_each() {
        let mut model = decoder();
        let tap: Tap = "saliency:1+0".parse().expect("tap");
        add_taps(&mut model, &[tap], &NAMES).expect("taps");
        let graph = model.graph();
        let reshaped = graph.node.iter().filter(|n| n.op_type == "Reshape");
        let read: Vec<&str> = reshaped.map(|n| n.input[0].as_str()).collect();
        assert_eq!(read, ["scores0", "scores1"]);
        let inputs = graph.inputs();
        let rows = inputs.iter().find(|i| i.name == SALIENCY_ROWS);
        assert_eq!(rows.expect("input").to_string(), "i64 [saliency_rows]");
    }

    #[test]
    fn taps_that_are_not_there_or_twice_are_refused() {
        for (taps, word) in [
            (vec![Tap::Layer(1)], "layer 1"),
            (vec![Tap::Saliency([2].into())], "layer 2"),
            (vec![Tap::Hidden, Tap::Hidden], "twice"),
            (
                vec![Tap::Saliency([0].into()), Tap::Saliency([1].into())],
                "twice",
            ),
        ] {
            let error = add_taps(&mut decoder(), &taps, &NAMES)
                .expect_err(word)
                .to_string();
            assert!(error.contains(word), "{error}");
        }
        let mut no_head = decoder();
        no_head.graph_mut().node.retain(|n| n.op_type != "Gather");
        assert!(add_taps(&mut no_head, &[Tap::Hidden], &NAMES).is_err());
    }

    #[test]
    fn tap_text_survives_a_round_trip_or_is_refused() {
        for text in ["hidden", "hidden-rows", "layer:3", "saliency:0+2"] {
            assert_eq!(text.parse::<Tap>().expect(text).to_string(), text);
        }
        for text in [
            "",
            "hidden:",
            "hidden:1",
            "layer",
            "layer:1+2",
            "layer:-1",
            "saliency:",
            "x",
        ] {
            assert!(text.parse::<Tap>().is_err(), "{text}");
        }
    }
}
