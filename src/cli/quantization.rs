//! `build`'s options about integers.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use super::calibration::CalibrationArgs;
use super::gate::GateArgs;
use super::main::say;
use crate::build::Quantization;
use crate::bundle::Precision;
use crate::calibrate::DEFAULT_TOKENS;
use crate::error::{Error, Result};
use crate::items::Item;
use crate::model::Model;
use crate::quantize::{BLOCK_SIZES, Pattern, Scales};

/// What becomes integers, and from which ranges.
#[derive(clap::Args)]
pub struct QuantizationArgs {
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// File of scales that `calibrate` wrote, or an earlier build into its reports, instead of
    /// observing the model now; pictures are then for the proof of accuracy alone
    #[arg(long, value_name = "FILE")]
    scales: Option<PathBuf>,
    /// Quantize these nodes only: an operator (Conv) or a node's name, `*` for any text; may be
    /// repeated
    #[arg(long, value_name = "PATTERN", value_parser = parse_pattern)]
    include: Vec<Pattern>,
    /// Leave these nodes as they are
    #[arg(long, value_name = "PATTERN", value_parser = parse_pattern)]
    exclude: Vec<Pattern>,
    /// How much of activations' outliers moves into weights: 0 to 1, or off
    #[arg(long, value_name = "ALPHA", default_value = "0.5", value_parser = parse_smooth)]
    smooth: Smooth,
    /// Weights that share a scale with int4-weights, at most: 16, 32, 64, 128 or 256 [default: 32]
    #[arg(long, value_name = "N", value_parser = parse_block)]
    block: Option<usize>,
    /// Leave the LM head as it is
    #[arg(long)]
    no_quantize_head: bool,
    /// Leave the embedding table as it is
    #[arg(long)]
    no_quantize_embedding: bool,
    #[command(flatten)]
    gate: GateArgs,
}

/// Weights that share a scale where the user does not say, as published 4-bit files have them.
const BLOCK: usize = 32;

fn parse_block(text: &str) -> Result<usize> {
    let block = text.parse().ok().filter(|n| BLOCK_SIZES.contains(n));
    block.ok_or_else(|| argument("block", format!("`{text}` is none of {BLOCK_SIZES:?}")))
}

fn parse_pattern(text: &str) -> Result<Pattern> {
    text.parse()
}

/// `off`, or a number.
#[derive(Debug, Clone, Copy)]
struct Smooth(Option<f32>);

fn parse_smooth(text: &str) -> Result<Smooth> {
    match (text, text.parse::<f32>()) {
        ("off", _) => Ok(Smooth(None)),
        (_, Ok(alpha)) if (0.0..=1.0).contains(&alpha) => Ok(Smooth(Some(alpha))),
        _ => Err(argument(
            "smooth",
            format!("`{text}` is neither off nor from 0 to 1"),
        )),
    }
}

/// What a build quantizes, and the file that it leaves beside the bundle until that is whole.
pub struct Prepared {
    /// How the graphs are quantized, if they are.
    pub quantization: Option<Quantization>,
    observed: Option<PathBuf>,
}

impl Prepared {
    /// Removes what the bundle holds now.
    pub fn clean(&self) {
        let Some(path) = &self.observed else { return };
        if let Err(e) = std::fs::remove_file(path) {
            tracing::warn!("{} cannot be removed: {e}", path.display());
        }
    }
}

impl QuantizationArgs {
    /// Reads the scales, or observes the model, and proves that the quantized model still says what
    /// the model says. For FP16 the ranges are all that is prepared.
    ///
    /// # Errors
    /// [`Error::Argument`] for options that have no use with the precision; those of reading scales,
    /// of the calibration and of the proof.
    pub fn prepare(
        &self,
        precision: Precision,
        model: &Model,
        out: &Path,
        cancel: &'static AtomicBool,
    ) -> anyhow::Result<Prepared> {
        let (mut observed, mut items) = (None, None);
        let mut quantization = match precision {
            Precision::Int8 => {
                let ranges = self.ranges(model, out, cancel)?;
                (observed, items) = (ranges.observed, ranges.items);
                ranges.quantization
            }
            Precision::Fp16 if self.observes() => {
                self.refuse_others_than_ranges()?;
                let ranges = self.ranges(model, out, cancel)?;
                return Ok(Prepared {
                    quantization: Some(ranges.quantization),
                    observed: ranges.observed,
                });
            }
            Precision::Int8Weights => Quantization::of_weights(),
            Precision::Int4Weights => Quantization::of_blocks(self.block.unwrap_or(BLOCK)),
            _ => {
                self.refuse_others(precision)?;
                return Ok(Prepared {
                    quantization: None,
                    observed,
                });
            }
        };
        if precision != Precision::Int4Weights && self.block.is_some() {
            let reason = format!("{precision} has no blocks: use int4-weights");
            return Err(argument("block", reason).into());
        }
        if precision != Precision::Int8 {
            let ranges = [
                ("scales", self.scales.is_some()),
                ("calibration-method", self.calibration.method().is_some()),
            ];
            if let Some((name, _)) = ranges.into_iter().find(|(_, is_given)| *is_given) {
                let reason = format!("of no use with {precision}, which has no ranges");
                return Err(argument(name, reason).into());
            }
        }
        quantization.options.include.clone_from(&self.include);
        quantization.options.exclude.clone_from(&self.exclude);
        quantization.options.smooth = self.smooth.0;
        quantization.options.lm_head = !self.no_quantize_head;
        // A table with its rows in 8 bits is no part of what 4 bits were asked for.
        let table = precision != Precision::Int4Weights;
        quantization.embedding = table && !self.no_quantize_embedding;
        if let Some(path) = &observed {
            say(format_args!("scales: {}", path.display()));
        }
        if self.gate.needs_items()
            && let Some(items) = self.pictures(items, model)?
        {
            self.gate
                .prove(model, precision, &mut quantization, &items)?;
        }
        Ok(Prepared {
            quantization: Some(quantization),
            observed,
        })
    }

    /// Reads the scales, or observes the model.
    fn ranges(
        &self,
        model: &Model,
        out: &Path,
        cancel: &'static AtomicBool,
    ) -> anyhow::Result<Ranges> {
        let (mut observed, mut items) = (None, None);
        let path = match &self.scales {
            Some(path) => path.clone(),
            None => {
                let path = beside(out);
                let calibration = &self.calibration;
                let pictures = calibration.items(model)?;
                calibration.observe(model, &pictures, DEFAULT_TOKENS, &path, true, cancel)?;
                items = Some(pictures);
                observed = Some(path.clone());
                path
            }
        };
        let scales = Scales::load(&path)?;
        let method = self.calibration.method().unwrap_or(scales.method);
        let quantization = Quantization::with_scales(scales, method)?;
        quantization.check_model(&path, model)?;
        Ok(Ranges {
            quantization,
            observed,
            items,
        })
    }

    /// The pictures of the proof: those that were observed, or named; `None` if nobody named any and
    /// there are no samples, unless a proof was asked for.
    fn pictures(&self, observed: Option<Vec<Item>>, model: &Model) -> Result<Option<Vec<Item>>> {
        if observed.is_some() {
            return Ok(observed);
        }
        match self.calibration.items(model) {
            Err(Error::Argument { name, reason })
                if name == "calibration" && !self.gate.is_given() =>
            {
                tracing::warn!("the accuracy is not measured: {reason}");
                Ok(None)
            }
            items => items.map(Some),
        }
    }

    /// True if something says how ranges are to be found.
    fn observes(&self) -> bool {
        self.scales.is_some() || self.calibration.is_given()
    }

    /// True if something is said of integers at all.
    pub fn is_given(&self) -> bool {
        self.observes() || self.chooses()
    }

    /// True if something says what is to be integers.
    fn chooses(&self) -> bool {
        let names = !self.include.is_empty() || !self.exclude.is_empty();
        let leaves = self.no_quantize_head || self.no_quantize_embedding;
        names || leaves || self.block.is_some() || self.gate.is_given()
    }

    fn refuse_others(&self, precision: Precision) -> Result<()> {
        if self.is_given() {
            let reason =
                format!("{precision} quantizes nothing: use int8, int8-weights or int4-weights");
            return Err(argument("precision", reason));
        }
        Ok(())
    }

    /// FP16 has a use for what was seen, and for nothing else.
    fn refuse_others_than_ranges(&self) -> Result<()> {
        if self.chooses() || self.calibration.method().is_some() {
            let reason =
                "fp16 takes --calibration, --samples and --scales alone: it quantizes nothing";
            return Err(argument("precision", reason.to_owned()));
        }
        Ok(())
    }
}

/// Ranges, and where they are from.
struct Ranges {
    quantization: Quantization,
    /// The file that was written for them.
    observed: Option<PathBuf>,
    /// The pictures that were observed for them.
    items: Option<Vec<Item>>,
}

fn argument(name: &'static str, reason: String) -> Error {
    Error::Argument { name, reason }
}

/// Where scales go while the bundle is not there yet.
fn beside(out: &Path) -> PathBuf {
    let mut path = out.as_os_str().to_owned();
    path.push(".scales.json");
    PathBuf::from(path)
}
