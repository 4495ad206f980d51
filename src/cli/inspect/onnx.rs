//! An ONNX file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use serde::Serialize;

use super::tensors;
use crate::bundle::TensorInfo;
use crate::cli::table::{Table, printable, wrap};
use crate::error::{Error, Result};
use crate::onnx::OnnxModel;
use crate::onnx::proto::GraphProto;

/// Where lists of operators are broken.
const LINE: usize = 96;

/// What an ONNX file holds.
#[derive(Debug, Serialize)]
pub struct OnnxReport {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// The files of its external data.
    pub external: Vec<FileSize>,
    producer: String,
    opsets: Vec<Opset>,
    n_nodes: usize,
    ops: Vec<OpCount>,
    inputs: Vec<TensorInfo>,
    outputs: Vec<TensorInfo>,
    weight_bytes: u64,
    weights: Vec<Weights>,
}

/// A file and its size.
#[derive(Debug, Serialize)]
pub struct FileSize {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

#[derive(Debug, Serialize)]
struct Opset {
    domain: String,
    version: i64,
}

#[derive(Debug, Serialize)]
struct OpCount {
    op: String,
    count: usize,
}

/// Weights of one element type.
#[derive(Debug, Serialize)]
struct Weights {
    dtype: String,
    tensors: usize,
    elements: u64,
    bytes: u64,
}

/// Looks into an ONNX file.
pub fn inspect(path: &Path) -> Result<OnnxReport> {
    let model = OnnxModel::load(path)?;
    let size = |path: &Path| {
        let meta = std::fs::metadata(path).map_err(Error::io(path))?;
        Ok::<_, Error>(FileSize {
            path: path.to_path_buf(),
            bytes: meta.len(),
        })
    };
    let graph = model.graph();
    let ops: Vec<OpCount> = graph
        .op_counts()
        .into_iter()
        .map(|(op, count)| OpCount { op, count })
        .collect();
    let external = model.sources().iter().skip(1).map(|s| size(&s.path));
    Ok(OnnxReport {
        path: path.to_path_buf(),
        bytes: size(path)?.bytes,
        external: external.collect::<Result<_>>()?,
        producer: model.producer(),
        opsets: model
            .opsets()
            .map(|(domain, version)| Opset {
                domain: match domain {
                    "" => "ai.onnx".to_owned(),
                    domain => domain.to_owned(),
                },
                version,
            })
            .collect(),
        n_nodes: ops.iter().map(|op| op.count).sum(),
        ops,
        inputs: graph.inputs().iter().map(tensors::describe).collect(),
        outputs: graph.outputs().iter().map(tensors::describe).collect(),
        weight_bytes: model.weight_bytes(),
        weights: weights(graph, path)?,
    })
}

fn weights(graph: &GraphProto, path: &Path) -> Result<Vec<Weights>> {
    let mut by_type: BTreeMap<String, Weights> = BTreeMap::new();
    for tensor in &graph.initializer {
        let dtype = tensor.dtype()?;
        let elements = tensor.len(path)?;
        let entry = by_type.entry(dtype.to_string()).or_insert_with(|| Weights {
            dtype: dtype.to_string(),
            tensors: 0,
            elements: 0,
            bytes: 0,
        });
        entry.tensors += 1;
        entry.elements = entry.elements.saturating_add(elements);
        let bytes = dtype.bytes_for(elements).unwrap_or(u64::MAX);
        entry.bytes = entry.bytes.saturating_add(bytes);
    }
    let mut weights: Vec<Weights> = by_type.into_values().collect();
    weights.sort_by_key(|w| std::cmp::Reverse(w.bytes));
    Ok(weights)
}

impl OnnxReport {
    /// Bytes of the file and its external data.
    pub fn total_bytes(&self) -> u64 {
        self.external.iter().map(|e| e.bytes).sum::<u64>() + self.bytes
    }

    /// The report for people.
    pub fn text(&self) -> String {
        let opsets: Vec<String> = self
            .opsets
            .iter()
            .map(|o| format!("{} {}", o.domain, o.version))
            .collect();
        let mut facts = Table::default();
        facts.row(["producer", self.producer.as_str()]);
        facts.row(["opsets", &opsets.join(", ")]);
        facts.row(["size", &HumanBytes(self.bytes).to_string()]);
        for file in &self.external {
            let name = file.path.file_name().unwrap_or_default().to_string_lossy();
            let text = format!("{name}, {}", HumanBytes(file.bytes));
            facts.row(["external data", &text]);
        }
        for (index, w) in self.weights.iter().enumerate() {
            let heading = if index == 0 { "weights" } else { "" };
            let text = format!(
                "{} of {}: tensors {}, elements {}",
                HumanBytes(w.bytes),
                w.dtype,
                w.tensors,
                w.elements
            );
            facts.row([heading, &text]);
        }
        let ops = self.ops.iter().map(|o| format!("{} {}", o.op, o.count));
        format!(
            "{}: ONNX file\n{}{}{}  operators ({})\n{}",
            printable(&self.path.display().to_string()),
            facts.render(2),
            tensors::text("inputs", &self.inputs, 2),
            tensors::text("outputs", &self.outputs, 2),
            self.n_nodes,
            wrap(ops, "  ", 4, LINE),
        )
    }
}
