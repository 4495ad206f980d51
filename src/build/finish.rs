//! Finishing a portable bundle: plans from its graphs, on the machine that they are for, and kernels where that
//! has a compiler.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::engines::check_cancel;
use super::order::{BuildOutcome, Builder, Event, created_by};
use super::plans;
use crate::bundle::{Bundle, BundleWriter, EngineSet, MANIFEST, Origin, Target, sha256_file};
use crate::error::{Error, Result};

/// What to finish, and where.
pub struct FinishOptions<'a> {
    /// Where the finished bundle goes.
    pub out: &'a Path,
    /// Replace a bundle that is there.
    pub force: bool,
    /// What it is finished for: this machine.
    pub target: Target,
    /// The command line, for the manifest.
    pub command_line: Vec<String>,
    /// Settings of TensorRT's builder.
    pub builder: Builder<'a>,
}

/// Builds the plans of a verified portable bundle for one target into a bundle of their own.
///
/// The graphs become plans; every other file is copied and its digest compared with the
/// manifest. Sets of other targets stay as they are.
///
/// # Errors
/// [`Error::Mismatch`] naming both sides if the bundle is for other targets or a file changed
/// while it was copied; [`Error::Exists`] if its plans are built already; those of building.
/// Nothing is left behind, and the portable bundle is not changed.
pub fn finish(
    bundle: &Bundle,
    options: &FinishOptions<'_>,
    on_event: &mut dyn FnMut(&Event),
) -> Result<BuildOutcome> {
    let start = Instant::now();
    let (index, sm) = portable_set(bundle, options.target)?;
    let set = &bundle.manifest().engines[index];
    let writer = BundleWriter::create(options.out, options.force)?;
    let cancel = options.builder.cancel;
    let (mut plans, reports) =
        plans::from_graphs(bundle, set, sm, options.builder, &writer, on_event)?;
    // Kernels that this machine's compiler made fit its driver; without one those of the bundle stay.
    let compiled = plans.kernels.is_some();
    if !compiled {
        plans.kernels.clone_from(&set.kernels);
    }
    copy_rest(bundle, set, compiled, &writer, cancel)?;
    let mut manifest = bundle.manifest().clone();
    manifest.finished_from = Some(Origin {
        manifest_sha256: bundle.digest().to_owned(),
        created_by: std::mem::replace(&mut manifest.created_by, created_by()),
        command_line: std::mem::replace(&mut manifest.command_line, options.command_line.clone()),
    });
    manifest.engines[index] = plans;
    let finished = writer.finish(manifest)?;
    Ok(BuildOutcome::new(&finished, start, reports))
}

/// Index of the set with graphs for `target`, and its SM.
fn portable_set(bundle: &Bundle, target: Target) -> Result<(usize, u16)> {
    let path = bundle.dir().join(MANIFEST);
    let sets = &bundle.manifest().engines;
    let found = sets.iter().position(|set| set.target == target);
    match (found, target) {
        (Some(index), Target::Sm(sm)) if sets[index].is_portable() => Ok((index, sm)),
        (Some(index), Target::Sm(_)) => Err(Error::Mismatch {
            path,
            what: "engine",
            expected: "graphs to be built".to_owned(),
            actual: format!("{}, built already for {target}", sets[index].engine),
        }),
        _ => {
            let portable = sets.iter().filter(|set| set.is_portable());
            let targets: Vec<String> = portable.map(|set| set.target.to_string()).collect();
            Err(Error::Mismatch {
                path,
                what: "target of its graphs",
                expected: match target {
                    Target::Sm(_) => target.to_string(),
                    _ => format!("this machine's GPU, which has none ({target})"),
                },
                actual: match targets.is_empty() {
                    true => "none, it is no portable bundle".to_owned(),
                    false => targets.join(", "),
                },
            })
        }
    }
}

/// Copies what a bundle holds beside the graphs of one set, and beside its kernels if they were `compiled`
/// anew.
fn copy_rest(
    bundle: &Bundle,
    set: &EngineSet,
    compiled: bool,
    writer: &BundleWriter,
    cancel: &AtomicBool,
) -> Result<()> {
    let is_made = |name: &str| {
        let kernels = set.kernels.as_ref().filter(|_| compiled);
        let is_kernels = kernels.is_some_and(|kernels| kernels.file == name);
        is_kernels
            || set.components.iter().any(|component| {
                let rest = name.strip_prefix(component.file.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest == ".data")
            })
    };
    let files = bundle.manifest().files.iter();
    for file in files.filter(|file| !is_made(&file.path)) {
        check_cancel(cancel)?;
        let from = bundle.dir().join(&file.path);
        writer.copy(&from, &file.path)?;
        let copied = sha256_file(&writer.path().join(&file.path), |_| {})?.sha256;
        if copied != file.sha256 {
            return Err(Error::Mismatch {
                path: from,
                what: "SHA-256",
                expected: file.sha256.clone(),
                actual: copied,
            });
        }
    }
    Ok(())
}
