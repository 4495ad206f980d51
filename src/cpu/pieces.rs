//! Running a graph in pieces, with products of our own between them.

use std::collections::HashMap;

use rayon::prelude::*;
use rten::{Model, NodeId, RunOptions, Value, ValueOrView};
use rten_tensor::prelude::*;
use rten_tensor::{Tensor, TensorView};

use super::linear::Linear;
use super::load::{Loaded, load};
use super::split::Part;
use crate::error::{Error, Result};

/// A value's place among those of a run; callers know inputs and outputs by it.
type Slot = usize;

struct Product {
    x: Slot,
    y: Slot,
    linear: Linear,
}

struct Piece {
    loaded: Option<Loaded>,
    reads: Vec<(Slot, NodeId)>,
    makes: Vec<(Slot, NodeId)>,
    products: Vec<Product>,
    /// Values that nobody reads after this piece.
    done: Vec<bool>,
}

/// The pieces of a graph, loaded.
pub(super) struct Pieces {
    pieces: Vec<Piece>,
    slots: HashMap<String, Slot>,
}

impl Pieces {
    /// Loads the parts of a graph.
    ///
    /// # Errors
    /// As [`load`].
    pub(super) fn load(parts: Vec<Part>) -> Result<Self> {
        let mut slots: HashMap<String, Slot> = HashMap::new();
        let mut slot = |name: &str| {
            let next = slots.len();
            *slots.entry(name.to_owned()).or_insert(next)
        };
        let mut pieces = Vec::with_capacity(parts.len());
        for part in parts {
            let loaded = part.model.map(|model| load(&model, true)).transpose()?;
            let mut ids = |names: &[String]| -> Vec<(Slot, NodeId)> {
                let find = |name: &String| {
                    let id = loaded.as_ref()?.model().find_node(name)?;
                    Some((slot(name), id))
                };
                names.iter().filter_map(find).collect()
            };
            let (reads, makes) = (ids(&part.reads), ids(&part.makes));
            let products = part.products.into_iter().map(|product| Product {
                x: slot(&product.x),
                y: slot(&product.y),
                linear: product.linear,
            });
            pieces.push(Piece {
                reads,
                makes,
                products: products.collect(),
                loaded,
                done: Vec::new(),
            });
        }
        let mut is_needed = vec![false; slots.len()];
        for piece in pieces.iter_mut().rev() {
            let mut done = vec![false; slots.len()];
            let products = piece.products.iter().flat_map(|p| [p.x, p.y]);
            let passed = piece
                .reads
                .iter()
                .chain(&piece.makes)
                .map(|(slot, _)| *slot);
            for slot in passed.chain(products) {
                done[slot] = !std::mem::replace(&mut is_needed[slot], true) || done[slot];
            }
            piece.done = done;
        }
        Ok(Self { pieces, slots })
    }

    /// Handle of a value that crosses borders, or of an input or output of the graph.
    pub(super) fn find(&self, name: &str) -> Option<NodeId> {
        self.slots
            .get(name)
            .map(|&slot| NodeId::from_u32(slot as u32))
    }

    /// Runs the graph; `run` calls the engine.
    pub(super) fn run(
        &self,
        inputs: Vec<(NodeId, ValueOrView<'_>)>,
        outputs: &[NodeId],
        run: impl Fn(
            &Model,
            Vec<(NodeId, ValueOrView<'_>)>,
            &[NodeId],
            Option<RunOptions>,
        ) -> Result<Vec<Value>>,
    ) -> Result<Vec<Value>> {
        let mut values: Vec<Option<ValueOrView<'_>>> = Vec::new();
        values.resize_with(self.slots.len(), || None);
        for (id, value) in inputs {
            if let Some(place) = values.get_mut(id.as_usize()) {
                *place = Some(value);
            }
        }
        let is_returned = |slot: Slot| outputs.iter().any(|id| id.as_usize() == slot);
        for piece in &self.pieces {
            if let Some(loaded) = &piece.loaded {
                // What is read for the last time is given away, so that caches grow in place.
                let given: Vec<Option<ValueOrView<'_>>> = piece
                    .reads
                    .iter()
                    .map(|&(slot, _)| match piece.done[slot] && !is_returned(slot) {
                        true => values[slot].take(),
                        false => None,
                    })
                    .collect();
                let reads = piece.reads.iter().zip(given);
                let reads = reads.filter_map(|(&(slot, id), given)| {
                    let lent = || values[slot].as_ref().map(|value| value.as_view().into());
                    Some((id, given.or_else(lent)?))
                });
                let makes: Vec<NodeId> = piece.makes.iter().map(|&(_, id)| id).collect();
                let made = run(loaded.model(), reads.collect(), &makes, None)?;
                for (&(slot, _), value) in piece.makes.iter().zip(made) {
                    values[slot] = Some(value.into());
                }
            }
            // Small ones beside each other: alone they do not keep all threads busy.
            let made: Vec<Result<Tensor<f32>>> = piece
                .products
                .par_iter()
                .map(|product| match &values[product.x] {
                    Some(x) => product.run(x),
                    None => Err(self.missing(product.x)),
                })
                .collect();
            for (product, y) in piece.products.iter().zip(made) {
                values[product.y] = Some(Value::from(y?).into());
            }
            for (slot, value) in values.iter_mut().enumerate() {
                if piece.done[slot] && !is_returned(slot) {
                    *value = None;
                }
            }
        }
        let take = |id: &NodeId| {
            let value = values.get_mut(id.as_usize()).and_then(Option::take);
            value
                .map(ValueOrView::into_owned)
                .ok_or_else(|| self.missing(id.as_usize()))
        };
        outputs.iter().map(take).collect()
    }

    fn missing(&self, slot: Slot) -> Error {
        let name = self.slots.iter().find(|(_, s)| **s == slot);
        Error::Shape {
            name: name.map_or("?", |(name, _)| name).to_owned(),
            expected: "a value".to_owned(),
            actual: "none".to_owned(),
        }
    }
}

impl Product {
    fn run(&self, x: &ValueOrView<'_>) -> Result<Tensor<f32>> {
        let depth = self.linear.depth();
        let wrong = |actual: String| Error::Shape {
            name: "rows of a product".to_owned(),
            expected: format!("[.., {depth}] f32"),
            actual,
        };
        let x = TensorView::<f32>::try_from(x.as_view())
            .map_err(|_| wrong("another type".to_owned()))?;
        let mut shape = x.shape().to_vec();
        match shape.last_mut() {
            Some(last) if *last == depth => *last = self.linear.n(),
            _ => return Err(wrong(format!("{shape:?}"))),
        }
        Ok(Tensor::from_data(&shape, self.linear.run(&x.to_slice())))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use half::f16;
    use prost::Message;

    use super::super::Session;
    use super::super::split::{split_at, weight_bytes_at};
    use super::*;
    use crate::onnx::proto::{
        GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
    };
    use crate::onnx::{DataType, OnnxModel, ValueType};

    const D: usize = 36;
    const N: usize = 68;

    fn numbers(seed: usize, n: usize) -> Vec<f32> {
        let number = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0;
        (0..n).map(number).collect()
    }

    fn floats(name: &str, dims: [usize; 2]) -> TensorProto {
        let values = numbers(name.len(), dims[0] * dims[1]);
        TensorProto::from_f32(name, &dims.map(|d| d as i64), &values)
    }

    fn halves(name: &str, dims: [usize; 2]) -> TensorProto {
        let values = numbers(name.len() + 9, dims[0] * dims[1]);
        let raw: Vec<u8> = values
            .iter()
            .flat_map(|&v| f16::from_f32(v).to_le_bytes())
            .collect();
        TensorProto::from_raw(name, DataType::F16, &dims.map(|d| d as i64), raw)
    }

    fn codes(name: &str, dims: &[usize]) -> TensorProto {
        let values = numbers(name.len() + 3, dims.iter().product());
        let raw: Vec<u8> = values.iter().map(|v| (v * 127.0) as i8 as u8).collect();
        let dims: Vec<i64> = dims.iter().map(|&d| d as i64).collect();
        TensorProto::from_raw(name, DataType::I8, &dims, raw)
    }

    fn zeros(name: &str, dims: &[usize]) -> TensorProto {
        let n = dims.iter().product();
        let dims: Vec<i64> = dims.iter().map(|&d| d as i64).collect();
        TensorProto::from_raw(name, DataType::I8, &dims, vec![0; n])
    }

    fn value(name: &str) -> ValueInfoProto {
        ValueInfoProto::from(&ValueType {
            name: name.to_owned(),
            dtype: Some(DataType::F32),
            dims: None,
        })
    }

    fn model(node: Vec<NodeProto>, initializer: Vec<TensorProto>, out: &[&str]) -> OnnxModel {
        let proto = ModelProto {
            ir_version: Some(9),
            opset_import: vec![OperatorSetIdProto {
                domain: String::new(),
                version: Some(19),
            }],
            graph: Some(GraphProto {
                node,
                initializer,
                input: vec![value("x")],
                output: out.iter().map(|name| value(name)).collect(),
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        };
        OnnxModel::parse(Path::new("case.onnx"), proto.encode_to_vec().into()).expect("graph")
    }

    /// Every form of product, values that cross several borders, products of products, constants
    /// that several pieces read, and an output in the middle.
    fn many_forms() -> OnnxModel {
        let node = NodeProto::new;
        let scale = |name: &str, n: usize| {
            let values: Vec<f32> = numbers(4, n)
                .iter()
                .map(|v| 0.01 + v.abs() / 200.0)
                .collect();
            TensorProto::from_f32(name, &[n as i64], &values)
        };
        let nodes = vec![
            // Out of order, as converters leave it.
            node("Add", &["turned", "shift2"], &["b"]),
            node("Neg", &["shift"], &["shift2"]),
            node("Mul", &["x", "shift2"], &["a"]),
            node("MatMul", &["a", "up"], &["p"]),
            node("Sigmoid", &["p"], &["gate"]),
            node("MatMul", &["a", "up.half"], &["q"]),
            node("Mul", &["gate", "q"], &["h"]),
            node("QuantizeLinear", &["h", "h.scale", "h.zero"], &["h.codes"]),
            node(
                "DequantizeLinear",
                &["h.codes", "h.scale", "h.zero"],
                &["h.rounded"],
            ),
            node(
                "DequantizeLinear",
                &["down", "down.scale", "down.zero"],
                &["down.wide"],
            )
            .with_int("axis", 1),
            node("MatMul", &["h.rounded", "down.wide"], &["d"]),
            node("Add", &["d", "x"], &["r"]),
            node("DequantizeLinear", &["only", "only.scale"], &["only.wide"]).with_int("axis", -1),
            node("MatMul", &["r", "only.wide"], &["o"]),
            node("MatMul", &["o", "square"], &["s"]),
            node("Transpose", &["turn"], &["turn.t"]).with_ints("perm", &[1, 0]),
            node("MatMul", &["s", "turn.t"], &["turned"]),
            node("Gemm", &["b", "gemm", "shift"], &["g"]).with_int("transB", 1),
            node("Add", &["g", "r"], &["y"]),
        ];
        let weights = vec![
            TensorProto::from_f32("shift", &[D as i64], &numbers(2, D)),
            floats("up", [D, N]),
            halves("up.half", [D, N]),
            codes("down", &[N, D]),
            scale("down.scale", D),
            zeros("down.zero", &[D]),
            TensorProto::from_f32("h.scale", &[], &[0.05]),
            zeros("h.zero", &[]),
            codes("only", &[D, N]),
            scale("only.scale", N),
            floats("square", [N, N]),
            floats("turn", [D, N]),
            floats("gemm", [D, D]),
        ];
        model(nodes, weights, &["y", "r", "h"])
    }

    fn outputs(session: &Session, names: &[&str], rows: usize) -> Vec<(Vec<usize>, Vec<f32>)> {
        let x = Tensor::from_data(&[rows, D], numbers(1, rows * D));
        let ids: Vec<NodeId> = names
            .iter()
            .map(|n| session.output(n).expect("output"))
            .collect();
        let inputs = vec![(session.input("x").expect("x"), x.into())];
        let values = session.run(inputs, &ids).expect("run").into_iter();
        let floats = values.map(|value| value.into_tensor::<f32>().expect("floats"));
        floats
            .map(|t| (t.shape().to_vec(), t.into_data()))
            .collect()
    }

    fn assert_close(a: &[(Vec<usize>, Vec<f32>)], b: &[(Vec<usize>, Vec<f32>)], what: &str) {
        assert_eq!(a.len(), b.len());
        for (index, (a, b)) in a.iter().zip(b).enumerate() {
            assert_eq!(a.0, b.0, "{what}: output {index}");
            let largest = a.1.iter().fold(0f32, |max, v| max.max(v.abs()));
            for (at, (a, b)) in a.1.iter().zip(&b.1).enumerate() {
                // Sums in another order.
                let near = (a - b).abs() <= 2e-5 * largest;
                assert!(near, "{what}: output {index}, element {at}: {a} and {b}");
            }
        }
    }

    #[test]
    fn graph_in_pieces_is_the_graph() {
        let model = many_forms();
        let parts = split_at(&model, 0, 0).expect("split").expect("parts");
        let products: Vec<usize> = parts.iter().map(|part| part.products.len()).collect();
        assert_eq!(products, [2, 1, 1, 1, 1, 1, 0]);
        let empty = parts.iter().filter(|part| part.model.is_none()).count();
        assert_eq!(empty, 2, "between products of products");
        let pieces = Session::of_parts(&model, parts).expect("pieces");
        let whole = Session::new(&sorted(&model), true).expect("whole");
        let names = ["y", "r", "h"];
        for rows in [1, 2, 5, 9, 17] {
            let expected = outputs(&whole, &names, rows);
            assert_close(
                &expected,
                &outputs(&pieces, &names, rows),
                &format!("{rows} rows"),
            );
        }
    }

    fn sorted(model: &OnnxModel) -> OnnxModel {
        let mut model = model.clone();
        crate::onnx::passes::sort_nodes(&mut model).expect("sorted");
        model
    }

    #[test]
    fn graph_without_large_products_stays_whole() {
        let model = many_forms();
        assert!(split_at(&model, N * N + 1, 0).expect("split").is_none());
        assert!(split_at(&model, 0, 1 << 20).expect("split").is_none());
    }

    /// What is not a product as we compute it is left to the engine.
    #[test]
    fn weights_of_products_are_held_as_stored_and_others_as_floats() {
        let model = many_forms();
        let whole = 4 * model.weight_elements();
        let held = |weights| weight_bytes_at(&model, 0, weights).expect("bytes");
        assert_eq!(held(1 << 20), whole);
        // One matrix in halves, two in bytes.
        let less = 2 * (D * N) + 3 * (2 * D * N);
        assert_eq!(held(0), whole - less as u64);
    }

    #[test]
    fn matrices_that_others_read_or_that_are_odd_stay_with_the_engine() {
        let node = NodeProto::new;
        let nodes = vec![
            node("MatMul", &["x", "shared"], &["a"]),
            node("MatMul", &["a", "back"], &["b"]),
            node("Gather", &["shared", "row"], &["c"]),
            node(
                "DequantizeLinear",
                &["odd", "odd.scale", "odd.zero"],
                &["odd.wide"],
            )
            .with_int("axis", 1),
            node("MatMul", &["b", "odd.wide"], &["d"]),
            node("Gemm", &["x", "half", "c"], &["e"]).with_float("alpha", 0.5),
            node("Add", &["d", "e"], &["y"]),
        ];
        let weights = vec![
            floats("shared", [D, N]),
            floats("back", [N, D]),
            TensorProto::from_i64("row", &[], &[3]),
            codes("odd", &[D, N]),
            TensorProto::from_f32("odd.scale", &[N as i64], &vec![0.01; N]),
            codes("odd.zero", &[N]),
            floats("half", [D, N]),
        ];
        let model = model(nodes, weights, &["y"]);
        let parts = split_at(&model, 0, 0).expect("split").expect("parts");
        let products: Vec<&str> = parts
            .iter()
            .flat_map(|part| &part.products)
            .map(|product| product.y.as_str())
            .collect();
        assert_eq!(products, ["b"]);
        let pieces = Session::of_parts(&model, parts).expect("pieces");
        let whole = Session::new(&model, true).expect("whole");
        let expected = outputs(&whole, &["y"], 3);
        assert_close(&expected, &outputs(&pieces, &["y"], 3), "odd");
    }

    #[test]
    fn rows_of_another_width_are_a_typed_error() {
        let model = model(
            vec![NodeProto::new("MatMul", &["x", "w"], &["y"])],
            vec![floats("w", [D, N])],
            &["y"],
        );
        let parts = split_at(&model, 0, 0).expect("split").expect("parts");
        let session = Session::of_parts(&model, parts).expect("session");
        for x in [
            Value::from(Tensor::<f32>::zeros(&[2, D + 1])),
            Value::from(Tensor::<f32>::zeros(&[])),
            Value::from(Tensor::<i32>::zeros(&[2, D])),
        ] {
            let inputs = vec![(session.input("x").expect("x"), x.into())];
            let result = session.run(inputs, &[session.output("y").expect("y")]);
            assert!(matches!(result, Err(Error::Shape { .. })), "{result:?}");
        }
        let result = session.run(Vec::new(), &[session.output("y").expect("y")]);
        assert!(matches!(result, Err(Error::Shape { .. })), "{result:?}");
    }

    /// Prefill and two steps of a decoder, one of several rows; caches grow in place.
    fn decode(session: &Session, graph: &GraphProto) -> Vec<(Vec<usize>, Vec<f32>)> {
        let inputs = graph.inputs();
        let past: Vec<_> = inputs
            .iter()
            .filter(|i| i.name.starts_with("past"))
            .collect();
        let d = inputs
            .iter()
            .find(|i| i.name == "inputs_embeds")
            .and_then(|i| i.fixed(2));
        let d = d.expect("width");
        let mut wanted = vec![session.output("logits").expect("logits")];
        for input in &past {
            let name = input.name.replace("past_key_values", "present");
            wanted.push(session.output(&name).expect("present"));
        }
        let empty = |input: &&ValueType| -> Value {
            let [heads, width] = [1, 3].map(|axis| input.fixed(axis).expect("cache"));
            Tensor::<f32>::with_capacity(&[1, heads, 16, width], 2).into()
        };
        let mut cache: Vec<Value> = past.iter().map(empty).collect();
        let (mut logits, mut n) = (Vec::new(), 0);
        for rows in [7, 1, 3] {
            let mut given: Vec<(NodeId, ValueOrView<'_>)> = Vec::new();
            let mut give = |name: &str, value: Value| {
                if session.has_input(name) {
                    given.push((session.input(name).expect("input"), value.into()));
                }
            };
            let x = Tensor::from_data(&[1, rows, d], numbers(n + 5, rows * d));
            give("inputs_embeds", x.into());
            give(
                "attention_mask",
                Tensor::<i32>::full(&[1, n + rows], 1).into(),
            );
            let positions: Vec<i32> = (n..n + rows).map(|p| p as i32).collect();
            give(
                "position_ids",
                Tensor::from_data(&[1, rows], positions).into(),
            );
            let ids = past.iter().map(|i| session.input(&i.name).expect("past"));
            given.extend(ids.zip(cache.drain(..).map(ValueOrView::Value)));
            let mut values = session.run(given, &wanted).expect("run").into_iter();
            let t = values
                .next()
                .and_then(Value::into_tensor::<f32>)
                .expect("logits");
            logits.push((t.shape().to_vec(), t.into_data()));
            cache.extend(values);
            n += rows;
        }
        let caches = cache
            .into_iter()
            .map(|v| v.into_tensor::<f32>().expect("cache"));
        logits.extend(caches.map(|t| (t.shape().to_vec(), t.to_vec())));
        logits
    }

    #[test]
    fn decoders_in_pieces_are_the_decoders() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny");
        for (folder, suffix) in [
            ("fastvlm-tiny-plain", ""),
            ("fastvlm-tiny-external", ""),
            ("fastvlm-tiny-contrib", ""),
            ("fastvlm-tiny-contrib", "_fp16"),
            ("fastvlm-tiny-contrib-sep", ""),
            ("smolvlm-tiny-plain", ""),
            ("smolvlm-tiny-contrib", ""),
        ] {
            let name = format!("{folder}/onnx/decoder_model_merged{suffix}.onnx");
            let model = OnnxModel::load(&root.join(&name)).expect("decoder");
            let parts = split_at(&model, 0, 0).expect("split").expect("parts");
            // Four borders a layer, three layers, and the head.
            assert_eq!(parts.len(), 14, "{name}");
            let pieces = Session::of_parts(&model, parts).expect("pieces");
            let whole = Session::new(&model, true).expect("whole");
            let expected = decode(&whole, model.graph());
            assert_close(&expected, &decode(&pieces, model.graph()), &name);
        }
    }

    /// One tile of the second tower is padding, which it drops.
    #[test]
    fn vision_towers_in_pieces_are_the_towers() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny");
        for (folder, shape) in [
            ("fastvlm-tiny-plain", [1, 3, 256, 256].as_slice()),
            ("smolvlm-tiny-plain", &[1, 3, 3, 128, 128]),
        ] {
            let path = root.join(folder).join("onnx/vision_encoder.onnx");
            let model = OnnxModel::load(&path).expect("tower");
            let parts = split_at(&model, 0, 0).expect("split").expect("parts");
            assert!(parts.len() > 5, "{folder}: {} parts", parts.len());
            let features = |session: &Session| {
                let n = shape.iter().product();
                let mut pixels = numbers(3, n);
                let mut given: Vec<(NodeId, ValueOrView<'_>)> = Vec::new();
                if session.has_input("pixel_attention_mask") {
                    let mask: Vec<i32> = (0..n / 3).map(|i| i32::from(i < 2 * n / 9)).collect();
                    pixels[2 * n / 3..].fill(0.0);
                    let mask = Tensor::from_data(&[1, 3, 128, 128], mask);
                    let id = session.input("pixel_attention_mask").expect("mask");
                    given.push((id, mask.into()));
                }
                let id = session.input("pixel_values").expect("pixels");
                given.push((id, Tensor::from_data(shape, pixels).into()));
                let wanted = [session.output("image_features").expect("features")];
                let value = session.run(given, &wanted).expect("run").remove(0);
                let t = value.into_tensor::<f32>().expect("floats");
                vec![(t.shape().to_vec(), t.to_vec())]
            };
            let pieces = Session::of_parts(&model, parts).expect("pieces");
            let whole = Session::new(&model, true).expect("whole");
            assert_close(&features(&whole), &features(&pieces), folder);
        }
    }
}
