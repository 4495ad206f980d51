//! What the fuzz targets do with their bytes: each function must return, whatever it is given, and says whether
//! the bytes were taken.
//!
//! `make fuzz` runs them under libFuzzer; `tests/corpora.rs` replays the inputs in `corpus/` on every test run. An input that was found
//! to end a target in a panic, a hang or too much memory is mended, then kept there.
//!
//! | target | bytes | |
//! |---|---|---|
//! | `onnx` | an ONNX file | read, described, written, read again |
//! | `manifest` | a bundle's `manifest.json` | the same |
//! | `tokenizer`, `template`, `configuration` | files of a model folder | a prompt through them, its ids as text |
//! | `scales` | a file of scales | read, written, read again |
//! | `image` | an image file | decoded, resized |
//! | `items`, `corrections` | lists, JSON lines | read |
//! | `stream` | what a camera or pipe sends | frames of it |
//! | `capi` | calls of the C interface | statuses, texts, buffers as the header promises |

mod capi;

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use trtvlm::bundle::Manifest;
use trtvlm::corrections::read_corrections;
use trtvlm::model::ModelConfig;
use trtvlm::onnx::OnnxModel;
use trtvlm::preprocess::{Fit, Frame, Processor, Tiles};
use trtvlm::quantize::Scales;
use trtvlm::text::{ImageSlot, Text};
use trtvlm::watch::{Next, detect};
use trtvlm::{Error, Result};

pub use capi::capi;

/// A model folder of the repository.
fn model(name: &str) -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = match package.ends_with("fuzz") {
        true => package.parent().expect("a repository"),
        false => package,
    };
    root.join("tests/data/tiny").join(name)
}

/// Its message if it was refused, which has to name the file.
fn refused<T>(outcome: Result<T>, file: &str) -> Option<T> {
    match outcome {
        Ok(value) => Some(value),
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains(file), "{file} is not named: {text}");
            assert!(text.len() < 4096, "{} bytes of message", text.len());
            None
        }
    }
}

/// An ONNX file.
pub fn onnx(data: &[u8]) -> bool {
    let path = Path::new("m.onnx");
    let bytes = data.to_vec().into();
    let Some(model) = refused(OnnxModel::parse(path, bytes), "m.onnx") else {
        return false;
    };
    let graph = model.graph();
    let _ = (graph.inputs(), graph.outputs(), graph.op_counts());
    let _ = (model.weight_bytes(), model.weight_elements());
    let _ = (model.producer(), model.opset(""));
    let again = model.encode(|_| None);
    OnnxModel::parse(path, again.into()).is_ok() || panic!("what was written is refused")
}

/// A bundle's manifest.
pub fn manifest(data: &[u8]) -> bool {
    let path = Path::new("b/manifest.json");
    let Some(manifest) = refused(Manifest::parse(path, data), "manifest.json") else {
        return false;
    };
    let text = serde_json::to_vec(&manifest).expect("JSON");
    Manifest::parse(path, &text).expect("what was written") == manifest
}

/// A file of scales.
pub fn scales(data: &[u8]) -> bool {
    let path = Path::new("s.scales");
    let Some(scales) = refused(Scales::parse(path, data), "s.scales") else {
        return false;
    };
    let text = scales.to_json().expect("JSON");
    Scales::parse(path, &text).expect("what was written") == scales
}

/// An image file.
pub fn image(data: &[u8]) -> bool {
    let Some(frame) = refused(Frame::decode("x.img", data), "x.img") else {
        return false;
    };
    assert_eq!(frame.rgb().len(), frame.width() * frame.height() * 3);
    // A small file may be a large picture, whose resizing would take all the time.
    if frame.rgb().len() < 1 << 20 {
        let processor = Processor::load(&model("smolvlm-tiny-plain")).expect("processor");
        refused(processor.run(&frame, Fit::Pad, Tiles::Count(5)), "x.img");
    }
    true
}

/// A file of a name of its own, for readers that take paths.
fn with_file<T>(name: &str, data: &[u8], read: impl FnOnce(&Path) -> Result<T>) -> bool {
    let dir = TempDir::new().expect("temp dir");
    let path = dir.path().join(name);
    fs::write(&path, data).expect("write");
    refused(read(&path), name).is_some()
}

/// A list of questions.
pub fn items(data: &[u8]) -> bool {
    with_file("list.jsonl", data, trtvlm::items::read_items)
}

/// A list of refused drafts.
pub fn corrections(data: &[u8]) -> bool {
    let decoders = ["0123456789abcdef".repeat(4)];
    with_file("refused.jsonl", data, |path| {
        read_corrections(path, &decoders)
    })
}

/// What a pipe sends.
pub fn stream(data: &[u8]) -> bool {
    let input = Box::new(Cursor::new(data.to_vec()));
    let Some(mut reader) = refused(detect("pipe", input), "pipe") else {
        return false;
    };
    let mut frame = Frame::new("pipe", 1, 1, vec![0; 3]).expect("a pixel");
    let mut taken = false;
    for _ in 0..64 {
        match refused(reader.next(&mut frame), "pipe") {
            Some(Next::Frame) => taken = true,
            Some(Next::Broken(_)) => {}
            Some(Next::End) | None => break,
        }
    }
    taken
}

/// A model folder with one file of the fuzzer's, and a question through it.
fn in_folder(file: &str, data: &[u8]) -> bool {
    let source = model("smolvlm-tiny-plain");
    let dir = TempDir::new().expect("temp dir");
    for entry in fs::read_dir(source).expect("model") {
        let path = entry.expect("entry").path();
        if path.extension().is_some_and(|e| e == "json") {
            fs::copy(&path, dir.path().join(path.file_name().expect("name"))).expect("copy");
        }
    }
    fs::write(dir.path().join(file), data).expect("write");
    match ask(dir.path()) {
        Err(Error::TooLarge { .. } | Error::Prompt { .. }) => false,
        // A number that is wrong in one file may be found out in another.
        outcome => refused(outcome, dir.path().to_str().expect("UTF-8")).is_some(),
    }
}

fn ask(dir: &Path) -> Result<()> {
    let config = ModelConfig::load(dir)?;
    let text = Text::load(dir, &config)?;
    let prompt = text.prompt(
        "what is <image> this?\n",
        &[ImageSlot::Tiled { rows: 2, cols: 1 }],
    )?;
    text.decode(&prompt.ids)?;
    let frame = Frame::new("grey", 40, 30, vec![90; 40 * 30 * 3])?;
    Processor::load(dir)?.run(&frame, Fit::Processor, Tiles::Count(3))?;
    Ok(())
}

/// A tokenizer.
pub fn tokenizer(data: &[u8]) -> bool {
    in_folder("tokenizer.json", data)
}

/// A chat template.
pub fn template(data: &[u8]) -> bool {
    in_folder("chat_template.jinja", data)
}

/// The other files of a model folder: the first byte says which.
pub fn configuration(data: &[u8]) -> bool {
    let files = [
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "tokenizer_config.json",
        "processor_config.json",
    ];
    let Some((which, rest)) = data.split_first() else {
        return false;
    };
    in_folder(files[usize::from(*which) % files.len()], rest)
}
