//! `trtvlm build`: a bundle from a model folder.

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::ValueEnum;
use indicatif::HumanBytes;

use super::build_progress::BuildProgress;
use super::interrupt;
use super::main::say;
use super::quantization::QuantizationArgs;
use super::source::resolve;
use crate::build::{
    self, BuildOptions, BuildOutcome, Builder, Cuts, FinishOptions, TargetArg, resolve_targets,
};
use crate::bundle::{Bundle, Precision, Target};
use crate::error::Error;
use crate::model::Model;
use crate::onnx::passes::Tap;

/// Build engines from a model folder into a bundle
#[derive(clap::Args)]
pub struct Args {
    /// Model folder or hf:OWNER/NAME; or a portable bundle, of which this machine makes engines
    model: PathBuf,
    /// Where the bundle goes [default: engines/MODEL-PRECISION-TARGET]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Precision of weights and activations [default: fp16]
    #[arg(long, value_enum)]
    precision: Option<PrecisionArg>,
    /// What the engines run on: cpu, current (this machine's GPU, else its CPU), sm80, sm86, …, or
    /// onnx: lowered graphs in the hub's layout, for any runtime; a list makes one bundle for all
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "current", value_parser = parse_target)]
    target: Vec<TargetArg>,
    /// Write graphs for TensorRT's builder and no plans: `build BUNDLE` on the machine that has the GPU
    /// makes them; so it is by itself for a GPU that this machine's TensorRT does not build for
    #[arg(long)]
    portable: bool,
    /// Replace a bundle that is there
    #[arg(long)]
    force: bool,
    /// Positions of prompt and answer [default: the model's, at most 2048]
    #[arg(long, value_name = "N")]
    max_context: Option<usize>,
    /// Draft tokens that one step can verify [default: 4]
    #[arg(long, value_name = "K")]
    draft_tokens: Option<usize>,
    /// Pictures that one frame may be split into (SmolVLM) [default: 17]
    #[arg(long, value_name = "N")]
    tiles: Option<usize>,
    /// Inner values of the decoder to return, too: hidden, hidden-rows, layer:N, saliency:N+M
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    tap: Vec<Tap>,
    /// Split the LM head of TensorRT engines into parts of at most so many MiB: they need less memory
    /// in one piece
    #[arg(long, value_name = "MIB")]
    head_mib: Option<u64>,
    /// Files of the model folder to use: fp32, fp16, … [default: fp32, else fp16]
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Memory that a GPU kernel may use beside its tensors, in MiB
    #[arg(long, value_name = "MIB")]
    workspace_mib: Option<u64>,
    /// File of kernel timings, read before and written after a build on a GPU
    #[arg(long, value_name = "FILE")]
    timing_cache: Option<PathBuf>,
    #[command(flatten)]
    quantization: QuantizationArgs,
    /// Print the outcome as a JSON object
    #[arg(long)]
    json: bool,
}

/// Where bundles go by default.
const ENGINES: &str = "engines";

/// Draft tokens where the user does not say.
const DRAFT_TOKENS: usize = 4;

/// Pictures of a frame where the user does not say: SmolVLM's 4 x 4 and the whole.
const TILES: usize = 17;

#[derive(Clone, Copy, ValueEnum)]
enum PrecisionArg {
    Fp32,
    Fp16,
    /// 8-bit integer weights and activations
    Int8,
    /// 8-bit integer weights of the decoder
    Int8Weights,
    /// 4-bit integer weights of the decoder
    Int4Weights,
}

impl From<PrecisionArg> for Precision {
    fn from(precision: PrecisionArg) -> Self {
        match precision {
            PrecisionArg::Fp32 => Self::Fp32,
            PrecisionArg::Fp16 => Self::Fp16,
            PrecisionArg::Int8 => Self::Int8,
            PrecisionArg::Int8Weights => Self::Int8Weights,
            PrecisionArg::Int4Weights => Self::Int4Weights,
        }
    }
}

/// The arguments of this process, program first.
fn command_line() -> Vec<String> {
    std::env::args_os()
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect()
}

fn parse_target(text: &str) -> Result<TargetArg, Error> {
    match text {
        "current" => Ok(TargetArg::Current),
        _ => Ok(TargetArg::Fixed(text.parse::<Target>()?)),
    }
}

impl Args {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// Those of the build; nothing is left behind.
    pub fn run(self) -> anyhow::Result<()> {
        let cancel = interrupt::install()?;
        let path = resolve(&self.model, self.variant.as_deref(), cancel)?;
        if Bundle::is_bundle(&path) {
            return self.finish(&path);
        }
        let model = Model::load(&path, self.variant.as_deref())?;
        say(format_args!(
            "{}: {} files",
            path.display(),
            model.files.variant
        ));
        let targets = resolve_targets(&self.target)?;
        let out = match &self.out {
            Some(out) => out.clone(),
            None => self.default_out(&model, &targets),
        };
        if out.exists() && !self.force {
            // Before a calibration, which takes its time.
            return Err(Error::Exists { path: out }.into());
        }
        let precision = self.precision();
        let prepared = self.quantization.prepare(precision, &model, &out, cancel)?;
        let worker = std::env::current_exe().context("this program's own file")?;
        let options = BuildOptions {
            out: &out,
            force: self.force,
            targets: &targets,
            portable: self.portable,
            cuts: Cuts {
                taps: self.tap.clone(),
                head_bytes: self.head_mib.map(|mib| mib.saturating_mul(1 << 20)),
            },
            precision,
            quantization: prepared.quantization.as_ref(),
            max_context: self.max_context,
            draft_tokens: self.draft_tokens.unwrap_or(DRAFT_TOKENS),
            max_tiles: self.tiles.unwrap_or(TILES),
            workspace_bytes: self.workspace_bytes(),
            timing_cache: self.timing_cache.as_deref(),
            command_line: command_line(),
            worker: &worker,
            cancel: interrupt::shared(),
        };
        let mut progress = BuildProgress::new();
        let outcome = build::build(&model, &options, &mut |event| progress.on(event))?;
        progress.finish();
        prepared.clean();
        self.print(&outcome)
    }

    /// Makes engines of a portable bundle.
    fn finish(&self, path: &Path) -> anyhow::Result<()> {
        let fixed = [
            ("precision", self.precision.is_some()),
            ("max-context", self.max_context.is_some()),
            ("draft-tokens", self.draft_tokens.is_some()),
            ("tiles", self.tiles.is_some()),
            ("variant", self.variant.is_some()),
            ("tap", !self.tap.is_empty()),
            ("head-mib", self.head_mib.is_some()),
            ("portable", self.portable),
            ("calibration", self.quantization.is_given()),
        ];
        if let Some((name, _)) = fixed.into_iter().find(|(_, is_given)| *is_given) {
            let reason = format!("{} is a bundle, which has its own", path.display());
            return Err(Error::Argument { name, reason }.into());
        }
        let bundle = Bundle::open(path)?;
        let [target] = resolve_targets(&self.target)?[..] else {
            let reason = "a bundle is finished for one target".to_owned();
            return Err(Error::Argument {
                name: "target",
                reason,
            }
            .into());
        };
        let manifest = bundle.manifest();
        let out = self.out.clone().unwrap_or_else(|| {
            Path::new(ENGINES).join(format!(
                "{}-{}-{target}",
                manifest.model.name, manifest.precision
            ))
        });
        let worker = std::env::current_exe().context("this program's own file")?;
        let options = FinishOptions {
            out: &out,
            force: self.force,
            target,
            command_line: command_line(),
            builder: Builder {
                workspace_bytes: self.workspace_bytes(),
                timing_cache: self.timing_cache.as_deref(),
                worker: &worker,
                cancel: &interrupt::shared(),
            },
        };
        let mut progress = BuildProgress::new();
        let outcome = build::finish(&bundle, &options, &mut |event| progress.on(event))?;
        progress.finish();
        self.print(&outcome)
    }

    fn precision(&self) -> Precision {
        self.precision.map_or(Precision::Fp16, Precision::from)
    }

    fn workspace_bytes(&self) -> Option<u64> {
        self.workspace_mib.map(|mib| mib.saturating_mul(1 << 20))
    }

    fn default_out(&self, model: &Model, targets: &[Target]) -> PathBuf {
        let targets: Vec<String> = targets.iter().map(Target::to_string).collect();
        let name = format!(
            "{}-{}-{}",
            model.config.name,
            self.precision(),
            targets.join("-")
        );
        let kind = if self.portable { "-portable" } else { "" };
        Path::new(ENGINES).join(name + kind)
    }

    fn print(&self, outcome: &BuildOutcome) -> anyhow::Result<()> {
        let mut out = stdout().lock();
        if self.json {
            serde_json::to_writer(&mut out, outcome).map_err(std::io::Error::from)?;
            return Ok(writeln!(out)?);
        }
        for engine in &outcome.engines {
            let memory = match engine.peak_memory_bytes {
                0 => String::new(),
                bytes => format!(", peak memory {}", HumanBytes(bytes)),
            };
            writeln!(
                out,
                "{:<6} {:<8} {:>10}  {:.1} s{memory}  {}",
                engine.target,
                engine.component,
                HumanBytes(engine.bytes).to_string(),
                engine.seconds,
                engine.file
            )?;
        }
        Ok(writeln!(
            out,
            "{}: {} in {:.1} s, verified",
            outcome.bundle,
            HumanBytes(outcome.bytes),
            outcome.seconds
        )?)
    }
}
