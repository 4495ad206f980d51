//! Stands in for `plans` in a program without TensorRT.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::engines::EngineReport;
use super::order::{BuildOptions, Builder, Event};
use super::shapes::Capacity;
use crate::bundle::{Bundle, BundleWriter, EngineSet};
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
    Err(unavailable(sm))
}

/// As [`tensorrt`].
pub(super) fn from_graphs(
    _: &Bundle,
    _: &EngineSet,
    sm: u16,
    _: Builder<'_>,
    _: &BundleWriter,
    _: &mut dyn FnMut(&Event),
) -> Result<(EngineSet, Vec<EngineReport>)> {
    Err(unavailable(sm))
}

/// There is none that could refuse: building says what is missing.
pub(super) fn refused_by_all(_: u16) -> Option<String> {
    None
}

fn unavailable(sm: u16) -> Error {
    Error::Unavailable {
        what: "TensorRT".to_owned(),
        reason: format!(
            "engines for sm{sm} need a binary built with `--features tensorrt` (see `make sdk`); \
             `--portable` writes graphs from which one builds them on another machine"
        ),
    }
}
