//! What drafts cost on this machine: measured once for a model, and kept in the user's cache.

use std::fs;
use std::io::Write;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::ask::Ask;
use super::open::Pipeline;
use crate::decode::{Costs, MAX_DRAFT, Strategy};
use crate::digest::sha256_bytes;
use crate::error::{Error, Result};
use crate::host::{cpu_name, user_cache};
use crate::limits;
use crate::read::read_file;

/// Folder of the user's cache.
const FOLDER: &str = "draft-costs";

/// Positions that a measurement takes, and some to spare.
const LEAST_POSITIONS: usize = 64 + 2 * MAX_DRAFT;

/// A file that holds [`Costs`] of one model on one machine.
///
/// The file is a convenience: one that is missing, damaged or cannot be written costs a measurement,
/// and is no error.
#[derive(Debug)]
pub(super) struct DraftCosts {
    path: PathBuf,
}

impl DraftCosts {
    /// The file for a model, by its digest or another name of its own, with an engine; `None` if the
    /// user has no cache.
    pub(super) fn of(model: &str, engine: &str) -> Option<Self> {
        Some(Self::at(&user_cache()?, model, engine))
    }

    fn at(cache: &Path, model: &str, engine: &str) -> Self {
        let cpu = cpu_name().unwrap_or_default();
        let n_cores = thread::available_parallelism().map_or(1, NonZero::get);
        let version = env!("CARGO_PKG_VERSION");
        let key = [model, engine, &cpu, &n_cores.to_string(), version].join("\n");
        let name = format!("{}.json", sha256_bytes(key.as_bytes()));
        Self {
            path: cache.join(FOLDER).join(name),
        }
    }

    fn load(&self) -> Option<Costs> {
        let bytes = match read_file(&self.path, limits::DRAFT_COSTS_BYTES) {
            Ok(bytes) => bytes,
            Err(e) => {
                tracing::debug!("{e}: costs of drafts are measured");
                return None;
            }
        };
        let costs: Option<Costs> = serde_json::from_slice(&bytes).ok();
        let costs = costs.filter(Costs::is_valid);
        if costs.is_none() {
            tracing::debug!("{}: damaged, measured again", self.path.display());
        }
        costs
    }

    fn save(&self, costs: &Costs) {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        // Renamed into place: a reader sees all of it or nothing.
        let written = fs::create_dir_all(folder).and_then(|()| {
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            file.write_all(&serde_json::to_vec(costs)?)?;
            file.persist(&self.path)?;
            Ok(())
        });
        if let Err(e) = written {
            tracing::debug!("{}: not written: {e}", self.path.display());
        }
    }
}

impl Pipeline {
    /// Says whether this model can be drafted so.
    ///
    /// # Errors
    /// [`Error::Unavailable`] for a drafter that it has not, or if it cannot be drafted at all;
    /// [`Error::Argument`] for a length of drafts outside its range.
    pub fn check_draft(&self, strategy: Strategy) -> Result<()> {
        if let Strategy::Always { drafter, .. } = strategy {
            let mut refused = self.refused_drafts.iter();
            if let Some((_, reason)) = refused.find(|(kind, _)| kind.name() == drafter) {
                return Err(Error::Unavailable {
                    what: format!("the drafter `{drafter}`"),
                    reason: reason.clone(),
                });
            }
        }
        self.speculator.check(strategy)?;
        let asks = matches!(strategy, Strategy::Always { .. });
        if !asks || self.backend.rows_are_independent() {
            return Ok(());
        }
        Err(Error::Unavailable {
            what: "drafting".to_owned(),
            reason: "this model quantizes all tokens of a pass together, so that drafts would change its answers"
                .to_owned(),
        })
    }

    /// Chooses how the next answer is drafted, and finds out what that costs.
    pub(super) fn prepare_drafts(&mut self, ask: &Ask<'_>) -> Result<()> {
        self.check_draft(ask.draft)?;
        let strategy = match self.backend.rows_are_independent() {
            true => ask.draft,
            false => Strategy::Off,
        };
        self.speculator.set(strategy)?;
        if strategy == Strategy::Auto && !self.know_costs() && ask.deadline.is_none() {
            // With a deadline there is no time to measure.
            self.measure_drafts(ask.cancel)?;
        }
        Ok(())
    }

    /// True if costs are known, now or from the user's cache.
    fn know_costs(&mut self) -> bool {
        if self.speculator.costs().is_none()
            && let Some(costs) = self.draft_costs.as_ref().and_then(DraftCosts::load)
        {
            self.speculator.set_costs(costs);
        }
        self.speculator.costs().is_some()
    }

    /// Finds out what passes of several tokens and drafts cost on this machine, which
    /// [`Strategy::Auto`] needs: from the user's cache, else by some twenty passes. The first
    /// [`ask`](Self::ask) without a deadline does it by itself; what takes part in no answer's times.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn measure_drafts(&mut self, cancel: Option<&AtomicBool>) -> Result<()> {
        if self.know_costs() || self.config.max_positions < LEAST_POSITIONS {
            return Ok(());
        }
        tracing::info!("measuring what drafts cost with this model on this machine, once");
        let stop = || cancel.is_some_and(|flag| flag.load(Ordering::Relaxed));
        self.speculator.measure(self.backend.as_mut(), &stop)?;
        if let (Some(file), Some(costs)) = (&self.draft_costs, self.speculator.costs()) {
            file.save(costs);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn costs() -> Costs {
        let drafters = BTreeMap::from([("ngram".to_owned(), 0.25)]);
        Costs::new((1..=9).map(f64::from).collect(), drafters).expect("costs")
    }

    #[test]
    fn costs_are_kept_for_each_model_and_engine() {
        let cache = tempfile::tempdir().expect("dir");
        let file = DraftCosts::at(cache.path(), "a model", "cpu 1");
        assert_eq!(file.load(), None);
        file.save(&costs());
        assert_eq!(file.load(), Some(costs()));
        let again = DraftCosts::at(cache.path(), "a model", "cpu 1");
        assert_eq!(again.load(), Some(costs()));
        for (model, engine) in [("another", "cpu 1"), ("a model", "cpu 2")] {
            assert_eq!(DraftCosts::at(cache.path(), model, engine).load(), None);
        }
    }

    #[test]
    fn costs_in_a_damaged_file_are_none() {
        let cache = tempfile::tempdir().expect("dir");
        let file = DraftCosts::at(cache.path(), "a model", "cpu 1");
        file.save(&costs());
        let good = fs::read(&file.path).expect("read");
        let zeros = br#"{"passes_ms":[0,0,0,0,0,0,0,0,0],"drafters_ms":{}}"#;
        let few = br#"{"passes_ms":[1,2],"drafters_ms":{}}"#;
        let huge = vec![b' '; 1 << 20];
        for bytes in [b"", &good[..good.len() / 2], zeros, few, b"null", &huge] {
            fs::write(&file.path, bytes).expect("write");
            assert_eq!(file.load(), None);
        }
        fs::remove_file(&file.path).expect("remove");
        fs::create_dir(&file.path).expect("a folder in its place");
        assert_eq!(file.load(), None);
        // Not written, and no error either.
        file.save(&costs());
        assert_eq!(file.load(), None);
    }

    #[test]
    fn costs_where_no_cache_can_be_made_are_not_kept() {
        let cache = tempfile::NamedTempFile::new().expect("a file");
        let file = DraftCosts::at(cache.path(), "a model", "cpu 1");
        file.save(&costs());
        assert_eq!(file.load(), None);
    }
}
