//! The death of a build's child, and of its parent.
#![cfg(feature = "tensorrt")]

mod trt_common;

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;

use trt_common::{CHILD_ARGS, decoder_profile, names_in, onnx, spec};
use trtvlm::Error;
use trtvlm::trt::{BuildSpec, build_in_child};

/// The child's entry; in an ordinary run of all tests it does nothing.
#[test]
fn build_child() {
    trt_common::enter_child();
}

fn decoder(folder: &Path) -> BuildSpec {
    let mut spec = spec(
        &onnx("fastvlm-tiny-plain", "decoder_model_merged"),
        folder,
        "decoder",
    );
    spec.profiles = vec![decoder_profile([1, 16, 64], [0, 0, 0])];
    spec
}

/// Kills the process whose command line holds `marker` and that this one started.
fn kill_child(marker: &str) {
    let own = std::process::id().to_string();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let read = |name| std::fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let stat = read("stat");
        let parent = stat
            .rsplit(')')
            .next()
            .and_then(|rest| rest.split_whitespace().nth(1));
        if parent == Some(own.as_str()) && read("cmdline").contains(marker) {
            let pid = entry.file_name().to_string_lossy().into_owned();
            let status = Command::new("kill")
                .args(["-KILL", &pid])
                .status()
                .expect("kill");
            assert!(status.success());
            return;
        }
    }
    panic!("no child with {marker}");
}

#[test]
fn child_killed_in_the_middle_is_a_crash_and_leaves_no_plan() {
    let dir = tempfile::tempdir().expect("temp dir");
    let spec = decoder(dir.path());
    let exe = std::env::current_exe().expect("test program");
    let args = [&CHILD_ARGS[..], &["marker-kill"]].concat();
    let mut killed = false;
    let mut kill_once = |_: &_| {
        if !std::mem::replace(&mut killed, true) {
            kill_child("marker-kill");
        }
    };
    match build_in_child(&spec, &exe, &args, &mut kill_once, &AtomicBool::new(false)) {
        Err(Error::Crashed { component, reason }) => {
            assert_eq!(component, "decoder");
            assert!(reason.contains("SIGKILL"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert!(names_in(dir.path()).is_empty());
}

#[test]
fn child_killed_in_the_middle_leaves_an_older_plan_as_it_was() {
    let dir = tempfile::tempdir().expect("temp dir");
    let spec = decoder(dir.path());
    std::fs::write(&spec.plan, b"older").expect("write");
    let exe = std::env::current_exe().expect("test program");
    let args = [&CHILD_ARGS[..], &["marker-older"]].concat();
    let mut killed = false;
    let mut kill_once = |_: &_| {
        if !std::mem::replace(&mut killed, true) {
            kill_child("marker-older");
        }
    };
    let outcome = build_in_child(&spec, &exe, &args, &mut kill_once, &AtomicBool::new(false));
    assert!(matches!(outcome, Err(Error::Crashed { .. })), "{outcome:?}");
    assert_eq!(std::fs::read(&spec.plan).expect("plan"), b"older");
    assert_eq!(names_in(dir.path()), ["decoder.plan"]);
}

#[test]
fn child_whose_parent_goes_away_ends_without_a_plan() {
    let dir = tempfile::tempdir().expect("temp dir");
    let request = serde_json::to_string(&decoder(dir.path())).expect("spec");
    let mut child = Command::new(std::env::current_exe().expect("test program"))
        .args(CHILD_ARGS)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("child");
    let mut stdin = child.stdin.take().expect("pipe");
    writeln!(stdin, "{request}").expect("request");
    drop(stdin); // as the end of a parent does
    assert_eq!(child.wait().expect("wait").code(), Some(3));
    assert!(names_in(dir.path()).is_empty());
}

#[test]
fn child_without_a_build_spec_reports_an_error_and_fails() {
    let mut child = Command::new(std::env::current_exe().expect("test program"))
        .args(CHILD_ARGS)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("child");
    let mut stdin = child.stdin.take().expect("pipe");
    writeln!(stdin, "{{\"onnx\": 1}}").expect("request");
    let mut text = String::new();
    child
        .stdout
        .take()
        .expect("pipe")
        .read_to_string(&mut text)
        .expect("output");
    assert_eq!(child.wait().expect("wait").code(), Some(1));
    assert!(
        text.contains("\"malformed\"") && text.contains("no build spec"),
        "{text}"
    );
}
