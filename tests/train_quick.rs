//! Training of quick answers on small folders with random weights, and what is done with the result.
#![cfg(feature = "train")]

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use trtvlm::Error;
use trtvlm::items::read_items;
use trtvlm::model::{Model, TrainedFile, TrainedKind};
use trtvlm::quick::{Probe, Words};
use trtvlm::train::{QuickOptions, QuickOutcome, TrueScene, train_quick};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn tiny(name: &str) -> PathBuf {
    root().join("tests/data/tiny").join(name)
}

fn words() -> Words {
    let path = root().join("onnx/uav-tiny/recipe/quick.json");
    serde_json::from_slice(&fs::read(path).expect("file")).expect("words")
}

/// Pictures of the demo model with objects that nobody drew there, and one that is not there.
fn scenes(n: usize) -> Vec<TrueScene> {
    let items = read_items(&root().join("calibration")).expect("items");
    let scene = |index: usize| {
        let at = |k: usize| {
            [
                16.0 + (index * 53 + k * 97) as f64 % 224.0,
                40.0 * (k + 1) as f64,
            ]
        };
        let colour = |k: usize| (k != 1).then_some((index + k) % 6);
        let object = |k: usize| ((index + k) % 6, colour(k), at(k));
        TrueScene {
            image: match index {
                3 => "not-there.png".into(),
                _ => items[index].image.clone(),
            },
            ground: Some(index % 3),
            objects: (0..index % 4).map(object).collect(),
        }
    };
    (0..n).map(scene).collect()
}

fn options<'a>(
    scenes: &'a [TrueScene],
    words: &'a Words,
    out: &'a Path,
    cancel: &'a dyn Fn() -> bool,
) -> QuickOptions<'a> {
    QuickOptions {
        scenes,
        words,
        out,
        force: false,
        epochs: 3,
        patience: 3,
        batch: 2,
        rate: 1e-2,
        held_out: 0.3,
        least: 0.8,
        seed: 5,
        cancel,
    }
}

/// Trains; stops when it was asked `stop_after` times whether to.
fn train(model: &Path, out: &Path, n: usize, stop_after: usize) -> Result<QuickOutcome, Error> {
    let asked = Cell::new(0);
    let cancel = || {
        asked.set(asked.get() + 1);
        asked.get() > stop_after
    };
    let model = Model::load(model, None).expect("model");
    let (scenes, words) = (scenes(n), words());
    train_quick(&model, &options(&scenes, &words, out, &cancel), &mut |_| {})
}

#[test]
fn probe_whose_training_was_interrupted_is_that_of_one_that_was_not() {
    let dir = tempfile::tempdir().expect("dir");
    let model = tiny("fastvlm-tiny-plain");
    let [whole, broken] = ["whole", "broken"].map(|name| dir.path().join(name));
    let outcome = train(&model, &whole, 9, usize::MAX).expect("trained");
    assert_eq!((outcome.pictures, outcome.resumed), (8, 0));
    assert_eq!(outcome.skipped, [Path::new("not-there.png")]);
    assert_eq!(outcome.judged.pictures, 3);
    let losses: Vec<f64> = outcome.epochs.iter().map(|epoch| epoch.loss).collect();
    assert!(losses[2] < losses[0], "it learns: {losses:?}");
    // Stopped while looking, in the first epoch, in the second.
    for stop_after in [4, 8, 8] {
        let error = train(&model, &broken, 9, stop_after).expect_err("stopped");
        assert!(matches!(error, Error::Cancelled), "{error}");
        assert!(!broken.exists(), "nothing half made");
    }
    let resumed = train(&model, &broken, 9, usize::MAX).expect("trained");
    assert_eq!(resumed.resumed, 9);
    assert!(fs::read(&broken).expect("file") == fs::read(&whole).expect("file"));
    let left: Vec<_> = fs::read_dir(dir.path()).expect("dir").collect();
    assert_eq!(left.len(), 2, "what was collected is gone");
    let error = train(&model, &whole, 9, usize::MAX).expect_err("is there");
    assert!(matches!(error, Error::Exists { .. }), "{error}");
}

#[test]
fn trained_probe_is_found_in_its_folder_and_answers() {
    for name in ["fastvlm-tiny-plain", "smolvlm-tiny-contrib-sep"] {
        let dir = tempfile::tempdir().expect("dir");
        let folder = dir.path().join(name);
        fs::create_dir(&folder).expect("folder");
        for entry in fs::read_dir(tiny(name)).expect("folder") {
            let path = entry.expect("entry").path();
            let to = folder.join(path.file_name().expect("name"));
            match path.is_file() {
                true => drop(fs::copy(&path, to).expect("copy")),
                false => std::os::unix::fs::symlink(&path, to).expect("link"),
            }
        }
        let out = folder.join("quick.safetensors");
        train(&folder, &out, 6, usize::MAX).expect(name);
        let output = Command::new(env!("CARGO_BIN_EXE_trtvlm"))
            .env_remove("TRTVLM_LOG")
            .arg("run")
            .arg(&folder)
            .arg("--image")
            .arg(root().join("calibration/images/0024.png"))
            .args(["--prompt", "what do you see", "--mode", "quick"])
            .output()
            .expect("run");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {told}");
        let said = String::from_utf8_lossy(&output.stdout);
        let grounds = ["grass", "asphalt", "soil"].map(|ground| format!(" on {ground}\n"));
        assert!(
            grounds.iter().any(|ground| said.ends_with(ground)),
            "{name}: {said}"
        );
    }
}

#[test]
fn training_with_arguments_that_cannot_be_is_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let model = Model::load(&tiny("fastvlm-tiny-plain"), None).expect("model");
    let (two, words, never) = (scenes(2), words(), || false);
    let mut gone = two.clone();
    for (index, scene) in gone.iter_mut().enumerate() {
        scene.image = dir.path().join(format!("{index}.png"));
    }
    let mut twice = words.clone();
    twice.kinds[1].one = twice.kinds[0].one.clone();
    let out = dir.path().join("q.safetensors");
    type Change = fn(&mut QuickOptions<'_>);
    let cases: [(&str, &[TrueScene], &Words, Change); 8] = [
        ("epochs", &two, &words, |o| o.epochs = 0),
        ("batch", &two, &words, |o| o.batch = 0),
        ("patience", &two, &words, |o| o.patience = 0),
        ("rate", &two, &words, |o| o.rate = f64::NAN),
        ("held-out", &two, &words, |o| o.held_out = 1.0),
        ("least", &two, &words, |o| o.least = -0.1),
        ("words", &two, &twice, |_| {}),
        ("data", &gone, &words, |_| {}),
    ];
    for (name, scenes, words, change) in cases {
        let mut options = options(scenes, words, &out, &never);
        change(&mut options);
        let error = train_quick(&model, &options, &mut |_| {}).expect_err(name);
        assert!(
            matches!(&error, Error::Argument { name: told, .. } if *told == name),
            "{name}: {error}"
        );
        assert!(!out.exists());
    }
    let one = &two[..1];
    let error = train_quick(&model, &options(one, &words, &out, &never), &mut |_| {});
    assert!(matches!(error, Err(Error::Argument { name: "data", .. })));
}

#[test]
fn probe_of_the_demo_model_belongs_to_it() {
    let demo = root().join("onnx/uav-tiny");
    let model = Model::load(&demo, None).expect("model");
    let file = TrainedFile::read(&demo, TrainedKind::Quick).expect("read");
    let file = file.expect("there");
    file.check_words(&demo, &model.config).expect("same words");
    file.check_target(&model).expect("same weights");
    let probe = Probe::new(file).expect("a probe");
    assert_eq!(probe.settings().words, words(), "as the recipe has them");
}
