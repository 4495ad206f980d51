//! Token embeddings, read from the model file where they lie.

use bytes::Bytes;
use half::f16;
use rten_tensor::Tensor;
use rten_tensor::prelude::*;

use super::session::Session;
use crate::error::{Error, Result};
use crate::onnx::proto::NodeProto;
use crate::onnx::{DataType, OnnxModel};

/// A map from token ids to rows of the decoder's input.
///
/// Published `embed_tokens` graphs are one `Gather` from a table, which at 152 k x 896 is a
/// quarter of a model's bytes, of which an answer needs a few rows: those are read from the
/// mapped file. Any other graph is run by the engine.
pub struct Embedding {
    d_model: usize,
    kind: Kind,
}

/// A table as the model file has it.
#[derive(Debug, Clone, Copy)]
pub struct Stored<'a> {
    /// `[vocab, d_model]`, one row behind the other.
    pub rows: &'a [u8],
    /// f32, f16 or i8.
    pub dtype: DataType,
    /// Factor of each row of integers, none for floats.
    pub scales: &'a [f32],
}

enum Kind {
    Table(Table),
    Graph(Box<Session>),
}

/// A table as it is stored.
struct Table {
    name: String,
    dims: Vec<i64>,
    rows: Bytes,
    dtype: DataType,
    /// Factor of each row of integers, none for floats.
    scales: Vec<f32>,
}

impl Embedding {
    /// Prepares the graph `input_ids` -> `inputs_embeds` for rows of `d_model` elements.
    ///
    /// # Errors
    /// [`Error::Shape`] if the table is not `[vocab, d_model]`, [`Error::Cpu`] if the engine
    /// refuses the graph.
    pub fn load(model: &OnnxModel, vocab: usize, d_model: usize) -> Result<Self> {
        let kind = match table(model) {
            Some(table) => {
                let dims = &table.dims;
                if dims.len() != 2 || dims[1] != d_model as i64 || dims[0] < vocab as i64 {
                    return Err(Error::Shape {
                        name: table.name,
                        expected: format!("[{vocab}, {d_model}] in {}", model.path().display()),
                        actual: format!("{dims:?}"),
                    });
                }
                Kind::Table(table)
            }
            None => Kind::Graph(Box::new(Session::load(model)?)),
        };
        Ok(Self { d_model, kind })
    }

    /// The table, where it is stored as one.
    pub fn stored(&self) -> Option<Stored<'_>> {
        let Kind::Table(table) = &self.kind else {
            return None;
        };
        Some(Stored {
            rows: &table.rows,
            dtype: table.dtype,
            scales: &table.scales,
        })
    }

    /// Appends the rows of `ids` to `out`, `[ids.len(), d_model]` in f32.
    ///
    /// # Errors
    /// [`Error::Shape`] if an id lies beyond the table, [`Error::Cpu`] from the engine.
    pub fn rows(&self, ids: &[u32], out: &mut Vec<f32>) -> Result<()> {
        match &self.kind {
            Kind::Table(table) => ids
                .iter()
                .try_for_each(|&id| table.row(id, self.d_model, out)),
            Kind::Graph(session) => self.graph_rows(session, ids, out),
        }
    }

    /// Mean of the rows of ids, `[d_model]`; zeros for none.
    ///
    /// # Errors
    /// As [`rows`](Self::rows).
    pub fn mean(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let mut rows = Vec::with_capacity(ids.len() * self.d_model);
        self.rows(ids, &mut rows)?;
        let mut mean = vec![0f32; self.d_model];
        for row in rows.chunks_exact(self.d_model) {
            for (sum, x) in mean.iter_mut().zip(row) {
                *sum += x / ids.len() as f32;
            }
        }
        Ok(mean)
    }

    fn graph_rows(&self, session: &Session, ids: &[u32], out: &mut Vec<f32>) -> Result<()> {
        let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
        let ids = Tensor::from_data(&[1, ids.len()], ids);
        let expected = ids.len() * self.d_model;
        let inputs = vec![(session.input("input_ids")?, ids.into())];
        let values = session.run(inputs, &[session.output("inputs_embeds")?])?;
        let rows = values
            .into_iter()
            .next()
            .and_then(|value| value.into_tensor::<f32>())
            .filter(|rows| rows.len() == expected)
            .ok_or_else(|| Error::Shape {
                name: "inputs_embeds".to_owned(),
                expected: format!("{expected} f32 elements"),
                actual: "another type or size".to_owned(),
            })?;
        out.extend(rows.iter().copied());
        Ok(())
    }
}

impl Table {
    /// Appends one row of `d_model` elements.
    fn row(&self, id: u32, d_model: usize, out: &mut Vec<f32>) -> Result<()> {
        let width = d_model * (self.dtype.bits() / 8) as usize;
        let id = id as usize;
        let start = id.saturating_mul(width);
        let row = self
            .rows
            .get(start..start.saturating_add(width))
            .ok_or_else(|| Error::Shape {
                name: "embed_tokens".to_owned(),
                expected: format!("a token id below {}", self.rows.len() / width),
                actual: id.to_string(),
            })?;
        match (self.dtype, self.scales.get(id)) {
            (DataType::I8, Some(&scale)) => {
                out.extend(row.iter().map(|&b| f32::from(b.cast_signed()) * scale));
            }
            (DataType::F16, _) => out.extend(
                row.chunks_exact(2)
                    .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()),
            ),
            _ => out.extend(
                row.chunks_exact(4)
                    .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            ),
        }
        Ok(())
    }
}

/// The table of a graph that is one `Gather(table, input_ids)`, with casts and renames allowed; a
/// table of int8 has `DequantizeLinear` with a scale for each row behind it, and zero points of 0.
fn table(model: &OnnxModel) -> Option<Table> {
    const PLAIN: [&str; 4] = ["Gather", "Cast", "Identity", "DequantizeLinear"];
    let graph = model.graph();
    let nodes = &graph.node;
    if !nodes
        .iter()
        .all(|node| PLAIN.contains(&node.op_type.as_str()))
    {
        return None;
    }
    let mut gathers = nodes.iter().filter(|node| node.op_type == "Gather");
    let gather = gathers.next()?;
    if gathers.next().is_some() || gather.attr("axis").and_then(|a| a.i).unwrap_or(0) != 0 {
        return None;
    }
    let mut name = gather.input.first()?;
    let mut dequantize = None;
    // Weights that are stored in fewer bytes have a cast or a scale behind them.
    while let Some(node) = nodes.iter().find(|node| node.output.first() == Some(name)) {
        match node.op_type.as_str() {
            "Gather" => return None,
            "DequantizeLinear" if dequantize.replace(node).is_some() => return None,
            _ => name = node.input.first()?,
        }
    }
    let n_dequantize = nodes.iter().filter(|n| n.op_type == "DequantizeLinear");
    if n_dequantize.count() != usize::from(dequantize.is_some()) {
        return None;
    }
    let table = graph.initializer(name)?;
    let dtype = table.dtype().ok()?;
    let scales = match (dtype, dequantize) {
        (DataType::F32 | DataType::F16, None) => Vec::new(),
        (DataType::I8, Some(node)) => row_scales(model, node, table.dims.first().copied()?)?,
        _ => return None,
    };
    Some(Table {
        name: table.name.clone(),
        dims: table.dims.clone(),
        rows: table.raw_data.clone()?,
        dtype,
        scales,
    })
}

/// The scales of a `DequantizeLinear` that has one for each of `n_rows` rows.
fn row_scales(model: &OnnxModel, node: &NodeProto, n_rows: i64) -> Option<Vec<f32>> {
    let graph = model.graph();
    let attr = |name: &str, default| node.attr(name).and_then(|a| a.i).unwrap_or(default);
    if attr("axis", 1) != 0 || attr("block_size", 0) != 0 {
        return None;
    }
    if let Some(zero) = node.input.get(2).filter(|name| !name.is_empty()) {
        let zeros = graph.initializer(zero)?.raw_data.as_ref()?;
        if zeros.iter().any(|&zero| zero != 0) {
            return None;
        }
    }
    let scales = graph.initializer(node.input.get(1)?)?;
    let scales = scales.to_f32(model.path()).ok()?;
    (i64::try_from(scales.len()) == Ok(n_rows)).then_some(scales)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use prost::Message;

    use super::*;
    use crate::onnx::proto::{GraphProto, ModelProto, TensorProto, ValueInfoProto};

    fn model(table: TensorProto) -> OnnxModel {
        let proto = ModelProto {
            graph: Some(GraphProto {
                node: vec![NodeProto::new(
                    "Gather",
                    &["table", "input_ids"],
                    &["inputs_embeds"],
                )],
                initializer: vec![table],
                output: vec![ValueInfoProto {
                    name: "inputs_embeds".to_owned(),
                    ..ValueInfoProto::default()
                }],
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        };
        OnnxModel::parse(Path::new("embed.onnx"), proto.encode_to_vec().into()).expect("parse")
    }

    #[test]
    fn rows_of_f32_and_f16_tables_are_read_and_ids_beyond_refused() {
        let halves: Vec<u8> = [0.0f32, 1.0, 2.0, 3.5]
            .iter()
            .flat_map(|&v| f16::from_f32(v).to_le_bytes())
            .collect();
        for table in [
            TensorProto::from_f32("table", &[2, 2], &[0.0, 1.0, 2.0, 3.5]),
            TensorProto::from_raw("table", DataType::F16, &[2, 2], halves),
        ] {
            let embedding = Embedding::load(&model(table), 2, 2).expect("load");
            let mut out = Vec::new();
            embedding.rows(&[1, 0], &mut out).expect("rows");
            assert_eq!(out, [2.0, 3.5, 0.0, 1.0]);
            for id in [2, u32::MAX] {
                assert!(matches!(
                    embedding.rows(&[id], &mut out),
                    Err(Error::Shape { .. })
                ));
            }
        }
    }

    #[test]
    fn table_that_is_stored_in_half_the_bytes_is_read_where_it_lies() {
        let mut graph = model(TensorProto::from_f32("table", &[64, 64], &[0.5; 4096]));
        assert_eq!(
            crate::onnx::passes::store_weights_fp16(&mut graph).expect("pass"),
            1
        );
        let embedding = Embedding::load(&graph, 64, 64).expect("load");
        let Kind::Table(table) = &embedding.kind else {
            panic!("run by the engine");
        };
        assert_eq!(table.dtype, DataType::F16);
        let mut out = Vec::new();
        embedding.rows(&[63], &mut out).expect("rows");
        assert_eq!(out, [0.5; 64]);
    }

    #[test]
    fn int8_table_is_read_where_it_lies_and_other_forms_are_left_to_the_engine() {
        let load = |axis: i64, zero: u8| {
            let mut graph = model(TensorProto::from_raw(
                "codes",
                DataType::I8,
                &[2, 2],
                vec![127, 0x80, 1, 0xff],
            ));
            let proto = graph.graph_mut();
            proto.initializer.extend([
                TensorProto::from_f32("scales", &[2], &[0.5, 2.0]),
                TensorProto::from_raw("zeros", DataType::I8, &[2], vec![0, zero]),
            ]);
            let dequantize = NodeProto::new(
                "DequantizeLinear",
                &["codes", "scales", "zeros"],
                &["table"],
            );
            proto.node.insert(0, dequantize.with_int("axis", axis));
            proto
                .input
                .push(ValueInfoProto::from(&crate::onnx::ValueType {
                    name: "input_ids".to_owned(),
                    dtype: Some(DataType::I64),
                    dims: None,
                }));
            graph
        };
        assert!(table(&load(1, 0)).is_none());
        assert!(table(&load(0, 3)).is_none());
        let embedding = Embedding::load(&load(0, 0), 2, 2).expect("load");
        assert!(matches!(&embedding.kind, Kind::Table(table) if table.scales == [0.5, 2.0]));
        let mut out = Vec::new();
        embedding.rows(&[1, 0], &mut out).expect("rows");
        assert_eq!(out, [2.0, -2.0, 63.5, -64.0]);
        assert!(embedding.rows(&[2], &mut out).is_err());
    }

    #[test]
    fn load_with_another_width_or_too_few_rows_is_refused() {
        let table = || TensorProto::from_f32("table", &[2, 2], &[0.0; 4]);
        for (vocab, d_model) in [(2, 4), (3, 2)] {
            assert!(Embedding::load(&model(table()), vocab, d_model).is_err());
        }
    }
}
