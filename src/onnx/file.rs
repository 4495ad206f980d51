//! ONNX files: load, with weights left in the mapped file; write, with weights beside the graph.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use prost::Message;

use super::map::Mapping;
use super::proto::{
    GraphProto, ModelProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
};
use super::tensor::EXTERNAL;
use super::wire;
use crate::error::{Error, Result};
use crate::limits;

/// Tensors of at least this many bytes are written beside the graph, not into it.
const EXTERNAL_BYTES: usize = 1024;

/// Models with at most this many bytes of weights are published as one file.
const ONE_FILE_BYTES: u64 = 64 << 20;

/// So much is written between two looks at whether to stop.
const WRITE_BYTES: usize = 16 << 20;

/// Version of the file format that is written where the source has none: the first that lets
/// initializers stand without being inputs, with the operator sets that we know.
const IR_VERSION: i64 = 8;

/// Alignment of each tensor in a data file: a cache line, and enough for any element type.
const DATA_ALIGN: u64 = 64;

/// An ONNX model whose weights are slices of the mapped files that they came from.
#[derive(Debug, Clone)]
pub struct OnnxModel {
    path: PathBuf,
    proto: ModelProto,
    graph: GraphProto,
    sources: Vec<Source>,
    cancel: Option<Arc<AtomicBool>>,
}

/// Says whether somebody wants the work on a model to stop.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Option<Arc<AtomicBool>>);

impl Cancel {
    /// Fails if work is to stop.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn check(&self) -> Result<()> {
        match &self.0 {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(Error::Cancelled),
            _ => Ok(()),
        }
    }
}

/// A file that holds weights.
#[derive(Debug, Clone)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    bytes: Bytes,
    /// What `bytes` lie in, unless they were given.
    mapping: Option<Mapping>,
}

impl Source {
    /// Its contents.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Gives back the memory of bytes that were copied from a mapped file.
    pub fn release(&self, range: Range<usize>) {
        if let Some(mapping) = &self.mapping {
            mapping.release(range);
        }
    }
}

/// Where a tensor's bytes are: the index of a [`Source`] and an offset in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// Index into [`OnnxModel::sources`].
    pub source: usize,
    /// Offset in bytes.
    pub offset: u64,
}

impl OnnxModel {
    /// Maps and parses an ONNX file; external data files beside it are mapped, too.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Malformed`] or [`Error::TooLarge`], always with the file's name:
    /// not protobuf, no graph, truncated, weights that do not fit their shapes, external data
    /// outside the model's folder or shorter than the graph says. [`Error::Unsupported`] if the
    /// file defines functions.
    pub fn load(path: &Path) -> Result<Self> {
        let mapping = Mapping::open(path)?;
        let mut model = Self::parse(path, mapping.bytes().clone())?;
        model.sources[0].mapping = Some(mapping);
        Ok(model)
    }

    /// Parses an ONNX model; `path` names it in errors and locates external data.
    ///
    /// # Errors
    /// As [`OnnxModel::load`].
    pub fn parse(path: &Path, bytes: Bytes) -> Result<Self> {
        if bytes.len() as u64 > limits::ONNX_FILE_BYTES {
            return Err(Error::TooLarge {
                what: format!("{} (bytes)", path.display()),
                actual: bytes.len() as u64,
                limit: limits::ONNX_FILE_BYTES,
            });
        }
        wire::check(path, &bytes)?;
        let mut proto = ModelProto::decode(bytes.clone())
            .map_err(|e| Error::malformed(path, format!("not an ONNX file, or cut short: {e}")))?;
        let graph = proto
            .graph
            .take()
            .filter(|graph| !graph.output.is_empty())
            .ok_or_else(|| Error::malformed(path, "not an ONNX model: no graph with outputs"))?;
        let mut model = Self {
            path: path.to_path_buf(),
            proto,
            graph,
            sources: vec![Source {
                path: path.to_path_buf(),
                bytes,
                mapping: None,
            }],
            cancel: None,
        };
        model.check_known()?;
        model.resolve_external()?;
        Ok(model)
    }

    /// Lets another thread stop passes over this model, and its saving, by setting `cancel`.
    pub fn cancel_with(&mut self, cancel: Arc<AtomicBool>) {
        self.cancel = Some(cancel);
    }

    /// What says that work on this model is to stop, for passes that hold parts of it.
    pub fn cancel(&self) -> Cancel {
        Cancel(self.cancel.clone())
    }

    /// The file that was parsed.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The graph.
    pub fn graph(&self) -> &GraphProto {
        &self.graph
    }

    /// The graph, to be rewritten.
    pub fn graph_mut(&mut self) -> &mut GraphProto {
        &mut self.graph
    }

    /// The files that hold weights: the ONNX file itself first.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// Version of a domain's operators (empty = `ai.onnx`), if the model imports it.
    pub fn opset(&self, domain: &str) -> Option<i64> {
        let canonical = |d: &str| {
            if d == "ai.onnx" {
                String::new()
            } else {
                d.to_owned()
            }
        };
        self.proto
            .opset_import
            .iter()
            .find(|import| canonical(&import.domain) == canonical(domain))
            .and_then(|import| import.version)
    }

    /// Sets the version of a domain's operators (empty = `ai.onnx`), or takes the import away.
    pub fn set_opset(&mut self, domain: &str, version: Option<i64>) {
        let is_default = |d: &str| matches!(d, "" | "ai.onnx");
        let imports = &mut self.proto.opset_import;
        imports.retain(|import| {
            import.domain != domain && !(is_default(domain) && is_default(&import.domain))
        });
        if version.is_some() {
            // The default domain first, where some readers look for it.
            let import = OperatorSetIdProto {
                domain: domain.to_owned(),
                version,
            };
            let at = if is_default(domain) { 0 } else { imports.len() };
            imports.insert(at, import);
        }
    }

    /// All operator sets that the model imports.
    pub fn opsets(&self) -> impl Iterator<Item = (&str, i64)> {
        self.proto
            .opset_import
            .iter()
            .map(|import| (import.domain.as_str(), import.version.unwrap_or(0)))
    }

    /// Tool that wrote the file, with its version.
    pub fn producer(&self) -> String {
        format!(
            "{} {}",
            self.proto.producer_name, self.proto.producer_version
        )
        .trim()
        .to_owned()
    }

    /// Bytes of all weights.
    pub fn weight_bytes(&self) -> u64 {
        self.graph
            .initializer
            .iter()
            .map(|t| t.raw_len() as u64)
            .sum()
    }

    /// Elements of all weights.
    pub fn weight_elements(&self) -> u64 {
        let initializers = self.graph.initializer.iter();
        initializers.map(TensorProto::elements).sum()
    }

    /// Where a tensor's bytes are on disk, `None` for tensors that a pass has made.
    pub fn locate(&self, raw: &Bytes) -> Option<Location> {
        let start = raw.as_ptr() as usize;
        self.sources.iter().enumerate().find_map(|(source, s)| {
            let base = s.bytes.as_ptr() as usize;
            let offset = start.checked_sub(base)?;
            (offset.checked_add(raw.len())? <= s.bytes.len()).then_some(Location {
                source,
                offset: offset as u64,
            })
        })
    }

    /// Encodes the model; `place` says for each tensor whether its bytes stay in the graph
    /// (`None`) or are at `(file, offset)` beside it.
    pub fn encode(&self, mut place: impl FnMut(&TensorProto) -> Option<(String, u64)>) -> Vec<u8> {
        let mut proto = self.proto.clone();
        // Some readers know an ONNX file by this field.
        proto.ir_version.get_or_insert(IR_VERSION);
        let mut graph = self.graph.clone();
        each_tensor(&mut graph, &mut |tensor| {
            if let Some((file, offset)) = place(tensor) {
                let entry = |key: &str, value: String| StringStringEntryProto {
                    key: key.to_owned(),
                    value,
                };
                tensor.external_data = vec![
                    entry("location", file),
                    entry("offset", offset.to_string()),
                    entry("length", tensor.raw_len().to_string()),
                ];
                tensor.data_location = Some(EXTERNAL);
                tensor.raw_data = None;
            }
            Ok::<(), std::convert::Infallible>(())
        })
        .unwrap_or_else(|never| match never {});
        proto.graph = Some(graph);
        proto.encode_to_vec()
    }

    /// Writes the model to `path` and its weights, aligned for mapping, to `<path>.data`.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file that could not be written, [`Error::Cancelled`].
    pub fn save(&self, path: &Path) -> Result<()> {
        self.save_beside(path, ".data", EXTERNAL_BYTES)
    }

    /// Writes the model as hubs publish it: one file, or, if it is large, its weights in
    /// `<path>_data`.
    ///
    /// # Errors
    /// As [`OnnxModel::save`].
    pub fn save_published(&self, path: &Path) -> Result<()> {
        let external = match self.weight_bytes() > ONE_FILE_BYTES {
            true => EXTERNAL_BYTES,
            false => usize::MAX,
        };
        self.save_beside(path, "_data", external)
    }

    /// Writes the model with tensors of `external` bytes and more in the file `<path><suffix>`.
    fn save_beside(&self, path: &Path, suffix: &str, external: usize) -> Result<()> {
        let mut data_path = path.as_os_str().to_owned();
        data_path.push(suffix);
        let data_path = PathBuf::from(data_path);
        let data_name = data_path
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| Error::malformed(path, "file name is not UTF-8"))?
            .to_owned();
        let mut weights = Vec::new();
        let mut end = 0u64;
        let proto = self.encode(|tensor| {
            let raw = tensor.raw_data.as_ref()?;
            if raw.len() < external {
                return None;
            }
            let offset = end.next_multiple_of(DATA_ALIGN);
            end = offset + raw.len() as u64;
            weights.push((offset, raw.clone()));
            Some((data_name.clone(), offset))
        });
        if !weights.is_empty() {
            write_at_offsets(&data_path, &weights, &self.cancel())?;
        }
        std::fs::write(path, proto).map_err(Error::io(path))
    }

    /// Refuses what passes and engines do not know.
    fn check_known(&self) -> Result<()> {
        if let Some(function) = self.proto.functions.first() {
            return Err(Error::Unsupported {
                node: function.name.clone(),
                op: format!("function of domain `{}`", function.domain),
                reason: format!(
                    "{} defines operators of its own; export the model with them inlined",
                    self.path.display()
                ),
            });
        }
        if !self.graph.sparse_initializer.is_empty() {
            return Err(Error::malformed(
                &self.path,
                "sparse initializers are not supported",
            ));
        }
        Ok(())
    }

    /// Turns every external tensor into a slice of a mapped file and checks all weights.
    fn resolve_external(&mut self) -> Result<()> {
        let path = self.path.clone();
        let sources = &mut self.sources;
        each_tensor(&mut self.graph, &mut |tensor| {
            if tensor.data_location == Some(EXTERNAL) {
                tensor.raw_data = Some(external_bytes(tensor, &path, sources)?);
                tensor.data_location = None;
                tensor.external_data.clear();
            }
            tensor.validate(&path)
        })
    }
}

/// The bytes of an external tensor; maps its file if that was not done yet.
fn external_bytes(tensor: &TensorProto, model: &Path, sources: &mut Vec<Source>) -> Result<Bytes> {
    let bad = |reason: String| {
        Error::malformed(
            model,
            format!("external data of tensor `{}`: {reason}", tensor.name),
        )
    };
    let entry = |key: &str| {
        let found = tensor.external_data.iter().find(|e| e.key == key);
        found.map(|e| e.value.as_str())
    };
    let number = |key: &str| match entry(key) {
        None => Ok(None),
        Some(text) => match text.parse::<u64>() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(bad(format!("{key} is `{text}`"))),
        },
    };
    let location = entry("location").ok_or_else(|| bad("no location".to_owned()))?;
    // Weights come back out as answers, so that a model may only name files of its own folder.
    let relative = Path::new(location);
    let inside = relative
        .components()
        .all(|c| matches!(c, Component::Normal(_)));
    if location.is_empty() || !inside {
        return Err(bad(format!("`{location}` is outside the model's folder")));
    }
    let file = model.parent().unwrap_or(Path::new(".")).join(relative);
    let source = match sources.iter().position(|s| s.path == file) {
        Some(index) => index,
        None => {
            let mapping = Mapping::open(&file)?;
            sources.push(Source {
                path: file,
                bytes: mapping.bytes().clone(),
                mapping: Some(mapping),
            });
            sources.len() - 1
        }
    };
    let bytes = &sources[source].bytes;
    let offset = number("offset")?.unwrap_or(0);
    let length = match number("length")? {
        Some(length) => length,
        None => {
            let dtype = tensor.dtype()?;
            let len = dtype.bytes_for(tensor.len(model)?);
            len.ok_or_else(|| bad("size overflows".to_owned()))?
        }
    };
    let end = offset
        .checked_add(length)
        .filter(|&end| end <= bytes.len() as u64);
    let Some(end) = end else {
        return Err(Error::malformed(
            &sources[source].path,
            format!(
                "cut short: tensor `{}` needs bytes {offset}..{}, the file has {}",
                tensor.name,
                offset.saturating_add(length),
                bytes.len()
            ),
        ));
    };
    Ok(bytes.slice(offset as usize..end as usize))
}

/// Calls `f` on every constant of a graph: initializers, then tensors of attributes, subgraphs
/// included.
pub(super) fn each_tensor<E>(
    graph: &mut GraphProto,
    f: &mut impl FnMut(&mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    for tensor in &mut graph.initializer {
        f(tensor)?;
    }
    for attribute in graph.node.iter_mut().flat_map(|node| &mut node.attribute) {
        for tensor in attribute.t.iter_mut().chain(&mut attribute.tensors) {
            f(tensor)?;
        }
        for subgraph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            each_tensor(subgraph, f)?;
        }
    }
    Ok(())
}

fn write_at_offsets(path: &Path, parts: &[(u64, Bytes)], cancel: &Cancel) -> Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path).map_err(Error::io(path))?);
    let mut position = 0u64;
    for (offset, bytes) in parts {
        let padding = [0u8; DATA_ALIGN as usize];
        let mut write = |bytes: &[u8]| out.write_all(bytes).map_err(Error::io(path));
        write(&padding[..(offset - position) as usize])?;
        for chunk in bytes.chunks(WRITE_BYTES) {
            cancel.check()?;
            write(chunk)?;
        }
        position = offset + bytes.len() as u64;
    }
    let written = out.flush().and_then(|()| out.get_ref().sync_all());
    written.map_err(Error::io(path))
}

#[cfg(test)]
mod tests {
    use super::super::proto::{FunctionProto, ValueInfoProto};
    use super::*;

    #[test]
    fn functions_of_the_file_are_refused_by_name() {
        let proto = ModelProto {
            graph: Some(GraphProto {
                output: vec![ValueInfoProto::default()],
                ..GraphProto::default()
            }),
            functions: vec![FunctionProto {
                name: "Twice".to_owned(),
                domain: "own".to_owned(),
                ..FunctionProto::default()
            }],
            ..ModelProto::default()
        };
        let parsed = OnnxModel::parse(Path::new("f.onnx"), proto.encode_to_vec().into());
        let text = parsed.expect_err("a function").to_string();
        for word in ["Twice", "own", "f.onnx"] {
            assert!(text.contains(word), "{text}");
        }
    }

    #[test]
    fn save_of_a_model_that_was_cancelled_stops() {
        let proto = ModelProto {
            graph: Some(GraphProto {
                initializer: vec![TensorProto::from_f32("w", &[1024], &[0.0; 1024])],
                output: vec![ValueInfoProto::default()],
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        };
        let bytes = proto.encode_to_vec().into();
        let mut model = OnnxModel::parse(Path::new("m.onnx"), bytes).expect("parse");
        let dir = tempfile::tempdir().expect("temp dir");
        let cancel = Arc::new(AtomicBool::new(false));
        model.cancel_with(cancel.clone());
        assert!(model.save(&dir.path().join("m.onnx")).is_ok());
        cancel.store(true, Ordering::Relaxed);
        let saved = model.save(&dir.path().join("n.onnx"));
        assert!(matches!(saved, Err(Error::Cancelled)), "{saved:?}");
    }
}
