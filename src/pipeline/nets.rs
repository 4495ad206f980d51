//! The small nets that were trained for a model.

use std::path::Path;

use super::open::Pipeline;
use super::prune::Pruning;
use crate::error::{Error, Result};
use crate::model::{ModelConfig, TrainedFile, TrainedKind};
use crate::prune::{Learned, Policy, Pruner};
use crate::quick::Probe;

/// Those that a model folder or bundle holds and that fit it.
#[derive(Default)]
pub(super) struct Nets {
    pub(super) learned: Option<Learned>,
    pub(super) quick: Option<Probe>,
    /// Those that do not fit, with the reason.
    refused: Vec<(TrainedKind, String)>,
}

impl Nets {
    /// Reads and checks them, with one check more. A file of weights that came later must not make
    /// the model useless: what does not fit is told, and is not used.
    pub(super) fn find(
        dir: &Path,
        config: &ModelConfig,
        check: impl Fn(&TrainedFile) -> Result<()>,
    ) -> Self {
        let mut nets = Self::default();
        let read = |nets: &mut Self, kind| -> Option<TrainedFile> {
            let found = TrainedFile::read(dir, kind).and_then(|file| {
                if let Some(file) = &file {
                    file.check_words(dir, config)?;
                    check(file)?;
                }
                Ok(file)
            });
            nets.keep(kind, found).flatten()
        };
        if let Some(file) = read(&mut nets, TrainedKind::Pruner) {
            nets.learned = nets.keep(TrainedKind::Pruner, Learned::new(file));
        }
        if let Some(file) = read(&mut nets, TrainedKind::Quick) {
            nets.quick = nets.keep(TrainedKind::Quick, Probe::new(file));
        }
        nets
    }

    fn keep<T>(&mut self, kind: TrainedKind, found: Result<T>) -> Option<T> {
        found
            .map_err(|error| {
                tracing::warn!("{error}; it is not used");
                self.refused.push((kind, error.to_string()));
            })
            .ok()
    }

    /// Why a net is not used, if it is there.
    pub(super) fn refusal(&self, kind: TrainedKind) -> Option<&str> {
        let mut refused = self.refused.iter();
        let found = refused.find(|(other, _)| *other == kind);
        found.map(|(_, reason)| reason.as_str())
    }
}

impl Pipeline {
    /// The policies that this model can be asked with.
    pub fn pruners(&self) -> Vec<Pruner> {
        let has = |pruner: &Pruner| *pruner != Pruner::Learned || self.nets.learned.is_some();
        Pruner::ALL.into_iter().filter(has).collect()
    }

    /// Says whether this model can be asked with these visual tokens.
    ///
    /// # Errors
    /// [`Error::Unavailable`] for [`Pruner::Learned`] if the model has none that fits it.
    pub fn check_pruning(&self, pruning: &Pruning) -> Result<()> {
        self.policy(pruning).map(drop)
    }

    /// The policy that chooses where something is to be dropped.
    pub(super) fn policy(&self, pruning: &Pruning) -> Result<Box<dyn Policy>> {
        let best = match self.nets.learned {
            Some(_) => Pruner::Learned,
            None => Pruner::Attention,
        };
        let pruner = pruning.pruner.unwrap_or(best);
        if let (Pruner::Learned, Some(reason)) = (pruner, self.nets.refusal(TrainedKind::Pruner)) {
            return Err(Error::Unavailable {
                what: "the pruner `learned`".to_owned(),
                reason: reason.to_owned(),
            });
        }
        pruner.policy(pruning.seed, self.nets.learned.as_ref())
    }
}
