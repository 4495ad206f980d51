//! Calls into the CUDA driver and NVRTC (an unsafe fence: see `tests/house.rs`).
//!
//! cudarc panics when it calls into a library that is not there or lacks a function, so every
//! function below [`driver_is_present`] asks that first.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;

use cudarc::driver::{DriverError, result, sys};

use crate::error::{Error, Result};

/// What one device says of itself.
pub(super) struct Device {
    pub name: String,
    pub capability: (u32, u32),
    pub memory_bytes: u64,
}

/// Every function of the driver that this file calls, errors' texts included.
const CALLS: [&CStr; 9] = [
    c"cuInit",
    c"cuDriverGetVersion",
    c"cuGetErrorName",
    c"cuGetErrorString",
    c"cuDeviceGetCount",
    c"cuDeviceGet",
    c"cuDeviceGetName",
    c"cuDeviceGetAttribute",
    c"cuDeviceTotalMem_v2",
];

/// Whether the driver library can be opened, and is one.
pub(super) fn driver_is_present() -> bool {
    missing(&CALLS).is_none()
}

/// The first of these functions that the driver library lacks, whether it is there or not.
fn missing<'a>(calls: &[&'a CStr]) -> Option<&'a CStr> {
    // SAFETY: opens libcuda by its own names, whose initialisers are NVIDIA's, as any program
    // that is linked with it does.
    let opened = unsafe { sys::is_culib_present() };
    calls.iter().copied().find(|call| {
        // SAFETY: the library was opened. The address is looked up, not called.
        !opened || unsafe { sys::culib().get::<unsafe extern "C" fn()>(*call) }.is_err()
    })
}

/// Refuses a driver that lacks one of these functions.
pub(super) fn require_calls(calls: &[&CStr]) -> Result<()> {
    match missing(calls) {
        None => Ok(()),
        Some(call) => Err(Error::Unavailable {
            what: "the CUDA driver".to_owned(),
            reason: format!("it is too old: it has no {}", call.to_string_lossy()),
        }),
    }
}

fn require_driver(call: &'static str) -> Result<()> {
    if driver_is_present() {
        return Ok(());
    }
    Err(Error::Cuda {
        call,
        message: "the driver library is not there, or is none".to_owned(),
    })
}

/// Initialises the driver.
pub(super) fn init() -> Result<()> {
    require_driver("cuInit")?;
    result::init().map_err(|e| driver_error("cuInit", e))
}

/// Newest CUDA version that the driver serves, as `major * 1000 + minor * 10`.
pub(super) fn driver_version() -> Result<u32> {
    require_driver("cuDriverGetVersion")?;
    let mut version: c_int = 0;
    // SAFETY: the library is there, and the call writes one int through a live reference.
    unsafe { sys::cuDriverGetVersion(&mut version) }
        .result()
        .map_err(|e| driver_error("cuDriverGetVersion", e))?;
    Ok(version.unsigned_abs())
}

/// Number of devices; [`init`] comes first.
pub(super) fn n_devices() -> Result<i32> {
    require_driver("cuDeviceGetCount")?;
    result::device::get_count().map_err(|e| driver_error("cuDeviceGetCount", e))
}

/// What device `index` says of itself; [`init`] comes first.
pub(super) fn device(index: i32) -> Result<Device> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    require_driver("cuDeviceGet")?;
    let device = result::device::get(index).map_err(|e| driver_error("cuDeviceGet", e))?;
    let attribute = |which| {
        // SAFETY: `device` was returned by cuDeviceGet above.
        unsafe { result::device::get_attribute(device, which) }
            .map(i32::unsigned_abs)
            .map_err(|e| driver_error("cuDeviceGetAttribute", e))
    };
    // SAFETY: `device` was returned by cuDeviceGet above.
    let memory = unsafe { result::device::total_mem(device) };
    let memory = memory.map_err(|e| driver_error("cuDeviceTotalMem", e))?;
    Ok(Device {
        name: result::device::get_name(device).map_err(|e| driver_error("cuDeviceGetName", e))?,
        capability: (attribute(MAJOR)?, attribute(MINOR)?),
        memory_bytes: memory as u64,
    })
}

pub(super) fn driver_error(call: &'static str, error: DriverError) -> Error {
    // The text of a code comes from the library too, which is there when a code is.
    let name = error
        .error_name()
        .map(|name| name.to_string_lossy().into_owned());
    Error::Cuda {
        call,
        message: name.unwrap_or_else(|_| format!("{:?}", error.0)),
    }
}

/// Version of the NVRTC library `path`; the error is the loader's text. The library stays open
/// only for the call.
pub(super) fn nvrtc_version(path: &Path) -> std::result::Result<(u32, u32), String> {
    type NvrtcVersion = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
    // SAFETY: a library of this name is NVRTC, whose initialisers any program linked with it runs.
    let library = unsafe { libloading::Library::new(path) }.map_err(|e| e.to_string())?;
    // SAFETY: `nvrtcVersion(int*, int*)` has had this signature since CUDA 7.
    let call = unsafe { library.get::<NvrtcVersion>(c"nvrtcVersion") };
    let call = call.map_err(|e| e.to_string())?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the call writes two ints through live references, and the library is still open.
    let status = unsafe { call(&mut major, &mut minor) };
    match status {
        0 => Ok((major.unsigned_abs(), minor.unsigned_abs())),
        status => Err(format!("nvrtcVersion returned {status}")),
    }
}

/// Compiles a program with the NVRTC library `path`: the cubin, and the log.
pub(super) fn nvrtc_compile(
    path: &Path,
    source: &str,
    options: &[String],
) -> Result<(Vec<u8>, String)> {
    type Program = *mut c_void;
    type Strings = *const *const c_char;
    type Create = unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        Strings,
        Strings,
    ) -> c_int;
    type Compile = unsafe extern "C" fn(Program, c_int, Strings) -> c_int;
    type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
    type Read = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
    type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;

    let failed = |call, message: String| Error::Cuda { call, message };
    let text = |text: &str| {
        CString::new(text).map_err(|_| failed("nvrtcCreateProgram", "a zero in a text".to_owned()))
    };
    let (source, name) = (text(source)?, text("trtvlm.cu")?);
    let options = options.iter().map(|option| text(option));
    let options: Vec<CString> = options.collect::<Result<_>>()?;
    let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();

    // SAFETY: a library of this name is NVRTC, whose initialisers any program linked with it runs.
    let library = unsafe { libloading::Library::new(path) }
        .map_err(|e| failed("nvrtcCreateProgram", e.to_string()))?;
    // SAFETY: these functions have had these signatures since CUDA 11.1.
    let calls = unsafe {
        let find = || {
            Ok((
                library.get::<Create>(c"nvrtcCreateProgram")?,
                library.get::<Compile>(c"nvrtcCompileProgram")?,
                library.get::<Size>(c"nvrtcGetProgramLogSize")?,
                library.get::<Read>(c"nvrtcGetProgramLog")?,
                library.get::<Size>(c"nvrtcGetCUBINSize")?,
                library.get::<Read>(c"nvrtcGetCUBIN")?,
                library.get::<Destroy>(c"nvrtcDestroyProgram")?,
            ))
        };
        find()
    };
    let (create, compile, log_size, log, cubin_size, cubin, destroy) =
        calls.map_err(|e: libloading::Error| failed("nvrtcCreateProgram", e.to_string()))?;

    let mut program: Program = std::ptr::null_mut();
    // SAFETY: both texts end with a zero and outlive the call; there are no headers.
    let status = unsafe {
        let none = std::ptr::null();
        create(&mut program, source.as_ptr(), name.as_ptr(), 0, none, none)
    };
    if status != 0 {
        return Err(failed("nvrtcCreateProgram", format!("returned {status}")));
    }
    let read = |size: &Size, read: &Read| {
        let mut len = 0;
        // SAFETY: `program` was made above and is destroyed below; the buffer has the bytes that the
        // library says it writes.
        unsafe {
            if size(program, &mut len) != 0 {
                return Vec::new();
            }
            let mut bytes = vec![0u8; len];
            match read(program, bytes.as_mut_ptr().cast()) {
                0 => bytes,
                _ => Vec::new(),
            }
        }
    };
    // SAFETY: as many pointers as are said, to texts that outlive the call.
    let status = unsafe { compile(program, pointers.len() as c_int, pointers.as_ptr()) };
    let log = read(&log_size, &log);
    let bytes = match status {
        0 => read(&cubin_size, &cubin),
        _ => Vec::new(),
    };
    // SAFETY: `program` was made above and is not used any more.
    unsafe { destroy(&mut program) };
    let log = String::from_utf8_lossy(log.strip_suffix(b"\0").unwrap_or(&log)).into_owned();
    if status != 0 || bytes.is_empty() {
        return Err(failed(
            "nvrtcCompileProgram",
            format!("returned {status}: {}", log.trim()),
        ));
    }
    Ok((bytes, log))
}
