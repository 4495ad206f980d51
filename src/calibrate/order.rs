//! The order of a calibration.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::diagnose::diagnose;
use super::finish::finish;
use super::graphs::{DECODER, Observable, VISION, open};
use super::record::{Cancel, Shared};
use super::state::State;
use crate::digest::{sha256_bytes, sha256_file};
use crate::error::{Error, Result};
use crate::items::Item;
use crate::model::Model;
use crate::onnx::OnnxModel;
use crate::pipeline::{Ask, Pipeline};
use crate::preprocess::Frame;
use crate::quantize::{Method, ModelName, Scales, graph_digest};
use crate::sync::lock;

/// Tokens of each answer that are observed where the user does not say.
pub const DEFAULT_TOKENS: usize = 8;

/// Largest part of the pictures that may be unreadable: one of this many.
const SKIPPED_ONE_IN: usize = 5;

/// Files beside the graphs on which prompts and pixels depend, as far as they are there.
const CONFIGS: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.json",
    "chat_template.jinja",
];

/// What to observe, and where the scales go.
pub struct CalibrateOptions<'a> {
    /// Pictures and questions; at least one.
    pub items: &'a [Item],
    /// Method that the file proposes; it holds the ranges of all.
    pub method: Method,
    /// Share of the values, in percent, that the percentile method keeps inside.
    pub percentile: f64,
    /// Most tokens of each answer.
    pub max_tokens: usize,
    /// The file of scales.
    pub out: &'a Path,
    /// Replace a file that is there.
    pub force: bool,
    /// Says whether to stop.
    pub cancel: Cancel,
}

/// How far a calibration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Items that are done, skipped ones included.
    pub done: usize,
    /// All items.
    pub total: usize,
    /// Items that an earlier, interrupted run did.
    pub resumed: usize,
    /// Items whose picture could not be read.
    pub skipped: usize,
}

/// What a calibration found.
#[derive(Debug, Clone, Serialize)]
pub struct CalibrateOutcome {
    /// The file of scales.
    pub out: PathBuf,
    /// The method that it proposes.
    pub method: Method,
    /// Items that were observed.
    pub items: usize,
    /// Items that an earlier, interrupted run observed.
    pub resumed: usize,
    /// Pictures that could not be read.
    pub skipped: Vec<PathBuf>,
    /// Tensors with a range: of the vision tower, of the decoder.
    pub tensors: [usize; 2],
    /// Tensors that have the same value everywhere: their range says nothing of other pictures.
    pub constant: Vec<String>,
    /// Wall time of this run.
    pub seconds: f64,
}

/// Observes a model and writes its scales.
///
/// # Errors
/// [`Error::Exists`] if the output is there; [`Error::Malformed`] if too many pictures cannot be
/// read; [`Error::Unsupported`] naming the node that makes NaN or infinity; [`Error::Cancelled`]
/// after a stop, with everything up to the last whole item kept for the next run; and those of
/// reading and running the model.
pub fn calibrate(
    model: &Model,
    options: &CalibrateOptions<'_>,
    on_progress: &mut dyn FnMut(&Progress),
) -> Result<CalibrateOutcome> {
    let start = Instant::now();
    check(options)?;
    let (vision, vision_graph) = Observable::new(VISION, model)?;
    let (decoder, decoder_graph) = Observable::new(DECODER, model)?;
    let partial = State::path(options.out);
    let key = key(model, options, [&vision, &decoder])?;
    let mut state = resume(&partial, key, [&vision, &decoder])?;
    let resumed = state.done;

    let shared = Shared::new();
    let watched = |of: &Observable, graph: OnnxModel| {
        let recorder = of.recorder(&shared, &options.cancel);
        (graph, Some((of.names.clone(), recorder)))
    };
    let records = [&vision, &decoder].map(|of| Arc::clone(&of.record));
    let mut pipeline = None;
    if state.done < options.items.len() {
        pipeline = Some(open(
            model,
            watched(&vision, vision_graph),
            watched(&decoder, decoder_graph),
            &shared,
            records,
        )?);
    }
    let ask = Ask {
        max_tokens: Some(options.max_tokens),
        ..Ask::default()
    };
    let progress = |state: &State| Progress {
        done: state.done,
        total: options.items.len(),
        resumed,
        skipped: state.skipped.len(),
    };
    on_progress(&progress(&state));
    for item in options.items.iter().skip(state.done) {
        if (options.cancel)() {
            return Err(Error::Cancelled);
        }
        let Some(running) = pipeline.as_mut() else {
            break;
        };
        match observe(running, item, &ask) {
            Ok(()) => {}
            Err(Outcome::Unreadable(error)) => {
                tracing::warn!("skipped: {error}");
                state.skipped.push(item.image.clone());
                check_skipped(&state.skipped, options.items.len(), &error)?;
            }
            Err(Outcome::Failed(error, frame)) => {
                let Some(fault) = shared.fault() else {
                    return Err(error);
                };
                // Its weights need not be in memory twice.
                drop(pipeline);
                return Err(diagnose(model, &fault, item, &frame, &ask)?);
            }
        }
        state.done += 1;
        for of in [&vision, &decoder] {
            let record = lock(&of.record).clone();
            state.graphs.insert(of.component.to_owned(), record);
        }
        state.save(&partial)?;
        on_progress(&progress(&state));
    }
    drop(pipeline);

    let mut constant = Vec::new();
    let mut scales = Scales::new(name(model), options.method, options.percentile);
    scales.items = state.done - state.skipped.len();
    scales.skipped = state.skipped.len();
    scales.max_tokens = options.max_tokens;
    let tensors = [&vision, &decoder].map(|of| {
        let (graph, still) = finish(of, options.percentile);
        constant.extend(still.iter().map(|name| format!("{}: {name}", of.component)));
        let n_tensors = graph.tensors.len();
        scales.graphs.insert(of.component.to_owned(), graph);
        n_tensors
    });
    scales.save(options.out)?;
    // The scales are whole; a state that stays would only be read by the same command again.
    match std::fs::remove_file(&partial) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!("{} cannot be removed: {e}", partial.display());
        }
        _ => {}
    }
    Ok(CalibrateOutcome {
        out: options.out.to_path_buf(),
        method: options.method,
        items: scales.items,
        resumed,
        skipped: state.skipped,
        tensors,
        constant,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Why an item was not observed.
enum Outcome {
    Unreadable(Error),
    Failed(Error, Box<Frame>),
}

fn observe(pipeline: &mut Pipeline, item: &Item, ask: &Ask<'_>) -> Result<(), Outcome> {
    let frame = Frame::load(&item.image).map_err(Outcome::Unreadable)?;
    match pipeline.ask(&frame, &item.prompt, ask, &mut |_| {}) {
        Ok(_) => Ok(()),
        Err(error @ Error::Image { .. }) => Err(Outcome::Unreadable(error)),
        Err(Error::Prompt { reason }) => {
            let reason = format!("{}: {reason}", item.origin);
            Err(Outcome::Failed(Error::Prompt { reason }, Box::new(frame)))
        }
        Err(error) => Err(Outcome::Failed(error, Box::new(frame))),
    }
}

fn check(options: &CalibrateOptions<'_>) -> Result<()> {
    let argument = |name, reason: String| Err(Error::Argument { name, reason });
    if !(options.percentile > 0.0 && options.percentile <= 100.0) {
        let reason = format!("{}, above 0 and at most 100", options.percentile);
        return argument("percentile", reason);
    }
    if options.max_tokens == 0 {
        return argument("max-tokens", "0, at least 1".to_owned());
    }
    if options.items.is_empty() {
        return argument("calibration", "names no items".to_owned());
    }
    if options.items.len() == 1 {
        tracing::warn!("one picture only: its ranges say little about others");
    }
    let out = options.out;
    if out.is_dir() {
        return Err(Error::malformed(out, "is a folder"));
    }
    if out.exists() && !options.force {
        return Err(Error::Exists {
            path: out.to_path_buf(),
        });
    }
    let folder = out.parent().filter(|p| !p.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    std::fs::metadata(folder)
        .map_err(Error::io(folder))
        .map(drop)
}

/// Refuses data of which too much cannot be read.
fn check_skipped(skipped: &[PathBuf], n_items: usize, newest: &Error) -> Result<()> {
    if skipped.len() * SKIPPED_ONE_IN <= n_items {
        return Ok(());
    }
    let first = skipped
        .first()
        .map(PathBuf::as_path)
        .unwrap_or(Path::new(""));
    let reason = format!(
        "more than one in {SKIPPED_ONE_IN} of {n_items} pictures cannot be read; the newest: {newest}"
    );
    Err(Error::malformed(first, reason))
}

/// The state of an interrupted run of the same calibration, its records in place; else a new one.
fn resume(partial: &Path, key: String, graphs: [&Observable; 2]) -> Result<State> {
    let Some(mut state) = State::load(partial, &key)? else {
        return Ok(State::new(key));
    };
    for of in graphs {
        let record = state.graphs.remove(of.component);
        let record = record.filter(|record| record.is_of(of.names.len()));
        *lock(&of.record) = record.ok_or_else(|| {
            let reason = format!(
                "lacks what was seen of {}: delete it to start over",
                of.component
            );
            Error::malformed(partial, reason)
        })?;
    }
    Ok(state)
}

/// Digest of everything that decides what will be seen.
fn key(model: &Model, options: &CalibrateOptions<'_>, graphs: [&Observable; 2]) -> Result<String> {
    let digest = |path: &Path| sha256_file(path, |_| {}).map(|digest| digest.sha256);
    let mut lines = vec![
        format!("trtvlm {}", env!("CARGO_PKG_VERSION")),
        format!("max_tokens {}", options.max_tokens),
        format!(
            "embed {}",
            graph_digest(&OnnxModel::load(&model.files.embed)?)?
        ),
    ];
    for of in graphs {
        lines.push(format!("{} {}", of.component, of.source_sha256));
        lines.extend(of.candidates.iter().map(|c| format!("{c:?}")));
    }
    for name in CONFIGS {
        let path = model.dir.join(name);
        if path.is_file() {
            lines.push(format!("{name} {}", digest(&path)?));
        }
    }
    for item in options.items {
        // A picture that cannot be read is skipped when its turn comes.
        let image = digest(&item.image).unwrap_or_default();
        lines.push(format!("{image} {:?}", item.prompt));
    }
    Ok(sha256_bytes(lines.join("\n").as_bytes()))
}

fn name(model: &Model) -> ModelName {
    ModelName {
        name: model.config.name.clone(),
        family: model.config.family.name.to_owned(),
        variant: model.files.variant.clone(),
    }
}
