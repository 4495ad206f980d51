//! `trtvlm doctor` on machines that are not whole: made-up drivers and libraries, each a small
//! shared object that this test compiles.
#![cfg(feature = "tensorrt")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// A driver that starts only as `CU_INIT` and `DEVICES` say.
const DRIVER: &str = r#"
#include <string.h>
int cuInit(unsigned flags) { (void)flags; return CU_INIT; }
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
int cuGetErrorName(int error, const char **name) {
    *name = error == 100 ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH";
    return 0;
}
int cuGetErrorString(int error, const char **text) { return cuGetErrorName(error, text); }
int cuDeviceGetCount(int *n) { *n = DEVICES; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
    (void)device;
    strncpy(name, "Orin (made up)", (size_t)size);
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = attribute == 75 ? 8 : 7; /* 75 and 76: compute capability, major and minor */
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = 8ull << 30; return 0; }
"#;

/// A lean runtime that does what the real one does without a driver: it ends the process.
const LEAN: &str = r#"
#include <stdlib.h>
int getInferLibVersion(void) { return VERSION; }
void *createInferRuntime_INTERNAL(void *logger, int version) {
    (void)logger; (void)version;
    abort();
}
"#;

/// Compiles `source` into `folder/name`.
fn library(folder: &Path, name: &str, source: &str, defines: &[(&str, i32)]) {
    std::fs::create_dir_all(folder).expect("mkdir");
    let file = folder.join(format!("{name}.c"));
    std::fs::write(&file, source).expect("write");
    let made = Command::new("cc")
        .args(["-shared", "-fPIC"])
        .args(
            defines
                .iter()
                .map(|(key, value)| format!("-D{key}={value}")),
        )
        .arg(&file)
        .arg("-o")
        .arg(folder.join(name))
        .status();
    assert!(made.expect("a C compiler built the shim").success());
    std::fs::remove_file(file).expect("rm");
}

/// As `library`, for the version of TensorRT's headers that this program was built with.
fn lean(folder: &Path) -> String {
    let headers = trtvlm::trt::headers();
    let (_, version) = headers
        .iter()
        .find(|(flavour, _)| *flavour == trtvlm::trt::Flavour::Enterprise)
        .expect("built without TensorRT headers beside RTX's: run `make sdk`");
    let number = version.major * 10_000 + version.minor * 100 + version.patch;
    let number = i32::try_from(number).expect("version");
    let name = format!("libnvinfer_lean.so.{}", version.major);
    library(folder, &name, LEAN, &[("VERSION", number)]);
    version.to_string()
}

/// A TensorRT of the flavour that is not RTX, compiled with the headers of this program.
fn tensorrt(folder: &Path) -> trtvlm::trt::Version {
    let headers = trtvlm::trt::headers();
    let (_, version) = headers
        .iter()
        .find(|(flavour, _)| *flavour == trtvlm::trt::Flavour::Enterprise)
        .expect("built without TensorRT headers beside RTX's: run `make sdk`");
    let key = format!("enterprise{}=", version.major);
    let mut includes = env!("TRTVLM_HEADERS").split(':');
    let include = includes.find_map(|entry| entry.strip_prefix(&key));
    std::fs::create_dir_all(folder).expect("mkdir");
    let infer = folder.join(format!("libnvinfer.so.{}", version.major));
    let number = version.major * 10_000 + version.minor * 100 + version.patch;
    let made = Command::new("c++")
        .args(["-std=c++17", "-shared", "-fPIC", "-isystem"])
        .arg(include.expect("its headers"))
        .args(["-isystem", env!("TRTVLM_CUDA_HEADERS")])
        .arg("-DFAKE_LABEL=\"fake\"")
        .arg(format!("-DFAKE_VERSION={number}"))
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/data/fake_tensorrt.cpp"
        ))
        .arg("-o")
        .arg(&infer)
        .status();
    assert!(made.expect("a C++ compiler built the shim").success());
    let parser = folder.join(format!("libnvonnxparser.so.{}", version.major));
    std::fs::copy(infer, parser).expect("copy");
    *version
}

/// A machine whose NVIDIA libraries are those of `dir/tensorrt` and `dir/driver`.
fn on_machine(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trtvlm"))
        .args(args)
        .env_remove("TRTVLM_LOG")
        .env("TENSORRT_LIB_DIR", dir.join("tensorrt"))
        .env("LD_LIBRARY_PATH", dir.join("driver"))
        .env("TRTVLM_SDK", dir.join("sdk"))
        .output()
        .expect("run")
}

/// The report in both forms; neither may fail, whatever is there.
fn doctor(dir: &Path) -> (Value, String) {
    let shown = |args: &[&str]| {
        let output = on_machine(dir, args);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{}: {stderr}", output.status);
        assert!(!stderr.contains("panicked"), "{stderr}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let json = shown(&["doctor", "--json"]);
    (
        serde_json::from_str(&json).expect("JSON"),
        shown(&["doctor"]),
    )
}

/// The items of one name, as `(status, found, advice)`.
fn items<'a>(report: &'a Value, name: &str) -> Vec<(&'a str, &'a str, &'a str)> {
    let items = report["items"].as_array().expect("items").iter();
    let text = |item: &'a Value, key: &str| item[key].as_str().unwrap_or("");
    items
        .filter(|item| item["name"] == name)
        .map(|item| {
            (
                text(item, "status"),
                text(item, "found"),
                text(item, "advice"),
            )
        })
        .collect()
}

#[test]
fn doctor_with_a_lean_runtime_and_no_driver_makes_no_runtime() {
    let dir = tempfile::tempdir().expect("temp dir");
    let version = lean(&dir.path().join("tensorrt"));
    let no_device = [("CU_INIT", 100), ("DEVICES", 0)];
    library(&dir.path().join("driver"), "libcuda.so", DRIVER, &no_device);
    let (report, text) = doctor(dir.path());

    let found = report["tensorrt"].as_array().expect("libraries");
    let lean = found.iter().find(|library| library["flavour"] == "lean");
    let lean = lean.unwrap_or_else(|| panic!("{found:?}"));
    assert_eq!(lean["version"], version.as_str());
    assert_eq!(lean["can_build"], false);
    assert!(lean["problem"].is_null(), "{lean}");

    let driver = items(&report, "CUDA driver");
    assert_eq!(driver.len(), 1, "{report}");
    assert_eq!(driver[0].0, "missing");
    assert!(driver[0].1.contains("cuInit"), "{driver:?}");
    assert!(driver[0].1.contains("CUDA_ERROR_NO_DEVICE"), "{driver:?}");
    assert!(driver[0].2.contains("JetPack"), "{driver:?}");
    assert!(report["driver"].is_null());

    let builds = found
        .iter()
        .any(|library| library["can_build"] == true && library["problem"].is_null());
    let none_builds = items(&report, "TensorRT")
        .iter()
        .any(|item| item.0 == "missing" && item.1.contains("none that builds plans"));
    assert_eq!(builds, !none_builds, "{report}");
    for part in [
        "missing  CUDA driver",
        "lean runtime",
        "runs plans, builds none",
    ] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
}

#[test]
fn inspect_of_a_plan_with_a_lean_runtime_and_no_driver_says_why_it_knows_nothing() {
    let dir = tempfile::tempdir().expect("temp dir");
    lean(&dir.path().join("tensorrt"));
    let no_device = [("CU_INIT", 100), ("DEVICES", 0)];
    library(&dir.path().join("driver"), "libcuda.so", DRIVER, &no_device);
    let plan = dir.path().join("a.plan");
    std::fs::write(&plan, b"no plan").expect("write");
    let output = on_machine(dir.path(), &["inspect", plan.to_str().expect("path")]);
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code().is_some(), "{}", output.status);
    assert!(shown.contains("CUDA_ERROR_NO_DEVICE"), "{shown}");
}

#[test]
fn doctor_with_a_driver_that_does_not_start_names_its_reason() {
    for (init, name) in [
        (100, "CUDA_ERROR_NO_DEVICE"),
        (803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
    ] {
        let dir = tempfile::tempdir().expect("temp dir");
        let how = [("CU_INIT", init), ("DEVICES", 0)];
        library(&dir.path().join("driver"), "libcuda.so", DRIVER, &how);
        let (report, _) = doctor(dir.path());
        let driver = items(&report, "CUDA driver");
        assert_eq!(driver[0].0, "missing", "{driver:?}");
        assert!(driver[0].1.contains(name), "{driver:?}");
    }
}

#[test]
fn doctor_with_a_driver_and_no_gpu_says_so() {
    let dir = tempfile::tempdir().expect("temp dir");
    let how = [("CU_INIT", 0), ("DEVICES", 0)];
    library(&dir.path().join("driver"), "libcuda.so", DRIVER, &how);
    let (report, _) = doctor(dir.path());
    let driver = items(&report, "CUDA driver");
    assert_eq!(driver[0].0, "missing", "{driver:?}");
    assert!(driver[0].1.contains("no device"), "{driver:?}");
}

#[test]
fn doctor_with_a_driver_shows_its_gpus() {
    let dir = tempfile::tempdir().expect("temp dir");
    let how = [("CU_INIT", 0), ("DEVICES", 2)];
    library(&dir.path().join("driver"), "libcuda.so", DRIVER, &how);
    let (report, text) = doctor(dir.path());
    assert_eq!(items(&report, "CUDA driver")[0].1, "serves CUDA 12.6");
    assert_eq!(items(&report, "GPU").len(), 2);
    let device = &report["driver"]["devices"][1];
    assert_eq!(
        (&device["name"], &device["sm"], &device["memory_bytes"]),
        (&"Orin (made up)".into(), &87.into(), &(8u64 << 30).into())
    );
    assert!(text.contains("Orin (made up), sm87, 8.00 GiB"), "{text}");
}

#[test]
fn doctor_with_a_driver_library_that_is_none_reports_it_as_missing() {
    let dir = tempfile::tempdir().expect("temp dir");
    library(
        &dir.path().join("driver"),
        "libcuda.so",
        "int answer(void) { return 42; }",
        &[],
    );
    let (report, _) = doctor(dir.path());
    let driver = items(&report, "CUDA driver");
    assert_eq!(driver[0].0, "missing", "{driver:?}");
}

#[test]
fn doctor_with_libraries_that_are_garbage_reports_each_and_goes_on() {
    let dir = tempfile::tempdir().expect("temp dir");
    let folder = dir.path().join("tensorrt");
    let major = lean(&folder);
    let major = major.split('.').next().expect("major");
    let whole = std::fs::read(folder.join(format!("libnvinfer_lean.so.{major}"))).expect("read");
    let garbage: [(&str, &[u8]); 5] = [
        ("libnvinfer.so.10", b""),
        ("libnvinfer.so.11", b"no library at all"),
        ("libtensorrt_rtx.so.1", &whole[..whole.len() / 2]),
        ("libtensorrt_rtx.so.2", &[0x7f; 4096]),
        ("libnvrtc.so.13", &whole[..100]),
    ];
    for (name, bytes) in garbage {
        std::fs::write(folder.join(name), bytes).expect("write");
    }
    let (report, text) = doctor(dir.path());
    let found = report["tensorrt"].as_array().expect("libraries");
    for (name, _) in &garbage[..4] {
        let entry = found
            .iter()
            .find(|l| l["path"].as_str().is_some_and(|path| path.ends_with(name)));
        let entry = entry.unwrap_or_else(|| panic!("{name} is not in {found:?}"));
        assert!(entry["problem"].is_string(), "{entry}");
        assert!(entry["version"].is_null(), "{entry}");
        assert!(text.contains(name), "{name}:\n{text}");
    }
    assert!(found.iter().any(|library| library["flavour"] == "lean"));
    let nvrtc = items(&report, "NVRTC");
    // Another NVRTC of the machine may serve in its place.
    assert!(
        nvrtc[0].0 == "ok" || nvrtc[0].1.contains("libnvrtc.so.13"),
        "{nvrtc:?}"
    );
}

#[test]
fn inspect_of_a_plan_asks_a_library_only_after_the_driver_has_answered() {
    let dir = tempfile::tempdir().expect("temp dir");
    let version = tensorrt(&dir.path().join("tensorrt"));
    let plan = dir.path().join("a.plan");
    std::fs::write(&plan, b"a plan").expect("write");
    let inspect = |devices| {
        let how = [("CU_INIT", 0), ("DEVICES", devices)];
        library(&dir.path().join("driver"), "libcuda.so", DRIVER, &how);
        let output = on_machine(
            dir.path(),
            &["inspect", "--json", plan.to_str().expect("path")],
        );
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {stderr}", output.status);
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON")
    };
    let without = inspect(0);
    assert!(without["source"].is_null(), "{without}");
    let note = without["note"].as_str().expect("why");
    assert!(note.contains("no device"), "{note}");
    let with = inspect(1);
    assert_eq!(with["source"], "tensorrt", "{with}");
    assert_eq!(with["engine"], format!("TensorRT {version}"));
    // The made-up engine says that it needs as many bytes as its version number.
    let number = version.major * 10_000 + version.minor * 100 + version.patch;
    assert_eq!(with["device_memory_bytes"], number);
    assert_eq!(with["component"]["inputs"], Value::Array(Vec::new()));
}

#[test]
fn build_for_this_machine_asks_the_driver_which_gpu_it_has() {
    let dir = tempfile::tempdir().expect("temp dir");
    let how = [("CU_INIT", 0), ("DEVICES", 1)];
    library(&dir.path().join("driver"), "libcuda.so", DRIVER, &how);
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/onnx/uav-tiny");
    let out = dir.path().join("bundle");
    let out = out.to_str().expect("path");
    // Its GPU is an sm87, which no TensorRT that is at hand builds for; so `current` was asked.
    let output = on_machine(dir.path(), &["build", model, "--out", out]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("sm87"), "{stderr}");
    assert!(!Path::new(out).exists());
}
