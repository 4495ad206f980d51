//! Opens TensorRT's libraries, and says what they are.

use std::path::{Path, PathBuf};

use cxx::SharedPtr;
use serde::Serialize;

use super::elf;
use super::error::from_shim;
use super::ffi::shim;
use super::flavour::{Abi, Flavour, Version};
use super::search::{Candidate, candidates};
use crate::cuda::LibraryPath;
use crate::error::Error;

/// One TensorRT that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LibraryInfo {
    /// Which TensorRT.
    pub flavour: Flavour,
    /// What the library says of itself; `None` if it could not be opened.
    pub version: Option<Version>,
    /// The file.
    pub path: PathBuf,
    /// The ONNX parser that goes with it; without one it builds nothing.
    pub parser: Option<PathBuf>,
    /// Version of the headers that this program speaks to it with.
    pub headers: Option<Version>,
    /// SMs that it builds plans for on any machine; empty if only for the GPU that is present.
    pub targets: Vec<String>,
    /// Whether it can build plans, apart from needing a GPU.
    pub can_build: bool,
    /// Why it cannot be used.
    pub problem: Option<String>,
}

/// A library that was opened and can be used.
pub(super) struct Opened {
    pub info: LibraryInfo,
    pub version: Version,
    pub abi: &'static Abi,
    pub library: SharedPtr<shim::Library>,
}

/// Every TensorRT in `TENSORRT_LIB_DIR`, the loader's path and the SDK, in the order in which
/// they are tried, with what is wrong with those that cannot be used.
///
/// Libraries are opened, and stay so; no object of theirs is made, so this is safe without a
/// CUDA driver.
pub fn discover() -> Vec<LibraryInfo> {
    discover_in(&LibraryPath::from_env())
}

pub(super) fn discover_in(path: &LibraryPath) -> Vec<LibraryInfo> {
    let mut found: Vec<LibraryInfo> = Vec::new();
    for candidate in candidates(path) {
        let info = match open(&candidate) {
            Some(Ok(opened)) => opened.info,
            Some(Err(info)) => *info,
            None => continue,
        };
        if !found.iter().any(|known| known.path == info.path) {
            found.push(info);
        }
    }
    found
}

/// Opens a candidate: `None` for a bare name that the loader does not know, what is known of it
/// if it cannot be used.
pub(super) fn open(candidate: &Candidate) -> Option<Result<Opened, Box<LibraryInfo>>> {
    let mut info = LibraryInfo {
        flavour: candidate.flavour,
        version: None,
        path: candidate.infer.clone(),
        parser: candidate.parser.clone(),
        headers: None,
        targets: Vec::new(),
        can_build: false,
        problem: None,
    };
    let refuse = |mut info: LibraryInfo, problem: String| {
        info.problem = Some(problem);
        Some(Err(Box::new(info)))
    };
    let is_file = candidate.infer.is_absolute();
    if is_file {
        for file in [Some(&candidate.infer), candidate.parser.as_ref()]
            .into_iter()
            .flatten()
        {
            if let Err(reason) = elf::check(file) {
                return refuse(info, format!("{}: {reason}", file.display()));
            }
        }
    }
    let library = match dlopen(candidate) {
        Ok(library) => library,
        Err(_) if !is_file => return None,
        Err(reason) => return refuse(info, reason),
    };
    info.path = library.path().into();
    info.parser = Some(library.parser_path())
        .filter(|p| !p.is_empty())
        .map(Into::into);
    let version = Version::from_library(library.version());
    info.version = Some(version);
    if (version.major < 10) != (info.flavour == Flavour::Rtx) {
        let problem = format!("its name says {}, its version {version}", info.flavour);
        return refuse(info, problem);
    }
    let Some(abi) = Abi::of_library(info.flavour, version) else {
        let problem = format!(
            "this program was built without headers of {} {}",
            info.flavour, version.major
        );
        return refuse(info, problem);
    };
    info.headers = Some(abi.headers());
    if version < abi.headers() {
        let problem = format!(
            "the library has version {version}, this program needs {} or newer, whose headers it \
             was built with",
            abi.headers()
        );
        return refuse(info, problem);
    }
    info.targets = abi.known_sms();
    info.can_build = library.can_build();
    Some(Ok(Opened {
        info,
        version,
        abi,
        library,
    }))
}

/// Opens both libraries; a bare name is tried with its parser and then without.
fn dlopen(candidate: &Candidate) -> Result<SharedPtr<shim::Library>, String> {
    let infer = candidate.infer.to_string_lossy();
    let parser = candidate
        .parser
        .as_deref()
        .map_or("".into(), Path::to_string_lossy);
    let text = |e: cxx::Exception| match from_shim("open_library", &e) {
        Error::Engine { message, .. } => message,
        other => other.to_string(),
    };
    let opened = shim::open_library(&infer, &parser);
    match opened {
        Err(_) if !candidate.infer.is_absolute() && !parser.is_empty() => {
            shim::open_library(&infer, "").map_err(text)
        }
        opened => opened.map_err(text),
    }
}
