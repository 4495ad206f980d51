//! Training of pruners on a small folder with random weights, and what is done with the result.
#![cfg(feature = "train")]

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use trtvlm::Error;
use trtvlm::items::{Item, read_items};
use trtvlm::model::{Model, TrainedFile, TrainedKind};
use trtvlm::pipeline::{Ask, Pipeline, Pruning};
use trtvlm::preprocess::Frame;
use trtvlm::prune::{Keep, Pruner};
use trtvlm::train::{PrunerOptions, PrunerOutcome, train_pruner};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn tiny(name: &str) -> PathBuf {
    root().join("tests/data/tiny").join(name)
}

fn items(n: usize) -> Vec<Item> {
    let mut items = read_items(&root().join("calibration")).expect("items");
    items.truncate(n);
    items
}

/// A copy of a small folder.
fn folder(dir: &Path, name: &str) -> PathBuf {
    let (from, to) = (tiny(name), dir.join(name));
    fs::create_dir_all(to.join("onnx")).expect("dir");
    for sub in ["", "onnx"] {
        for entry in fs::read_dir(from.join(sub)).expect("folder") {
            let path = entry.expect("entry").path();
            if path.is_file() {
                let name = path.file_name().expect("name");
                fs::copy(&path, to.join(sub).join(name)).expect("copy");
            }
        }
    }
    to
}

fn options<'a>(
    items: &'a [Item],
    out: &'a Path,
    cancel: &'a dyn Fn() -> bool,
) -> PrunerOptions<'a> {
    PrunerOptions {
        items,
        out,
        force: false,
        epochs: 3,
        patience: 3,
        batch: 2,
        rate: 3e-3,
        width: 16,
        neighbours: 0.5,
        anchors: 0.25,
        held_out: 0.2,
        max_tokens: Some(6),
        seed: 5,
        cancel,
    }
}

/// Trains; stops when it was asked `stop_after` times whether to.
fn train(
    model: &Path,
    out: &Path,
    items: &[Item],
    stop_after: usize,
) -> Result<PrunerOutcome, Error> {
    let asked = Cell::new(0);
    let cancel = || {
        asked.set(asked.get() + 1);
        asked.get() > stop_after
    };
    let model = Model::load(model, None).expect("model");
    train_pruner(&model, &options(items, out, &cancel), &mut |_| {})
}

fn trtvlm(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trtvlm"))
        .env_remove("TRTVLM_LOG")
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
        .args(args)
        .output()
        .expect("run")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn pruner_whose_training_was_interrupted_is_that_of_one_that_was_not() {
    let dir = tempfile::tempdir().expect("dir");
    let model = tiny("fastvlm-tiny-plain");
    let mut items = items(7);
    // One without an answer, which the model then gives, and a second question about a picture.
    items[2].answer = None;
    let mut second = items[0].clone();
    second.prompt = "how many boats are there".to_owned();
    items.push(second);
    let [whole, broken] = ["whole", "broken"].map(|name| dir.path().join(name));
    let outcome = train(&model, &whole, &items, usize::MAX).expect("trained");
    assert_eq!(
        (outcome.pictures, outcome.items, outcome.resumed),
        (7, 8, 0)
    );
    let losses: Vec<f64> = outcome.epochs.iter().map(|epoch| epoch.loss).collect();
    assert!(losses[2] < losses[0], "it learns: {losses:?}");
    assert!((0.0..=1.0).contains(&outcome.epochs[0].attention));
    // Stopped while looking, in the first epoch, in the second.
    for stop_after in [3, 5, 8] {
        let error = train(&model, &broken, &items, stop_after).expect_err("stopped");
        assert!(matches!(error, Error::Cancelled), "{error}");
        assert!(!broken.exists(), "nothing half made");
    }
    let resumed = train(&model, &broken, &items, usize::MAX).expect("trained");
    assert_eq!(resumed.resumed, 7);
    assert!(fs::read(&broken).expect("file") == fs::read(&whole).expect("file"));
    let left: Vec<_> = fs::read_dir(dir.path()).expect("dir").collect();
    assert_eq!(left.len(), 2, "what was collected is gone");
    let error = train(&model, &whole, &items, usize::MAX).expect_err("is there");
    assert!(matches!(error, Error::Exists { .. }), "{error}");
}

#[test]
fn trained_pruner_is_the_default_of_its_folder_and_of_the_bundle_made_of_it() {
    let dir = tempfile::tempdir().expect("dir");
    for name in ["fastvlm-tiny-plain", "smolvlm-tiny-contrib-sep"] {
        let model = folder(dir.path(), name);
        let items = items(3);
        train(
            &model,
            &model.join("pruner.safetensors"),
            &items,
            usize::MAX,
        )
        .expect(name);
        let bundle = dir.path().join(format!("{name}-bundle"));
        let (from, to) = (model.display().to_string(), bundle.display().to_string());
        let built = trtvlm(&[
            "build",
            "--target",
            "cpu",
            "--precision",
            "fp32",
            "--out",
            &to,
            &from,
        ]);
        assert!(built.status.success(), "{name}: {}", stderr(&built));
        let frame = Frame::load(&items[0].image).expect("frame");
        let mut kept = Vec::new();
        for path in [&model, &bundle] {
            let mut pipeline = Pipeline::open(path, None).expect(name);
            assert!(pipeline.pruners().contains(&Pruner::Learned));
            for pruner in [None, Some(Pruner::Learned)] {
                let keep = Keep::new(0.3).expect("share");
                let pruning = Pruning {
                    keep,
                    pruner,
                    ..Pruning::default()
                };
                let ask = Ask {
                    pruning,
                    max_tokens: Some(2),
                    ..Ask::default()
                };
                let answer = pipeline.ask(&frame, &items[0].prompt, &ask, &mut |_| {});
                let visual = answer.expect(name).visual_tokens;
                assert_eq!(visual.pruner, Some("learned"));
                let shown = visual.scores.iter().filter(|score| !score.is_nan());
                assert!(shown.clone().count() >= visual.kept);
                assert!(shown.clone().all(|score| (0.0..=1.0).contains(score)));
                kept.push(visual.indices);
            }
        }
        assert!(
            kept.iter().all(|other| *other == kept[0]),
            "{name}: {kept:?}"
        );
    }
}

#[test]
fn pruner_of_another_model_or_none_at_all_is_told_and_only_refused_where_it_is_asked_for() {
    let dir = tempfile::tempdir().expect("dir");
    let items = items(2);
    let out = dir.path().join("pruner.safetensors");
    train(&tiny("fastvlm-tiny-plain"), &out, &items, usize::MAX).expect("trained");
    let image = items[0].image.display().to_string();
    let run = |model: &Path, more: &[&str]| {
        let model = model.display().to_string();
        let args = [
            "run",
            &model,
            "--image",
            &image,
            "--prompt",
            "what is it",
            "--keep",
            "0.5",
        ];
        trtvlm(&[&args, more].concat())
    };
    // Cut short, no safetensors at all, and of a folder whose weights are others.
    let whole = fs::read(&out).expect("file");
    for (name, bytes, reason) in [
        (
            "fastvlm-tiny-plain",
            &whole[..whole.len() / 2],
            "safetensors",
        ),
        ("fastvlm-tiny-plain", b"{}".as_slice(), "safetensors"),
        ("fastvlm-tiny-contrib", &whole, "fingerprint"),
        ("smolvlm-tiny-contrib-sep", &whole, "trained"),
    ] {
        let model = folder(&dir.path().join(reason), name);
        fs::write(model.join("pruner.safetensors"), bytes).expect("write");
        let output = run(&model, &[]);
        assert!(output.status.success(), "{name}: {}", stderr(&output));
        let told = stderr(&output);
        assert!(
            told.contains(reason) && told.contains("not used"),
            "{name}: {told}"
        );
        let output = run(&model, &["--pruner", "learned"]);
        assert_eq!(output.status.code(), Some(1), "{name}");
        let told = stderr(&output);
        assert!(
            told.contains("pruner.safetensors") && told.contains(reason),
            "{told}"
        );
        // In a bundle nobody could tell any more.
        let (from, to) = (model.display().to_string(), dir.path().join("bundle"));
        let to = to.display().to_string();
        let built = trtvlm(&[
            "build",
            "--target",
            "cpu",
            "--precision",
            "fp32",
            "--out",
            &to,
            &from,
        ]);
        assert_eq!(built.status.code(), Some(1), "{name}");
        assert!(
            stderr(&built).contains("pruner.safetensors"),
            "{}",
            stderr(&built)
        );
        assert!(!Path::new(&to).exists());
    }
    let output = run(&tiny("fastvlm-tiny-plain"), &["--pruner", "learned"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("train pruner"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn training_of_a_pruner_with_arguments_that_cannot_be_is_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let model = Model::load(&tiny("fastvlm-tiny-plain"), None).expect("model");
    let two = items(2);
    let mut same = two.clone();
    same[1].image = same[0].image.clone();
    let mut gone = two.clone();
    gone.iter_mut()
        .for_each(|item| item.image = dir.path().join("no.png"));
    gone[1].image = dir.path().join("nor.png");
    let never = || false;
    let out = dir.path().join("p.safetensors");
    type Change = fn(&mut PrunerOptions<'_>);
    let cases: [(&str, &[Item], Change); 11] = [
        ("width", &two, |o| o.width = 24),
        ("width", &two, |o| o.width = 512),
        ("epochs", &two, |o| o.epochs = 0),
        ("batch", &two, |o| o.batch = 0),
        ("rate", &two, |o| o.rate = f64::NAN),
        ("neighbours", &two, |o| o.neighbours = -0.1),
        ("anchors", &two, |o| o.anchors = f64::NAN),
        ("held-out", &two, |o| o.held_out = 1.0),
        ("max-tokens", &two, |o| o.max_tokens = Some(0)),
        ("data", &same, |_| {}),
        ("data", &gone, |_| {}),
    ];
    for (name, items, change) in cases {
        let mut options = options(items, &out, &never);
        change(&mut options);
        let error = train_pruner(&model, &options, &mut |_| {}).expect_err(name);
        assert!(
            matches!(&error, Error::Argument { name: told, .. } if *told == name),
            "{name}: {error}"
        );
        assert!(!out.exists());
    }
    let error = train_pruner(&model, &options(&two, dir.path(), &never), &mut |_| {});
    assert!(matches!(error, Err(Error::Malformed { .. })));
}

#[test]
fn pruner_of_the_demo_model_belongs_to_it() {
    let demo = root().join("onnx/uav-tiny");
    let model = Model::load(&demo, None).expect("model");
    let file = TrainedFile::read(&demo, TrainedKind::Pruner).expect("read");
    let file = file.expect("there");
    file.check_words(&demo, &model.config).expect("same words");
    file.check_target(&model).expect("same weights");
    trtvlm::prune::Learned::new(file).expect("a net");
}
