//! Where tests run kernels: on the host, thread by thread, or on a GPU (an unsafe fence: see
//! `tests/house.rs`).
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use cudarc::driver::{CudaContext, CudaSlice, DevicePtrMut, result};
use cudarc::nvrtc::Ptx;

use super::super::{LibraryPath, nvrtc};
use super::{Dims, ENTRIES, SOURCE, compile};
use crate::sync::lock;

/// An argument of a kernel.
pub(super) enum Arg<'a> {
    /// Memory of the device that holds this before and after.
    Memory(&'a mut [u8]),
    /// A pointer to nothing.
    Null,
    /// `int`.
    Int(i32),
}

/// Runs a kernel once.
pub(super) type Machine<'a> = dyn Fn(&str, Dims, &mut [Arg<'_>]) + 'a;

/// Numbers that are the same in every run.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    /// One of `0..n`.
    pub(super) fn below(&mut self, n: usize) -> usize {
        // Constants of Knuth's MMIX.
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
}

type Launch = unsafe extern "C" fn(
    *const c_char,
    *const c_uint,
    *const c_uint,
    *mut *mut c_void,
    c_uint,
) -> c_int;

/// The kernels, compiled for the host.
fn host() -> &'static libloading::Library {
    static LIBRARY: OnceLock<libloading::Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let dir = tempfile::tempdir().expect("dir");
        let at = |name: &str| dir.path().join(name);
        let simt = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/simt");
        std::fs::write(at("kernels.cuh"), SOURCE).expect("write");
        let entries = ENTRIES.map(|entry| format!("KERNEL({entry})"));
        let compiled = Command::new(std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned()))
            .args("-std=c++17 -O1 -Wall -Werror -Wno-unknown-pragmas -fPIC -shared".split(' '))
            .arg("-DTRTVLM_SIMT")
            .arg(format!("-DKERNELS=\"{}\"", at("kernels.cuh").display()))
            .arg(format!("-DENTRIES={}", entries.join(",")))
            .arg("-I")
            .arg(&simt)
            .arg(simt.join("simt.cpp"))
            .arg("-o")
            .arg(at("kernels.so"))
            .output()
            .expect("a C++ compiler");
        assert!(
            compiled.status.success(),
            "{}",
            String::from_utf8_lossy(&compiled.stderr)
        );
        // SAFETY: it was made from our own sources just now, and has no initialisers of note.
        unsafe { libloading::Library::new(at("kernels.so")) }.expect("library")
    })
}

/// Runs on the host; `seed` chooses in which order threads run.
pub(super) fn host_machine(seed: u32) -> impl Fn(&str, Dims, &mut [Arg<'_>]) {
    move |entry: &str, dims: Dims, args: &mut [Arg<'_>]| {
        // The emulation has one state, as a device has.
        static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let _one = lock(&ONE);
        let mut cells: Vec<u64> = args
            .iter_mut()
            .map(|arg| match arg {
                Arg::Memory(bytes) => bytes.as_mut_ptr() as u64,
                Arg::Null => 0,
                Arg::Int(value) => u64::from(*value as u32),
            })
            .collect();
        let mut pointers: Vec<*mut c_void> = cells
            .iter_mut()
            .map(|cell| std::ptr::from_mut(cell).cast())
            .collect();
        let name = CString::new(entry).expect("name");
        // SAFETY: simt.cpp defines it so.
        let launch = unsafe { host().get::<Launch>(c"simt_launch") }.expect("simt_launch");
        // SAFETY: each pointer leads to a cell as wide as the kernel's argument of that place, and those
        // to memory that lives and that nobody else has.
        let status = unsafe {
            launch(
                name.as_ptr(),
                dims.grid.as_ptr(),
                [dims.threads, 1, 1].as_ptr(),
                pointers.as_mut_ptr(),
                seed,
            )
        };
        assert_eq!(
            status, 0,
            "{entry}: 1 = unknown, 2 = threads wait for each other"
        );
    }
}

/// Runs on the first GPU.
pub(super) fn gpu_machine() -> impl Fn(&str, Dims, &mut [Arg<'_>]) {
    let context = CudaContext::new(0).expect("a GPU");
    let (major, minor) = context.compute_capability().expect("capability");
    let compiler = nvrtc(&LibraryPath::from_env()).expect("NVRTC: run `make sdk`");
    let cubin = compile(&compiler, (major * 10 + minor) as u16).expect("kernels");
    let module = context
        .load_module(Ptx::from_binary(cubin.bytes))
        .expect("module");
    move |entry: &str, dims: Dims, args: &mut [Arg<'_>]| {
        let stream = context.default_stream();
        let function = module.load_function(entry).expect(entry);
        let mut memory: Vec<Option<CudaSlice<u8>>> = args
            .iter()
            .map(|arg| match arg {
                Arg::Memory(bytes) => Some(stream.clone_htod(&**bytes).expect("copy")),
                _ => None,
            })
            .collect();
        let mut cells: Vec<u64> = args
            .iter()
            .zip(&mut memory)
            .map(|(arg, memory)| match (arg, memory) {
                (Arg::Int(value), _) => u64::from(*value as u32),
                (_, Some(memory)) => memory.device_ptr_mut(&stream).0,
                _ => 0,
            })
            .collect();
        let mut pointers: Vec<*mut c_void> = cells
            .iter_mut()
            .map(|cell| std::ptr::from_mut(cell).cast())
            .collect();
        let [x, y, z] = dims.grid;
        // SAFETY: each pointer leads to a cell as wide as the kernel's argument of that place, and those
        // to memory of the device that lives until the stream is done.
        let launched = unsafe {
            let (block, shared) = ((dims.threads, 1, 1), 0);
            let (function, stream) = (function.cu_function(), stream.cu_stream());
            result::launch_kernel(function, (x, y, z), block, shared, stream, &mut pointers)
        };
        launched.expect(entry);
        stream.synchronize().expect(entry);
        for (arg, memory) in args.iter_mut().zip(&memory) {
            if let (Arg::Memory(bytes), Some(memory)) = (arg, memory) {
                stream.memcpy_dtoh(memory, &mut **bytes).expect("copy");
            }
        }
    }
}

/// Bytes of numbers.
pub(super) fn bytes<T: bytemuck::NoUninit + bytemuck::AnyBitPattern>(
    values: &mut [T],
) -> &mut [u8] {
    bytemuck::cast_slice_mut(values)
}
