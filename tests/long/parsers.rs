//! Damaged files for each parser of bytes from outside: no panic, no hang, no absurd memory, and
//! every refusal names the file.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::ImageFormat;
use serde_json::Value;
use trtvlm::bundle::Manifest;
use trtvlm::model::{Model, ModelConfig};
use trtvlm::onnx::OnnxModel;
use trtvlm::preprocess::{Fit, Frame, Processor, Tiles};
use trtvlm::text::{ImageSlot, Text};
use trtvlm::{Error, Result};

use super::damage::{TEMPLATE_WORDS, bytes, cases, json};

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> Vec<u8> {
    fs::read(repository(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn read_json(path: &str) -> Value {
    serde_json::from_slice(&read(path)).expect(path)
}

/// Whether it was taken; a refusal has to name the file.
fn taken<T>(outcome: Result<T>, file: &str) -> bool {
    match outcome {
        Ok(_) => true,
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains(file), "{file} is not named: {text}");
            assert!(text.len() < 4096, "{} bytes of message", text.len());
            assert!(!matches!(error, Error::Cancelled));
            false
        }
    }
}

#[test]
#[ignore = "long: about two minutes"]
fn long_onnx_files_with_damage_are_read_or_refused() {
    let good: Vec<Vec<u8>> = [
        "fastvlm-tiny-contrib-sep/onnx/decoder_model_merged_q4f16.onnx",
        "fastvlm-tiny-contrib/onnx/embed_tokens_fp16.onnx",
        "smolvlm-tiny-plain/onnx/decoder_model_merged.onnx",
        "smolvlm-tiny-plain/onnx/vision_encoder.onnx",
    ]
    .iter()
    .map(|name| {
        let path = repository("tests/data/tiny").join(name);
        // Mostly structure: what is damaged should seldom be a weight.
        without_weights(&path)
    })
    .collect();
    let path = Path::new("m.onnx");
    cases("onnx", 200_000, |dice| {
        let whole = dice.pick(&good);
        let damaged = bytes(dice, whole);
        let model = match OnnxModel::parse(path, damaged.into()) {
            Ok(model) => model,
            Err(error) => return taken::<()>(Err(error), "m.onnx"),
        };
        // What `inspect` and every build ask of a graph.
        let graph = model.graph();
        let _ = (graph.inputs(), graph.outputs(), graph.op_counts());
        let _ = (model.weight_bytes(), model.weight_elements());
        let _ = (model.producer(), model.opset(""));
        let again = model.encode(|_| None);
        assert!(OnnxModel::parse(path, again.into()).is_ok());
        true
    });
}

/// A graph whose large weights lie elsewhere, in a file that is not there, and are dropped.
fn without_weights(path: &Path) -> Vec<u8> {
    let mut model = OnnxModel::load(path).expect("a file of the repository");
    let graph = model.graph_mut();
    graph.initializer.retain(|tensor| {
        let raw = tensor.raw_data.as_ref();
        raw.is_none_or(|raw| raw.len() < 256)
    });
    model.encode(|_| None)
}

#[test]
#[ignore = "long: about two minutes"]
fn long_manifests_with_damage_are_read_or_refused() {
    let digest = "0123456789abcdef".repeat(4);
    let good = serde_json::json!({
        "schema_version": trtvlm::bundle::SCHEMA_VERSION,
        "created_by": "trtvlm 0.1.0",
        "command_line": ["trtvlm", "build"],
        "model": {"family": "fastvlm", "name": "m", "variant": "fp16",
                  "sources": [{"path": "config.json", "bytes": 2, "sha256": digest}]},
        "precision": "fp16",
        "taps": [], "head_bytes": null, "kv_capacity": 512, "max_context": 512, "draft_tokens": 4, "vocabulary": 1024,
        "buckets": {"prefill": [64], "step": [1, 5], "visual_tokens": []},
        "engines": [{
            "target": "cpu",
            "engine": {"flavour": "cpu", "version": "0.27.0"},
            "components": [{
                "name": "vision", "file": "engines/vision.onnx",
                "inputs": [{"name": "pixel_values", "dtype": "f32", "shape": ["1", "tiles"]}],
                "outputs": [],
                "graph": [], "profiles": [{"name": "one",
                              "inputs": [{"name": "pixel_values", "min": [1], "opt": [1], "max": [4]}]}],
            }],
            "memory": [{"name": "kv cache", "bytes": 1048576}],
        }],
        "files": [{"path": "engines/vision.onnx", "bytes": 4, "sha256": digest}],
    });
    let path = Path::new("b/manifest.json");
    cases("manifest", 500_000, |dice| {
        let damaged = json(dice, &good);
        match Manifest::parse(path, &damaged) {
            Ok(manifest) => {
                let text = serde_json::to_vec(&manifest).expect("JSON");
                assert!(Manifest::parse(path, &text).is_ok(), "{damaged:?}");
                true
            }
            Err(error) => taken::<()>(Err(error), "manifest.json"),
        }
    });
}

#[test]
#[ignore = "long: about two minutes"]
fn long_images_with_damage_are_decoded_or_refused() {
    let picture = image::open(repository("calibration/images/0024.png")).expect("image");
    let small = picture.resize(48, 32, image::imageops::FilterType::Nearest);
    let deep = image::DynamicImage::from(small.to_rgba16());
    let formats = [
        ImageFormat::Png,
        ImageFormat::Jpeg,
        ImageFormat::Gif,
        ImageFormat::Bmp,
        ImageFormat::Tiff,
        ImageFormat::WebP,
        ImageFormat::Pnm,
    ];
    let encode = |image: &image::DynamicImage, format| {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).expect("encode");
        bytes.into_inner()
    };
    let plain = image::DynamicImage::from(small.to_rgb8());
    let mut good: Vec<Vec<u8>> = formats.map(|format| encode(&plain, format)).to_vec();
    good.push(encode(&deep, ImageFormat::Png));
    good.push(encode(&deep, ImageFormat::Tiff));
    good.push(encode(&small.to_luma8().into(), ImageFormat::Png));
    let folders = ["onnx/uav-tiny", "tests/data/tiny/smolvlm-tiny-plain"];
    let processors = folders.map(|dir| Processor::load(&repository(dir)).expect("processor"));
    cases("image", 150_000, |dice| {
        let whole = dice.pick(&good);
        let damaged = bytes(dice, whole);
        let frame = match Frame::decode("x.img", &damaged) {
            Ok(frame) => frame,
            Err(error) => return taken::<()>(Err(error), "x.img"),
        };
        assert_eq!(frame.rgb().len(), frame.width() * frame.height() * 3);
        // A small file may be a large picture, whose resizing would take all the time.
        if frame.rgb().len() < 1 << 20 {
            let fit = [Fit::Processor, Fit::Pad, Fit::Stretch][dice.below(3)];
            let processor = dice.pick(&processors);
            let _ = taken(processor.run(&frame, fit, Tiles::Count(5)), "x.img");
        }
        true
    });
}

/// A copy of a model folder without its graphs, which this needs not.
fn configuration_of(model: &str, to: &Path) -> PathBuf {
    let dir = to.join(Path::new(model).file_name().expect("name"));
    fs::create_dir_all(&dir).expect("mkdir");
    for entry in fs::read_dir(repository(model)).expect("model") {
        let path = entry.expect("entry").path();
        if path.is_file() && path.extension().is_some_and(|e| e != "safetensors") {
            fs::copy(&path, dir.join(path.file_name().expect("name"))).expect("copy");
        }
    }
    dir
}

/// What a run reads beside the graphs, and a question with an answer through it.
fn use_folder(dir: &Path) -> Result<()> {
    let config = ModelConfig::load(dir)?;
    let text = Text::load(dir, &config)?;
    let slot = match config.family.tiled {
        true => ImageSlot::Tiled { rows: 2, cols: 1 },
        false => ImageSlot::Single,
    };
    let prompt = text.prompt("what is <image> this?\n", &[slot])?;
    let vocabulary = u32::try_from(config.vocab).unwrap_or(u32::MAX);
    text.decode(&prompt.ids)?;
    let mut stream = text.stream();
    for id in (0..vocabulary).step_by(7).take(64) {
        stream.push(id)?;
    }
    stream.finish();
    let frame = Frame::new("grey", 40, 30, vec![90; 40 * 30 * 3])?;
    Processor::load(dir)?.run(&frame, Fit::Processor, Tiles::Count(3))?;
    Ok(())
}

const FOLDERS: [&str; 3] = [
    "onnx/uav-tiny",
    "tests/data/tiny/fastvlm-tiny-plain",
    "tests/data/tiny/smolvlm-tiny-plain",
];

#[test]
#[ignore = "long: about two minutes"]
fn long_configurations_with_damage_are_used_or_refused() {
    let temp = tempfile::tempdir().expect("temp dir");
    let folders: Vec<PathBuf> = FOLDERS
        .iter()
        .map(|model| configuration_of(model, temp.path()))
        .collect();
    let files = [
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "tokenizer_config.json",
    ];
    cases("configuration", 30_000, |dice| {
        let at = dice.below(FOLDERS.len());
        let (model, dir) = (FOLDERS[at], &folders[at]);
        let file = files[dice.below(files.len())];
        let good = read_json(&format!("{model}/{file}"));
        fs::write(dir.join(file), json(dice, &good)).expect("write");
        // A number that is wrong in one file may be found out in another.
        let dir_name = dir.to_str().expect("path").to_owned();
        let outcome = use_folder(dir);
        let took = match outcome {
            Err(Error::TooLarge { .. } | Error::Prompt { .. }) => false,
            outcome => taken(outcome, &dir_name),
        };
        fs::write(dir.join(file), good.to_string()).expect("restore");
        took
    });
}

#[test]
#[ignore = "long: about two minutes"]
fn long_tokenizers_with_damage_are_used_or_refused() {
    let temp = tempfile::tempdir().expect("temp dir");
    let folders: Vec<(Value, PathBuf)> = FOLDERS
        .iter()
        .map(|model| {
            let good = read_json(&format!("{model}/tokenizer.json"));
            (good, configuration_of(model, temp.path()))
        })
        .collect();
    cases("tokenizer", 40_000, |dice| {
        let (good, dir) = &folders[dice.below(folders.len())];
        let path = dir.join("tokenizer.json");
        fs::write(&path, json(dice, good)).expect("write");
        match use_folder(dir) {
            Err(Error::Prompt { .. }) => false,
            outcome => taken(outcome, "tokenizer.json"),
        }
    });
}

#[test]
#[ignore = "long: about two minutes"]
fn long_chat_templates_with_damage_are_used_or_refused() {
    let temp = tempfile::tempdir().expect("temp dir");
    let model = "tests/data/tiny/smolvlm-tiny-plain";
    let dir = configuration_of(model, temp.path());
    let names = read_json(&format!("{model}/tokenizer_config.json"));
    let good = names["chat_template"]
        .as_str()
        .expect("template")
        .to_owned();
    cases("template", 30_000, |dice| {
        let mut damaged = match dice.below(2) {
            0 => good.clone().into_bytes(),
            _ => bytes(dice, good.as_bytes()),
        };
        for _ in 0..dice.below(3) {
            let at = dice.below(damaged.len() + 1);
            let word = dice.pick(&TEMPLATE_WORDS).bytes();
            damaged.splice(at..at, word);
        }
        fs::write(dir.join("chat_template.jinja"), damaged).expect("write");
        match use_folder(&dir) {
            Err(Error::Prompt { .. } | Error::TooLarge { .. }) => false,
            outcome => taken(outcome, "chat_template.jinja"),
        }
    });
}

#[test]
#[ignore = "long: about two minutes"]
fn long_model_folders_with_damaged_graphs_answer_or_are_refused() {
    let temp = tempfile::tempdir().expect("temp dir");
    let source = "tests/data/tiny/fastvlm-tiny-plain";
    let dir = configuration_of(source, temp.path());
    fs::create_dir(dir.join("onnx")).expect("mkdir");
    let files = ["vision_encoder", "embed_tokens", "decoder_model_merged"];
    let good = files.map(|name| read(&format!("{source}/onnx/{name}.onnx")));
    for (name, bytes) in files.iter().zip(&good) {
        fs::write(dir.join(format!("onnx/{name}.onnx")), bytes).expect("write");
    }
    let frame = Frame::new("grey", 40, 30, vec![90; 40 * 30 * 3]).expect("frame");
    let ask = trtvlm::pipeline::Ask {
        max_tokens: Some(2),
        ..Default::default()
    };
    assert!(Model::load(&dir, None).is_ok());
    cases("graphs", 6_000, |dice| {
        let at = dice.below(files.len());
        let path = dir.join(format!("onnx/{}.onnx", files[at]));
        fs::write(&path, bytes(dice, &good[at])).expect("write");
        let outcome = trtvlm::pipeline::Pipeline::open(&dir, None)
            .and_then(|mut pipeline| pipeline.ask(&frame, "what?", &ask, &mut |_| {}));
        fs::write(&path, &good[at]).expect("restore");
        match outcome {
            Ok(_) => true,
            Err(error) => {
                let text = error.to_string();
                assert!(!text.is_empty() && text.len() < 8192, "{text}");
                false
            }
        }
    });
}
