//! CUDA kernels of a bundle, compiled for its SM: no compiler is needed where it runs.

use crate::bundle::{BundleWriter, KernelInfo};
use crate::error::Result;

/// Compiles the kernels for an SM into the bundle; `None`, with a warning, where there is no NVRTC or it does
/// not know the SM.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) if the file cannot be written.
#[cfg(feature = "cuda")]
pub(super) fn compile(sm: u16, writer: &BundleWriter) -> Result<Option<KernelInfo>> {
    use crate::cuda::{self, LibraryPath, kernels};
    use crate::error::Error;

    let compiled = cuda::nvrtc(&LibraryPath::from_env()).and_then(|nvrtc| {
        let cubin = kernels::compile(&nvrtc, sm)?;
        Ok((nvrtc.version, cubin))
    });
    let ((major, minor), cubin) = match compiled {
        Ok(compiled) => compiled,
        Err(error) => {
            tracing::warn!(
                "the bundle has no kernels for sm{sm}, which a GPU needs to run it: {error}"
            );
            return Ok(None);
        }
    };
    let file = format!("kernels/sm{sm}.cubin");
    let path = writer.file(&file)?;
    std::fs::write(&path, &cubin.bytes).map_err(Error::io(&path))?;
    Ok(Some(KernelInfo {
        file,
        nvrtc: format!("{major}.{minor}"),
    }))
}

#[cfg(not(feature = "cuda"))]
pub(super) fn compile(_: u16, _: &BundleWriter) -> Result<Option<KernelInfo>> {
    Ok(None)
}
