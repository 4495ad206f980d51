//! Asks the driver what is there.

use std::path::PathBuf;

use serde::Serialize;

use super::ffi;
use super::path::LibraryPath;
use crate::error::{Error, Result};

/// The CUDA driver and its devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DriverInfo {
    /// Newest CUDA version that the driver serves, for example `(13, 0)`.
    pub cuda_version: (u32, u32),
    /// Its GPUs, never none.
    pub devices: Vec<DeviceInfo>,
}

/// One GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceInfo {
    /// Name that the driver gives it.
    pub name: String,
    /// Compute capability times ten, for example 87.
    pub sm: u32,
    /// All its memory; on a Jetson that of the whole machine.
    pub memory_bytes: u64,
}

/// NVRTC, the compiler of CUDA kernels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NvrtcInfo {
    /// The file, or the bare name by which the loader found it.
    pub path: PathBuf,
    /// Its version, for example `(12, 6)`.
    pub version: (u32, u32),
}

/// Asks the CUDA driver, without making a context.
///
/// # Errors
/// [`Error::Unavailable`] if there is no driver library or no GPU, [`Error::Cuda`] if a call of
/// the driver fails.
pub fn probe() -> Result<DriverInfo> {
    if !ffi::driver_is_present() {
        return Err(unavailable(
            "the CUDA driver",
            "no usable libcuda.so is in the loader's path: install NVIDIA's driver",
        ));
    }
    ffi::init()?;
    let cuda_version = split_version(ffi::driver_version()?);
    let devices: Result<Vec<_>> = (0..ffi::n_devices()?)
        .map(|index| {
            let device = ffi::device(index)?;
            Ok(DeviceInfo {
                name: device.name,
                sm: device.capability.0 * 10 + device.capability.1,
                memory_bytes: device.memory_bytes,
            })
        })
        .collect();
    let devices = devices?;
    if devices.is_empty() {
        return Err(unavailable("a GPU", "the CUDA driver reports no device"));
    }
    Ok(DriverInfo {
        cuda_version,
        devices,
    })
}

/// Looks for NVRTC and asks its version.
///
/// # Errors
/// [`Error::Unavailable`] if no library is found or the one that is found cannot be used.
pub fn nvrtc(path: &LibraryPath) -> Result<NvrtcInfo> {
    let in_folder = |folder: &PathBuf| LibraryPath::files(folder, "libnvrtc.so");
    let mut candidates: Vec<PathBuf> = path.named.iter().flat_map(in_folder).collect();
    candidates.extend(path.loader.iter().flat_map(in_folder));
    if path.bare {
        candidates.extend(["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"].map(PathBuf::from));
    }
    candidates.extend(path.sdk.iter().flat_map(in_folder));
    let mut reasons = Vec::new();
    for path in candidates {
        match ffi::nvrtc_version(&path) {
            Ok(version) => return Ok(NvrtcInfo { path, version }),
            Err(reason) if path.is_absolute() => {
                reasons.push(format!("{}: {reason}", path.display()));
            }
            Err(_) => {} // a bare name that the loader does not know
        }
    }
    if reasons.is_empty() {
        reasons.push("libnvrtc.so was not found: run `make sdk`, or install CUDA".to_owned());
    }
    Err(unavailable("NVRTC", &reasons.join("; ")))
}

fn split_version(number: u32) -> (u32, u32) {
    (number / 1000, number % 1000 / 10)
}

fn unavailable(what: &str, reason: &str) -> Error {
    Error::Unavailable {
        what: what.to_owned(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probe_answers_or_names_what_is_missing_and_never_panics() {
        match probe() {
            Ok(info) => {
                assert!(info.cuda_version.0 >= 11);
                assert!(
                    info.devices
                        .iter()
                        .all(|d| d.sm >= 50 && d.memory_bytes > 0)
                );
            }
            Err(e) => assert!(
                matches!(e, Error::Unavailable { .. } | Error::Cuda { .. }),
                "{e}"
            ),
        }
    }

    #[test]
    fn split_version_reads_cudas_numbers() {
        assert_eq!(split_version(12060), (12, 6));
        assert_eq!(split_version(13000), (13, 0));
    }

    #[test]
    fn nvrtc_in_an_empty_or_broken_folder_is_unavailable() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = LibraryPath::only(dir.path());
        assert!(matches!(nvrtc(&path), Err(Error::Unavailable { .. })));
        std::fs::write(dir.path().join("libnvrtc.so.13"), b"not a library").expect("write");
        let Err(Error::Unavailable { reason, .. }) = nvrtc(&path) else {
            panic!("must be refused");
        };
        assert!(reason.contains("libnvrtc.so.13"), "{reason}");
    }
}
