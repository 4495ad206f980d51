//! Plans that run (an unsafe fence: see `tests/house.rs`).
//!
//! An [`Execution`] is a plan with a profile and one set of shapes, its tensors bound to memory of the
//! device, which it keeps: what a graph captures of it stays valid as long as the graph.
#![allow(unsafe_code)]

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use cxx::UniquePtr;

use super::builder::describe;
use super::error::from_shim;
use super::events::{Event, Events, LogLevel, trace};
use super::ffi::shim;
use super::flavour::Flavour;
use super::library::{self, Opened};
use super::plan::profiles;
use super::search::candidates;
use super::spec::{DType, IoMode, Profile, TensorDesc};
use crate::cuda::{Device, LibraryPath, Memory};
use crate::error::{Error, Result};
use crate::sync::lock;

/// A TensorRT that loads plans.
pub struct Runtime(Opened);

impl Runtime {
    /// The library of this flavour and version; for plans of TensorRT itself its lean runtime, too.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with what was found instead.
    pub fn find(flavour: Flavour, version: &str) -> Result<Self> {
        let mut seen = Vec::new();
        for candidate in candidates(&LibraryPath::from_env()) {
            match library::open(&candidate) {
                Some(Ok(opened)) => {
                    let found = opened.info.flavour;
                    let fits = found == flavour
                        || (found == Flavour::Lean && flavour == Flavour::Enterprise);
                    if fits && opened.version.to_string() == version {
                        return Ok(Self(opened));
                    }
                    seen.push(format!("{found} {}", opened.version));
                }
                Some(Err(info)) => seen.extend(info.problem),
                None => {}
            }
        }
        seen.dedup();
        Err(Error::Unavailable {
            what: format!("{flavour} {version}, which built the plans"),
            reason: match seen.is_empty() {
                true => "no TensorRT was found: set TENSORRT_LIB_DIR".to_owned(),
                false => format!("found instead: {}", seen.join("; ")),
            },
        })
    }

    /// Flavour and version, for people.
    pub fn name(&self) -> String {
        format!("{} {}", self.0.info.flavour, self.0.version)
    }

    /// Loads a plan onto the device whose context is current.
    ///
    /// # Errors
    /// [`Error::Engine`] if TensorRT refuses it.
    pub fn engine(&self, path: &Path, device: &Device) -> Result<Engine> {
        let Some(text) = path.to_str() else {
            return Err(Error::malformed(path, "its name is not UTF-8"));
        };
        device.ready()?;
        let log = |event| {
            if let Event::Log { level, message } = event {
                trace(level, &message);
            }
        };
        let never = Arc::new(AtomicBool::new(false));
        let events = Events::new(self.0.abi, LogLevel::Info, Arc::new(log), never);
        let library = self.0.library.clone();
        let plan = shim::open_plan(self.0.abi.key, library, text, Box::new(events))
            .map_err(|e| from_shim("deserializeCudaEngine", &e))?;
        Ok(Engine {
            io: describe(plan.io(), self.0.abi)?,
            profiles: profiles(&plan)?,
            device: device.clone(),
            plan,
        })
    }
}

/// A plan in the device's memory.
pub struct Engine {
    plan: UniquePtr<shim::Plan>,
    device: Device,
    io: Vec<TensorDesc>,
    profiles: Vec<Profile>,
}

impl Engine {
    /// Its inputs and outputs.
    pub fn io(&self) -> &[TensorDesc] {
        &self.io
    }

    /// The tensor of this name, if it has one.
    pub fn tensor(&self, name: &str) -> Option<&TensorDesc> {
        self.io.iter().find(|tensor| tensor.name == name)
    }

    /// Its optimization profiles.
    pub fn profiles(&self) -> &[Profile] {
        &self.profiles
    }

    /// Scratch that an execution with this profile needs, in bytes.
    ///
    /// # Errors
    /// [`Error::Engine`].
    pub fn scratch_bytes(&self, profile: usize) -> Result<u64> {
        let bytes = self.plan.scratch_bytes(profile as i32);
        let bytes = bytes.map_err(|e| from_shim("getDeviceMemorySize", &e))?;
        Ok(u64::try_from(bytes).unwrap_or(0))
    }

    /// A way to run it, with nothing bound.
    ///
    /// # Errors
    /// [`Error::Engine`] if TensorRT refuses the profile.
    pub fn execution(&self, profile: usize) -> Result<Execution> {
        self.device.ready()?;
        let made = self
            .plan
            .new_execution(profile as i32, self.device.stream());
        let shim = made.map_err(|e| from_shim("createExecutionContext", &e))?;
        Ok(Execution {
            inner: Arc::new(Mutex::new(shim)),
            device: self.device.clone(),
            io: self.io.clone(),
            bound: vec![None; self.io.len()],
            scratch: None,
            is_checked: false,
        })
    }
}

/// A plan with a profile, shapes and memory.
pub struct Execution {
    /// Destroyed by the last of those that use it, a graph perhaps.
    inner: Arc<Mutex<UniquePtr<shim::Execution>>>,
    device: Device,
    io: Vec<TensorDesc>,
    /// Memory of each tensor, and where in it.
    bound: Vec<Option<(Memory, usize)>>,
    scratch: Option<Memory>,
    /// Whether everything was found to fit since it was last changed.
    is_checked: bool,
}

impl Execution {
    /// Whether it has a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.io.iter().any(|tensor| tensor.name == name)
    }

    /// Sets the shape of an input.
    ///
    /// # Errors
    /// [`Error::Engine`] if it lies outside the profile.
    pub fn set_shape(&mut self, input: &str, dims: &[usize]) -> Result<()> {
        self.device.ready()?;
        self.is_checked = false;
        let dims: Vec<i64> = dims.iter().map(|&n| n as i64).collect();
        let mut inner = lock(&self.inner);
        let set = inner.pin_mut().set_shape(input, &dims);
        set.map_err(|e| from_shim("setInputShape", &e))
    }

    /// Binds a tensor to memory from a byte on.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is no such tensor; [`Error::Engine`].
    pub fn bind(&mut self, tensor: &str, memory: &Memory, offset: usize) -> Result<()> {
        let Some(index) = self.io.iter().position(|io| io.name == tensor) else {
            return Err(Error::Shape {
                name: tensor.to_owned(),
                expected: "a tensor of the plan".to_owned(),
                actual: "none of this name".to_owned(),
            });
        };
        let address = memory.span(offset, 0)?;
        self.device.ready()?;
        self.is_checked = false;
        let mut inner = lock(&self.inner);
        // SAFETY: the address lies in memory that `bound` keeps; `enqueue` checks that the tensor fits.
        let bound = unsafe { inner.pin_mut().bind(tensor, address) };
        bound.map_err(|e| from_shim("setTensorAddress", &e))?;
        self.bound[index] = Some((memory.clone(), offset));
        Ok(())
    }

    /// Gives it scratch memory, which others may share that never run at the same time.
    ///
    /// # Errors
    /// [`Error::Engine`].
    pub fn set_scratch(&mut self, memory: &Memory) -> Result<()> {
        let address = memory.span(0, 0)?;
        self.device.ready()?;
        let mut inner = lock(&self.inner);
        // SAFETY: as many bytes lie there, which `scratch` keeps.
        let set = unsafe { inner.pin_mut().set_scratch(address, memory.bytes() as i64) };
        set.map_err(|e| from_shim("setDeviceMemory", &e))?;
        self.scratch = Some(memory.clone());
        Ok(())
    }

    /// Checks that every tensor is bound to enough memory for the shapes that are set.
    fn check(&self) -> Result<()> {
        let inner = lock(&self.inner);
        for (tensor, bound) in self.io.iter().zip(&self.bound) {
            let shape = inner.shape(&tensor.name);
            let shape = shape.map_err(|e| from_shim("getTensorShape", &e))?;
            let shape_error = |expected: String, actual: String| Error::Shape {
                name: tensor.name.clone(),
                expected,
                actual,
            };
            let elements = shape.iter().try_fold(1usize, |n, &dim| {
                usize::try_from(dim).ok().and_then(|dim| n.checked_mul(dim))
            });
            let bytes = elements.and_then(|n| n.checked_mul(element_bytes(&tensor.dtype)?));
            let Some(bytes) = bytes else {
                return Err(shape_error(
                    "a known shape and element size".to_owned(),
                    format!("{} {shape:?}", tensor.dtype),
                ));
            };
            let there = bound
                .as_ref()
                .map_or(0, |(memory, offset)| memory.bytes() - offset);
            if bound.is_none() || there < bytes {
                let is = if tensor.mode == IoMode::Input {
                    "input"
                } else {
                    "output"
                };
                return Err(shape_error(
                    format!(
                        "an {is} of {bytes} bytes, as {} {shape:?} has",
                        tensor.dtype
                    ),
                    format!("{there} bytes of memory"),
                ));
            }
        }
        Ok(())
    }

    /// Enqueues a run behind what was enqueued before.
    ///
    /// # Errors
    /// [`Error::Shape`] if a tensor is bound to no memory, or to too little; [`Error::Engine`] if TensorRT enqueues nothing.
    pub fn enqueue(&mut self) -> Result<()> {
        if !self.is_checked {
            self.check()?;
            self.is_checked = true;
        }
        self.device.ready()?;
        let memory = self.bound.iter().flatten().map(|(memory, _)| memory);
        for memory in memory.chain(&self.scratch) {
            self.device.keep(|| Arc::new(memory.clone()));
        }
        self.device.keep(|| self.inner.clone());
        let mut inner = lock(&self.inner);
        // SAFETY: the stream is the device's, and every tensor lies in memory that lives as long as `self`, or
        // as the graph that this is captured into.
        let enqueued = unsafe { inner.pin_mut().enqueue(self.device.stream()) };
        enqueued.map_err(|e| from_shim("enqueueV3", &e))
    }
}

/// Bytes of an element, if it has whole ones that this program knows.
pub fn element_bytes(dtype: &DType) -> Option<usize> {
    Some(match dtype {
        DType::F32 | DType::I32 => 4,
        DType::F16 | DType::Bf16 => 2,
        DType::I8 | DType::U8 | DType::Bool => 1,
        DType::I64 => 8,
        DType::Other(_) => return None,
    })
}
