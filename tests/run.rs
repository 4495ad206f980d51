//! `trtvlm run`, as a user sees it.

use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn demo() -> PathBuf {
    root().join("onnx/uav-tiny")
}

fn image(name: &str) -> PathBuf {
    root().join("calibration/images").join(name)
}

fn trtvlm() -> Command {
    let mut command = Command::cargo_bin("trtvlm").expect("binary");
    command
        .env_remove("TRTVLM_LOG")
        .env("RUST_BACKTRACE", "0")
        // What is measured on this machine is not the user's here.
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
    command
}

fn run(model: &Path, args: &[&str]) -> Output {
    let model = model.to_str().expect("UTF-8 path");
    trtvlm()
        .arg("run")
        .arg(model)
        .args(args)
        .output()
        .expect("run")
}

/// Answers as JSON, one object a line.
fn run_json(model: &Path, args: &[&str]) -> Vec<Value> {
    let output = run(model, &[args, &["--json"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    let stdout = String::from_utf8(output.stdout).expect("UTF-8");
    stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect()
}

/// Runs something that must fail; returns its error line.
fn refused(model: &Path, args: &[&str]) -> String {
    let output = run(model, args);
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?} printed an answer");
    assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    let line = stderr.lines().find(|line| line.starts_with("error: "));
    line.unwrap_or_else(|| panic!("no error line: {stderr}"))
        .to_owned()
}

#[test]
fn run_gives_the_token_ids_of_pytorch() {
    let items = std::fs::read_to_string(root().join("calibration/items.jsonl")).expect("items");
    let mut wrong = Vec::new();
    for line in items.lines() {
        let item: Value = serde_json::from_str(line).expect(line);
        let picture = root()
            .join("calibration")
            .join(item["image"].as_str().expect("image"));
        let prompt = item["prompt"].as_str().expect("prompt");
        let answers = run_json(
            &demo(),
            &[
                "--image",
                picture.to_str().expect("path"),
                "--prompt",
                prompt,
            ],
        );
        let answer = &answers[0];
        for (ours, theirs) in [
            ("token_ids", "token_ids"),
            ("text", "text"),
            ("prompt_tokens", "prompt_tokens"),
        ] {
            if answer[ours] != item[theirs] {
                wrong.push(format!(
                    "{prompt}: {ours} {} not {}",
                    answer[ours], item[theirs]
                ));
            }
        }
        assert_eq!(answer["stop"], "eos", "{prompt}");
    }
    assert!(items.lines().count() >= 16);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn run_json_has_every_documented_key() {
    let picture = image("0024.png");
    let picture = picture.to_str().expect("path");
    let answers = run_json(
        &demo(),
        &[
            "--image",
            picture,
            picture,
            "--prompt",
            "describe the scene",
            "--draft",
            "off",
        ],
    );
    assert_eq!(answers.len(), 2, "one line an image");
    let answer = &answers[0];
    assert_eq!(answer["backend"], "cpu");
    assert_eq!(answer["precision"], "fp16");
    assert_eq!(answer["visual_tokens"]["total"], 256);
    assert_eq!(answer["visual_tokens"]["kept"], 256);
    assert_eq!(
        answer["visual_tokens"]["indices"].as_array().map(Vec::len),
        Some(256)
    );
    assert_eq!(answer["speculation"]["draft"], "off");
    let n_ids = answer["token_ids"].as_array().map_or(0, Vec::len);
    assert_eq!(answer["speculation"]["steps"], n_ids - 1);
    for stage in [
        "preprocess",
        "vision",
        "prune",
        "prefill",
        "decode",
        "ttft",
        "total",
    ] {
        assert!(
            answer["timings_ms"][stage]
                .as_f64()
                .is_some_and(|ms| ms >= 0.0),
            "{stage}"
        );
    }
    assert!(
        answer["peak_memory_bytes"]
            .as_u64()
            .is_some_and(|b| b > 10 << 20)
    );
}

#[test]
fn run_streams_the_answer_to_stdout_and_the_rest_to_stderr() {
    let picture = image("0024.png");
    let output = run(
        &demo(),
        &[
            "--image",
            picture.to_str().expect("path"),
            "--prompt",
            "describe the scene",
        ],
    );
    assert!(output.status.success());
    let stdout = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(stdout, "1 white car and 1 blue boat on grass\n");
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(
        stderr.contains("tokens/s") && stderr.contains("cpu"),
        "{stderr}"
    );
}

#[test]
fn run_obeys_length_sampling_and_fit_flags() {
    let picture = image("0024.png");
    let picture = picture.to_str().expect("path");
    let ask = |flags: &[&str]| {
        let args = [
            &["--image", picture, "--prompt", "describe the scene"],
            flags,
        ]
        .concat();
        run_json(&demo(), &args).remove(0)
    };
    let short = ask(&["--max-tokens", "2"]);
    assert_eq!(
        (
            short["stop"].as_str(),
            short["token_ids"].as_array().map(Vec::len)
        ),
        (Some("length"), Some(2))
    );
    let none = ask(&["--max-tokens", "0"]);
    assert_eq!(
        (none["text"].as_str(), none["stop"].as_str()),
        (Some(""), Some("length"))
    );
    let drawn = ["--temperature", "3", "--seed", "5"];
    assert_eq!(ask(&drawn)["token_ids"], ask(&drawn)["token_ids"]);
    assert_ne!(
        ask(&drawn)["token_ids"],
        ask(&["--temperature", "3", "--seed", "6"])["token_ids"]
    );
    assert_eq!(ask(&["--fit", "stretch"])["visual_tokens"]["kept"], 256);
}

#[test]
fn run_with_padding_drops_tokens_that_see_none_of_the_frame() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("wide.png");
    let wide = image::RgbImage::from_fn(512, 256, |x, y| image::Rgb([(x / 2) as u8, y as u8, 90]));
    wide.save(&path).expect("png");
    let answers = run_json(
        &demo(),
        &[
            "--image",
            path.to_str().expect("path"),
            "--prompt",
            "describe the scene",
            "--fit",
            "pad",
        ],
    );
    let visual = &answers[0]["visual_tokens"];
    // 512 x 256 in a square of 16 x 16 tokens: rows 4 to 11 see the frame.
    assert_eq!(
        (visual["total"].as_u64(), visual["kept"].as_u64()),
        (Some(256), Some(128))
    );
    assert_eq!(visual["indices"][0], 64);
}

#[test]
fn run_reads_the_prompt_from_standard_input() {
    let picture = image("0024.png");
    let output = trtvlm()
        .arg("run")
        .arg(demo())
        .arg("--image")
        .arg(picture)
        .args(["--prompt", "-"])
        .write_stdin("describe the scene")
        .output()
        .expect("run");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "1 white car and 1 blue boat on grass\n"
    );
}

#[test]
fn run_with_bad_prompts_is_refused() {
    let picture = image("0024.png");
    let picture = picture.to_str().expect("path");
    for prompt in ["", "  \n "] {
        let line = refused(&demo(), &["--image", picture, "--prompt", prompt]);
        assert!(line.contains("prompt"), "{line}");
    }
    for stdin in [vec![b'a'; 1 << 20], vec![b'a', 0xff, b'b']] {
        let output = trtvlm()
            .arg("run")
            .arg(demo())
            .args(["--image", picture, "--prompt", "-"])
            .write_stdin(stdin)
            .output()
            .expect("run");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("prompt"), "{stderr}");
    }
    // Fewer bytes than the limit, but more tokens than the model has positions.
    let long = "tree ".repeat(2000);
    let line = refused(&demo(), &["--image", picture, "--prompt", &long]);
    assert!(line.contains("positions"), "{line}");
    #[cfg(unix)]
    {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        let output = trtvlm()
            .arg("run")
            .arg(demo())
            .args(["--image", picture, "--prompt"])
            .arg(OsStr::from_bytes(b"what\xff"))
            .output()
            .expect("run");
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("UTF-8"));
    }
}

#[test]
fn run_with_bad_images_is_refused_with_the_file_named() {
    let dir = tempfile::tempdir().expect("dir");
    let good = std::fs::read(image("0024.png")).expect("image");
    let mut huge = good.clone();
    huge[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
    let cases: [(&str, &[u8]); 5] = [
        ("empty.png", b""),
        ("cut.png", &good[..good.len() / 2]),
        ("text.png", b"this is not an image"),
        ("huge.png", &huge),
        ("zero.ppm", b"P6 0 0 255\n"),
    ];
    for (name, bytes) in cases {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).expect("write");
        let line = refused(
            &demo(),
            &["--image", path.to_str().expect("path"), "--prompt", "x"],
        );
        assert!(line.contains(name), "{line}");
    }
    let missing = dir.path().join("missing.png");
    let line = refused(
        &demo(),
        &["--image", missing.to_str().expect("path"), "--prompt", "x"],
    );
    assert!(line.contains("missing.png"), "{line}");
}

/// A copy of the demo model to be damaged.
fn copy_demo(to: &Path) -> PathBuf {
    let dir = to.join("model");
    std::fs::create_dir_all(dir.join("onnx")).expect("dir");
    for sub in ["", "onnx"] {
        for entry in std::fs::read_dir(demo().join(sub)).expect("demo") {
            let path = entry.expect("entry").path();
            if path.is_file() {
                std::fs::copy(&path, dir.join(sub).join(path.file_name().expect("name")))
                    .expect("copy");
            }
        }
    }
    dir
}

#[test]
fn run_with_missing_or_damaged_model_files_is_refused_with_the_file_named() {
    let picture = image("0024.png");
    let ask = ["--image", picture.to_str().expect("path"), "--prompt", "x"];
    let files = [
        "config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "onnx/vision_encoder_fp16.onnx",
        "onnx/embed_tokens_fp16.onnx",
        "onnx/decoder_model_merged_fp16.onnx",
    ];
    let dir = tempfile::tempdir().expect("dir");
    let model = copy_demo(dir.path());
    for file in files {
        let path = model.join(file);
        let good = std::fs::read(&path).expect("read");
        let stem = Path::new(file)
            .file_stem()
            .and_then(|s| s.to_str())
            .expect("stem");
        let stem = stem.trim_end_matches("_fp16");
        let mut flipped = good.clone();
        flipped.truncate(good.len() * 2 / 3);
        for (what, bytes) in [
            ("cut", flipped),
            ("noise", vec![0x5a; 999]),
            ("empty", Vec::new()),
        ] {
            std::fs::write(&path, bytes).expect("write");
            let line = refused(&model, &ask);
            assert!(line.contains(stem), "{what} {file}: {line}");
        }
        std::fs::remove_file(&path).expect("remove");
        let line = refused(&model, &ask);
        assert!(line.contains(stem), "missing {file}: {line}");
        std::fs::write(&path, good).expect("restore");
    }
    assert!(
        run(&model, &ask).status.success(),
        "the restored copy answers"
    );
}

#[test]
fn run_with_swapped_graphs_is_refused_with_the_tensor_named() {
    let picture = image("0024.png");
    let ask = ["--image", picture.to_str().expect("path"), "--prompt", "x"];
    let dir = tempfile::tempdir().expect("dir");
    let model = copy_demo(dir.path());
    let (vision, decoder) = (
        model.join("onnx/vision_encoder_fp16.onnx"),
        model.join("onnx/decoder_model_merged_fp16.onnx"),
    );
    let good = std::fs::read(&vision).expect("read");
    std::fs::copy(&decoder, &vision).expect("swap");
    let line = refused(&model, &ask);
    assert!(
        line.contains("pixel_values") && line.contains("vision_encoder"),
        "{line}"
    );
    std::fs::write(&vision, good).expect("restore");

    // The same names with another width: the tiny model's decoder.
    let other = root().join("tests/data/tiny/fastvlm-tiny-plain/onnx/decoder_model_merged.onnx");
    std::fs::copy(other, &decoder).expect("swap");
    let line = refused(&model, &ask);
    assert!(
        line.contains("inputs_embeds") && line.contains("256"),
        "{line}"
    );
}

#[test]
fn run_with_unknown_variant_or_backend_says_what_there_is() {
    let picture = image("0024.png");
    let picture = picture.to_str().expect("path");
    let line = refused(
        &demo(),
        &["--image", picture, "--prompt", "x", "--variant", "q4"],
    );
    assert!(line.contains("fp16"), "{line}");
    let line = refused(
        &demo(),
        &["--image", picture, "--prompt", "x", "--backend", "tensorrt"],
    );
    assert!(line.contains("TensorRT"), "{line}");
}

#[test]
fn run_with_wrong_usage_exits_with_2() {
    for args in [
        &["run"][..],
        &["run", "m", "--image", "a", "--prompt", "x", "--tiles", "0"],
        &["fly"],
    ] {
        trtvlm().args(args).assert().code(2);
    }
}

#[test]
fn run_answers_about_every_kind_of_picture() {
    let dir = tempfile::tempdir().expect("dir");
    let rgb = image::open(image("0024.png")).expect("image");
    let kinds: [(&str, image::DynamicImage); 5] = [
        ("grey.png", rgb.to_luma8().into()),
        ("deep.png", rgb.to_luma16().into()),
        ("alpha.png", rgb.to_rgba8().into()),
        ("lossy.jpg", rgb.to_rgb8().into()),
        ("plain.bmp", rgb.to_rgb8().into()),
    ];
    for (name, picture) in kinds {
        let path = dir.path().join(name);
        picture.save(&path).expect("save");
        let answers = run_json(
            &demo(),
            &[
                "--image",
                path.to_str().expect("path"),
                "--prompt",
                "describe the scene",
            ],
        );
        assert_eq!(answers.len(), 1, "{name}");
    }
}

#[test]
fn run_that_crops_says_so_once() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("wide.png");
    image::RgbImage::new(320, 180).save(&path).expect("png");
    let path = path.to_str().expect("path");
    let output = run(
        &demo(),
        &["--image", path, path, "--prompt", "describe the scene"],
    );
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(stderr.matches("crops 44 %").count(), 1, "{stderr}");
    let padded = run(
        &demo(),
        &[
            "--image",
            path,
            "--prompt",
            "describe the scene",
            "--fit",
            "pad",
        ],
    );
    assert!(!String::from_utf8_lossy(&padded.stderr).contains("crops"));
}

#[test]
fn run_on_every_form_of_tiny_folder_gives_the_token_ids_of_pytorch() {
    let temp = tempfile::tempdir().expect("dir");
    for form in ["plain", "contrib", "contrib-sep"] {
        for family in ["fastvlm", "smolvlm"] {
            let name = format!("{family}-tiny-{form}");
            let folder = root().join("tests/data/tiny").join(&name);
            let bytes = std::fs::read(folder.join("golden.safetensors")).expect("golden");
            let golden = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
            let picture = golden.tensor("image").expect("image");
            let (h, w) = (picture.shape()[0] as u32, picture.shape()[1] as u32);
            let path = temp.path().join("picture.png");
            image::RgbImage::from_raw(w, h, picture.data().to_vec())
                .expect("size")
                .save(&path)
                .expect("png");
            let ids = golden.tensor("greedy_ids").expect("ids");
            let ids: Vec<i64> = ids
                .data()
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes(b.try_into().expect("eight bytes")))
                .collect();
            let args = ["--prompt", "Describe the image in detail.", "--tiles", "1"];
            let more = ["--max-tokens", "32", "--variant", "fp32", "--image"];
            let path = path.to_str().expect("path");
            let answer = run_json(&folder, &[&args[..], &more, &[path]].concat()).remove(0);
            let given = answer["token_ids"].as_array().expect("ids");
            let given: Vec<i64> = given.iter().filter_map(Value::as_i64).collect();
            let ended = answer["stop"] == "eos";
            assert!(ended || given.len() == ids.len(), "{name}: {answer}");
            assert_eq!(given, ids[..given.len()], "{name}");
        }
    }
}

#[test]
fn run_checks_its_arguments_before_the_model_is_loaded() {
    let nothing = Path::new("no/such/model");
    let picture = "no/such/image.png";
    let long = "x".repeat(100_000);
    for (more, expected) in [
        (&["--temperature", "-1"][..], "error: temperature: "),
        (&["--temperature", "nan"], "error: temperature: "),
        (&["--top-p", "-0.5"], "error: top-p: "),
        (&["--top-p", "1.5"], "error: top-p: "),
        (
            &["--repetition-penalty", "-2"],
            "error: repetition-penalty: ",
        ),
        (
            &["--draft", "ngram", "--draft-tokens", "9"],
            "error: draft-tokens: 9, from 1 to 8",
        ),
        (
            &["--draft-tokens", "4"],
            "error: draft-tokens: acts with a drafter of its own",
        ),
        (&["--prompt", ""], "error: prompt: "),
        (&["--prompt", &long], "error: size in bytes of the prompt"),
    ] {
        let mut args = vec!["--image", picture];
        if more[0] != "--prompt" {
            args.extend(["--prompt", "x"]);
        }
        args.extend(more);
        let line = refused(nothing, &args);
        assert!(line.starts_with(expected), "{more:?}: {line}");
    }
    for more in [
        ["--tiles", "0"],
        ["--max-tokens", "-1"],
        ["--top-k", "-1"],
        ["--seed", "-1"],
    ] {
        let args = [&["--image", picture, "--prompt", "x"][..], &more].concat();
        let output = run(nothing, &args);
        assert_eq!(output.status.code(), Some(2), "{more:?}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("invalid value"), "{more:?}: {stderr}");
    }
}

#[test]
fn run_shows_control_characters_of_names_and_does_not_print_them() {
    let line = refused(
        &demo(),
        &["--image", "no\u{1b}[2J\u{9b}31m\r.png", "--prompt", "x"],
    );
    assert!(line.contains("no\\u{1b}[2J\\u{9b}31m\\r.png"), "{line:?}");
    assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn run_into_a_full_disk_blames_its_output_and_not_the_picture() {
    let picture = image("0024.png");
    for more in [&[][..], &["--json"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_trtvlm"))
            .arg("run")
            .arg(demo())
            .args(["--prompt", "describe the scene", "--image"])
            .arg(&picture)
            .args(more)
            .stdout(full.expect("/dev/full"))
            .output()
            .expect("run");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("error: standard output: "), "{stderr}");
    }
}

#[test]
fn run_with_a_pipe_or_folder_as_image_is_refused_at_once() {
    let dir = tempfile::tempdir().expect("dir");
    let pipe = dir.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo").success());
    for path in [pipe.as_path(), dir.path(), Path::new("/dev/zero")] {
        let path = path.to_str().expect("path");
        let line = refused(&demo(), &["--image", path, "--prompt", "x"]);
        assert!(
            line.contains(path) && line.contains("not a regular file"),
            "{line}"
        );
    }
}

#[test]
fn run_without_a_pixel_mask_is_run_with_one_of_ones() {
    let source = root().join("tests/data/tiny/smolvlm-tiny-plain");
    let dir = tempfile::tempdir().expect("dir");
    for entry in std::fs::read_dir(&source).expect("folder") {
        let path = entry.expect("entry").path();
        let to = dir.path().join(path.file_name().expect("name"));
        std::os::unix::fs::symlink(&path, to).expect("link");
    }
    let name = "preprocessor_config.json";
    let text = std::fs::read(source.join(name)).expect("read");
    let mut config: Value = serde_json::from_slice(&text).expect("JSON");
    assert_eq!(config["do_pad"], true);
    config["do_pad"] = false.into();
    std::fs::remove_file(dir.path().join(name)).expect("remove");
    std::fs::write(dir.path().join(name), config.to_string()).expect("write");
    let picture = image("0024.png");
    let args = [
        "--image",
        picture.to_str().expect("path"),
        "--prompt",
        "What is this?",
        "--max-tokens",
        "8",
    ];
    let with = run_json(&source, &args);
    let without = run_json(dir.path(), &args);
    assert_eq!(with[0]["token_ids"], without[0]["token_ids"]);
}
