//! Our kernels: one `.cu` and one `.rs` each, the latter with what the kernel computes, in Rust.
//!
//! | kernel | does | launch |
//! |--------|------|--------|
//! | `prune_*` | scores of visual rows, the best of them, moved together | a warp a row |
//! | `prompt_rows_*` | embeddings and visual rows of a prompt | a block a row |
//! | `step_inputs_*` | embeddings, positions and mask of a step | blocks for rows |
//! | `kv_append` | new rows of the KV cache to their slots | a thread for 16 bytes |
//! | `verify_*` | argmax of the rows, accepted prefix, next token, end of the answer | blocks for parts of rows |
//!
//! All of them are one source without an `#include`, compiled by NVRTC for the SM of a bundle. The
//! state of an answer, a [`Step`], stays on the device: between two steps the host sets nothing.
//!
//! Without a GPU the same source is compiled for the host and run thread by thread (`tests/simt`).

pub mod kv_append;
mod launch;
#[cfg(test)]
mod machines;
pub mod prompt_rows;
pub mod prune;
mod step;
pub mod step_inputs;
pub mod verify;

pub use launch::{Float, Kernels, Pruned, StepInputs, Table};
pub use prompt_rows::THERE;
pub use step::{MAX_DRAFT, MAX_EOS, Step, Stop};

use super::ffi;
use super::probe::NvrtcInfo;
use crate::error::{Error, Result};

/// Blocks and threads of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Blocks: x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block, along x.
    pub threads: u32,
}

/// The source of all kernels.
pub const SOURCE: &str = concat!(
    include_str!("device.cuh"),
    include_str!("step_inputs.cu"),
    include_str!("prompt_rows.cu"),
    include_str!("kv_append.cu"),
    include_str!("verify.cu"),
    // Behind what orders floats.
    include_str!("prune.cu"),
);

/// Names of all kernels.
pub const ENTRIES: [&str; 15] = [
    "step_inputs_f32_f32",
    "step_inputs_f16_f32",
    "step_inputs_i8_f32",
    "step_inputs_f16_f16",
    "step_inputs_i8_f16",
    "prompt_rows_f32_f32",
    "prompt_rows_f16_f32",
    "prompt_rows_i8_f32",
    "prompt_rows_f16_f16",
    "prompt_rows_i8_f16",
    "kv_append",
    "verify_f16",
    "verify_f32",
    "prune_f16",
    "prune_f32",
];

/// Kernels for one SM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cubin {
    /// What the driver loads.
    pub bytes: Vec<u8>,
    /// What each kernel takes, in the order of the compiler.
    pub usage: Vec<Usage>,
}

/// What a kernel takes of a multiprocessor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Its name.
    pub entry: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// What a thread writes to memory for want of registers, in bytes.
    pub spilled_bytes: u32,
}

/// Compiles the kernels for one SM, for example 87.
///
/// # Errors
/// [`Error::Cuda`] with the compiler's log if it refuses the source, as one does that does not
/// know the SM.
pub fn compile(nvrtc: &NvrtcInfo, sm: u16) -> Result<Cubin> {
    let options = [
        format!("--gpu-architecture=sm_{sm}"),
        "--std=c++17".to_owned(),
        "--ptxas-options=-v".to_owned(),
    ];
    let (bytes, log) = ffi::nvrtc_compile(&nvrtc.path, SOURCE, &options)?;
    let usage = usage(&log);
    if usage.len() != ENTRIES.len() {
        return Err(Error::Cuda {
            call: "nvrtcCompileProgram",
            message: format!(
                "{} of {} kernels are in its log",
                usage.len(),
                ENTRIES.len()
            ),
        });
    }
    Ok(Cubin { bytes, usage })
}

/// Reads the assembler's report.
fn usage(log: &str) -> Vec<Usage> {
    /// The number before `unit`.
    fn number(line: &str, unit: &str) -> Option<u32> {
        let before = line.split_once(unit)?.0.trim_end();
        before.rsplit([' ', ',']).next()?.parse().ok()
    }
    let mut found: Vec<Usage> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            found.push(Usage {
                entry: rest.split('\'').next().unwrap_or(rest).to_owned(),
                registers: 0,
                shared_bytes: 0,
                spilled_bytes: 0,
            });
        }
        let Some(last) = found.last_mut() else {
            continue;
        };
        last.registers = number(line, " registers").unwrap_or(last.registers);
        last.shared_bytes = number(line, " bytes smem").unwrap_or(last.shared_bytes);
        last.spilled_bytes = number(line, " bytes spill stores").unwrap_or(last.spilled_bytes);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::{LibraryPath, nvrtc};
    use super::*;

    #[test]
    fn every_kernel_compiles_for_every_sm_without_spilling() {
        let compiler = nvrtc(&LibraryPath::from_env()).expect("NVRTC: run `make sdk`");
        for sm in [75, 80, 86, 87, 89, 90, 100, 120] {
            let cubin = compile(&compiler, sm).expect("kernels");
            assert!(cubin.bytes.starts_with(b"\x7fELF"), "sm{sm}");
            let mut names: Vec<&str> = cubin.usage.iter().map(|u| u.entry.as_str()).collect();
            let mut expected = ENTRIES;
            names.sort_unstable();
            expected.sort_unstable();
            assert_eq!(names, expected, "sm{sm}");
            for usage in &cubin.usage {
                // 64 registers leave room for as many threads as a multiprocessor of SM 8.7 holds.
                let is_small = (1..=64).contains(&usage.registers);
                assert!(is_small && usage.spilled_bytes == 0, "sm{sm}: {usage:?}");
            }
        }
    }

    #[test]
    fn sm_that_the_compiler_does_not_know_is_an_error_with_its_words() {
        let compiler = nvrtc(&LibraryPath::from_env()).expect("NVRTC: run `make sdk`");
        let Err(Error::Cuda { call, message }) = compile(&compiler, 1) else {
            panic!("there is no SM 0.1");
        };
        assert_eq!(call, "nvrtcCompileProgram");
        assert!(message.contains("gpu-architecture"), "{message}");
    }

    #[test]
    fn report_of_the_assembler_is_read() {
        let log = "ptxas info    : Compiling entry function 'f' for 'sm_75'\n\
            ptxas         .     0 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n\
            ptxas info    : Used 26 registers, used 1 barriers, 1024 bytes smem, 372 bytes cmem[0]\n\
            ptxas info    : Compiling entry function 'g' for 'sm_75'\n\
            ptxas info    : Used 32 registers, used 0 barriers\n";
        let usage = usage(log);
        let numbers: Vec<_> = usage
            .iter()
            .map(|u| {
                (
                    u.entry.as_str(),
                    u.registers,
                    u.shared_bytes,
                    u.spilled_bytes,
                )
            })
            .collect();
        assert_eq!(numbers, [("f", 26, 1024, 8), ("g", 32, 0, 0)]);
    }
}
