//! Token embeddings, read from the model file where they lie.

use bytes::Bytes;
use half::f16;
use rten_tensor::Tensor;
use rten_tensor::prelude::*;

use super::session::Session;
use crate::error::{Error, Result};
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

enum Kind {
    Table { rows: Bytes, dtype: DataType },
    Graph(Box<Session>),
}

impl Embedding {
    /// Prepares the graph `input_ids` -> `inputs_embeds` for rows of `d_model` elements.
    ///
    /// # Errors
    /// [`Error::Shape`] if the table is not `[vocab, d_model]`, [`Error::Cpu`] if the engine
    /// refuses the graph.
    pub fn load(model: &OnnxModel, vocab: usize, d_model: usize) -> Result<Self> {
        let kind = match table(model) {
            Some((name, dims, rows, dtype)) => {
                if dims.len() != 2 || dims[1] != d_model as i64 || dims[0] < vocab as i64 {
                    return Err(Error::Shape {
                        name,
                        expected: format!("[{vocab}, {d_model}] in {}", model.path().display()),
                        actual: format!("{dims:?}"),
                    });
                }
                Kind::Table { rows, dtype }
            }
            None => Kind::Graph(Box::new(Session::load(model)?)),
        };
        Ok(Self { d_model, kind })
    }

    /// Appends the rows of `ids` to `out`, `[ids.len(), d_model]` in f32.
    ///
    /// # Errors
    /// [`Error::Shape`] if an id lies beyond the table, [`Error::Cpu`] from the engine.
    pub fn rows(&self, ids: &[u32], out: &mut Vec<f32>) -> Result<()> {
        match &self.kind {
            Kind::Table { rows, dtype } => {
                for &id in ids {
                    self.table_row(rows, *dtype, id, out)?;
                }
                Ok(())
            }
            Kind::Graph(session) => self.graph_rows(session, ids, out),
        }
    }

    fn table_row(&self, rows: &Bytes, dtype: DataType, id: u32, out: &mut Vec<f32>) -> Result<()> {
        let width = self.d_model * (dtype.bits() / 8) as usize;
        let start = (id as usize).saturating_mul(width);
        let row = rows
            .get(start..start.saturating_add(width))
            .ok_or_else(|| Error::Shape {
                name: "embed_tokens".to_owned(),
                expected: format!("a token id below {}", rows.len() / width),
                actual: id.to_string(),
            })?;
        match dtype {
            DataType::F16 => out.extend(
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

/// The table of a graph that is one `Gather(table, input_ids)`, with casts and renames allowed.
fn table(model: &OnnxModel) -> Option<(String, Vec<i64>, Bytes, DataType)> {
    let graph = model.graph();
    let is_plain = |op: &str| matches!(op, "Gather" | "Cast" | "Identity");
    if graph.node.iter().any(|node| !is_plain(&node.op_type)) {
        return None;
    }
    let mut gathers = graph.node.iter().filter(|node| node.op_type == "Gather");
    let gather = gathers.next()?;
    if gathers.next().is_some() || gather.attr("axis").and_then(|a| a.i).unwrap_or(0) != 0 {
        return None;
    }
    let mut name = gather.input.first()?;
    // Weights that are stored in half the bytes have a cast behind them.
    while let Some(node) = graph
        .node
        .iter()
        .find(|node| node.output.first() == Some(name))
    {
        if node.op_type == "Gather" {
            return None;
        }
        name = node.input.first()?;
    }
    let table = graph.initializer(name)?;
    let dtype = table.dtype().ok()?;
    if !matches!(dtype, DataType::F32 | DataType::F16) {
        return None;
    }
    let rows = table.raw_data.clone()?;
    Some((table.name.clone(), table.dims.clone(), rows, dtype))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use prost::Message;

    use super::*;
    use crate::onnx::proto::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};

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
        assert!(matches!(
            embedding.kind,
            Kind::Table {
                dtype: DataType::F16,
                ..
            }
        ));
        let mut out = Vec::new();
        embedding.rows(&[63], &mut out).expect("rows");
        assert_eq!(out, [0.5; 64]);
    }

    #[test]
    fn load_with_another_width_or_too_few_rows_is_refused() {
        let table = || TensorProto::from_f32("table", &[2, 2], &[0.0; 4]);
        for (vocab, d_model) in [(2, 4), (3, 2)] {
            assert!(Embedding::load(&model(table()), vocab, d_model).is_err());
        }
    }
}
