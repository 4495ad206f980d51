//! `trtvlm watch` on folders, pipes and what is none.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use trtvlm::preprocess::Frame;

const QUESTION: &str = "describe the scene";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn watch(source: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trtvlm"));
    command
        .env_remove("TRTVLM_LOG")
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
        .arg("watch")
        .arg(root().join("onnx/uav-tiny"))
        .arg("--source")
        .arg(source)
        .args(["--ask", QUESTION, "--draft", "off"])
        .args(args)
        .stdin(Stdio::null());
    command
}

/// Runs with bytes on the standard input, which may be left unread.
fn piped(bytes: &[u8], args: &[&str]) -> Output {
    let mut command = watch(Path::new("-"), args);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("started");
    let mut stdin = child.stdin.take().expect("a pipe");
    std::thread::scope(|scope| {
        scope.spawn(move || drop(stdin.write_all(bytes)));
        child.wait_with_output().expect("ended")
    })
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).expect("UTF-8");
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    text.lines().map(parse).collect()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn picture(name: &str) -> PathBuf {
    root().join("calibration/images").join(name)
}

/// The pixels of the picture whose answer is known, as a stream of grey frames would not have them.
fn known() -> (Frame, &'static str) {
    let frame = Frame::load(&picture("0024.png")).expect("picture");
    (frame, "1 white car and 1 blue boat on grass")
}

#[test]
fn folder_is_asked_about_in_the_order_of_its_names() {
    let dir = tempfile::tempdir().expect("folder");
    std::fs::copy(picture("0024.png"), dir.path().join("b.png")).expect("copied");
    std::fs::write(dir.path().join("a.png"), "no picture").expect("written");
    let output = watch(dir.path(), &["--ask", "how many trees are there"])
        .output()
        .expect("run");
    assert!(output.status.success(), "{}", errors(&output));
    let lines = lines(&output);
    let asked: Vec<_> = lines
        .iter()
        .map(|line| line["question"].as_str().expect("text"))
        .collect();
    assert_eq!(asked, [QUESTION, "how many trees are there"]);
    assert_eq!(lines[0]["text"], known().1);
    assert_eq!(
        (&lines[0]["frame"], &lines[0]["broken"]),
        (&2.into(), &1.into())
    );
    assert!(errors(&output).contains("1 frames asked about, 0 dropped, 1 broken"));
    assert!(errors(&output).contains("a.png"));
}

#[test]
fn raw_frames_of_a_pipe_are_answered_as_the_picture_is() {
    let (frame, answer) = known();
    let format = format!("rgb24:{}x{}", frame.width(), frame.height());
    let mut bytes = frame.rgb().repeat(2);
    bytes.extend_from_slice(&frame.rgb()[..100]);
    let output = piped(&bytes, &["--all", "--format", &format]);
    assert!(output.status.success(), "{}", errors(&output));
    let lines = lines(&output);
    assert_eq!(lines.len(), 2);
    assert!(
        lines
            .iter()
            .all(|line| line["text"] == answer && line["stop"] == "eos")
    );
    assert!(lines.iter().all(|line| line["age_ms"].as_f64() > Some(0.0)));
    assert!(errors(&output).contains("2 frames asked about, 0 dropped, 1 broken"));
}

#[test]
fn newest_frame_of_a_pipe_wins_and_dropped_ones_are_counted() {
    let mut bytes = b"YUV4MPEG2 W32 H32 F30:1 C420jpeg\n".to_vec();
    for level in 0..200u8 {
        bytes.extend_from_slice(b"FRAME\n");
        bytes.extend_from_slice(&[level; 32 * 32 * 3 / 2]);
    }
    let output = piped(&bytes, &["--max-tokens", "2"]);
    assert!(output.status.success(), "{}", errors(&output));
    let lines = lines(&output);
    let last = lines.last().expect("a line");
    assert_eq!(last["frame"], 200, "the newest frame is answered");
    let dropped = last["dropped"].as_u64().expect("a number");
    assert_eq!(lines.len() as u64 + dropped, 200);
    assert!(dropped > 0);
}

#[test]
fn count_ends_it_and_deadline_cuts_answers() {
    let images = root().join("calibration/images/00*.png");
    let output = watch(
        &images,
        &["--count", "2", "--deadline", "0.001ms", "--every", "1ms"],
    )
    .output();
    let output = output.expect("run");
    assert!(output.status.success(), "{}", errors(&output));
    let lines = lines(&output);
    assert_eq!(lines.len(), 2);
    assert!(
        lines
            .iter()
            .all(|line| line["stop"] == "deadline" && line["text"] == "")
    );
}

#[test]
fn what_is_no_source_is_refused_with_a_reason() {
    let garbage = [0x55; 4000];
    let cut = b"YUV4MPEG2 W32 H32\nFRAME\n\x01\x02";
    let wrong = b"YUV4MPEG2 W32 H32\nFRONT\n";
    for (bytes, args, why) in [
        (&b""[..], &[][..], "it is empty"),
        (&garbage, &[], "no frame could be used"),
        (b"YUV4MPEG2 W32\n", &[], "no width and height"),
        (cut, &[], "no frame could be used"),
        (wrong, &[], "where a frame should begin"),
        (
            &[1; 5],
            &["--format", "rgb24:2x2"],
            "no frame could be used",
        ),
    ] {
        let output = piped(bytes, args);
        let message = errors(&output);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains(why), "{why}: {message}");
        assert!(output.stdout.is_empty());
    }
    let none = Path::new("/nowhere/flight.mp4");
    let output = watch(none, &[]).output().expect("run");
    assert!(
        errors(&output).contains("/nowhere/flight.mp4"),
        "{}",
        errors(&output)
    );
    let here = root().join("calibration/images");
    let output = watch(&here, &["--format", "rgb24:2x2"])
        .output()
        .expect("run");
    assert!(
        errors(&output).contains("--source -"),
        "{}",
        errors(&output)
    );
    let output = watch(&here, &["--every", "5"]).output().expect("run");
    assert_eq!(output.status.code(), Some(2));
}

/// A program of the same name that writes what ffmpeg would.
#[test]
fn video_is_read_through_ffmpeg_or_refused_where_there_is_none() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("folder");
    let video = dir.path().join("flight.mp4");
    std::fs::write(&video, "a video").expect("written");
    let output = watch(&video, &[])
        .env("PATH", dir.path())
        .output()
        .expect("run");
    assert!(
        errors(&output).contains("install ffmpeg"),
        "{}",
        errors(&output)
    );

    let program = dir.path().join("ffmpeg");
    let write = |script: &str| {
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("written");
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&program, executable).expect("executable");
    };
    write("echo 'moov atom not found' >&2; exit 3");
    let output = watch(&video, &[])
        .env("PATH", dir.path())
        .output()
        .expect("run");
    assert!(
        errors(&output).contains("moov atom not found"),
        "{}",
        errors(&output)
    );
    write(
        "printf 'YUV4MPEG2 W2 H2 C444\\nFRAME\\n123456789012FRAME\\n123456789012'; echo \"$@\" >&2",
    );
    let output = watch(&video, &["--all"])
        .env("PATH", dir.path())
        .output()
        .expect("run");
    assert!(output.status.success(), "{}", errors(&output));
    assert_eq!(lines(&output).len(), 2);
}
