//! Compiles the double, loads it as the CUDA driver and as TensorRT, and makes bundles for it.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock};

use half::f16;
use rten::Value;
use rten_tensor::Tensor;
use rten_tensor::prelude::*;
use trtvlm::bundle::{Bundle, BundleWriter, Component, Engine, Extent, Flavour, TensorInfo};
use trtvlm::cpu::Session;
use trtvlm::cuda::kernels;
use trtvlm::model::ModelConfig;
use trtvlm::onnx::OnnxModel;
use trtvlm::trt;

/// The SM of the double's device: one for which TensorRT-RTX builds nothing, so that bundles for it are
/// portable.
pub const SM: &str = "sm87";

/// The double; one test at a time has it.
pub struct Twin {
    library: libloading::Library,
    _dir: tempfile::TempDir,
}

impl Twin {
    /// Has the double to itself, with a clean journal.
    pub fn take() -> MutexGuard<'static, Self> {
        static TWIN: OnceLock<Mutex<Twin>> = OnceLock::new();
        let twin = TWIN.get_or_init(|| Mutex::new(Self::load()));
        let twin = twin
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        twin.set_device(87, 13000);
        twin.reset();
        twin
    }

    fn load() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let cuda = compile(dir.path());
        // One file under both names, so that both are one library.
        std::fs::hard_link(&cuda, dir.path().join("libtensorrt_rtx.so.1")).expect("link");
        // SAFETY: nothing else of this process looks at the environment yet: tests begin here.
        unsafe { std::env::set_var("TENSORRT_LIB_DIR", dir.path()) };
        // SAFETY: as above. What drafts cost here is of no use to anybody else.
        unsafe { std::env::set_var("XDG_CACHE_HOME", dir.path().join("cache")) };
        // SAFETY: it was made from our own sources just now. Whoever asks for libcuda.so by name
        // finds this one, which has that name and is loaded.
        let library = unsafe { libloading::Library::new(&cuda) }.expect("the double");
        let twin = Self { library, _dir: dir };
        type OnRun = unsafe extern "C" fn(Run);
        // SAFETY: as tensorrt.cpp defines it.
        unsafe { twin.call::<OnRun>(c"double_on_run")(run_plan) };
        twin
    }

    /// A function of the double.
    fn call<F>(&self, name: &CStr) -> libloading::Symbol<'_, F> {
        // SAFETY: every caller names the type that cuda.cpp or tensorrt.cpp gives it.
        unsafe { self.library.get::<F>(name) }.expect("of the double")
    }

    /// Forgets the journal, and what is to fail.
    pub fn reset(&self) {
        // SAFETY: as cuda.cpp defines it.
        unsafe { self.call::<unsafe extern "C" fn()>(c"double_reset")() }
    }

    /// Makes the `nth` call of this name fail, counted from 1.
    pub fn fail(&self, call: &str, nth: i32, code: i32) {
        let name = CString::new(call).expect("name");
        type Fail = unsafe extern "C" fn(*const c_char, c_int, c_int);
        // SAFETY: as cuda.cpp defines it; the name outlives the call.
        unsafe { self.call::<Fail>(c"double_fail")(name.as_ptr(), nth, code) }
    }

    /// Whether a call has failed as it was made to.
    pub fn has_failed(&self) -> bool {
        // SAFETY: as cuda.cpp defines it.
        unsafe { self.call::<unsafe extern "C" fn() -> c_int>(c"double_has_failed")() != 0 }
    }

    /// Objects that live.
    pub fn n_live(&self) -> i32 {
        // SAFETY: as cuda.cpp defines it.
        unsafe { self.call::<unsafe extern "C" fn() -> c_int>(c"double_live")() }
    }

    /// Bytes of device memory.
    pub fn set_capacity(&self, bytes: usize) {
        // SAFETY: as cuda.cpp defines it.
        unsafe { self.call::<unsafe extern "C" fn(usize)>(c"double_set_capacity")(bytes) }
    }

    /// What the device says of itself.
    pub fn set_device(&self, sm: i32, cuda_version: i32) {
        type Set = unsafe extern "C" fn(c_int, c_int);
        // SAFETY: as cuda.cpp defines it.
        unsafe { self.call::<Set>(c"double_set_device")(sm, cuda_version) }
    }

    /// Every call since the journal was cleared.
    pub fn journal(&self) -> Vec<String> {
        type Journal = unsafe extern "C" fn(*mut c_char, usize) -> usize;
        let journal = self.call::<Journal>(c"double_journal");
        // SAFETY: as cuda.cpp defines it: it writes no more than it is told there is room for.
        let text = unsafe {
            let mut text = vec![0u8; journal(std::ptr::null_mut(), 0) + 1];
            journal(text.as_mut_ptr().cast(), text.len());
            text
        };
        let text = String::from_utf8(text).expect("text");
        let lines = text.trim_end_matches('\0').lines();
        lines.map(str::to_owned).collect()
    }
}

/// Headers of the TensorRT flavour that the double is of.
fn headers() -> PathBuf {
    let sets = env!("TRTVLM_HEADERS").split(':');
    let rtx = sets
        .filter_map(|set| set.split_once('='))
        .find(|(key, _)| key.starts_with("rtx"));
    rtx.expect("headers of TensorRT-RTX: run `make sdk`")
        .1
        .into()
}

fn compile(dir: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let headers = headers();
    for (class, used) in [
        ("VRuntime", &["getPImpl", "deserializeCudaEngine"][..]),
        (
            "VCudaEngine",
            &[
                "getPImpl",
                "getNbLayers",
                "getNbOptimizationProfiles",
                "getNbIOTensors",
                "getIOTensorName",
                "getTensorIOMode",
                "getTensorDataType",
                "isShapeInferenceIO",
                "getTensorShape",
                "getProfileShape",
                "getDeviceMemorySizeV2",
                "getDeviceMemorySizeForProfileV2",
                "createExecutionContext",
            ],
        ),
        (
            "VExecutionContext",
            &[
                "getPImpl",
                "setOptimizationProfileAsync",
                "setInputShape",
                "getTensorShape",
                "setTensorAddress",
                "setDeviceMemoryV2",
                "enqueueV3",
            ],
        ),
    ] {
        let text = unused(&headers, class, used);
        std::fs::write(dir.join(format!("unused_{class}.inc")), text).expect("write");
    }
    std::fs::write(dir.join("kernels.cuh"), kernels::SOURCE).expect("write");
    let entries = kernels::ENTRIES.map(|entry| format!("KERNEL({entry})"));
    let library = dir.join("libcuda.so");
    let compiled = Command::new(std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned()))
        .args(
            "-std=c++17 -O1 -Wall -Wno-unknown-pragmas -Wno-deprecated-declarations -fPIC -shared"
                .split(' '),
        )
        .args(["-DTRTVLM_SIMT", "-Wl,-soname,libcuda.so", "-pthread"])
        .arg(format!(
            "-DKERNELS=\"{}\"",
            dir.join("kernels.cuh").display()
        ))
        .arg(format!("-DENTRIES={}", entries.join(",")))
        .arg("-I")
        .arg(root.join("tests/simt"))
        .arg("-I")
        .arg(dir)
        .arg("-isystem")
        .arg(&headers)
        .arg("-isystem")
        .arg(env!("TRTVLM_CUDA_HEADERS"))
        .arg(root.join("tests/simt/simt.cpp"))
        .arg(root.join("tests/double/cuda.cpp"))
        .arg(root.join("tests/double/tensorrt.cpp"))
        .arg("-o")
        .arg(&library)
        .output()
        .expect("a C++ compiler");
    assert!(
        compiled.status.success(),
        "{}",
        String::from_utf8_lossy(&compiled.stderr)
    );
    library
}

/// Definitions of what an interface of the headers has and the double does not use.
fn unused(headers: &Path, class: &str, used: &[&str]) -> String {
    let path = headers.join("NvInferImpl.h");
    let text = std::fs::read_to_string(&path).expect("header");
    let code: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect();
    let code = code.join(" ");
    let body = code.split_once(&format!("class {class} : public VRoot"));
    let body = body.expect(class).1.split_once("};").expect(class).0;
    let mut out = String::new();
    for declaration in body.split(';') {
        let (Some((_, virtual_)), true) = (
            declaration.split_once("virtual "),
            declaration.contains("= 0"),
        ) else {
            continue;
        };
        let signature = virtual_.rsplit_once("= 0").expect("pure").0;
        let name = signature.split('(').next().expect("name");
        let name = name.rsplit([' ', '*', '&']).next().expect("name");
        if !used.contains(&name) {
            // The double's own namespace has no such names.
            let signature = signature.replace("nvinfer1::", "");
            let _ = writeln!(
                out,
                "{signature} override {{ twin::fault(\"{name} is not part of the double\"); }}"
            );
        }
    }
    out
}

/// As tensorrt.cpp calls it.
type Run = unsafe extern "C" fn(
    *const c_char,
    c_int,
    *const *const c_char,
    *const *mut c_void,
    *const c_int,
    *const c_int,
    *const i64,
);

/// Values of TensorRT's `DataType`.
const DATA_TYPES: [(&str, c_int, usize); 5] = [
    ("f32", 0, 4),
    ("f16", 1, 2),
    ("i32", 3, 4),
    ("bool", 4, 1),
    ("i64", 8, 8),
];

/// Runs a plan's graph on the CPU engine.
unsafe extern "C" fn run_plan(
    graph: *const c_char,
    n: c_int,
    names: *const *const c_char,
    addresses: *const *mut c_void,
    dtypes: *const c_int,
    ranks: *const c_int,
    dims: *const i64,
) {
    static SESSIONS: OnceLock<Mutex<HashMap<String, Session>>> = OnceLock::new();
    // SAFETY: tensorrt.cpp gives `n` of each, and as many dimensions as the ranks add up to.
    let (graph, names, addresses, dtypes, ranks) = unsafe {
        let n = n as usize;
        (
            CStr::from_ptr(graph).to_str().expect("path"),
            std::slice::from_raw_parts(names, n),
            std::slice::from_raw_parts(addresses, n),
            std::slice::from_raw_parts(dtypes, n),
            std::slice::from_raw_parts(ranks, n),
        )
    };
    let n_dims: c_int = ranks.iter().sum();
    // SAFETY: as above.
    let mut dims = unsafe { std::slice::from_raw_parts(dims, n_dims as usize) };
    let mut sessions = SESSIONS
        .get_or_init(Mutex::default)
        .lock()
        .expect("sessions");
    let session = sessions.entry(graph.to_owned()).or_insert_with(|| {
        let model = OnnxModel::load(Path::new(graph)).expect("graph");
        Session::load(&model).expect("session")
    });
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    for i in 0..names.len() {
        let (own, rest) = dims.split_at(ranks[i] as usize);
        dims = rest;
        let shape: Vec<usize> = own.iter().map(|&n| n as usize).collect();
        // SAFETY: tensorrt.cpp gives names that end with a zero.
        let name = unsafe { CStr::from_ptr(names[i]) }.to_str().expect("name");
        let (kind, _, size) = DATA_TYPES.iter().find(|t| t.1 == dtypes[i]).expect("type");
        let bytes = shape.iter().product::<usize>() * size;
        // SAFETY: the backend has checked that as many bytes lie there, and the double that they live.
        let memory = unsafe { std::slice::from_raw_parts_mut(addresses[i].cast::<u8>(), bytes) };
        match session.has_input(name) {
            true => inputs.push((
                session.input(name).expect(name),
                value(kind, &shape, memory).into(),
            )),
            false => outputs.push((name, *kind, shape, memory)),
        }
    }
    let ids: Vec<_> = outputs
        .iter()
        .map(|output| session.output(output.0).expect(output.0))
        .collect();
    let values = session.run(inputs, &ids).expect("run");
    for ((name, kind, shape, memory), value) in outputs.into_iter().zip(values) {
        let value: Tensor<f32> = value.into_tensor().expect(name);
        assert_eq!(value.shape(), shape.as_slice(), "{name}");
        for (to, from) in memory
            .chunks_exact_mut(if kind == "f16" { 2 } else { 4 })
            .zip(value.iter())
        {
            match kind {
                "f16" => to.copy_from_slice(&f16::from_f32(*from).to_le_bytes()),
                _ => to.copy_from_slice(&from.to_le_bytes()),
            }
        }
    }
}

/// A tensor of the CPU engine, which has floats and integers of 32 bits.
fn value(kind: &str, shape: &[usize], bytes: &[u8]) -> Value {
    let floats = |data: Vec<f32>| Value::from(Tensor::from_data(shape, data));
    let integers = |data: Vec<i32>| Value::from(Tensor::from_data(shape, data));
    match kind {
        "f32" => floats(
            bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
        ),
        "f16" => floats(
            bytes
                .chunks_exact(2)
                .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect(),
        ),
        "bool" => integers(bytes.iter().map(|&b| i32::from(b)).collect()),
        // What matters of 64 bits stands in the low ones.
        "i64" => integers(
            bytes
                .chunks_exact(8)
                .map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
        ),
        _ => integers(
            bytes
                .chunks_exact(4)
                .map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
        ),
    }
}

/// Builds a portable bundle of a model for the double's SM, and makes plans of the double of its graphs.
pub fn bundle(model: &str, precision: &str, dir: &Path) -> PathBuf {
    let portable = dir.join("portable");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let built = Command::new(env!("CARGO_BIN_EXE_trtvlm"))
        .args([
            "build",
            model,
            "--target",
            SM,
            "--precision",
            precision,
            "--out",
        ])
        .arg(&portable)
        .current_dir(root)
        .env_remove("TENSORRT_LIB_DIR")
        .output()
        .expect("trtvlm");
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    let bundle = Bundle::open(&portable).expect("portable bundle");
    let out = dir.join("bundle");
    let writer = BundleWriter::create(&out, false).expect("writer");
    let mut manifest = bundle.manifest().clone();
    for file in &manifest.files {
        writer
            .copy(&bundle.dir().join(&file.path), &file.path)
            .expect("copy");
    }
    let config = ModelConfig::load(bundle.dir()).expect("config");
    let set = &mut manifest.engines[0];
    for component in set.components.iter_mut().filter(|c| c.name != "embed") {
        let graph = bundle.dir().join(&component.file);
        let file = format!("engines/{}.{SM}.plan", component.name);
        let plan = writer.file(&file).expect("plan");
        std::fs::write(plan, plan_text(&graph, component, config.tokens_per_tile)).expect("write");
        component.file = file;
    }
    let rtx = trt::headers()
        .into_iter()
        .find(|(flavour, _)| *flavour == trt::Flavour::Rtx);
    set.engine = Engine {
        flavour: Flavour::TensorRtRtx,
        version: rtx.expect("headers").1.to_string(),
    };
    writer.finish(manifest).expect("bundle");
    out
}

/// A plan as tensorrt.cpp reads it.
fn plan_text(graph: &Path, component: &Component, tokens_per_tile: usize) -> String {
    let mut text = format!("double {}\n", graph.display());
    let code = |dtype: &str| DATA_TYPES.iter().find(|t| t.0 == dtype).expect(dtype).1;
    for tensor in &component.inputs {
        let dims = tensor.shape.iter().map(|dim| match dim {
            Extent::Fixed(n) => n.to_string(),
            Extent::Named(_) => "-1".to_owned(),
        });
        let dims: Vec<String> = dims.collect();
        let _ = writeln!(
            text,
            "in {} {} {}",
            tensor.name,
            code(&tensor.dtype),
            dims.join(" ")
        );
    }
    for tensor in &component.outputs {
        let dims: Vec<String> = (0..tensor.shape.len())
            .map(|axis| output_dim(tensor, axis, tokens_per_tile))
            .collect();
        let _ = writeln!(
            text,
            "out {} {} {}",
            tensor.name,
            code(&tensor.dtype),
            dims.join(" ")
        );
    }
    for profile in &component.profiles {
        text.push_str("profile\n");
        for input in &profile.inputs {
            let join = |dims: &[u64]| {
                dims.iter()
                    .map(u64::to_string)
                    .collect::<Vec<_>>()
                    .join(" ")
            };
            let (min, max) = (join(&input.min), join(&input.max));
            let _ = writeln!(text, "range {} {} {min} {max}", input.name, input.min.len());
        }
    }
    text
}

/// A dimension of an output: a number, or that of an input that it is.
fn output_dim(tensor: &TensorInfo, axis: usize, tokens_per_tile: usize) -> String {
    match &tensor.shape[axis] {
        Extent::Fixed(n) => n.to_string(),
        Extent::Named(_) if tensor.name == "logits" => "logit_rows:0".to_owned(),
        Extent::Named(_) if tensor.name.starts_with("new.") || tensor.name == "hidden" => {
            "inputs_embeds:1".to_owned()
        }
        Extent::Named(_) if tensor.name == "image_features" && axis == 0 => {
            "pixel_values:1".to_owned()
        }
        Extent::Named(_) if tensor.name == "image_features" => tokens_per_tile.to_string(),
        Extent::Named(name) => panic!("{}: {name}", tensor.name),
    }
}
