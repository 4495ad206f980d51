//! `trtvlm run hf:OWNER/NAME`, from the hub to the answer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::server::{Fault, Server};

const ANSWER: &str = "1 white car and 1 blue boat on grass\n";
const DECODER: &str = "onnx/decoder_model_merged_fp16.onnx";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A hub that has the demo model, with its real names.
fn demo() -> Server {
    let dir = root().join("onnx/uav-tiny");
    let mut names: Vec<String> = Vec::new();
    for folder in ["", "onnx/"] {
        for entry in fs::read_dir(dir.join(folder)).expect("demo") {
            let path = entry.expect("entry").path();
            if path.is_file() {
                let name = path.file_name().expect("name").to_str().expect("UTF-8");
                names.push(format!("{folder}{name}"));
            }
        }
    }
    let bytes: Vec<Vec<u8>> = names
        .iter()
        .map(|name| fs::read(dir.join(name)).expect("read"))
        .collect();
    let files: Vec<(&str, &[u8])> = names
        .iter()
        .zip(&bytes)
        .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
        .collect();
    Server::start(&files)
}

fn ask(endpoint: &str, home: &Path, model: &str) -> Command {
    let picture: PathBuf = root().join("calibration/images/0024.png");
    let mut command = Command::new(env!("CARGO_BIN_EXE_trtvlm"));
    command
        .args(["run", model, "--prompt", "describe the scene", "--image"])
        .arg(picture)
        .env("HF_ENDPOINT", endpoint)
        .env("HF_HOME", home)
        .env_remove("HF_TOKEN")
        .env_remove("TRTVLM_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(endpoint: &str, home: &Path, model: &str) -> Output {
    ask(endpoint, home, model).output().expect("run")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn run_of_a_model_on_the_hub_fetches_it_once_and_answers() {
    let (server, home) = (demo(), tempfile::tempdir().expect("temp dir"));
    let first = run(&server.endpoint, home.path(), "hf:own/model");
    assert!(first.status.success(), "{}", text(&first.stderr));
    assert_eq!(text(&first.stdout), ANSWER);
    assert!(text(&first.stderr).contains("fp16"));
    let store = format!("/store/{DECODER}");
    let fetched = |server: &Server| {
        let requests = server.requests();
        requests.iter().filter(|r| r.path == store).count()
    };
    let n = fetched(&server);
    assert!(n > 0, "the decoder came from the hub");
    // The cache answers without a hub, in the place where the hub's own tools have theirs.
    let second = run("http://127.0.0.1:9", home.path(), "hf:own/model");
    assert!(second.status.success(), "{}", text(&second.stderr));
    assert_eq!(text(&second.stdout), ANSWER);
    assert_eq!(fetched(&server), n);
    assert!(
        home.path()
            .join("hub/models--own--model/snapshots")
            .is_dir()
    );
}

#[test]
fn run_of_what_the_hub_has_not_names_the_repository() {
    let (server, home) = (demo(), tempfile::tempdir().expect("temp dir"));
    for (model, part) in [
        ("hf:own/other", "own/other"),
        ("hf:own", "owner/name"),
        ("hf:../x", "owner/name"),
    ] {
        let output = run(&server.endpoint, home.path(), model);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{model}: {stderr}");
        assert!(
            stderr.contains("error: ") && stderr.contains(part),
            "{model}: {stderr}"
        );
        assert!(output.stdout.is_empty(), "{model}");
    }
}

#[test]
fn interrupted_download_exits_with_130_and_is_taken_up_again() {
    let (server, home) = (demo(), tempfile::tempdir().expect("temp dir"));
    server.fail(DECODER, &[Fault::Stall]);
    let child = ask(&server.endpoint, home.path(), "hf:own/model")
        .spawn()
        .expect("spawn");
    let store = format!("/store/{DECODER}");
    let start = Instant::now();
    // The question for size and tag asks for one byte; the transfer asks for all of them.
    let begun = || {
        let mut requests = server.requests().into_iter();
        requests.any(|r| r.path == store && r.range.as_deref() != Some("bytes=0-0"))
    };
    while !begun() {
        assert!(start.elapsed() < Duration::from_secs(120), "no transfer");
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = child.id().to_string();
    let sent = Command::new("kill").args(["-INT", &pid]).status();
    assert!(sent.expect("kill").success());
    let output = child.wait_with_output().expect("wait");
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(!stderr.contains("error:"), "{stderr}");
    let again = run(&server.endpoint, home.path(), "hf:own/model");
    assert!(again.status.success(), "{}", text(&again.stderr));
    assert_eq!(text(&again.stdout), ANSWER);
}
