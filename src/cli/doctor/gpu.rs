//! Driver, TensorRT and NVRTC.

use serde::Serialize;

use super::item::Item;

/// How to get a program with all features.
#[cfg(not(feature = "tensorrt"))]
const REBUILD: &str = if cfg!(target_arch = "aarch64") {
    "on another machine `make deb TENSORRT_INCLUDE_DIR=...` with JetPack's headers (docs/jetson.md)"
} else {
    "`make sdk`, then `cargo build --release --features tensorrt`"
};

/// What was found, for programs.
#[derive(Debug, Default, Serialize)]
pub struct Gpu {
    /// The CUDA driver and its devices.
    #[cfg(feature = "cuda")]
    pub driver: Option<crate::cuda::DriverInfo>,
    /// The compiler of kernels.
    #[cfg(feature = "cuda")]
    pub nvrtc: Option<crate::cuda::NvrtcInfo>,
    /// Every TensorRT, usable or not.
    #[cfg(feature = "tensorrt")]
    pub tensorrt: Vec<crate::trt::LibraryInfo>,
    /// The TensorRT headers that this program was built with.
    pub headers: Vec<String>,
}

/// Looks for everything of NVIDIA's.
pub fn look() -> (Gpu, Vec<Item>) {
    let mut gpu = Gpu::default();
    let mut items = Vec::new();
    driver(&mut gpu, &mut items);
    tensorrt(&mut gpu, &mut items);
    nvrtc(&mut gpu, &mut items);
    (gpu, items)
}

const DRIVER: &str = "CUDA driver";
const TENSORRT: &str = "TensorRT";
#[cfg(feature = "tensorrt")]
const HEADERS: &str = "TensorRT headers";
#[cfg(feature = "cuda")]
const NVRTC: &str = "NVRTC";

/// What the kernel module says, which every program can read.
#[cfg(not(feature = "cuda"))]
fn driver(_: &mut Gpu, items: &mut Vec<Item>) {
    let module = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let module = module.lines().next().unwrap_or("no driver is loaded");
    let found = format!("{module}; not asked further: built without the feature `cuda`");
    items.push(Item::warning(DRIVER, found, REBUILD));
}

#[cfg(feature = "cuda")]
fn driver(gpu: &mut Gpu, items: &mut Vec<Item>) {
    use indicatif::HumanBytes;

    let info = match crate::cuda::probe() {
        Ok(info) => info,
        Err(error) => {
            items.push(Item::missing(
                DRIVER,
                reason(error),
                "on a Jetson it is part of JetPack; a container needs the GPU passed through; \
                 without it models run on the CPU, and TensorRT-RTX builds all the same",
            ));
            return;
        }
    };
    let (major, minor) = info.cuda_version;
    items.push(Item::ok(DRIVER, format!("serves CUDA {major}.{minor}")));
    for device in &info.devices {
        let found = format!(
            "{}, sm{}, {}",
            device.name,
            device.sm,
            HumanBytes(device.memory_bytes)
        );
        items.push(Item::ok("GPU", found));
    }
    gpu.driver = Some(info);
}

#[cfg(not(feature = "tensorrt"))]
fn tensorrt(_: &mut Gpu, items: &mut Vec<Item>) {
    let found = "not looked for: built without the feature `tensorrt`, that is, without headers";
    items.push(Item::warning(TENSORRT, found, REBUILD));
}

#[cfg(feature = "tensorrt")]
fn tensorrt(gpu: &mut Gpu, items: &mut Vec<Item>) {
    use crate::trt;

    const GET: &str = "`make sdk` fetches TensorRT-RTX, which builds without a GPU; on a Jetson \
                       install libnvinfer10 and libnvonnxparsers10; elsewhere set TENSORRT_LIB_DIR";
    gpu.headers = trt::headers()
        .iter()
        .map(|(flavour, version)| format!("{flavour} {version}"))
        .collect();
    gpu.tensorrt = trt::discover();
    for library in &gpu.tensorrt {
        let version = library.version.map_or(String::new(), |v| format!(" {v}"));
        let mut found = format!("{}{version}, {}", library.flavour, library.path.display());
        if let Some(problem) = &library.problem {
            found += &format!(": {problem}");
            let advice = "repair or remove it, if a bundle needs this one";
            items.push(Item::warning(TENSORRT, found, advice));
            continue;
        }
        found += match (library.can_build, library.targets.as_slice()) {
            (true, []) => "; builds for the GPU of this machine".to_owned(),
            (true, targets) => format!("; builds for {}", targets.join(" ")),
            (false, _) => "; runs plans, builds none".to_owned(),
        }
        .as_str();
        items.push(Item::ok(TENSORRT, found));
    }
    if gpu.tensorrt.is_empty() {
        items.push(Item::missing(TENSORRT, "no library was found", GET));
    } else if !gpu
        .tensorrt
        .iter()
        .any(|l| l.problem.is_none() && l.can_build)
    {
        items.push(Item::missing(TENSORRT, "none that builds plans", GET));
    }
    items.push(Item::ok(HEADERS, gpu.headers.join(", ")));
}

/// Without CUDA there are no kernels to compile.
#[cfg(not(feature = "cuda"))]
fn nvrtc(_: &mut Gpu, _: &mut Vec<Item>) {}

#[cfg(feature = "cuda")]
fn nvrtc(gpu: &mut Gpu, items: &mut Vec<Item>) {
    match crate::cuda::nvrtc(&crate::cuda::LibraryPath::from_env()) {
        Ok(info) => {
            let (major, minor) = info.version;
            items.push(Item::ok(
                NVRTC,
                format!("{major}.{minor}, {}", info.path.display()),
            ));
            gpu.nvrtc = Some(info);
        }
        Err(error) => items.push(Item::missing(
            NVRTC,
            reason(error),
            "`make sdk` fetches it, the CUDA toolkit has it; builds for a GPU need it, runs do not",
        )),
    }
}

/// Why something is not there, without naming it again.
#[cfg(feature = "cuda")]
fn reason(error: crate::Error) -> String {
    match error {
        crate::Error::Unavailable { reason, .. } => reason,
        other => other.to_string(),
    }
}
