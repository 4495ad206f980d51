//! The order of `train quick`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use super::super::checks;
use super::super::draft::{source_lines, targets};
use super::super::fit::{Epoch, Event, FitOptions, fit};
use super::super::net::unit_scale;
use super::super::params::Params;
use super::super::shards::{Shards, part, write_whole};
use super::calibrate::{Judged, calibrate, held_out};
use super::collect::collect;
use super::net::Net;
use super::scenes::TrueScene;
use crate::digest::{sha256_bytes, sha256_file};
use crate::error::{Error, Result};
use crate::model::{Model, TrainedFile, TrainedKind, TrainedSpec, trained_bytes};
use crate::quick::{Calibration, Probe, QuickSettings, Words};

/// Names of vision towers, whatever their variant.
const VISION: &str = "vision_encoder";

/// What to train.
pub struct QuickOptions<'a> {
    /// Pictures and what is in them; at least two.
    pub scenes: &'a [TrueScene],
    /// Words and templates of the answers.
    pub words: &'a Words,
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
    /// Share of the pictures that is judged and not learned from.
    pub held_out: f64,
    /// Least confidence of an answer in place of the language model's, from 0 to 1.
    pub least: f64,
    /// Decides the first weights and the order of pictures.
    pub seed: u64,
    /// Says whether to stop.
    pub cancel: &'a dyn Fn() -> bool,
}

/// A step of the training.
#[derive(Debug)]
pub enum QuickEvent {
    /// Pictures that the vision tower has seen, of all.
    Seen(usize, usize),
    /// Pictures of an epoch that are done, of all, and the epoch, from 0.
    Example(usize, usize, usize),
    /// An epoch is done.
    Epoch(QuickEpoch),
}

/// What came of an epoch: costs are cross entropies of cells, colours and grounds, added.
#[derive(Debug, Clone, Serialize)]
pub struct QuickEpoch {
    /// The epoch, from 1.
    pub epoch: usize,
    /// Mean cost of what was learned from.
    pub loss: f64,
    /// That of held-out pictures.
    pub held_out_loss: f64,
}

/// What was trained.
#[derive(Debug, Clone, Serialize)]
pub struct QuickOutcome {
    /// The file.
    pub file: PathBuf,
    /// Pictures that were seen.
    pub pictures: usize,
    /// Pictures that an earlier, interrupted run has seen.
    pub resumed: usize,
    /// Pictures that could not be read.
    pub skipped: Vec<PathBuf>,
    /// Numbers of the probe.
    pub parameters: usize,
    /// The epoch whose weights were kept, from 1.
    pub best: usize,
    /// All epochs.
    pub epochs: Vec<QuickEpoch>,
    /// Threshold of cells.
    pub threshold: f64,
    /// Calibration of the confidence.
    pub calibration: Calibration,
    /// How good it is on held-out pictures. Threshold and calibration were chosen on the same ones.
    pub judged: Judged,
    /// Wall time of this run.
    pub seconds: f64,
}

/// Trains the quick answers of a model and writes its `quick.safetensors`.
///
/// # Errors
/// [`Error::Exists`] if the file is there, [`Error::Argument`] for options that cannot be;
/// [`Error::Cancelled`] after a stop: the same call then goes on where this one was; those of reading
/// and running the model.
pub fn train_quick(
    model: &Model,
    options: &QuickOptions<'_>,
    on_event: &mut dyn FnMut(QuickEvent),
) -> Result<QuickOutcome> {
    let start = Instant::now();
    check(options)?;
    let n_scenes = options.scenes.len();
    let n_held = checks::n_held(n_scenes, options.held_out);
    let held = |index: usize| index >= n_scenes - n_held;

    let data_key = data_key(model, options)?;
    let work = options.out.with_extension("partial");
    let mut shards = Shards::open(&work.join(&data_key[..16]))?;
    let resumed = shards.len();
    let seen = &mut |done| on_event(QuickEvent::Seen(done, n_scenes));
    let skipped = collect(model, &mut shards, options.scenes, options.cancel, seen)?;

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
        held_out: &held,
        checkpoint: &work.join(format!("{}.safetensors", &key[..16])),
        key: &key,
        cancel: options.cancel,
    };
    let report = |epoch: usize, result: &Epoch| QuickEpoch {
        epoch: epoch + 1,
        loss: result.loss,
        held_out_loss: -result.score,
    };
    let (best, epochs) = fit(&mut params, &net, &shards, &fit_options, &mut |event| {
        on_event(match event {
            Event::Example { epoch, done, total } => QuickEvent::Example(*done, *total, *epoch),
            Event::Epoch { epoch, result, .. } => QuickEvent::Epoch(report(*epoch, result)),
        });
    })?;
    let epochs: Vec<QuickEpoch> = epochs
        .iter()
        .enumerate()
        .map(|(epoch, result)| report(epoch, result))
        .collect();

    // For rows as the model makes them.
    let tensors = params.tensors(&|name| match name.ends_with(".bias") {
        true => 1.0,
        false => net.scale,
    })?;
    let mut spec = spec(model, options, &data_key)?;
    let bytes = trained_bytes(options.out, &spec, &tensors)?;
    // Measured as it will run.
    let file = TrainedFile::parse(options.out.to_owned(), TrainedKind::Quick, &bytes)?;
    let (settings, judged) = calibrate(Probe::new(file)?, &held_out(&shards, &held)?)?;
    spec.settings = serde_json::json!(settings);
    spec.training["epoch"] = (best + 1).into();
    let bytes = trained_bytes(options.out, &spec, &tensors)?;
    write_whole(options.out, |file| {
        std::fs::write(file, &bytes).map_err(Error::io(file))
    })?;
    std::fs::remove_dir_all(&work).map_err(Error::io(&work))?;
    Ok(QuickOutcome {
        file: options.out.to_path_buf(),
        pictures: n_scenes - skipped.len(),
        resumed,
        skipped,
        parameters: params.n_elements(),
        best: best + 1,
        epochs,
        threshold: settings.threshold,
        calibration: settings.calibration,
        judged,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Checks what can be checked before the model is loaded.
fn check(options: &QuickOptions<'_>) -> Result<()> {
    let words = options.words.check();
    words.map_err(|reason| Error::Argument {
        name: "words",
        reason,
    })?;
    checks::at_least_one(&[
        ("epochs", options.epochs),
        ("batch", options.batch),
        ("patience", options.patience),
    ])?;
    checks::rate(options.rate)?;
    checks::held_out(options.held_out)?;
    checks::share("least", options.least)?;
    checks::pictures(options.scenes.len())?;
    checks::output(options.out, options.force)
}

/// The probe, scaled for the first picture that could be read.
fn net(model: &Model, options: &QuickOptions<'_>, shards: &Shards) -> Result<Net> {
    let words = options.words;
    let record = shards.first()?;
    Ok(Net {
        d: model.config.d_model,
        n_kinds: words.kinds.len(),
        n_colours: words.colours.len(),
        n_grounds: words.grounds.len(),
        scale: unit_scale(part(&record, "features")?)?,
    })
}

/// What the file says of itself, before anything was measured.
fn spec(model: &Model, options: &QuickOptions<'_>, data_key: &str) -> Result<TrainedSpec> {
    Ok(TrainedSpec {
        format: TrainedSpec::FORMAT,
        kind: TrainedKind::Quick,
        targets: targets(&model.files.vision, VISION)?,
        tokenizer_sha256: sha256_file(&model.dir.join("tokenizer.json"), |_| {})?.sha256,
        d_model: model.config.d_model,
        settings: serde_json::json!(QuickSettings {
            words: options.words.clone(),
            threshold: 1.0,
            least: options.least,
            calibration: Calibration::new(),
        }),
        training: serde_json::json!({
            "created_by": format!("trtvlm {}", env!("CARGO_PKG_VERSION")),
            "data_sha256": data_key,
            "pictures": options.scenes.len(),
            "seed": options.seed,
        }),
    })
}

/// Digest of everything that decides what the vision tower sees, and what is there.
fn data_key(model: &Model, options: &QuickOptions<'_>) -> Result<String> {
    let mut lines = vec![format!("trtvlm {} quick", env!("CARGO_PKG_VERSION"))];
    lines.extend(source_lines(model, &[])?);
    for scene in options.scenes {
        // A picture that cannot be read is skipped when its turn comes.
        let image = sha256_file(&scene.image, |_| {}).map(|digest| digest.sha256);
        let (ground, objects) = (scene.ground, &scene.objects);
        lines.push(format!(
            "{} {ground:?} {objects:?}",
            image.unwrap_or_default()
        ));
    }
    Ok(sha256_bytes(lines.join("\n").as_bytes()))
}

/// Digest of everything that decides what comes of the training.
fn training_key(data_key: &str, options: &QuickOptions<'_>) -> String {
    let words = options.words;
    let told = format!(
        "{data_key} {} {} {} {} {} {} {} {} {}",
        options.epochs,
        options.patience,
        options.batch,
        options.rate,
        options.held_out,
        options.seed,
        words.kinds.len(),
        words.colours.len(),
        words.grounds.len(),
    );
    sha256_bytes(told.as_bytes())
}
