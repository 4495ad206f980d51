//! Integers in the graphs of a build.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::component::ComponentKind;
use super::engines::EngineReport;
use crate::bundle::{AccuracyInfo, BundleWriter, QuantizationInfo, QuantizedCounts};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::onnx::passes::{self, LowerOptions, PackedWeights};
use crate::onnx::{DataType, OnnxModel};
use crate::quantize::{
    GraphRanges, Method, QuantizeOptions, QuantizeReport, Ranges, Scales, Scheme, quantize,
    quantize_embedding, simplify_for_int8,
};

/// Labels of nodes, by the component that they are in.
pub type Nodes = BTreeMap<ComponentKind, BTreeSet<String>>;

/// Nodes that are no integers, for measured reasons.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// These stay as they are.
    pub whole: Nodes,
    /// These linear operators have integer weights, and read floats.
    pub activations: Nodes,
}

impl LeftOut {
    /// Adds what `other` has.
    pub fn extend(&mut self, other: &Self) {
        let all = [
            (&mut self.whole, &other.whole),
            (&mut self.activations, &other.activations),
        ];
        for (nodes, more) in all {
            for (kind, labels) in more {
                nodes.entry(*kind).or_default().extend(labels.clone());
            }
        }
    }
}

/// How the graphs of a build are quantized.
#[derive(Debug, Clone)]
pub struct Quantization {
    /// What becomes integers.
    pub options: QuantizeOptions,
    /// Nodes that are no integers, for measured reasons.
    pub left_out: LeftOut,
    /// Store the embedding table as integers, too.
    pub embedding: bool,
    /// What was proved of the result, if anything was.
    pub proven: Option<Proven>,
    observed: Option<Observed>,
}

/// What was measured of a quantized model before it is built.
#[derive(Debug, Clone)]
pub struct Proven {
    /// What the manifest says.
    pub accuracy: AccuracyInfo,
    /// Files of the bundle's `reports/`, by name.
    pub reports: Vec<(String, Vec<u8>)>,
}

/// What calibration found.
#[derive(Debug, Clone)]
struct Observed {
    scales: Scales,
    ranges: Ranges,
}

impl Quantization {
    /// Weights alone, for which nothing has to be observed.
    pub fn of_weights() -> Self {
        Self {
            options: QuantizeOptions::new(Scheme::Int8Weights),
            left_out: LeftOut::default(),
            embedding: true,
            proven: None,
            observed: None,
        }
    }

    /// Weights of the decoder in 4 bits, `block` of a column to a scale at most; packed ones of 4 bits
    /// stay what they are.
    pub fn of_blocks(block: usize) -> Self {
        Self {
            options: QuantizeOptions {
                block,
                ..QuantizeOptions::new(Scheme::Int4Weights)
            },
            left_out: LeftOut::default(),
            embedding: false,
            proven: None,
            observed: None,
        }
    }

    /// True if packed weights keep their codes.
    pub(super) fn keeps_blocks(&self) -> bool {
        self.options.scheme == Scheme::Int4Weights
    }

    /// Weights and activations, with the ranges that `method` chose.
    ///
    /// # Errors
    /// [`Error::Argument`] if the scales have none of that method.
    pub fn with_scales(scales: Scales, method: Method) -> Result<Self> {
        let ranges = scales.ranges(method)?;
        Ok(Self {
            options: QuantizeOptions::new(Scheme::Int8),
            left_out: LeftOut::default(),
            embedding: true,
            proven: None,
            observed: Some(Observed { scales, ranges }),
        })
    }

    /// The scales, if activations are quantized.
    pub fn scales(&self) -> Option<&Scales> {
        self.observed.as_ref().map(|observed| &observed.scales)
    }

    /// The method that chose the ranges.
    pub fn method(&self) -> Option<Method> {
        self.observed
            .as_ref()
            .map(|observed| observed.ranges.method)
    }

    /// Refuses scales that were observed on other graphs than the model's.
    ///
    /// # Errors
    /// [`Error::Mismatch`] naming `path`, the file of the scales, and both digests.
    pub fn check_model(&self, path: &Path, model: &Model) -> Result<()> {
        let Some(scales) = self.scales() else {
            return Ok(());
        };
        for kind in [ComponentKind::Vision, ComponentKind::Decoder] {
            let graph = OnnxModel::load(kind.source(model))?;
            scales.check_graph(path, kind.name(), &graph)?;
        }
        Ok(())
    }

    /// True if the scheme has something to do with a component.
    pub(super) fn concerns(&self, kind: ComponentKind) -> bool {
        match kind {
            ComponentKind::Vision => self.options.scheme == Scheme::Int8,
            ComponentKind::Embed => self.embedding,
            ComponentKind::Decoder => true,
        }
    }

    /// Quantizes a component that [`passes::prepare_plain`] has prepared.
    pub(super) fn apply(
        &self,
        kind: ComponentKind,
        graph: &mut OnnxModel,
    ) -> Result<Option<QuantizeReport>> {
        if kind == ComponentKind::Embed {
            quantize_embedding(graph)?;
            return Ok(None);
        }
        simplify_for_int8(graph)?;
        let mut options = self.options.clone();
        let of_kind = |nodes: &Nodes| nodes.get(&kind).cloned().unwrap_or_default();
        options.except.extend(of_kind(&self.left_out.whole));
        options
            .weights_only
            .extend(of_kind(&self.left_out.activations));
        quantize(graph, self.ranges(kind)?, &options).map(Some)
    }

    /// Writes what was observed into the bundle, if anything was.
    pub(super) fn write_calibration(&self, writer: &BundleWriter) -> Result<()> {
        match self.scales() {
            Some(scales) => writer.write("reports/calibration.json", &scales.to_json()?),
            None => Ok(()),
        }
    }

    /// Writes what was observed and what was quantized into the bundle; returns what the manifest
    /// says of it.
    pub(super) fn write_reports(
        &self,
        engines: &[EngineReport],
        writer: &BundleWriter,
    ) -> Result<QuantizationInfo> {
        self.write_calibration(writer)?;
        // Every target quantizes the same nodes.
        let reports: BTreeMap<&str, &QuantizeReport> = engines
            .iter()
            .filter_map(|engine| Some((engine.component, engine.quantized.as_ref()?)))
            .collect();
        const REPORT: &str = "reports/quantization.json";
        let mut json = serde_json::to_vec_pretty(&reports)
            .map_err(|e| Error::malformed(REPORT, format!("cannot be written: {e}")))?;
        json.push(b'\n');
        writer.write(REPORT, &json)?;
        for (name, bytes) in self.proven.iter().flat_map(|proven| &proven.reports) {
            writer.write(&format!("reports/{name}"), bytes)?;
        }
        let counts = |report: &QuantizeReport| QuantizedCounts {
            quantized: report.quantized.len(),
            kept: report.kept.len(),
            tensors: report.n_tensors,
            weights: report.n_weights,
        };
        let components = reports.iter();
        Ok(QuantizationInfo {
            method: self.method().map(|method| method.name().to_owned()),
            items: self.scales().map_or(0, |scales| scales.items),
            components: components
                .map(|(name, report)| ((*name).to_owned(), counts(report)))
                .collect(),
            lm_head: self.options.lm_head,
            embedding: self.embedding,
            accuracy: self.proven.as_ref().map(|proven| proven.accuracy.clone()),
            speed: "unverified".to_owned(),
        })
    }

    /// What was observed of a component, if anything was.
    pub(super) fn ranges(&self, kind: ComponentKind) -> Result<Option<&GraphRanges>> {
        let Some(observed) = &self.observed else {
            return Ok(None);
        };
        let ranges = observed.ranges.graphs.get(kind.name());
        ranges.map(Some).ok_or_else(|| Error::Argument {
            name: "scales",
            reason: format!("none of the component `{}`", kind.name()),
        })
    }
}

/// Makes a component a quantized graph that computes the rest in FP32, with the dimensions that
/// its file has.
pub(super) fn quantized_fp32(
    kind: ComponentKind,
    graph: &mut OnnxModel,
    quantization: &Quantization,
) -> Result<Option<QuantizeReport>> {
    if quantization.keeps_blocks() {
        let options = LowerOptions {
            weights: Some(DataType::F32),
            packed: PackedWeights::Blocks,
        };
        passes::lower(graph, &options)?;
    }
    passes::prepare_plain(graph, &[])?;
    let report = quantization.apply(kind, graph)?;
    passes::to_fp32(graph)?;
    Ok(report)
}
