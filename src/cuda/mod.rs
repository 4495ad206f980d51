//! The CUDA driver and NVRTC: are they there, and what do they say.
//!
//! Both are opened at run time through `cudarc` and `libloading`; nothing here fails to start
//! on a machine without them.

mod ffi;
pub mod kernels;
mod path;
mod probe;

pub use path::LibraryPath;
pub use probe::{DeviceInfo, DriverInfo, NvrtcInfo, nvrtc, probe};
