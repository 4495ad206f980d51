//! Calibration, as the library and as a user of the command line see it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use assert_cmd::Command;
use serde::Deserialize;
use trtvlm::Error;
use trtvlm::backend::{Backend, CpuBackend};
use trtvlm::calibrate::{CalibrateOptions, CalibrateOutcome, Cancel, calibrate, candidates};
use trtvlm::cpu::{MAX_ALIVE, Observed, Observer, Session};
use trtvlm::items::{Item, read_items};
use trtvlm::model::Model;
use trtvlm::onnx::OnnxModel;
use trtvlm::onnx::passes::select_logit_rows;
use trtvlm::preprocess::{Notes, PixelValues};
use trtvlm::quantize::{Method, Scales};
use trtvlm::tensor::Tensor;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn demo() -> PathBuf {
    root().join("onnx/uav-tiny")
}

fn model(dir: &Path) -> Model {
    Model::load(dir, None).expect("model")
}

fn items(n: usize) -> Vec<Item> {
    let mut items = read_items(&root().join("calibration")).expect("items");
    items.truncate(n);
    items
}

fn options<'a>(items: &'a [Item], out: &'a Path) -> CalibrateOptions<'a> {
    CalibrateOptions {
        items,
        method: Method::Entropy,
        percentile: 99.99,
        max_tokens: 8,
        out,
        force: false,
        cancel: Arc::new(|| false),
    }
}

fn run(dir: &Path, items: &[Item], out: &Path) -> Result<CalibrateOutcome, Error> {
    calibrate(&model(dir), &options(items, out), &mut |_| {})
}

/// A copy of the demo model whose files may be replaced.
fn copy_of_demo(to: &Path) -> PathBuf {
    let dir = to.join("model");
    fs::create_dir_all(dir.join("onnx")).expect("folder");
    for folder in [demo(), demo().join("onnx")] {
        for entry in fs::read_dir(&folder).expect("folder").flatten() {
            if entry.file_type().expect("type").is_file() {
                let name = entry
                    .path()
                    .strip_prefix(demo())
                    .expect("inside")
                    .to_owned();
                fs::copy(entry.path(), dir.join(name)).expect("copy");
            }
        }
    }
    dir
}

#[derive(Default)]
struct Notebook {
    seen: BTreeMap<usize, (usize, f32, f32, f64, Vec<f32>)>,
    most_alive: usize,
}

struct Note(Arc<Mutex<Notebook>>);

impl Observer for Note {
    fn observe(&mut self, values: &[Observed<'_>]) -> trtvlm::Result<()> {
        let mut notes = self.0.lock().expect("lock");
        notes.most_alive = notes.most_alive.max(values.len());
        for value in values {
            let min = value.data.iter().copied().fold(f32::INFINITY, f32::min);
            let max = value.data.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mean = value.data.iter().map(|x| f64::from(x.abs())).sum::<f64>();
            let n_channels = value.shape.last().copied().unwrap_or(1);
            let mut channels = vec![0.0f32; n_channels];
            for row in value.data.chunks_exact(n_channels) {
                for (most, x) in channels.iter_mut().zip(row) {
                    *most = most.max(x.abs());
                }
            }
            let n = value.data.len();
            let seen = (n, min, max, mean / n as f64, channels);
            assert!(notes.seen.insert(value.tap, seen).is_none(), "seen twice");
        }
        Ok(())
    }
}

/// Values inside a graph are those of onnxruntime, and few are in memory at a time.
#[test]
fn observed_values_are_those_of_onnxruntime() {
    #[derive(Deserialize)]
    struct Golden {
        values: BTreeMap<String, Value>,
    }
    #[derive(Deserialize)]
    struct Value {
        min: f32,
        max: f32,
        mean_abs: f64,
        values: usize,
        channels: Vec<f32>,
    }
    let text = fs::read(root().join("tests/golden/quantize/observed.json")).expect("golden");
    let golden: Golden = serde_json::from_slice(&text).expect("golden");
    let names: Vec<String> = golden.values.keys().cloned().collect();
    let model = model(&root().join("tests/data/tiny/fastvlm-tiny-plain"));
    let notes = Arc::new(Mutex::new(Notebook::default()));
    let vision = OnnxModel::load(&model.files.vision).expect("vision");
    let observer = Box::new(Note(Arc::clone(&notes)));
    let vision = Session::load_observed(vision, &names, observer).expect("session");
    let mut decoder = OnnxModel::load(&model.files.decoder).expect("decoder");
    select_logit_rows(&mut decoder).expect("rows");
    let decoder = Session::load(&decoder).expect("decoder");
    let mut backend = CpuBackend::new(&model, vision, decoder).expect("backend");

    let side = model.config.image_size;
    let mut pixels = Vec::new();
    for c in 0..3 {
        for y in 0..side {
            for x in 0..side {
                let value = x * 3 + y * 5 + (x / 7) * (y / 5) * (11 + c);
                pixels.push((value % 256) as f32 / 255.0);
            }
        }
    }
    let image = PixelValues {
        pixels: Tensor::new("pixels", [1, 3, side, side], pixels).expect("shape"),
        mask: None,
        grid: None,
        content: [0, 0, side, side],
        shown: [0.0, 0.0, 1.0, 1.0],
        notes: Notes::default(),
    };
    let n = backend.encode(&image).expect("encode");
    let observed = backend.features().to_vec();
    let mut plain = CpuBackend::load(&model).expect("backend");
    assert_eq!(plain.encode(&image).expect("encode"), n);
    let off = observed
        .iter()
        .zip(plain.features())
        .map(|(a, b)| (a - b).abs());
    assert!(off.fold(0.0, f32::max) < 1e-4, "features differ");

    let notes = notes.lock().expect("lock");
    assert_eq!(notes.seen.len(), names.len());
    assert!(notes.most_alive <= MAX_ALIVE, "{}", notes.most_alive);
    for (tap, name) in names.iter().enumerate() {
        let (n, min, max, mean, channels) = &notes.seen[&tap];
        let expected = &golden.values[name];
        let near = |a: f32, b: f32| (a - b).abs() <= 1e-4 * expected.max.abs().max(1.0);
        assert_eq!(*n, expected.values, "{name}");
        assert!(
            near(*min, expected.min) && near(*max, expected.max),
            "{name}: {min} {max}"
        );
        assert!(
            (mean - expected.mean_abs).abs() <= 1e-4 * expected.mean_abs,
            "{name}: {mean}"
        );
        for (a, b) in channels.iter().zip(&expected.channels) {
            assert!(near(*a, *b), "{name}: {a} {b}");
        }
    }
}

#[test]
fn scales_have_a_range_for_every_candidate_of_each_family() {
    // Convolutions, or two transformer layers and the connector; three decoder layers.
    let expected = [
        ("fastvlm-tiny-plain", [57, 37]),
        ("smolvlm-tiny-plain", [30, 37]),
    ];
    for (name, n_tensors) in expected {
        let dir = tempfile::tempdir().expect("temp dir");
        let out = dir.path().join("scales.json");
        let folder = root().join("tests/data/tiny").join(name);
        let outcome = run(&folder, &items(1), &out).expect(name);
        assert_eq!(outcome.tensors, n_tensors, "{name}");
        let scales = Scales::load(&out).expect(name);
        let passes = &scales.graphs["decoder"].passes;
        assert_eq!((passes["prefill"], passes["decode"]), (1, 7), "{name}");
        assert!(scales.graphs["vision"].passes["image"] >= 1);
        for (component, graph) in &scales.graphs {
            for (tensor, scale) in &graph.tensors {
                let most = scale.min.abs().max(scale.max.abs());
                assert_eq!(scale.amax["max"], most, "{name} {component} {tensor}");
                for (method, &amax) in &scale.amax {
                    assert!(
                        amax > 0.0 && amax <= most,
                        "{tensor} {method}: {amax} {most}"
                    );
                }
                let channels = scale.channel_amax.iter().copied().fold(0.0, f32::max);
                assert!(
                    scale.channel_amax.is_empty() || channels == most,
                    "{tensor}"
                );
            }
        }
        let n_channels = |component: &str| {
            let tensors = scales.graphs[component].tensors.values();
            tensors.filter(|t| !t.channel_amax.is_empty()).count()
        };
        assert!(n_channels("decoder") >= 12, "{}", n_channels("decoder"));
        // Maps have channels, too, and rows of a transformer's tower.
        assert!(n_channels("vision") >= 4, "{}", n_channels("vision"));
    }
}

#[test]
fn scales_of_a_stopped_and_continued_run_are_the_same_bytes() {
    let dir = tempfile::tempdir().expect("temp dir");
    let [whole, parts] = ["whole.json", "parts.json"].map(|name| dir.path().join(name));
    let items = items(4);
    let outcome = run(&demo(), &items, &whole).expect("whole");
    assert_eq!((outcome.items, outcome.resumed), (4, 0));
    assert!(outcome.constant.is_empty(), "{:?}", outcome.constant);

    // Asked before each look at values: the second stop comes in the middle of an item.
    for stop_at in [1, 3] {
        let seen = Arc::new(AtomicUsize::new(0));
        let looks = Arc::new(AtomicUsize::new(0));
        let cancel: Cancel = {
            let (seen, looks) = (Arc::clone(&seen), Arc::clone(&looks));
            Arc::new(move || {
                seen.load(Ordering::Relaxed) >= stop_at
                    && looks.fetch_add(1, Ordering::Relaxed) > 20
            })
        };
        let stopped = CalibrateOptions {
            cancel,
            ..options(&items, &parts)
        };
        let result = calibrate(&model(&demo()), &stopped, &mut |progress| {
            seen.store(progress.done, Ordering::Relaxed);
        });
        assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
        assert_eq!(seen.load(Ordering::Relaxed), stop_at);
        assert!(!parts.exists());
    }
    let outcome = run(&demo(), &items, &parts).expect("continued");
    assert_eq!((outcome.items, outcome.resumed), (4, 3));
    let read = |path: &Path| fs::read(path).expect("scales");
    assert!(read(&whole) == read(&parts), "the bytes differ");
    let left: Vec<_> = fs::read_dir(dir.path()).expect("list").collect();
    assert_eq!(left.len(), 2, "{left:?}");

    // Of the same model, and of another.
    let scales = Scales::load(&whole).expect("load");
    let graph = |dir: &Path| OnnxModel::load(&model(dir).files.vision).expect("graph");
    scales
        .check_graph(&whole, "vision", &graph(&demo()))
        .expect("own");
    let other = graph(&root().join("tests/data/tiny/fastvlm-tiny-plain"));
    let error = scales
        .check_graph(&whole, "vision", &other)
        .expect_err("other");
    let text = error.to_string();
    assert!(matches!(error, Error::Mismatch { .. }), "{text}");
    let own = &scales.graphs["vision"].source_sha256;
    assert!(text.contains("uav-tiny") && text.contains(own), "{text}");
    assert!(text.contains("fastvlm-tiny-plain"), "{text}");
    // Keys are names of the graph.
    let ranges = scales.ranges(Method::Percentile).expect("ranges");
    assert!(ranges.graphs["vision"].tensors.contains_key("pixel_values"));
    assert!(!candidates(other.graph()).is_empty());
}

#[test]
fn unreadable_pictures_are_skipped_up_to_one_in_five() {
    let dir = tempfile::tempdir().expect("temp dir");
    let out = dir.path().join("scales.json");
    let broken = dir.path().join("broken.png");
    fs::write(&broken, b"\x89PNG\r\n\x1a\nnot one").expect("write");
    let mut some = items(5);
    some[2].image = broken.clone();
    let outcome = run(&demo(), &some, &out).expect("one in five");
    assert_eq!(
        (outcome.items, outcome.skipped.as_slice()),
        (4, &[broken.clone()][..])
    );
    let scales = Scales::load(&out).expect("scales");
    assert_eq!((scales.items, scales.skipped), (4, 1));

    let refused = dir.path().join("refused.json");
    some[0].image = dir.path().join("missing.png");
    let error = run(&demo(), &some, &refused).expect_err("two in five");
    let text = error.to_string();
    assert!(
        text.contains("missing.png") && text.contains("5 pictures"),
        "{text}"
    );
    assert!(!refused.exists());
}

/// A picture that is black everywhere.
#[test]
fn constant_values_have_a_range_of_zero_and_are_reported() {
    let dir = tempfile::tempdir().expect("temp dir");
    let out = dir.path().join("scales.json");
    let mut black = items(1);
    black[0].image = dir.path().join("black.ppm");
    let mut ppm = b"P6 32 32 255\n".to_vec();
    ppm.resize(ppm.len() + 32 * 32 * 3, 0);
    fs::write(&black[0].image, ppm).expect("write");
    let outcome = run(&demo(), &black, &out).expect("black");
    assert!(
        outcome
            .constant
            .contains(&"vision: pixel_values".to_owned()),
        "{outcome:?}"
    );
    let scales = Scales::load(&out).expect("scales");
    let pixels = &scales.graphs["vision"].tensors["pixel_values"];
    assert_eq!(
        (pixels.min, pixels.max, pixels.zeros),
        (0.0, 0.0, pixels.values)
    );
    assert!(pixels.amax.values().all(|&amax| amax == 0.0));
}

#[test]
fn node_that_makes_infinity_or_nan_is_named() {
    for (component, file) in [
        ("vision", "vision_encoder_fp16"),
        ("decoder", "decoder_model_merged_fp16"),
    ] {
        let dir = tempfile::tempdir().expect("temp dir");
        let folder = copy_of_demo(dir.path());
        let path = folder.join("onnx").join(format!("{file}.onnx"));
        let mut graph = OnnxModel::load(&path).expect("graph");
        let constants = graph.graph().constants();
        let is_weight = |name: &String| {
            constants
                .get(name.as_str())
                .is_some_and(|t| t.dims.len() >= 2)
        };
        let linear = |op: &str| ["Conv", "MatMul"].contains(&op);
        // Not the first: what comes before it is good.
        let nodes = graph.graph().node.iter();
        let mut found =
            nodes.filter(|n| linear(&n.op_type) && n.input.get(1).is_some_and(is_weight));
        let node = found.nth(3).expect("a linear node").clone();
        let weights = graph.graph_mut().initializer.iter_mut();
        let weight = weights
            .into_iter()
            .find(|t| t.name == node.input[1])
            .expect("weight");
        let mut raw = weight.raw_data.clone().expect("raw").to_vec();
        // Infinity in FP16.
        raw[..2].copy_from_slice(&[0x00, 0x7c]);
        weight.raw_data = Some(raw.into());
        let bad = folder.join("bad.onnx");
        graph.save(&bad).expect("save");
        drop(graph);
        for ending in ["", ".data"] {
            let from = folder.join(format!("bad.onnx{ending}"));
            let to = folder.join("onnx").join(format!("bad.onnx{ending}"));
            fs::rename(from, to).expect("rename");
        }
        fs::rename(folder.join("onnx/bad.onnx"), &path).expect("rename");

        let out = dir.path().join("scales.json");
        let error = run(&folder, &items(1), &out).expect_err("not finite");
        let text = error.to_string();
        let Error::Unsupported { node: named, .. } = &error else {
            panic!("{text}");
        };
        assert_eq!(named, node.label(), "{text}");
        assert!(
            text.contains(component) && text.contains("items.jsonl:1"),
            "{text}"
        );
        assert!(!out.exists());
    }
}

#[test]
fn options_and_outputs_that_cannot_be_are_refused_before_anything_runs() {
    let dir = tempfile::tempdir().expect("temp dir");
    let out = dir.path().join("scales.json");
    let items = items(1);
    for percentile in [0.0, -1.0, 100.1, f64::NAN] {
        let wrong = CalibrateOptions {
            percentile,
            ..options(&items, &out)
        };
        let error = calibrate(&model(&demo()), &wrong, &mut |_| {}).expect_err("percentile");
        assert!(matches!(error, Error::Argument { .. }), "{error}");
    }
    assert!(matches!(
        run(&demo(), &[], &out),
        Err(Error::Argument { .. })
    ));
    let nowhere = dir.path().join("none/scales.json");
    assert!(matches!(
        run(&demo(), &items, &nowhere),
        Err(Error::Io { .. })
    ));
    assert!(matches!(
        run(&demo(), &items, dir.path()),
        Err(Error::Malformed { .. })
    ));
    fs::write(&out, b"mine").expect("write");
    assert!(matches!(
        run(&demo(), &items, &out),
        Err(Error::Exists { .. })
    ));
    assert_eq!(fs::read(&out).expect("read"), b"mine");
}

fn trtvlm() -> Command {
    let mut command = Command::cargo_bin("trtvlm").expect("binary");
    command
        .env_remove("TRTVLM_LOG")
        .arg("calibrate")
        .arg(demo());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn command_gives_the_same_bytes_with_one_thread_and_with_two() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut bytes = Vec::new();
    for threads in ["1", "2"] {
        let out = dir.path().join(format!("{threads}.json"));
        let output = trtvlm()
            .env("RTEN_NUM_THREADS", threads)
            .args([
                "--samples",
                "2",
                "--json",
                "--calibration-method",
                "mse",
                "--out",
            ])
            .arg(&out)
            .output()
            .expect("run");
        let stderr = text(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        assert!(
            stderr.contains("no --calibration") && stderr.contains("2 of 16"),
            "{stderr}"
        );
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(
            (json["items"].as_u64(), json["method"].as_str()),
            (Some(2), Some("mse"))
        );
        bytes.push(fs::read(&out).expect("scales"));
    }
    assert!(bytes[0] == bytes[1], "the bytes differ");
}

fn interrupt(child: &Child) {
    let pid = child.id().to_string();
    let status = std::process::Command::new("kill")
        .args(["-INT", &pid])
        .status();
    assert!(status.expect("kill").success());
}

#[test]
fn command_that_is_interrupted_ends_with_130_and_continues() {
    let dir = tempfile::tempdir().expect("temp dir");
    let out = dir.path().join("scales.json");
    let partial = dir.path().join("scales.json.partial");
    let child = std::process::Command::new(env!("CARGO_BIN_EXE_trtvlm"))
        .arg("calibrate")
        .arg(demo())
        .arg("--out")
        .arg(&out)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("spawn");
    let start = Instant::now();
    while !partial.exists() {
        assert!(
            start.elapsed() < Duration::from_secs(120),
            "no state appeared"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    interrupt(&child);
    let output: Output = child.wait_with_output().expect("wait");
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("the same command continues"), "{stderr}");
    assert!(output.stdout.is_empty() && partial.exists() && !out.exists());

    let output = trtvlm()
        .args(["--json", "--out"])
        .arg(&out)
        .output()
        .expect("run");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["items"].as_u64(), Some(16));
    assert!(json["resumed"].as_u64() >= Some(1), "{json}");
    assert!(!partial.exists());
}

#[test]
fn command_refuses_bad_data_with_one_error_line() {
    let dir = tempfile::tempdir().expect("temp dir");
    let list = dir.path().join("list.jsonl");
    fs::write(&list, "{\"image\": \"../a.png\", \"prompt\": \"p\"}\n").expect("write");
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).expect("folder");
    let missing = dir.path().join("missing");
    for (data, reason) in [
        (&list, "line 1"),
        (&empty, "no pictures"),
        (&missing, "missing"),
    ] {
        let out = dir.path().join("scales.json");
        let output = trtvlm()
            .arg("--calibration")
            .arg(data)
            .arg("--out")
            .arg(&out)
            .output()
            .expect("run");
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        let errors: Vec<_> = stderr
            .lines()
            .filter(|l| l.starts_with("error: "))
            .collect();
        assert!(errors.len() == 1 && errors[0].contains(reason), "{stderr}");
        assert!(output.stdout.is_empty() && !out.exists());
    }
    let output = trtvlm().args(["--samples", "0"]).output().expect("run");
    assert!(text(&output.stderr).contains("samples"));
}

#[test]
fn command_takes_one_picture_with_a_warning() {
    let dir = tempfile::tempdir().expect("temp dir");
    let out = dir.path().join("scales.json");
    let output = trtvlm()
        .args(["--samples", "1", "--max-tokens", "1", "--out"])
        .arg(&out)
        .output()
        .expect("run");
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("one picture only"), "{stderr}");
    assert_eq!(Scales::load(&out).expect("scales").items, 1);
}

#[test]
fn default_questions_are_listed_in_the_documentation() {
    let docs = fs::read_to_string(root().join("docs/calibration.md")).expect("docs");
    for question in trtvlm::items::DEFAULT_QUESTIONS {
        assert!(docs.contains(&format!("| {question} |")), "{question}");
    }
}
