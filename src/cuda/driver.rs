//! The driver's objects, each freed when its last owner goes (an unsafe fence: see
//! `tests/house.rs`).
//!
//! One stream orders everything. What a captured graph uses lives as long as the graph. After a
//! failure that the device does not survive every call but those that free answers with that failure.
#![allow(unsafe_code)]

use std::any::Any;
use std::ffi::{CString, c_int, c_void};
use std::sync::{Arc, Mutex, OnceLock};

use cudarc::driver::result::{self, ctx, graph, module, primary_ctx, stream};
use cudarc::driver::{DriverError, sys};

use super::ffi;
use super::kernels::Dims;
use crate::error::{Error, Result};
use crate::sync::lock;

/// What a graph keeps alive.
pub(super) type Kept = Arc<dyn Any + Send + Sync>;

/// A GPU, with the one stream on which everything is ordered.
#[derive(Clone)]
pub struct Device(Arc<Context>);

struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    name: String,
    sm: u16,
    driver_version: (u32, u32),
    /// The failure that the device did not survive.
    lost: OnceLock<(&'static str, String)>,
    /// What a graph that is being captured uses.
    capturing: Mutex<Option<Vec<Kept>>>,
}

// SAFETY: the driver takes calls about a context and its stream from any thread that has made the
// context current, which every function below does first.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks what it must.
unsafe impl Sync for Context {}

impl Device {
    /// Opens the GPU `index` of the driver's list.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without a driver or GPU, [`Error::Cuda`] if a call fails.
    pub fn open(index: u32) -> Result<Self> {
        let driver = super::probe()?;
        let Some(info) = driver.devices.get(index as usize) else {
            return Err(Error::Unavailable {
                what: format!("GPU {index}"),
                reason: format!("the CUDA driver reports {} devices", driver.devices.len()),
            });
        };
        ffi::require_calls(&CALLS)?;
        let called = |call| move |e| ffi::driver_error(call, e);
        let device = result::device::get(index as c_int).map_err(called("cuDeviceGet"))?;
        // SAFETY: the driver returned `device`.
        let context = unsafe { primary_ctx::retain(device) };
        let context = context.map_err(called("cuDevicePrimaryCtxRetain"))?;
        // SAFETY: `context` was retained above, and is released by the guard or by `Drop`.
        let stream = unsafe { ctx::set_current(context) }
            .map_err(called("cuCtxSetCurrent"))
            .and_then(|()| {
                let kind = stream::StreamKind::NonBlocking;
                stream::create(kind).map_err(called("cuStreamCreate"))
            });
        let stream = stream.inspect_err(|_| {
            // SAFETY: retained above, and used by nobody.
            let _ = unsafe { primary_ctx::release(device) };
        })?;
        Ok(Self(Arc::new(Context {
            device,
            context,
            stream,
            name: info.name.clone(),
            sm: info.sm as u16,
            driver_version: driver.cuda_version,
            lost: OnceLock::new(),
            capturing: Mutex::new(None),
        })))
    }

    /// Name that the driver gives it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Compute capability, major and minor digit joined: 87 for 8.7.
    pub fn sm(&self) -> u16 {
        self.0.sm
    }

    /// Newest CUDA version that its driver serves.
    pub fn driver_version(&self) -> (u32, u32) {
        self.0.driver_version
    }

    /// Bytes of device memory that are free, and all of them.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn memory_info(&self) -> Result<(u64, u64)> {
        self.ready()?;
        let info = self.0.check("cuMemGetInfo", result::mem_get_info())?;
        Ok((info.0 as u64, info.1 as u64))
    }

    /// Allocates `bytes`, at least one, filled with zeros.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] with both figures; [`Error::Cuda`].
    pub fn alloc(&self, what: &str, bytes: usize) -> Result<Memory> {
        self.ready()?;
        let bytes = bytes.max(1);
        // SAFETY: the memory is filled below, before anybody reads it.
        let address = match unsafe { result::malloc_sync(bytes) } {
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                return Err(Error::OutOfMemory {
                    what: format!("{what} on {}", self.0.name),
                    needed_bytes: bytes as u64,
                    available_bytes: self.memory_info()?.0,
                });
            }
            other => self.0.check("cuMemAlloc", other)?,
        };
        let memory = Memory(Arc::new(Block {
            device: self.clone(),
            address,
            bytes,
        }));
        // SAFETY: the block was allocated above with as many bytes.
        let filled = unsafe { result::memset_d8_async(address, 0, bytes, self.0.stream) };
        self.0.check("cuMemsetD8Async", filled)?;
        Ok(memory)
    }

    /// Copies `bytes` to `memory`, behind what was enqueued; they may be changed at once.
    ///
    /// # Errors
    /// [`Error::Shape`] if they do not fit, [`Error::Cuda`].
    pub fn upload(&self, memory: &Memory, offset: usize, bytes: &[u8]) -> Result<()> {
        self.ready()?;
        let to = memory.span(offset, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: the span lies in living memory of this device. Pageable memory is staged before the call
        // returns.
        let copied = unsafe { result::memcpy_htod_async(to, bytes, self.0.stream) };
        self.0.check("cuMemcpyHtoDAsync", copied)
    }

    /// Waits for what was enqueued, and copies memory to `bytes`.
    ///
    /// # Errors
    /// As [`Device::upload`].
    pub fn download(&self, memory: &Memory, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.ready()?;
        let from = memory.span(offset, bytes.len())?;
        if !bytes.is_empty() {
            // SAFETY: the span lies in living memory of this device, and `bytes` outlives the wait below.
            let copied = unsafe { result::memcpy_dtoh_async(bytes, from, self.0.stream) };
            self.0.check("cuMemcpyDtoHAsync", copied)?;
        }
        self.synchronize()
    }

    /// Waits for everything that was enqueued.
    ///
    /// # Errors
    /// [`Error::Cuda`] with what went wrong since the last wait.
    pub fn synchronize(&self) -> Result<()> {
        self.ready()?;
        // SAFETY: the stream lives as long as `self`.
        let waited = unsafe { stream::synchronize(self.0.stream) };
        self.0.check("cuStreamSynchronize", waited)
    }

    /// Loads a cubin.
    ///
    /// # Errors
    /// [`Error::Cuda`] if the driver refuses it, as it does one for another SM.
    pub fn module(&self, cubin: &[u8]) -> Result<Module> {
        self.ready()?;
        // SAFETY: a cubin says how long it is, and the driver copies it.
        let module = unsafe { module::load_data(cubin.as_ptr().cast()) };
        let module = self.0.check("cuModuleLoadData", module)?;
        Ok(Module(Arc::new(Loaded {
            device: self.clone(),
            module,
        })))
    }

    /// Captures what `enqueue` enqueues, as a graph that can be replayed; nothing of it runs now.
    ///
    /// # Errors
    /// Those of `enqueue`; [`Error::Cuda`] if the driver cannot capture it.
    pub fn capture(&self, enqueue: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.ready()?;
        *lock(&self.0.capturing) = Some(Vec::new());
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as `self`.
        let begun = unsafe { stream::begin_capture(self.0.stream, mode) };
        let begun = begun.map_err(|e| ffi::driver_error("cuStreamBeginCapture", e));
        let enqueued = begun.and_then(|()| {
            let enqueued = enqueue();
            // SAFETY: as above; the capture was begun, and ends whatever came of it.
            let ended = unsafe { stream::end_capture(self.0.stream) };
            // A call that failed has said more than the end of the capture can.
            enqueued.and(ended.map_err(|e| ffi::driver_error("cuStreamEndCapture", e)))
        });
        let kept = lock(&self.0.capturing).take().unwrap_or_default();
        let captured = enqueued?;
        if captured.is_null() {
            return Err(Error::Cuda {
                call: "cuStreamEndCapture",
                message: "nothing was captured".to_owned(),
            });
        }
        // SAFETY: the driver returned the graph above; it is not used behind its destruction.
        let exec = unsafe {
            let flags = sys::CUgraphInstantiate_flags(0);
            let exec = graph::instantiate(captured, flags);
            let _ = graph::destroy(captured);
            exec
        };
        Ok(Graph {
            exec: exec.map_err(|e| ffi::driver_error("cuGraphInstantiate", e))?,
            device: self.clone(),
            _kept: kept,
        })
    }

    /// Makes the device ready for a call: its context current, no failure before.
    pub(crate) fn ready(&self) -> Result<()> {
        if let Some((call, message)) = self.0.lost.get() {
            return Err(Error::Cuda {
                call,
                message: message.clone(),
            });
        }
        self.0.make_current()
    }

    /// The stream, for a library that enqueues by itself.
    pub(crate) fn stream(&self) -> u64 {
        self.0.stream as u64
    }

    /// Notes what a graph that is being captured uses.
    pub(crate) fn keep(&self, kept: impl FnOnce() -> Kept) {
        if let Some(list) = lock(&self.0.capturing).as_mut() {
            list.push(kept());
        }
    }
}

impl Context {
    fn make_current(&self) -> Result<()> {
        // SAFETY: the context is retained as long as `self` lives.
        let current = unsafe { ctx::set_current(self.context) };
        self.check("cuCtxSetCurrent", current)
    }

    /// Remembers a failure, since the driver answers nothing else afterwards; but for those of a capture,
    /// which end with it.
    fn check<T>(&self, call: &'static str, done: Result<T, DriverError>) -> Result<T> {
        done.map_err(|e| {
            let error = ffi::driver_error(call, e);
            let is_capturing = lock(&self.capturing).is_some();
            if let (Error::Cuda { call, message }, false) = (&error, is_capturing) {
                let _ = self.lost.set((call, message.clone()));
            }
            error
        })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        let _ = self.make_current();
        // SAFETY: whatever uses the stream holds the context, so nothing does any more.
        unsafe {
            let _ = stream::destroy(self.stream);
            let _ = primary_ctx::release(self.device);
        }
    }
}

/// Memory of a device; clones are the same memory.
#[derive(Clone)]
pub struct Memory(Arc<Block>);

struct Block {
    device: Device,
    address: sys::CUdeviceptr,
    bytes: usize,
}

impl Memory {
    /// Its size.
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// Address of `bytes` from `offset` on, if all of them are there.
    pub(crate) fn span(&self, offset: usize, bytes: usize) -> Result<u64> {
        let end = offset.checked_add(bytes);
        if end.is_none_or(|end| end > self.0.bytes) {
            return Err(Error::Shape {
                name: "device memory".to_owned(),
                expected: format!("at most {} bytes", self.0.bytes),
                actual: format!("{bytes} from {offset} on"),
            });
        }
        Ok(self.0.address + offset as u64)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let _ = self.device.0.make_current();
        // SAFETY: allocated by `alloc`, and this is its only owner. The driver waits for what still uses it.
        let _ = unsafe { result::free_sync(self.address) };
    }
}

/// Kernels on a device.
#[derive(Clone)]
pub struct Module(Arc<Loaded>);

struct Loaded {
    device: Device,
    module: sys::CUmodule,
}

// SAFETY: as for `Context`, whose calls these are.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

impl Module {
    /// The kernel of this name.
    ///
    /// # Errors
    /// [`Error::Cuda`] if the module has none.
    pub(super) fn kernel(&self, entry: &str) -> Result<Kernel> {
        self.0.device.ready()?;
        let name = CString::new(entry).unwrap_or_default();
        // SAFETY: the module lives as long as `self`.
        let function = unsafe { module::get_function(self.0.module, name) };
        let function = function.map_err(|e| ffi::driver_error("cuModuleGetFunction", e))?;
        Ok(Kernel {
            module: self.clone(),
            function,
        })
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        let _ = self.device.0.make_current();
        // SAFETY: loaded by `module`; kernels and graphs hold it.
        let _ = unsafe { module::unload(self.module) };
    }
}

/// One kernel.
#[derive(Clone)]
pub(super) struct Kernel {
    module: Module,
    function: sys::CUfunction,
}

// SAFETY: as for `Loaded`, of which it is a part.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// An argument of a kernel.
pub(super) enum Arg<'a> {
    /// Memory from this byte on.
    Memory(&'a Memory, usize),
    /// A pointer to nothing.
    Null,
    /// `int`.
    Int(i32),
}

impl Kernel {
    /// Enqueues a launch.
    ///
    /// # Safety
    /// The arguments are those of the kernel, in its order, and it stays within their memory.
    pub(super) unsafe fn launch(&self, dims: Dims, args: &[Arg<'_>]) -> Result<()> {
        let device = &self.module.0.device;
        device.ready()?;
        let mut cells = [0u64; MAX_ARGS];
        let mut pointers = [std::ptr::null_mut::<c_void>(); MAX_ARGS];
        for ((arg, cell), pointer) in args.iter().zip(&mut cells).zip(&mut pointers) {
            *cell = match arg {
                Arg::Memory(memory, offset) => {
                    device.keep(|| memory.0.clone());
                    memory.span(*offset, 0)?
                }
                Arg::Null => 0,
                // Little-endian: the low half is the `int`.
                Arg::Int(value) => u64::from(value.cast_unsigned()),
            };
            *pointer = std::ptr::from_mut(cell).cast();
        }
        device.keep(|| self.module.0.clone());
        let [x, y, z] = dims.grid;
        // SAFETY: each pointer leads to a cell of 8 bytes, which no argument exceeds; the caller answers for
        // the rest.
        let launched = unsafe {
            let (block, shared, stream) = ((dims.threads, 1, 1), 0, device.0.stream);
            let n = args.len().min(MAX_ARGS);
            result::launch_kernel(
                self.function,
                (x, y, z),
                block,
                shared,
                stream,
                &mut pointers[..n],
            )
        };
        device.0.check("cuLaunchKernel", launched)
    }
}

/// Most arguments of a kernel.
const MAX_ARGS: usize = 16;

/// Work that was captured, to be run again and again.
pub struct Graph {
    exec: sys::CUgraphExec,
    device: Device,
    _kept: Vec<Kept>,
}

// SAFETY: as for `Context`, whose call this is.
unsafe impl Send for Graph {}

impl Graph {
    /// Enqueues one replay.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn launch(&self) -> Result<()> {
        self.device.ready()?;
        // SAFETY: graph and stream live as long as `self`, and so does what the graph uses.
        let launched = unsafe { graph::launch(self.exec, self.device.0.stream) };
        self.device.0.check("cuGraphLaunch", launched)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.device.0.make_current();
        // SAFETY: instantiated by `capture`, and this is its only owner.
        let _ = unsafe { graph::exec_destroy(self.exec) };
    }
}

/// Every function of the driver that this file calls, beside those that the probe does.
const CALLS: [&std::ffi::CStr; 22] = [
    c"cuDevicePrimaryCtxRetain",
    c"cuDevicePrimaryCtxRelease_v2",
    c"cuCtxSetCurrent",
    c"cuStreamCreate",
    c"cuStreamDestroy_v2",
    c"cuStreamSynchronize",
    c"cuStreamBeginCapture_v2",
    c"cuStreamEndCapture",
    c"cuMemGetInfo_v2",
    c"cuMemAlloc_v2",
    c"cuMemFree_v2",
    c"cuMemsetD8Async",
    c"cuMemcpyHtoDAsync_v2",
    c"cuMemcpyDtoHAsync_v2",
    c"cuModuleLoadData",
    c"cuModuleGetFunction",
    c"cuModuleUnload",
    c"cuLaunchKernel",
    c"cuGraphInstantiateWithFlags",
    c"cuGraphDestroy",
    c"cuGraphLaunch",
    c"cuGraphExecDestroy",
];
