//! Stands in for `plans` in a program without TensorRT.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::engines::EngineReport;
use super::order::{BuildOptions, Event};
use super::shapes::Capacity;
use crate::bundle::{BundleWriter, EngineSet};
use crate::error::{Error, Result};
use crate::model::Model;

/// Says that this binary has no TensorRT.
pub(super) fn tensorrt(
    _: &Model,
    sm: u16,
    _: &Capacity,
    _: &BuildOptions<'_>,
    _: &BundleWriter,
    _: &mut BTreeSet<PathBuf>,
    _: &mut dyn FnMut(&Event),
) -> Result<(EngineSet, Vec<EngineReport>)> {
    Err(Error::Unavailable {
        what: "TensorRT".to_owned(),
        reason: format!(
            "engines for sm{sm} need a binary built with `--features tensorrt` (see `make sdk`)"
        ),
    })
}
