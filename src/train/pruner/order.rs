//! The order of `train pruner`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use super::super::checks;
use super::super::draft::{DECODER, source_lines, targets};
use super::super::fit::{Event, FitOptions, fit};
use super::super::net::unit_scale;
use super::super::params::Params;
use super::super::shards::{Shards, part, write_whole};
use super::collect::{Collecting, collect};
use super::net::Net;
use crate::digest::{sha256_bytes, sha256_file};
use crate::error::{Error, Result};
use crate::items::Item;
use crate::model::{Model, TrainedKind, TrainedSpec, trained_bytes};
use crate::prune::LearnedSettings;

/// Width of the hidden layer for the question.
const QUESTION_WIDTH: usize = 32;

/// Width of the hidden layer of the MLP.
const MLP_WIDTH: usize = 32;

/// Widths that projections may have.
const WIDTHS: std::ops::RangeInclusive<usize> = 16..=256;

/// What to train.
pub struct PrunerOptions<'a> {
    /// Pictures and questions; at least two pictures.
    pub items: &'a [Item],
    /// The file to write.
    pub out: &'a Path,
    /// Replace a file that is there.
    pub force: bool,
    /// Most epochs.
    pub epochs: usize,
    /// Epochs without a better score after which training ends.
    pub patience: usize,
    /// Pictures of a step.
    pub batch: usize,
    /// Largest learning rate.
    pub rate: f64,
    /// Width of the projections, a multiple of 16.
    pub width: usize,
    /// What a token that stays leaves its neighbours of their importance, from 0 to 1.
    pub neighbours: f64,
    /// Share of the tokens that stay which lie evenly over the picture, from 0 to 1.
    pub anchors: f64,
    /// Share of the pictures that is judged and not learned from.
    pub held_out: f64,
    /// Most tokens of an answer.
    pub max_tokens: Option<usize>,
    /// Decides the first weights and the order of pictures.
    pub seed: u64,
    /// Says whether to stop.
    pub cancel: &'a dyn Fn() -> bool,
}

/// A step of the training.
#[derive(Debug)]
pub enum PrunerEvent {
    /// Pictures that the model was asked about, of all.
    Asked(usize, usize),
    /// Pictures of an epoch that are done, of all, and the epoch, from 0.
    Example(usize, usize, usize),
    /// An epoch is done.
    Epoch(PrunerEpoch),
}

/// What came of an epoch.
#[derive(Debug, Clone, Serialize)]
pub struct PrunerEpoch {
    /// The epoch, from 1.
    pub epoch: usize,
    /// Mean loss of what was learned from.
    pub loss: f64,
    /// On held-out pictures: the attention of the answers that the tenth gets which the net finds most important, as a
    /// share of what the best tenth gets.
    pub attention: f64,
}

/// What was trained.
#[derive(Debug, Clone, Serialize)]
pub struct PrunerOutcome {
    /// The file.
    pub file: PathBuf,
    /// Pictures that were asked about.
    pub pictures: usize,
    /// Questions.
    pub items: usize,
    /// Pictures that an earlier, interrupted run asked about.
    pub resumed: usize,
    /// Pictures that could not be read.
    pub skipped: Vec<PathBuf>,
    /// Numbers of the net.
    pub parameters: usize,
    /// The epoch whose weights were kept, from 1.
    pub best: usize,
    /// All epochs.
    pub epochs: Vec<PrunerEpoch>,
    /// Wall time of this run.
    pub seconds: f64,
}

/// Trains a pruner for a model and writes its `pruner.safetensors`.
///
/// # Errors
/// [`Error::Exists`] if the file is there, [`Error::Argument`] for options that cannot be;
/// [`Error::Cancelled`] after a stop: the same call then goes on where this one was; those of reading
/// and running the model.
pub fn train_pruner(
    model: &Model,
    options: &PrunerOptions<'_>,
    on_event: &mut dyn FnMut(PrunerEvent),
) -> Result<PrunerOutcome> {
    let start = Instant::now();
    let pictures = by_picture(options.items);
    check(options, pictures.len())?;
    let n_held = checks::n_held(pictures.len(), options.held_out);
    let held_out = |index: usize| index >= pictures.len() - n_held;

    let data_key = data_key(model, options)?;
    let work = options.out.with_extension("partial");
    let data = work.join(&data_key[..16]);
    std::fs::create_dir_all(&data).map_err(Error::io(&data))?;
    let mut shards = Shards::open(&data)?;
    let collecting = Collecting {
        pictures: &pictures,
        max_tokens: options.max_tokens,
        cancel: options.cancel,
    };
    let collected = collect(model, &mut shards, &collecting, &mut |done| {
        on_event(PrunerEvent::Asked(done, pictures.len()));
    })?;

    let net = net(model, options, &shards)?;
    let mut params = Params::new(options.seed);
    net.init(&mut params)?;
    let key = training_key(&data_key, options);
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
    let report = |epoch: usize, result: &super::super::Epoch| PrunerEpoch {
        epoch: epoch + 1,
        loss: result.loss,
        attention: result.score,
    };
    let (best, epochs) = fit(&mut params, &net, &shards, &fit_options, &mut |event| {
        on_event(match event {
            Event::Example { epoch, done, total } => PrunerEvent::Example(*done, *total, *epoch),
            Event::Epoch { epoch, result, .. } => PrunerEvent::Epoch(report(*epoch, result)),
        });
    })?;
    let epochs: Vec<PrunerEpoch> = epochs
        .iter()
        .enumerate()
        .map(|(epoch, result)| report(epoch, result))
        .collect();

    let spec = TrainedSpec {
        format: TrainedSpec::FORMAT,
        kind: TrainedKind::Pruner,
        targets: targets(&model.files.decoder, DECODER)?,
        tokenizer_sha256: sha256_file(&model.dir.join("tokenizer.json"), |_| {})?.sha256,
        d_model: model.config.d_model,
        settings: serde_json::json!(LearnedSettings {
            neighbours: options.neighbours,
            anchors: options.anchors,
        }),
        training: serde_json::json!({
            "created_by": format!("trtvlm {}", env!("CARGO_PKG_VERSION")),
            "data_sha256": data_key,
            "pictures": pictures.len(),
            "items": options.items.len(),
            "seed": options.seed,
            "epoch": best + 1,
            "attention": (epochs[best].attention * 1e4).round() / 1e4,
        }),
    };
    // For rows and embeddings as the model makes them.
    let tensors = params.tensors(&|name| match name {
        "visual" => net.feature_scale,
        "question" => net.question_scale,
        _ => 1.0,
    })?;
    let bytes = trained_bytes(options.out, &spec, &tensors)?;
    write_whole(options.out, |file| {
        std::fs::write(file, &bytes).map_err(Error::io(file))
    })?;
    std::fs::remove_dir_all(&work).map_err(Error::io(&work))?;
    Ok(PrunerOutcome {
        file: options.out.to_path_buf(),
        pictures: pictures.len() - collected.skipped.len(),
        items: options.items.len(),
        resumed: collected.resumed,
        skipped: collected.skipped,
        parameters: params.n_elements(),
        best: best + 1,
        epochs,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Checks what can be checked before the model is loaded.
fn check(options: &PrunerOptions<'_>, n_pictures: usize) -> Result<()> {
    if !WIDTHS.contains(&options.width) || !options.width.is_multiple_of(16) {
        let (least, most) = (WIDTHS.start(), WIDTHS.end());
        let reason = format!("{}, a multiple of 16 from {least} to {most}", options.width);
        let name = "width";
        return Err(Error::Argument { name, reason });
    }
    checks::at_least_one(&[
        ("epochs", options.epochs),
        ("batch", options.batch),
        ("patience", options.patience),
        ("max-tokens", options.max_tokens.unwrap_or(1)),
    ])?;
    checks::rate(options.rate)?;
    checks::share("neighbours", options.neighbours)?;
    checks::share("anchors", options.anchors)?;
    checks::held_out(options.held_out)?;
    checks::pictures(n_pictures)?;
    checks::output(options.out, options.force)
}

/// The questions about each picture, in the order in which pictures first occur.
fn by_picture(items: &[Item]) -> Vec<Vec<&Item>> {
    let mut known = BTreeMap::new();
    let mut pictures: Vec<Vec<&Item>> = Vec::new();
    for item in items {
        let index = *known.entry(&item.image).or_insert(pictures.len());
        match pictures.get_mut(index) {
            Some(questions) => questions.push(item),
            None => pictures.push(vec![item]),
        }
    }
    pictures
}

/// The net, scaled for the first picture that could be read.
fn net(model: &Model, options: &PrunerOptions<'_>, shards: &Shards) -> Result<Net> {
    let record = shards.first()?;
    Ok(Net {
        d: model.config.d_model,
        p: options.width,
        h: QUESTION_WIDTH,
        m: MLP_WIDTH,
        feature_scale: unit_scale(part(&record, "features")?)?,
        question_scale: unit_scale(part(&record, "questions")?)?,
    })
}

/// Digest of everything that decides what the model says and looks at.
fn data_key(model: &Model, options: &PrunerOptions<'_>) -> Result<String> {
    let mut lines = vec![
        format!("trtvlm {} pruner", env!("CARGO_PKG_VERSION")),
        format!("{:?}", options.max_tokens),
    ];
    lines.extend(source_lines(model, options.items)?);
    lines.extend(
        options
            .items
            .iter()
            .map(|item| format!("{:?}", item.answer)),
    );
    Ok(sha256_bytes(lines.join("\n").as_bytes()))
}

/// Digest of everything that decides what comes of the training.
fn training_key(data_key: &str, options: &PrunerOptions<'_>) -> String {
    let told = format!(
        "{data_key} {} {} {} {} {} {} {} {QUESTION_WIDTH} {MLP_WIDTH}",
        options.epochs,
        options.patience,
        options.batch,
        options.rate,
        options.held_out,
        options.seed,
        options.width,
    );
    sha256_bytes(told.as_bytes())
}
