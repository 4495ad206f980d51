//! The library as C and C++ programs get it: installed, found by pkg-config and CMake, linked, run.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn demo() -> PathBuf {
    root().join("onnx/uav-tiny")
}

/// System libraries behind ours; the first is the C++ shim's.
const LIBS: &str = "-lstdc++ -lgcc_s -lutil -lrt -lpthread -lm -ldl -lc";

/// The static library that cargo has made beside this test: of those with other features the newest is as good.
fn library() -> PathBuf {
    let test = std::env::current_exe().expect("this test");
    let entries = std::fs::read_dir(test.parent().expect("a folder")).expect("a folder");
    let libraries = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let name = path.file_name()?.to_str()?;
        let is_library = name.starts_with("libtrtvlm-") && name.ends_with(".a");
        let modified = path.metadata().ok()?.modified().ok()?;
        is_library.then_some((modified, path))
    });
    libraries.max().expect("libtrtvlm.a").1
}

fn run(command: &mut Command) -> Output {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    output
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

/// The library of this build, installed once for all tests.
fn prefix() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let prefix = Path::new(env!("CARGO_TARGET_TMPDIR")).join("prefix");
        let mut install = Command::new(root().join("tools/install.sh"));
        run(install
            .arg(library())
            .arg(&prefix)
            .arg(LIBS)
            .env_remove("DESTDIR"));
        prefix
    })
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// A folder of a test's own.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

#[test]
fn c_example_is_built_with_pkg_config_and_answers() {
    let mut pkg_config = Command::new("pkg-config");
    pkg_config.env("PKG_CONFIG_PATH", prefix().join("lib/pkgconfig"));
    let flags = stdout(&run(pkg_config.args(["--cflags", "--libs", "trtvlm"])));
    let program = folder("c").join("ask");
    let mut cc = Command::new("cc");
    cc.args([
        "-std=c99",
        "-Wall",
        "-Wextra",
        "-Wpedantic",
        "-Werror",
        "-o",
    ]);
    cc.arg(&program).arg(root().join("examples/c/ask.c"));
    run(cc.args(words(&flags)));

    let picture = root().join("calibration/images/0024.png");
    let ask = |deadline: &str| {
        let mut ask = Command::new(&program);
        ask.arg(demo())
            .arg(&picture)
            .arg("describe the scene")
            .arg(deadline);
        ask
    };
    let whole = stdout(&run(&mut ask("0")));
    assert!(
        whole.starts_with("1 white car and 1 blue boat on grass\n"),
        "{whole}"
    );
    assert!(whole.contains(" tokens, eos, "), "{whole}");
    let mut no_model = Command::new(&program);
    let output = no_model.args(["/nowhere", "x", "y"]).output().expect("run");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        message.starts_with("a file cannot be read: /nowhere"),
        "{message}"
    );
}

/// What the C++ header promises, checked by a program.
#[test]
fn cpp_header_keeps_its_promises_with_and_without_exceptions() {
    let program = folder("cpp").join("header");
    let mut pkg_config = Command::new("pkg-config");
    pkg_config.env("PKG_CONFIG_PATH", prefix().join("lib/pkgconfig"));
    let flags = stdout(&run(pkg_config.args(["--cflags", "--libs", "trtvlm"])));
    for mode in [
        &["-fno-exceptions", "-fno-rtti"][..],
        &["-DTRTVLM_EXCEPTIONS"],
    ] {
        let mut cxx = Command::new("c++");
        cxx.args([
            "-std=c++17",
            "-Wall",
            "-Wextra",
            "-Wpedantic",
            "-Werror",
            "-o",
        ]);
        cxx.arg(&program)
            .args(mode)
            .arg(root().join("tests/cpp/header.cpp"));
        run(cxx.args(words(&flags)));
        let picture = root().join("calibration/images/0024.png");
        run(Command::new(&program).arg(demo()).arg(picture));
    }
}

#[test]
fn flight_example_is_built_with_cmake_and_flies() {
    let build = folder("flight");
    let mut cmake = Command::new("cmake");
    cmake
        .arg("-S")
        .arg(root().join("examples/flight"))
        .arg("-B")
        .arg(&build);
    run(cmake.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix().display())));
    run(Command::new("cmake").arg("--build").arg(&build));

    let fly = |rate: &str, deadline: &str, count: &str| {
        let mut flight = Command::new(build.join("flight"));
        flight.arg(demo()).arg(root().join("calibration/images"));
        flight.arg(root().join("examples/flight/mission.txt"));
        let output = run(flight.args([rate, deadline, count]));
        let lines = stdout(&output);
        let lines: Vec<Value> = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect();
        let summary = String::from_utf8_lossy(&output.stderr).into_owned();
        (lines, summary)
    };
    // Time enough: every answer is whole, each question has its turn.
    let (lines, summary) = fly("1000", "60000", "8");
    assert_eq!(lines.len(), 8, "{summary}");
    assert!(
        lines
            .iter()
            .all(|line| line["stop"] == "eos" && line["late"] == 0)
    );
    assert_eq!(lines[0]["question"], lines[4]["question"]);
    assert!(
        lines
            .iter()
            .all(|line| line["ms"]["vision"].as_f64() > Some(0.0))
    );
    let dropped = lines.last().and_then(|line| line["dropped"].as_u64());
    assert!(dropped > Some(0), "a thousand frames a second: {summary}");
    let numbers: Vec<_> = lines.iter().map(|line| line["frame"].as_u64()).collect();
    assert!(
        numbers.windows(2).all(|pair| pair[0] < pair[1]),
        "{numbers:?}"
    );

    // No time at all: misses are counted, and less is asked for.
    let (lines, summary) = fly("1000", "1", "6");
    assert_eq!(lines.len(), 6, "{summary}");
    assert!(
        summary.contains("6 answers, 6 misses, 0 errors"),
        "{summary}"
    );
    assert_eq!(lines.last().map(|line| &line["level"]), Some(&3.into()));
}
