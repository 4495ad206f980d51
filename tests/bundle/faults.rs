//! Builds that are killed, and disks that are full.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use trtvlm::Error;
use trtvlm::bundle::{Bundle, BundleWriter, MANIFEST};

use super::{fill, manifest, names, with_bundle};

/// Tells a copy of this test program to be a build that dies or fails.
const CHILD: &str = "TRTVLM_TEST_BUNDLE_CHILD";

/// Not a test by itself: what the tests below run in a process of its own.
#[test]
fn child_process() {
    let Ok(task) = std::env::var(CHILD) else {
        return;
    };
    let (task, out) = task.split_once(':').expect("task");
    let out = Path::new(out);
    let writer = BundleWriter::create(out, true).expect("create");
    let big = vec![7u8; 1 << 20];
    let error = match task {
        "sleep" => {
            fill(&writer, &big);
            println!("\nready");
            std::thread::sleep(std::time::Duration::from_secs(600));
            return;
        }
        "write" => writer
            .write("engines/vision.plan", &big)
            .expect_err("no space"),
        "copy" => {
            let from = std::env::current_exe().expect("exe");
            writer
                .copy(&from, "engines/vision.plan")
                .expect_err("no space")
        }
        "manifest" => {
            fill(&writer, b"small");
            let mut manifest = manifest();
            manifest.command_line = vec!["x".repeat(1 << 20)];
            let error = writer.finish(manifest).expect_err("no space");
            println!("\n{error:?}");
            return;
        }
        other => panic!("{other}"),
    };
    println!("\n{error:?}");
}

fn child(task: &str, out: &Path, program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(args)
        .args(["faults::child_process", "--exact", "--nocapture"])
        .env(CHILD, format!("{task}:{}", out.display()))
        .stdout(Stdio::piped());
    command
}

#[test]
fn build_killed_midway_leaves_the_old_bundle_and_is_cleaned_up() {
    let (dir, out) = with_bundle();
    let exe = std::env::current_exe().expect("exe");
    let mut killed = child("sleep", &out, &exe.to_string_lossy(), &[])
        .spawn()
        .expect("spawn");
    let lines = BufReader::new(killed.stdout.take().expect("stdout")).lines();
    let ready = lines.map_while(Result::ok).any(|line| line == "ready");
    assert!(ready);
    // While it lives, its directory is left alone.
    assert_eq!(names(dir.path()).len(), 2);
    drop(BundleWriter::create(&out, true).expect("create"));
    assert_eq!(names(dir.path()).len(), 2);
    killed.kill().expect("kill");
    killed.wait().expect("wait");
    let left = names(dir.path());
    assert!(left[0].starts_with(".b.tmp-") && left[1] == "b", "{left:?}");
    Bundle::open(&out).expect("the old bundle is whole");
    fs::create_dir(dir.path().join(".b.tmp-x")).expect("not of a build");
    fs::create_dir(dir.path().join(".c.tmp-4194303-a")).expect("of another output");
    drop(BundleWriter::create(&out, true).expect("create"));
    assert_eq!(names(dir.path()), [".b.tmp-x", ".c.tmp-4194303-a", "b"]);
}

#[test]
fn bundle_set_aside_by_a_killed_build_is_given_back() {
    let (dir, out) = with_bundle();
    // Above any process number that Linux gives.
    let aside = dir.path().join(".b.old-4194305-abc");
    fs::rename(&out, &aside).expect("mv");
    assert!(matches!(
        BundleWriter::create(&out, false),
        Err(Error::Exists { .. })
    ));
    Bundle::open(&out).expect("restored");
    fs::create_dir(&aside).expect("mkdir");
    drop(BundleWriter::create(&out, true).expect("create"));
    assert_eq!(names(dir.path()), ["b"]);
}

#[test]
fn full_disk_at_any_write_is_an_io_error_and_leaves_the_old_bundle() {
    let exe = std::env::current_exe().expect("exe");
    for (task, file) in [
        ("write", "vision.plan"),
        ("copy", "vision.plan"),
        ("manifest", MANIFEST),
    ] {
        let (dir, out) = with_bundle();
        // A limit on file sizes makes writes fail as a full disk does, anywhere and for anyone.
        let limited = r#"trap "" XFSZ; ulimit -f 16; exec "$0" "$@""#;
        let output = child(task, &out, "sh", &["-c", limited, &exe.to_string_lossy()])
            .output()
            .expect("run");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{task}: {text}");
        let error = text.lines().find(|line| line.starts_with("Io {"));
        assert!(error.is_some_and(|e| e.contains(file)), "{task}: {text}");
        assert_eq!(names(dir.path()), ["b"], "{task}");
        Bundle::open(&out).expect("the old bundle is whole");
    }
}
