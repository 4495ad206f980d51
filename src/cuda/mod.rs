//! The CUDA driver and NVRTC: are they there, and what do they say.
//!
//! Both are opened at run time through `cudarc` and `libloading`; nothing here fails to start
//! on a machine without them.

mod driver;
mod ffi;
pub mod kernels;
mod path;
mod probe;

pub use driver::{Device, Graph, Memory, Module};
pub use path::LibraryPath;
pub use probe::{DeviceInfo, DriverInfo, NvrtcInfo, nvrtc, probe};
