//! The order of `train draft`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::checks;
use super::collect::{Collecting, TOP, collect};
use super::corrected::{item_of, usable};
use super::export::export;
use super::failed;
use super::fit::{Event as FitEvent, FitOptions, fit};
use super::net::{CHAIN, HEAD_DIM, Net, ratio};
use super::params::Params;
use super::shards::{Shards, save, write_whole};
use crate::backend::CpuBackend;
use crate::corrections::Correction;
use crate::digest::{sha256_bytes, sha256_file};
use crate::error::{Error, Result};
use crate::items::Item;
use crate::model::{DraftKind, DraftSpec, Model, TargetFile, fingerprint};
use crate::onnx::passes::Tap;

/// Stem of decoder files.
pub(super) const DECODER: &str = "decoder_model_merged";

/// Tokens that an id has to be expected to be, all in all, to be drafted if it never was one.
const LEAST_MASS: f64 = 0.5;

/// What to train.
pub struct DraftOptions<'a> {
    /// What the draft is.
    pub kind: DraftKind,
    /// Pictures and questions; at least two pictures.
    pub items: &'a [Item],
    /// Drafts that the target refused: their answers are learned from, too, and what it said instead counts more. Never of
    /// pictures that are judged.
    pub corrections: &'a [Correction],
    /// Folder of the draft's files.
    pub out: &'a Path,
    /// Replace files that are there.
    pub force: bool,
    /// Most epochs.
    pub epochs: usize,
    /// Epochs without a better score after which training ends.
    pub patience: usize,
    /// Answers of a step.
    pub batch: usize,
    /// Largest learning rate.
    pub rate: f64,
    /// Inner width; about that of the target if not said.
    pub width: Option<usize>,
    /// Last layer of the target that an early exit runs, from 0; a quarter of the layers if not said.
    pub exit_layer: Option<usize>,
    /// Most ids of the vocabulary.
    pub vocabulary: usize,
    /// Share of the pictures that is judged and not learned from.
    pub held_out: f64,
    /// Most tokens of an answer.
    pub max_tokens: Option<usize>,
    /// Decides the first weights and the order of answers.
    pub seed: u64,
    /// Says whether to stop.
    pub cancel: &'a dyn Fn() -> bool,
}

/// A step of the training.
#[derive(Debug)]
pub enum Event {
    /// Items that were asked, of all.
    Asked(usize, usize),
    /// Answers of an epoch that are done, of all, and the epoch.
    Example(usize, usize, usize),
    /// An epoch is done.
    Epoch(EpochReport),
}

/// What came of an epoch on the held-out answers.
#[derive(Debug, Clone, Serialize)]
pub struct EpochReport {
    /// The epoch, from 1.
    pub epoch: usize,
    /// Mean loss of what was learned from.
    pub loss: f64,
    /// Share of the proposed tokens that the target accepts.
    pub acceptance: f64,
    /// Tokens for each pass of the target.
    pub tokens_per_pass: f64,
}

/// What was trained.
#[derive(Debug, Clone, Serialize)]
pub struct DraftOutcome {
    /// The graph.
    pub graph: PathBuf,
    /// Its kind.
    pub kind: DraftKind,
    /// Items that were asked.
    pub items: usize,
    /// Answers with refused drafts among them.
    pub corrections: usize,
    /// Items that an earlier, interrupted run asked.
    pub resumed: usize,
    /// Pictures that could not be read.
    pub skipped: Vec<PathBuf>,
    /// Numbers of the draft.
    pub parameters: usize,
    /// Ids that it drafts.
    pub vocabulary: usize,
    /// Share of the target's probability that these ids have in the answers.
    pub vocabulary_mass: f64,
    /// Share of the target's probability that was collected.
    pub collected_mass: f64,
    /// The epoch whose weights were kept, from 1.
    pub best: usize,
    /// All epochs.
    pub epochs: Vec<EpochReport>,
    /// Wall time of this run.
    pub seconds: f64,
}

/// Trains a draft for a model and writes `<kind>.onnx`, `<kind>.json` and `<kind>.safetensors`.
///
/// # Errors
/// [`Error::Exists`] if they are there, [`Error::Argument`] for options that cannot be,
/// [`Error::Unavailable`] if the model cannot be drafted; [`Error::Cancelled`] after a stop: the same call
/// then goes on where this one was; those of reading and running the model.
pub fn train_draft(
    model: &Model,
    options: &DraftOptions<'_>,
    on_event: &mut dyn FnMut(Event),
) -> Result<DraftOutcome> {
    let start = Instant::now();
    let layer = check(model, options)?;
    let kind = options.kind;
    let file = |ending: &str| options.out.join(format!("{kind}.{ending}"));
    let pictures = pictures(options.items);
    let n_pictures = pictures.last().map_or(0, |last| last + 1);
    let n_held = checks::n_held(n_pictures, options.held_out);
    let is_held = |item: usize| pictures[item] >= n_pictures - n_held;
    let corrections = usable(options.corrections, options.items, &is_held);
    let n_corrections = corrections.len();
    let mut items: Vec<Item> = corrections.iter().copied().map(item_of).collect();
    items.extend_from_slice(options.items);
    let held_out = |index: usize| index >= n_corrections && is_held(index - n_corrections);

    // The key of the data tells what the target said, that of the training the rest.
    let data_key = data_key(model, options, &corrections, layer)?;
    let work = options.out.join(format!("{kind}.partial"));
    let data = work.join(&data_key[..16]);
    std::fs::create_dir_all(&data).map_err(Error::io(&data))?;
    let mut shards = Shards::open(&data)?;
    let tap = layer.map_or(Tap::Hidden, Tap::Layer);
    let backend = CpuBackend::load_tapped(model, Some(tap))?;
    let embedding = Arc::clone(backend.embedding());
    let collecting = Collecting {
        items: &items,
        corrections: &corrections,
        kind,
        prompt_rows: kind == DraftKind::Head,
        max_tokens: options.max_tokens,
        cancel: options.cancel,
    };
    let total = items.len();
    let collected = collect(model, backend, &mut shards, &collecting, &mut |done| {
        on_event(Event::Asked(done, total));
    })?;

    let words = vocabulary(&shards, &held_out, options.vocabulary)?;
    let net = Net {
        kind,
        d_model: model.config.d_model,
        width: options.width.unwrap_or(default_width(model.config.d_model)),
        vocabulary: words.ids,
        eos: model.config.eos.clone(),
        embedding,
    };
    let mut params = Params::new(options.seed);
    net.init(&mut params)?;
    let key = training_key(&data_key, options, &net);
    let fit_options = FitOptions {
        epochs: options.epochs,
        batch: options.batch,
        rate: options.rate,
        patience: options.patience,
        seed: options.seed,
        held_out: &held_out,
        checkpoint: &work.join(format!("{}.safetensors", &key[..16])),
        key: &key,
        cancel: options.cancel,
    };
    let report = |epoch: usize, result: &super::Epoch| EpochReport {
        epoch: epoch + 1,
        loss: result.loss,
        acceptance: ratio(&result.sums, 1, 0),
        tokens_per_pass: ratio(&result.sums, 2, 3),
    };
    let (best, epochs) = fit(&mut params, &net, &shards, &fit_options, &mut |event| {
        on_event(match event {
            FitEvent::Example { epoch, done, total } => Event::Example(*done, *total, *epoch),
            FitEvent::Epoch { epoch, result, .. } => Event::Epoch(report(*epoch, result)),
        });
    })?;
    let epochs: Vec<EpochReport> = (0..).zip(&epochs).map(|(i, e)| report(i, e)).collect();

    let graph = file("onnx");
    export(&net, &params, &graph)?;
    save(&params.values()?, &file("safetensors"))?;
    let spec = DraftSpec {
        format: DraftSpec::FORMAT,
        kind,
        targets: targets(&model.files.decoder, DECODER)?,
        tokenizer_sha256: sha256_file(&model.dir.join("tokenizer.json"), |_| {})?.sha256,
        graph_sha256: sha256_file(&graph, |_| {})?.sha256,
        d_model: model.config.d_model,
        exit_layer: layer,
        vocabulary: net.vocabulary.clone(),
        acceptance: epochs[best].acceptance,
        training: serde_json::json!({
            "created_by": format!("trtvlm {}", env!("CARGO_PKG_VERSION")),
            "data_sha256": data_key,
            "items": total,
            "corrections": n_corrections,
            "seed": options.seed,
            "width": net.width,
            "best": epochs[best],
        }),
    };
    write_json(&spec, &file("json"))?;
    std::fs::remove_dir_all(&work).map_err(Error::io(&work))?;
    Ok(DraftOutcome {
        graph,
        kind,
        items: total - collected.skipped.len(),
        corrections: n_corrections,
        resumed: collected.resumed,
        skipped: collected.skipped,
        parameters: params.n_elements(),
        vocabulary: net.vocabulary.len(),
        vocabulary_mass: words.mass,
        collected_mass: words.collected,
        best: best + 1,
        epochs,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Checks what can be checked before the model is loaded; returns the exit layer, if there is one.
fn check(model: &Model, options: &DraftOptions<'_>) -> Result<Option<usize>> {
    let argument = |name, reason: String| Err(Error::Argument { name, reason });
    let n_layers = model.config.n_layers;
    let layer = match (options.kind, options.exit_layer) {
        (DraftKind::Head, None) => None,
        (DraftKind::Head, Some(_)) => {
            return argument("exit-layer", "acts with --kind early-exit".to_owned());
        }
        (DraftKind::EarlyExit, layer) => {
            let layer = layer.unwrap_or((n_layers / 4).max(1) - 1);
            if layer + 1 >= n_layers {
                let most = n_layers.saturating_sub(2);
                return argument("exit-layer", format!("{layer}, from 0 to {most}"));
            }
            Some(layer)
        }
    };
    let width = options.width.unwrap_or(default_width(model.config.d_model));
    if width == 0 || !width.is_multiple_of(HEAD_DIM) || width > crate::limits::MODEL_WIDTH {
        return argument("width", format!("{width}, a multiple of {HEAD_DIM}"));
    }
    checks::at_least_one(&[
        ("epochs", options.epochs),
        ("batch", options.batch),
        ("patience", options.patience),
        ("vocabulary", options.vocabulary),
    ])?;
    if options.max_tokens.is_some_and(|n| n < 2) {
        return argument(
            "max-tokens",
            "at least 2: the first is not drafted".to_owned(),
        );
    }
    checks::rate(options.rate)?;
    checks::held_out(options.held_out)?;
    checks::pictures(pictures(options.items).last().map_or(0, |last| last + 1))?;
    for ending in ["onnx", "json", "safetensors"] {
        let path = options.out.join(format!("{}.{ending}", options.kind));
        checks::output(&path, options.force)?;
    }
    Ok(layer)
}

/// The width of the target, rounded down to whole heads; one head at least.
fn default_width(d_model: usize) -> usize {
    (d_model / HEAD_DIM).max(1) * HEAD_DIM
}

/// The number of each item's picture: items of one picture are never learned from and judged at once.
fn pictures(items: &[Item]) -> Vec<usize> {
    let mut known = BTreeMap::new();
    let number = |item| {
        let n = known.len();
        *known.entry(item).or_insert(n)
    };
    let mut highest = 0;
    let numbers = items.iter().map(|item| &item.image).map(number);
    // A picture that comes again later belongs to the newest one: numbers never fall.
    numbers
        .map(|n| {
            highest = highest.max(n);
            highest
        })
        .collect()
}

/// Digest of everything that decides what the target says.
fn data_key(
    model: &Model,
    options: &DraftOptions<'_>,
    corrections: &[&Correction],
    layer: Option<usize>,
) -> Result<String> {
    let mut lines = vec![
        format!("trtvlm {}", env!("CARGO_PKG_VERSION")),
        format!("{} {layer:?} {:?}", options.kind, options.max_tokens),
    ];
    lines.extend(source_lines(model, options.items)?);
    for correction in corrections {
        lines.push(format!("{correction:?}"));
    }
    Ok(sha256_bytes(lines.join("\n").as_bytes()))
}

/// What tells a model and items from others.
pub(super) fn source_lines(model: &Model, items: &[Item]) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let files = &model.files;
    for path in [&files.vision, &files.embed, &files.decoder] {
        lines.push(fingerprint(path)?);
    }
    for (name, path) in crate::model::companions(&model.dir)? {
        // What is trained does not decide what the model says.
        if !name.contains('/') && !name.ends_with(".safetensors") {
            lines.push(format!("{name} {}", sha256_file(&path, |_| {})?.sha256));
        }
    }
    for item in items {
        // A picture that cannot be read is skipped when its turn comes.
        let image = sha256_file(&item.image, |_| {}).map(|digest| digest.sha256);
        lines.push(format!("{} {:?}", image.unwrap_or_default(), item.prompt));
    }
    Ok(lines)
}

/// Digest of everything that decides what comes of the training.
fn training_key(data_key: &str, options: &DraftOptions<'_>, net: &Net) -> String {
    let told = format!(
        "{data_key} {} {} {} {} {} {} {} {CHAIN} {:?}",
        options.epochs,
        options.patience,
        options.batch,
        options.rate,
        options.held_out,
        options.seed,
        net.width,
        net.vocabulary,
    );
    sha256_bytes(told.as_bytes())
}

struct Words {
    ids: Vec<u32>,
    /// Share of the probability that these ids have.
    mass: f64,
    /// The same of all ids that were collected.
    collected: f64,
}

/// The ids that the target expects most in the answers to be learned from.
fn vocabulary(shards: &Shards, held_out: &dyn Fn(usize) -> bool, most: usize) -> Result<Words> {
    let (mut mass, mut n_tokens) = (BTreeMap::<u32, f64>::new(), 0usize);
    let mut chosen = BTreeSet::new();
    for file in 0..shards.n_files() {
        for (index, record) in shards.read(file)? {
            let (Some(ids), Some(p)) = (record.get("top_ids"), record.get("top_p")) else {
                continue;
            };
            if held_out(index) {
                continue;
            }
            let read = || -> candle_core::Result<(Vec<u32>, Vec<f32>)> {
                Ok((ids.flatten_all()?.to_vec1()?, p.flatten_all()?.to_vec1()?))
            };
            let (top_ids, top_p) = read().map_err(failed)?;
            n_tokens += ids.dim(0).map_err(failed)?;
            chosen.extend(top_ids.iter().copied().step_by(TOP));
            for (id, p) in top_ids.into_iter().zip(top_p) {
                *mass.entry(id).or_default() += f64::from(p);
            }
        }
    }
    let total = n_tokens.max(1) as f64;
    let collected = mass.values().sum::<f64>() / total;
    let mut by_mass: Vec<(u32, f64)> = mass.into_iter().collect();
    by_mass.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    by_mass.truncate(most);
    by_mass.retain(|(id, mass)| *mass >= LEAST_MASS || chosen.contains(id));
    let mut ids: Vec<u32> = by_mass.iter().map(|(id, _)| *id).collect();
    ids.sort_unstable();
    if ids.is_empty() {
        return Err(Error::Argument {
            name: "data",
            reason: "the model says nothing on these items that could be drafted".to_owned(),
        });
    }
    let mass = by_mass.iter().map(|(_, mass)| mass).sum::<f64>() / total;
    Ok(Words {
        ids,
        mass,
        collected,
    })
}

/// Fingerprints of the decoder in every variant that stands in a model folder.
///
/// # Errors
/// Those of reading them.
pub fn decoder_fingerprints(model: &Model) -> Result<Vec<String>> {
    let of = |target: TargetFile| target.fingerprint;
    let targets = targets(&model.files.decoder, DECODER)?;
    Ok(targets.into_iter().map(of).collect())
}

/// A graph in every variant that stands beside it, whose names all begin with `stem`: they are of the same weights.
pub(super) fn targets(graph: &Path, stem: &str) -> Result<Vec<TargetFile>> {
    let folder = graph.parent().unwrap_or(Path::new("."));
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let name = entry.map_err(Error::io(folder))?.file_name();
        if let Ok(name) = name.into_string()
            && name.starts_with(stem)
            && name.ends_with(".onnx")
        {
            names.push(name);
        }
    }
    names.sort();
    let target = |file: String| {
        let fingerprint = fingerprint(&folder.join(&file))?;
        Ok(TargetFile { file, fingerprint })
    };
    names.into_iter().map(target).collect()
}

fn write_json(spec: &DraftSpec, path: &Path) -> Result<()> {
    write_whole(path, |file| {
        let mut text = serde_json::to_vec(spec).map_err(|e| Error::io(path)(e.into()))?;
        text.push(b'\n');
        std::fs::write(file, text).map_err(Error::io(file))
    })
}
