//! Graphs that ask for more than a machine has, and folders that nothing can be written to, as a
//! user of `trtvlm run` sees them.

use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use tempfile::TempDir;
use trtvlm::onnx::OnnxModel;
use trtvlm::onnx::proto::{NodeProto, TensorProto};

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("onnx/uav-tiny")
}

fn picture() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("calibration/images");
    let mut names: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("images")
        .map(|entry| entry.expect("entry").path())
        .collect();
    names.sort();
    names.swap_remove(0)
}

/// The demo model with a changed vision graph: `nodes` make `extra`, a number that is added to
/// its output.
fn with_vision(nodes: Vec<NodeProto>, constants: Vec<TensorProto>) -> TempDir {
    let dir = tempfile::tempdir().expect("temp dir");
    let onnx = dir.path().join("onnx");
    std::fs::create_dir(&onnx).expect("mkdir");
    for folder in ["", "onnx"] {
        for entry in std::fs::read_dir(demo().join(folder)).expect("demo") {
            let entry = entry.expect("entry");
            let to = dir.path().join(folder).join(entry.file_name());
            if entry.file_type().expect("type").is_file() {
                std::os::unix::fs::symlink(entry.path(), to).expect("link");
            }
        }
    }
    let vision = onnx.join("vision_encoder_fp16.onnx");
    let mut model = OnnxModel::load(&vision).expect("vision graph");
    let graph = model.graph_mut();
    let output = graph.output[0].name.clone();
    for name in graph.node.iter_mut().flat_map(|node| &mut node.output) {
        if *name == output {
            name.push_str("_before");
        }
    }
    let before = format!("{output}_before");
    graph.node.extend(nodes);
    let add = NodeProto::new("Add", &[&before, "extra"], &[&output]);
    graph.node.push(add);
    graph.initializer.extend(constants);
    std::fs::remove_file(&vision).expect("link");
    model.save(&vision).expect("save");
    dir
}

fn trtvlm() -> Command {
    let mut command = Command::cargo_bin("trtvlm").expect("binary");
    command
        .env_remove("TRTVLM_LOG")
        .env("RUST_BACKTRACE", "0")
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
    command
}

fn ask(model: &Path, command: &mut Command) -> Output {
    let command = command.arg("run").arg(model).arg("--image").arg(picture());
    let output = command.args(["--prompt", "where is the car"]).output();
    output.expect("run")
}

/// The one error line of a run that must fail with status 1.
fn refused(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(output.stdout.is_empty(), "printed an answer");
    let mut lines = stderr.lines().filter(|line| line.starts_with("error: "));
    let line = lines
        .next()
        .unwrap_or_else(|| panic!("no error line: {stderr}"));
    assert_eq!(lines.next(), None, "{stderr}");
    line.to_owned()
}

fn shape(side: i64) -> TensorProto {
    TensorProto::from_i64("huge_shape", &[2], &[side, side])
}

fn largest(of: &str) -> NodeProto {
    NodeProto::new("ReduceMax", &[of], &["extra"]).with_int("keepdims", 0)
}

#[test]
fn run_of_a_graph_with_a_huge_constant_names_the_node() {
    let nodes = vec![
        NodeProto::new("ConstantOfShape", &["huge_shape"], &["huge"]),
        largest("huge"),
    ];
    let model = with_vision(nodes, vec![shape(1 << 20)]);
    let line = refused(&ask(model.path(), &mut trtvlm()));
    assert!(line.contains("vision_encoder"), "{line}");
    assert!(line.contains("huge/ConstantOfShape"), "{line}");
    assert!(line.contains(&(1u64 << 40).to_string()), "{line}");
}

/// The size comes out of the pixels, so that nobody knows it before the graph runs.
#[test]
fn run_that_asks_for_more_memory_than_there_is_ends_with_a_message() {
    let nodes = vec![
        NodeProto::new("ReduceMax", &["pixel_values"], &["brightest"]).with_int("keepdims", 0),
        NodeProto::new("Sub", &["brightest", "brightest"], &["nothing"]),
        NodeProto::new("Add", &["nothing", "side"], &["number"]),
        NodeProto::new("Cast", &["number"], &["whole"]).with_int("to", 7),
        NodeProto::new("Concat", &["whole", "whole"], &["sides"]).with_int("axis", 0),
        NodeProto::new("ConstantOfShape", &["sides"], &["huge"]),
        largest("huge"),
    ];
    let side = TensorProto::from_f32("side", &[1], &[524_288.0]);
    let model = with_vision(nodes, vec![side]);
    let line = refused(&ask(model.path(), &mut trtvlm()));
    assert!(line.contains("vision_encoder"), "{line}");
    assert!(line.contains(&(1u64 << 40).to_string()), "{line}");
}

/// Weights that do not lie where the engine could read them are copied; here that is more than the
/// process may have, which is known before the engine sees any of it.
#[test]
fn run_without_memory_for_the_weights_ends_with_a_message() {
    use prost::Message;
    use trtvlm::onnx::proto::{ModelProto, StringStringEntryProto};
    const BYTES: u64 = 1 << 30;
    let model = with_vision(vec![largest("ballast")], Vec::new());
    let onnx = model.path().join("onnx");
    let data = std::fs::File::create(onnx.join("ballast.data")).expect("create");
    // Nothing of it is on the disk.
    data.set_len(BYTES + 1).expect("length");
    let path = onnx.join("vision_encoder_fp16.onnx");
    let bytes = std::fs::read(&path).expect("read");
    let mut vision = ModelProto::decode(bytes.as_slice()).expect("graph");
    let entry = |(key, value): (&str, String)| StringStringEntryProto {
        key: key.to_owned(),
        value,
    };
    let at = [
        ("location", "ballast.data".to_owned()),
        ("offset", "1".to_owned()),
        ("length", BYTES.to_string()),
    ];
    let mut ballast = TensorProto::from_f32("ballast", &[BYTES as i64 / 4], &[]);
    ballast.float_data.clear();
    ballast.raw_data = None;
    ballast.external_data = at.map(entry).to_vec();
    ballast.data_location = Some(1);
    vision
        .graph
        .as_mut()
        .expect("graph")
        .initializer
        .push(ballast);
    std::fs::write(&path, vision.encode_to_vec()).expect("write");
    // Enough for the program and the file in memory, not for a copy of it.
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -v 2000000 && exec \"$0\" \"$@\""])
        .arg(env!("CARGO_BIN_EXE_trtvlm"))
        .env("RUST_BACKTRACE", "0");
    let line = refused(&ask(model.path(), &mut command));
    assert!(line.contains("vision_encoder"), "{line}");
    assert!(line.contains(&format!("block of {BYTES} bytes")), "{line}");
}

#[test]
fn run_needs_no_folder_for_temporary_files() {
    let mut command = trtvlm();
    command.env("TMPDIR", "/none/such");
    let output = ask(&demo(), &mut command);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
}
