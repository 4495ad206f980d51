//! Builds one plan in this process.
//!
//! A parser that meets a graph it does not expect can take the process with it, which is why
//! programs call [`build_in_child`](super::build_in_child) instead.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use cxx::UniquePtr;
use sha2::{Digest, Sha256};

use super::error::{code, from_shim};
use super::events::{Event, Events, LogLevel};
use super::ffi::shim;
use super::flavour::{Abi, Flavour};
use super::library::{self, Opened};
use super::memory;
use super::progress::{PARSING, Progress, WRITING};
use super::search::candidates;
use super::spec::{BuildReport, BuildSpec, DType, IoMode, Profile, Sm, TensorDesc};
use crate::cuda::{self, LibraryPath};
use crate::error::{Error, Result};

/// Receives events; TensorRT calls it on any of its threads.
pub(super) type Sink = Arc<dyn Fn(Event) + Send + Sync>;

/// Builds `spec.plan` in this process; `sink` hears of every step and log line.
///
/// The plan is written to [a name beside it](partial_path) and renamed when it is complete.
///
/// # Errors
/// Those of [`build_in_child`](super::build_in_child), but that a crash is a crash.
pub(super) fn build(spec: &BuildSpec, sink: Sink, cancel: &Arc<AtomicBool>) -> Result<BuildReport> {
    spec.validate()?;
    let weights = match spec.weight_bytes {
        Some(bytes) => bytes,
        None => memory::onnx_bytes(&spec.onnx)?,
    };
    File::open(&spec.onnx).map_err(Error::io(&spec.onnx))?;
    memory::require(&spec.component(), weights)?;
    let (opened, target) = choose(spec, &LibraryPath::from_env())?;
    build_with(&opened, target, spec, &sink, cancel)
}

fn build_with(
    opened: &Opened,
    target: i32,
    spec: &BuildSpec,
    sink: &Sink,
    cancel: &Arc<AtomicBool>,
) -> Result<BuildReport> {
    let begin = Instant::now();
    let abi = opened.abi;
    let mut builder = new_builder(opened, spec.verbose_log, sink, cancel)?;
    phase(sink, PARSING, || parse(&mut builder, abi, &spec.onnx))?;
    if cancel.load(Ordering::Relaxed) {
        return Err(Error::Cancelled);
    }
    let io = describe(builder.io(), abi)?;
    // Many a file that is no model parses as an empty one.
    if !io.iter().any(|tensor| tensor.mode == IoMode::Output) {
        return Err(Error::malformed(&spec.onnx, "no ONNX graph with outputs"));
    }
    for (index, profile) in spec.profiles.iter().enumerate() {
        check_profile(&io, index, profile)?;
        let ranges: Vec<shim::DimRange> = profile.dims.iter().map(Into::into).collect();
        let added = builder.pin_mut().add_profile(&ranges);
        added.map_err(|e| from_shim("addOptimizationProfile", &e))?;
    }
    if spec.profiles.is_empty() {
        check_profile(&io, 0, &Profile::default())?;
    }
    let knobs = knobs(spec, abi, target)?;
    let built = builder.pin_mut().build(&knobs);
    built.map_err(|e| from_shim("buildSerializedNetwork", &e))?;
    let seconds = begin.elapsed().as_secs_f64();
    let plan = builder.plan().map_err(|e| from_shim("plan", &e))?;
    let plan_sha256 = phase(sink, WRITING, || write_plan(&spec.plan, plan, cancel))?;
    let plan_bytes = plan.len() as u64;
    save_timing_cache(spec, &builder)?;
    Ok(BuildReport {
        io,
        profiles: spec.profiles.clone(),
        seconds,
        peak_rss_bytes: crate::host::peak_resident_bytes(),
        plan_bytes,
        plan_sha256,
        target: spec.target,
        flavour: opened.info.flavour,
        version: opened.version,
    })
}

/// The first library that can build for the target, and the target's number for the shim.
fn choose(spec: &BuildSpec, path: &LibraryPath) -> Result<(Opened, i32)> {
    let mut reasons = Vec::new();
    for candidate in candidates(path) {
        if spec
            .flavour
            .is_some_and(|flavour| flavour != candidate.flavour)
        {
            continue;
        }
        let opened = match library::open(&candidate) {
            Some(Ok(opened)) => opened,
            Some(Err(info)) => {
                let problem = info.problem.unwrap_or_default();
                reasons.push(format!("{}: {problem}", info.path.display()));
                continue;
            }
            None => continue,
        };
        match target_of(&opened, spec.target) {
            Ok(target) => return Ok((opened, target)),
            Err(reason) => reasons.push(format!(
                "{} {} {reason}",
                opened.info.flavour, opened.version
            )),
        }
    }
    // A bare name may lead to a library that was named, too.
    let mut told = HashSet::new();
    reasons.retain(|reason| told.insert(reason.clone()));
    if reasons.is_empty() {
        reasons.push(
            "no library was found: run `make sdk`, or set TENSORRT_LIB_DIR to the folder that \
             holds libnvinfer.so or libtensorrt_rtx.so"
                .to_owned(),
        );
    }
    Err(Error::Unavailable {
        what: format!("a TensorRT that builds for {}", spec.target),
        reason: reasons.join("; "),
    })
}

/// Says what the libraries of this machine build for if there are some that build and none of
/// them builds for `target`; `None` if one does, or if there are none.
pub fn refused_by_all(target: Sm) -> Option<String> {
    refused_by_all_in(target, &LibraryPath::from_env())
}

fn refused_by_all_in(target: Sm, path: &LibraryPath) -> Option<String> {
    let opened = candidates(path).into_iter();
    let opened = opened.filter_map(|candidate| library::open(&candidate)?.ok());
    let mut reasons = Vec::new();
    for opened in opened.filter(|opened| opened.info.can_build) {
        let reason = target_of(&opened, target).err()?;
        let (flavour, version) = (opened.info.flavour, opened.version);
        reasons.push(format!("{flavour} {version} {reason}"));
    }
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

/// The shim's number for `target`, or why this library does not build for it.
fn target_of(opened: &Opened, target: Sm) -> std::result::Result<i32, String> {
    if !opened.info.can_build {
        return Err("has no builder or no ONNX parser".to_owned());
    }
    let known = opened.abi.known_sms();
    if opened.info.flavour == Flavour::Rtx {
        if target == Sm::Current {
            let sm = present_sm()?;
            if !known.contains(&Sm::Sm(sm).to_string()) {
                return Err(format!(
                    "builds for {}, this GPU is sm{sm}",
                    known.join(", ")
                ));
            }
        }
        let number = opened.abi.compute_capability(&target.to_string());
        return number.ok_or_else(|| format!("builds for {}", known.join(", ")));
    }
    let sm = present_sm()?;
    if target != Sm::Current && target != Sm::Sm(sm) {
        return Err(format!(
            "builds for the GPU that is present, which is sm{sm}"
        ));
    }
    Ok(-1)
}

/// SM of the first GPU. Asked before anything of a library that needs a GPU is called.
fn present_sm() -> std::result::Result<u32, String> {
    let info = cuda::probe().map_err(|e| format!("needs a GPU: {e}"))?;
    let device = info.devices.first();
    device.map(|d| d.sm).ok_or_else(|| "needs a GPU".to_owned())
}

fn new_builder(
    opened: &Opened,
    verbose_log: bool,
    sink: &Sink,
    cancel: &Arc<AtomicBool>,
) -> Result<UniquePtr<shim::Builder>> {
    let lowest = if verbose_log {
        LogLevel::Debug
    } else {
        LogLevel::Info
    };
    let events = Events::new(opened.abi, lowest, Arc::clone(sink), Arc::clone(cancel));
    shim::new_builder(opened.abi.key, opened.library.clone(), Box::new(events))
        .map_err(|e| from_shim("createInferBuilder", &e))
}

/// Reports a phase of our own, which has one step.
fn phase<T>(sink: &Sink, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let phase = name.to_owned();
    sink(Event::Progress(Progress::PhaseStart {
        phase: phase.clone(),
        parent: None,
        steps: 1,
    }));
    let done = work();
    sink(Event::Progress(Progress::PhaseEnd { phase }));
    done
}

fn parse(builder: &mut UniquePtr<shim::Builder>, abi: &Abi, onnx: &Path) -> Result<()> {
    let Some(path) = onnx.to_str() else {
        return Err(Error::malformed(onnx, "its name is not UTF-8"));
    };
    let parsed = builder.pin_mut().parse(path);
    if parsed.map_err(|e| from_shim("parseFromFile", &e))? {
        return Ok(());
    }
    let faults = builder.faults().map_err(|e| from_shim("getError", &e))?;
    Err(refusal(&faults, abi, onnx))
}

/// The first fault that names a node, else the first.
fn refusal(faults: &[shim::ParserFault], abi: &Abi, onnx: &Path) -> Error {
    let with_node = faults
        .iter()
        .find(|fault| fault.node >= 0 && !fault.op.is_empty());
    let Some(fault) = with_node.or(faults.first()) else {
        return Error::Engine {
            call: "parseFromFile",
            code: code::PARSE.to_owned(),
            message: format!("{}: refused without a reason", onnx.display()),
        };
    };
    let name = abi
        .parser_error(fault.code)
        .unwrap_or("unknown parser error");
    let reason = format!("{name}: {}", fault.message);
    if name == "kMODEL_DESERIALIZE_FAILED" {
        return Error::malformed(onnx, reason);
    }
    if with_node.is_some() {
        let number = format!("#{}", fault.node);
        let node = if fault.node_name.is_empty() {
            number
        } else {
            fault.node_name.clone()
        };
        let op = fault.op.clone();
        return Error::Unsupported { node, op, reason };
    }
    Error::Engine {
        call: "parseFromFile",
        code: code::PARSE.to_owned(),
        message: format!("{}: {reason}", onnx.display()),
    }
}

/// The shim's description of inputs and outputs in our terms.
pub(super) fn describe(
    io: std::result::Result<Vec<shim::IoTensor>, cxx::Exception>,
    abi: &Abi,
) -> Result<Vec<TensorDesc>> {
    let io = io.map_err(|e| from_shim("getInput", &e))?;
    let tensors = io.into_iter().map(|tensor| {
        if tensor.is_input && tensor.is_shape {
            return Err(Error::Shape {
                name: tensor.name,
                expected: "an input whose values do not decide about shapes".to_owned(),
                actual: "a shape tensor".to_owned(),
            });
        }
        Ok(TensorDesc {
            name: tensor.name,
            mode: if tensor.is_input {
                IoMode::Input
            } else {
                IoMode::Output
            },
            dtype: DType::from_name(abi.data_type(tensor.dtype), tensor.dtype),
            shape: tensor.shape,
        })
    });
    tensors.collect()
}

/// Checks that a profile has one fitting range for every dynamic input and none for others.
fn check_profile(io: &[TensorDesc], index: usize, profile: &Profile) -> Result<()> {
    let shape_error = |name: &str, expected: String, actual: String| {
        Err(Error::Shape {
            name: name.to_owned(),
            expected: format!("{expected} in profile {index}"),
            actual,
        })
    };
    let inputs = || io.iter().filter(|tensor| tensor.mode == IoMode::Input);
    for range in &profile.dims {
        let Some(input) = inputs().find(|input| input.name == range.input) else {
            return shape_error(&range.input, "an input of the graph".into(), "none".into());
        };
        let fits = range.min.len() == input.shape.len()
            && input
                .shape
                .iter()
                .zip(range.min.iter().zip(&range.max))
                .all(|(&graph, (&min, &max))| graph < 0 || (min == graph && max == graph));
        if !fits {
            return shape_error(
                &range.input,
                format!("{:?}", input.shape),
                format!("{:?} to {:?}", range.min, range.max),
            );
        }
    }
    for input in inputs().filter(|input| input.shape.iter().any(|&d| d < 0)) {
        let n = profile
            .dims
            .iter()
            .filter(|range| range.input == input.name)
            .count();
        if n != 1 {
            let expected = format!("one range for {:?}", input.shape);
            return shape_error(&input.name, expected, n.to_string());
        }
    }
    Ok(())
}

fn knobs(spec: &BuildSpec, abi: &Abi, target: i32) -> Result<shim::Knobs> {
    let tf32 = abi.builder_flag("kTF32");
    let rtx = abi.flavour() == Flavour::Rtx;
    let cache_file = spec.timing_cache.as_deref().filter(|_| !rtx);
    let timing_cache = match cache_file.map(std::fs::read) {
        None => Vec::new(),
        Some(Err(e)) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Some(read) => read.map_err(Error::io(cache_file.unwrap_or(Path::new(""))))?,
    };
    Ok(shim::Knobs {
        target,
        workspace_bytes: spec.workspace_bytes.unwrap_or(0),
        optimization_level: spec.optimization_level.unwrap_or(-1),
        set_flags: if spec.tf32 { tf32 } else { 0 },
        clear_flags: if spec.tf32 { 0 } else { tf32 },
        use_timing_cache: cache_file.is_some(),
        timing_cache,
    })
}

fn save_timing_cache(spec: &BuildSpec, builder: &UniquePtr<shim::Builder>) -> Result<()> {
    let Some(file) = &spec.timing_cache else {
        return Ok(());
    };
    let bytes = builder
        .timing_cache()
        .map_err(|e| from_shim("getTimingCache", &e))?;
    if bytes.is_empty() {
        return Ok(());
    }
    write_whole(file, &bytes, std::process::id())
}

/// Where a build in process `pid` writes before it renames.
pub(super) fn partial_path(file: &Path, pid: u32) -> PathBuf {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    file.with_file_name(format!(".{name}.{pid}.partial"))
}

fn write_plan(file: &Path, plan: &[u8], cancel: &AtomicBool) -> Result<String> {
    let digest = Sha256::digest(plan);
    if cancel.load(Ordering::Relaxed) {
        return Err(Error::Cancelled);
    }
    write_whole(file, plan, std::process::id())?;
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Writes a file that appears complete or not at all.
fn write_whole(file: &Path, bytes: &[u8], pid: u32) -> Result<()> {
    let partial = partial_path(file, pid);
    let written = File::create(&partial)
        .and_then(|mut out| out.write_all(bytes).and_then(|()| out.sync_all()))
        .and_then(|()| std::fs::rename(&partial, file));
    written.map_err(|e| {
        // What is left of it is in the way; the first error is the one to report.
        let _ = std::fs::remove_file(&partial);
        Error::io(file)(e)
    })
}

impl From<&super::spec::DimRange> for shim::DimRange {
    fn from(range: &super::spec::DimRange) -> Self {
        Self {
            input: range.input.clone(),
            min: range.min.clone(),
            opt: range.opt.clone(),
            max: range.max.clone(),
        }
    }
}
