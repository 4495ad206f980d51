//! The command line where several parts meet: tiles, sentences, signals, full disks, JSON keys.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

/// The demo model's answer to [`ask`], as the golden items have it.
const ANSWER: &str = "1 white car and 1 blue boat on grass";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn demo() -> PathBuf {
    root().join("onnx/uav-tiny")
}

fn picture() -> PathBuf {
    root().join("calibration/images/0024.png")
}

/// The program with a folder of its own for temporary files.
fn trtvlm(temp: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trtvlm"));
    command
        .env_remove("TRTVLM_LOG")
        .env("RUST_BACKTRACE", "0")
        .env("TMPDIR", temp)
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
        .stdin(Stdio::null());
    command
}

/// `run` with `n` times the picture and the question of [`ANSWER`].
fn ask(temp: &Path, model: &Path, n: usize, args: &[&str]) -> Command {
    let mut command = trtvlm(temp);
    command.arg("run").arg(model).arg("--image");
    command.args(std::iter::repeat_n(picture(), n));
    command
        .args(["--prompt", "describe the scene"])
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Everything in a folder, hidden files too.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("dir");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("entry").file_name().display().to_string())
        .collect();
    names.sort();
    names
}

fn keys(value: &Value) -> Vec<&str> {
    let object = value.as_object().unwrap_or_else(|| panic!("{value}"));
    object.keys().map(String::as_str).collect()
}

#[test]
fn run_json_has_the_documented_keys_and_no_others() {
    let dir = tempfile::tempdir().expect("dir");
    let answer = ask(dir.path(), &demo(), 1, &["--json"]).output();
    let answer = json(&answer.expect("run"));
    assert_eq!(
        keys(&answer),
        [
            "text",
            "token_ids",
            "stop",
            "mode",
            "backend",
            "precision",
            "prompt_tokens",
            "visual_tokens",
            "speculation",
            "timings_ms",
            "peak_memory_bytes",
        ]
    );
    assert_eq!(
        keys(&answer["visual_tokens"]),
        ["total", "kept", "indices", "pruner"]
    );
    assert_eq!(
        keys(&answer["speculation"]),
        [
            "draft",
            "steps",
            "proposed",
            "accepted",
            "by_position",
            "tokens_per_pass",
            "drafter_share",
            "near_ties",
            "switched_off",
        ]
    );
    assert_eq!(
        keys(&answer["timings_ms"]),
        [
            "preprocess",
            "vision",
            "prune",
            "prefill",
            "decode",
            "ttft",
            "total",
        ]
    );
    assert_eq!(answer["text"], ANSWER);
    assert_eq!(answer["stop"], "eos");
    assert_eq!(answer["backend"], "cpu");
    assert!(answer["precision"].is_string());
    assert!(answer["visual_tokens"]["pruner"].is_null(), "none chose");
    for number in [
        &answer["prompt_tokens"],
        &answer["visual_tokens"]["total"],
        &answer["visual_tokens"]["kept"],
        &answer["speculation"]["steps"],
        &answer["speculation"]["proposed"],
        &answer["speculation"]["accepted"],
        &answer["peak_memory_bytes"],
    ] {
        assert!(number.is_u64(), "{number} in {answer}");
    }
    for list in [&answer["token_ids"], &answer["visual_tokens"]["indices"]] {
        let list = list.as_array().expect("a list");
        assert!(!list.is_empty() && list.iter().all(Value::is_u64));
    }
    let times = answer["timings_ms"].as_object().expect("times");
    assert!(times.values().all(Value::is_f64), "{times:?}");
}

#[test]
fn run_with_tiles_gives_the_tokens_of_as_many_pictures() {
    let dir = tempfile::tempdir().expect("dir");
    let folder = root().join("tests/data/tiny/smolvlm-tiny-plain");
    let config = std::fs::read(folder.join("zoo.json")).expect("recipe");
    let recipe: Value = serde_json::from_slice(&config).expect("JSON");
    let tokens_per_picture = recipe["recipe"]["img_tokens"].as_u64().expect("tokens");
    let square = dir.path().join("square.png");
    let wide = dir.path().join("wide.png");
    image::RgbImage::from_fn(256, 256, |x, y| image::Rgb([x as u8, y as u8, 90]))
        .save(&square)
        .expect("png");
    image::RgbImage::from_fn(256, 128, |x, y| image::Rgb([x as u8, y as u8, 90]))
        .save(&wide)
        .expect("png");
    // Longest side 512 in tiles of 128, and the whole frame once more; fewer where fewer fit.
    let cases = [
        (&square, "auto", 17),
        (&square, "17", 17),
        (&square, "16", 10),
        (&square, "5", 5),
        (&square, "4", 1),
        (&square, "1", 1),
        (&wide, "auto", 9),
        (&wide, "8", 7),
        (&wide, "3", 3),
    ];
    let mut marks = Vec::new();
    for (image, tiles, pictures) in cases {
        let mut command = trtvlm(dir.path());
        command.arg("run").arg(&folder).arg("--image").arg(image);
        command.args(["--prompt", "hello", "--max-tokens", "1", "--json"]);
        let answer = json(&command.args(["--tiles", tiles]).output().expect("run"));
        let total = pictures * tokens_per_picture;
        let visual = &answer["visual_tokens"];
        assert_eq!(visual["total"], total, "{image:?} --tiles {tiles}");
        assert_eq!(visual["kept"], total, "{image:?} --tiles {tiles}");
        let indices: Vec<u64> = (0..total).collect();
        assert_eq!(visual["indices"], Value::from(indices));
        let prompt = answer["prompt_tokens"].as_u64().expect("tokens");
        marks.push((pictures, prompt - total));
    }
    // Every tile stands between marks of its own, so that more tiles need more of them.
    marks.sort();
    marks.dedup();
    assert_eq!(marks.len(), 7, "one prompt a number of pictures: {marks:?}");
    assert!(
        marks.windows(2).all(|pair| pair[0].1 < pair[1].1),
        "{marks:?}"
    );
}

#[test]
fn run_with_padding_drops_tokens_of_tiles_that_see_none_of_the_frame() {
    let dir = tempfile::tempdir().expect("dir");
    let folder = root().join("tests/data/tiny/smolvlm-tiny-plain");
    let wide = dir.path().join("wide.png");
    image::RgbImage::from_fn(512, 128, |x, y| image::Rgb([x as u8, y as u8, 90]))
        .save(&wide)
        .expect("png");
    let run = |tiles: &str| {
        let mut command = trtvlm(dir.path());
        command.arg("run").arg(&folder).arg("--image").arg(&wide);
        command.args(["--prompt", "hello", "--max-tokens", "4", "--json"]);
        command.args(["--fit", "pad", "--tiles", tiles]);
        json(&command.output().expect("run"))
    };
    // Four by four tiles of two by two tokens: the frame lies in the lower half of the second row
    // and in the upper half of the third. The picture of the whole comes last: all of it sees some.
    let tiled = run("17");
    assert_eq!(tiled["visual_tokens"]["total"], 68);
    let second_row = (4..8).flat_map(|tile| [4 * tile + 2, 4 * tile + 3]);
    let third_row = (8..12).flat_map(|tile| [4 * tile, 4 * tile + 1]);
    let kept: Vec<u64> = second_row.chain(third_row).chain(64..68).collect();
    assert_eq!(tiled["visual_tokens"]["indices"], Value::from(kept));
    assert_eq!(tiled["visual_tokens"]["kept"], 20);
    let whole = run("1");
    assert_eq!(whole["visual_tokens"]["kept"], 4);
}

/// The demo model's own files, in `model`.
fn copy_demo(model: &Path) {
    std::fs::create_dir_all(model.join("onnx")).expect("mkdir");
    for folder in ["", "onnx"] {
        for entry in std::fs::read_dir(demo().join(folder)).expect("demo") {
            let path = entry.expect("entry").path();
            if path.is_file() {
                let name = path.file_name().expect("name");
                std::fs::copy(&path, model.join(folder).join(name)).expect("copy");
            }
        }
    }
}

/// The demo model, but that what it calls " and" is spelt as a full stop.
fn model_with_full_stops(to: &Path) -> PathBuf {
    let model = to.join("model");
    copy_demo(&model);
    let path = model.join("tokenizer.json");
    let bytes = std::fs::read(&path).expect("tokenizer");
    let mut tokenizer: Value = serde_json::from_slice(&bytes).expect("JSON");
    let words = tokenizer["model"]["vocab"].as_object_mut().expect("words");
    let (and, stop) = (words["\u{120}and"].clone(), words["."].clone());
    words["\u{120}and"] = stop;
    words["."] = and;
    std::fs::write(&path, tokenizer.to_string()).expect("write");
    model
}

#[test]
fn run_to_the_end_of_a_sentence_trims_the_text_and_not_the_ids() {
    let dir = tempfile::tempdir().expect("dir");
    let model = model_with_full_stops(dir.path());
    let run = |args: &[&str]| ask(dir.path(), &model, 1, args).output().expect("run");
    let whole = json(&run(&["--json"]));
    assert_eq!(whole["text"], "1 white car. 1 blue boat on grass");
    let ids = whole["token_ids"].as_array().expect("ids");

    let sentence = json(&run(&["--json", "--stop-at", "sentence"]));
    assert_eq!(sentence["text"], "1 white car.");
    assert_eq!(sentence["stop"], "sentence");
    // The full stop ends a sentence once the space after it is there; its id stays.
    assert_eq!(sentence["token_ids"], Value::from(&ids[..5]));
    let printed = run(&["--stop-at", "sentence"]);
    assert_eq!(text(&printed.stdout), "1 white car.\n");
    assert!(text(&printed.stderr).contains("one sentence"));

    // At the length limit: a complete one stays as it is, without any nothing is cut away.
    for (limit, expected) in [("4", "1 white car."), ("3", "1 white car")] {
        let cut = json(&run(&[
            "--json",
            "--stop-at",
            "sentence",
            "--max-tokens",
            limit,
        ]));
        assert_eq!(
            (&cut["text"], &cut["stop"]),
            (&expected.into(), &"length".into())
        );
        let n: usize = limit.parse().expect("number");
        assert_eq!(cut["token_ids"], Value::from(&ids[..n]));
    }
}

/// Sends Ctrl-C's signal.
fn interrupt(child: &Child) {
    let pid = child.id().to_string();
    let sent = Command::new("kill").args(["-INT", &pid]).status();
    assert!(sent.expect("kill").success());
}

/// The demo model, but that its vision tower takes a minute.
fn model_that_sees_slowly(to: &Path) -> PathBuf {
    use trtvlm::onnx::OnnxModel;
    use trtvlm::onnx::proto::{NodeProto, TensorProto};
    let model = to.join("model");
    copy_demo(&model);
    // Of another tower, which would be told.
    std::fs::remove_file(model.join("quick.safetensors")).expect("remove");
    let path = model.join("onnx/vision_encoder_fp16.onnx");
    let mut tower = OnnxModel::load(&path).expect("graph");
    let graph = tower.graph_mut();
    let (input, output) = (graph.input[0].name.clone(), graph.output[0].name.clone());
    for node in &mut graph.node {
        for made in node.output.iter_mut().filter(|made| **made == output) {
            *made = "features".to_owned();
        }
    }
    let side = TensorProto::from_i64("side", &[2], &[1500, 1500]);
    graph.initializer.push(side);
    let reduce =
        |from: &str, to: &str| NodeProto::new("ReduceMax", &[from], &[to]).with_int("keepdims", 0);
    let mut nodes = vec![
        reduce(&input, "brightest"),
        NodeProto::new("ConstantOfShape", &["side"], &["nothing"]),
        NodeProto::new("Mul", &["nothing", "brightest"], &["power0"]),
    ];
    for n in 0..500 {
        let [from, to] = [n, n + 1].map(|n| format!("power{n}"));
        nodes.push(NodeProto::new("MatMul", &[&from, &from], &[&to]));
    }
    nodes.push(reduce("power500", "zero"));
    nodes.push(NodeProto::new("Add", &["features", "zero"], &[&output]));
    graph.node.extend(nodes);
    // The graph lies in the file that it replaces.
    let changed = to.join("changed.onnx");
    tower.save(&changed).expect("save");
    drop(tower);
    std::fs::rename(&changed, &path).expect("rename");
    let data = model.join("onnx/changed.onnx.data");
    std::fs::rename(to.join("changed.onnx.data"), data).expect("rename");
    model
}

#[test]
fn run_interrupted_before_its_answer_begins_ends_at_once() {
    let dir = tempfile::tempdir().expect("dir");
    let model = model_that_sees_slowly(dir.path());
    let temp = tempfile::tempdir().expect("dir");
    let mut child = ask(temp.path(), &model, 1, &["--json"])
        .spawn()
        .expect("spawn");
    let mut stderr = BufReader::new(child.stderr.take().expect("pipe"));
    let mut line = String::new();
    stderr.read_line(&mut line).expect("what was loaded");
    assert!(line.contains("cpu engine"), "{line}");
    interrupt(&child);
    let output = child.wait_with_output().expect("wait");
    assert_eq!(output.status.code(), Some(130));
    // An orderly end comes after the pass that is at work, with an object that says so.
    assert_eq!(text(&output.stdout), "");
    assert_eq!(names(temp.path()), [""; 0], "temporary files");
}

/// So many pictures that no machine is through with them before a signal arrives.
const MANY: usize = 2000;

#[test]
fn interrupted_run_prints_what_it_has_and_exits_with_130() {
    let dir = tempfile::tempdir().expect("dir");
    let mut child = ask(dir.path(), &demo(), MANY, &[]).spawn().expect("spawn");
    let mut stdout = child.stdout.take().expect("pipe");
    let mut first = [0u8];
    stdout.read_exact(&mut first).expect("the first character");
    interrupt(&child);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).expect("UTF-8");
    let output = child.wait_with_output().expect("wait");
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(!stderr.contains("error:"), "{stderr}");
    let shown = format!("{}{rest}", char::from(first[0]));
    assert!(shown.ends_with('\n'), "{shown:?}");
    let (last, whole): (&str, Vec<&str>) = {
        let mut lines: Vec<&str> = shown.lines().collect();
        (lines.pop().expect("a line"), lines)
    };
    assert!(whole.len() + 1 < MANY, "it stopped");
    assert!(whole.iter().all(|line| *line == ANSWER), "{whole:?}");
    assert!(ANSWER.starts_with(last), "{last:?}");
    assert_eq!(names(dir.path()), [""; 0], "temporary files");
}

#[test]
fn interrupted_run_ends_its_json_with_a_whole_object() {
    let dir = tempfile::tempdir().expect("dir");
    let mut child = ask(dir.path(), &demo(), MANY, &["--json"])
        .spawn()
        .expect("spawn");
    let mut stdout = BufReader::new(child.stdout.take().expect("pipe"));
    let mut shown = String::new();
    stdout.read_line(&mut shown).expect("the first object");
    interrupt(&child);
    stdout.read_to_string(&mut shown).expect("UTF-8");
    let output = child.wait_with_output().expect("wait");
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    let answers: Vec<Value> = shown
        .lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect();
    let (last, whole) = answers.split_last().expect("an answer");
    assert!(whole.len() + 1 < MANY, "it stopped");
    assert!(whole.iter().all(|answer| answer["stop"] == "eos"));
    let stop = last["stop"].as_str().expect("stop");
    assert!(["cancelled", "eos"].contains(&stop), "{last}");
    assert_eq!(names(dir.path()), [""; 0], "temporary files");
}

#[test]
fn run_into_a_closed_pipe_ends_quietly() {
    let dir = tempfile::tempdir().expect("dir");
    let mut child = ask(dir.path(), &demo(), MANY, &["--json"])
        .spawn()
        .expect("spawn");
    let mut stdout = BufReader::new(child.stdout.take().expect("pipe"));
    stdout
        .read_line(&mut String::new())
        .expect("the first object");
    drop(stdout);
    let output = child.wait_with_output().expect("wait");
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(!stderr.contains("error"), "{stderr}");
    assert_eq!(names(dir.path()), [""; 0], "temporary files");
}

/// `build` where no file may grow beyond `blocks` of the shell's unit (512 or 1024 bytes), as on a
/// disk that is full then.
fn build_on_a_full_disk(temp: &Path, out: &Path, target: &str, blocks: u32) -> Output {
    let mut command = Command::new("sh");
    // Ignored, the signal becomes an error of the call that writes.
    let script = format!("trap '' XFSZ; ulimit -f {blocks} || exit 99; exec \"$0\" \"$@\"");
    command
        .arg("-c")
        .arg(script)
        .arg(env!("CARGO_BIN_EXE_trtvlm"))
        .arg("build")
        .arg(demo())
        .args(["--target", target, "--out"])
        .arg(out)
        .env_remove("TRTVLM_LOG")
        .env("RUST_BACKTRACE", "0")
        .env("TMPDIR", temp)
        // A profile cut short, which a coverage run would leave here, cannot be read.
        .env("LLVM_PROFILE_FILE", "/dev/null");
    command.output().expect("run")
}

#[test]
fn build_on_a_full_disk_fails_and_leaves_nothing() {
    let targets: &[&str] = match cfg!(feature = "tensorrt") {
        true => &["cpu", "sm86"],
        false => &["cpu"],
    };
    for target in targets {
        for blocks in [0, 64, 3000] {
            let dir = tempfile::tempdir().expect("dir");
            let (temp, place) = (dir.path().join("temp"), dir.path().join("place"));
            for folder in [&temp, &place] {
                std::fs::create_dir(folder).expect("mkdir");
            }
            let output = build_on_a_full_disk(&temp, &place.join("bundle"), target, blocks);
            let stderr = text(&output.stderr);
            let what = format!("{target}, {blocks} blocks: {}: {stderr}", output.status);
            assert_eq!(output.status.code(), Some(1), "{what}");
            assert!(stderr.contains("error: "), "{what}");
            assert!(stderr.contains("File too large"), "{what}");
            assert_eq!(names(&place), [""; 0], "{what}");
            assert_eq!(names(&temp), [""; 0], "{what}");
        }
    }
}

#[cfg(feature = "tensorrt")]
mod tensorrt {
    use std::time::{Duration, Instant};

    use super::*;

    /// A generous end to a wait for something that has to happen.
    const PATIENCE: Duration = Duration::from_secs(120);

    /// Asks until there is an answer.
    fn wait_for<T>(what: &str, mut answer: impl FnMut() -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(answer) = answer() {
                return answer;
            }
            assert!(start.elapsed() < PATIENCE, "no {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A process's state and parent, if it is there.
    fn process(pid: u32) -> Option<(String, u32)> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit(')').next()?.split_whitespace();
        let state = fields.next()?.to_owned();
        Some((state, fields.next()?.parse().ok()?))
    }

    /// The child of `parent`, if it has one that has begun to run something of its own.
    fn child_of(parent: u32) -> Option<u32> {
        let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
        let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.find(|&pid| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            process(pid).is_some_and(|(_, its_parent)| its_parent == parent)
                && text(&command).contains("build-plan")
        })
    }

    #[test]
    fn killed_build_takes_its_child_along_and_the_next_one_cleans_up() {
        let dir = tempfile::tempdir().expect("dir");
        let (temp, place) = (dir.path().join("temp"), dir.path().join("place"));
        for folder in [&temp, &place] {
            std::fs::create_dir(folder).expect("mkdir");
        }
        let out = place.join("bundle");
        let build = |force: &[&str]| {
            let mut command = trtvlm(&temp);
            command.arg("build").arg(demo()).arg("--out").arg(&out);
            command.args(["--target", "sm86"]).args(force);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command
        };
        let mut parent = build(&[]).spawn().expect("spawn");
        let child = wait_for("child", || child_of(parent.id()));
        parent.kill().expect("kill -9");
        parent.wait().expect("wait");
        // A child that nobody waits for stays as a zombie where no init collects it.
        wait_for("end of the child", || {
            process(child)
                .is_none_or(|(state, _)| state == "Z")
                .then_some(())
        });
        assert!(!out.exists(), "nothing stands there half written");
        let output = build(&[]).output().expect("run");
        assert!(output.status.success(), "{}", text(&output.stderr));
        trtvlm::bundle::Bundle::open(&out).expect("bundle");
        assert_eq!(names(&place), ["bundle"]);
        let answer = ask(&temp, &out, 1, &[]).output().expect("run");
        assert_eq!(answer.status.code(), Some(1), "a bundle without CPU graphs");
        let stderr = text(&answer.stderr);
        assert!(
            stderr.contains("sm86") && stderr.contains("CPU"),
            "both sides: {stderr}"
        );
    }
}
