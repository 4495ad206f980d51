//! What drafts cost on this machine, measured once for a model, and what became of them: both are kept in the user's
//! cache.

use std::fs;
use std::io::Write;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::ask::Ask;
use super::open::Pipeline;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::decode::{Costs, Learned, MAX_DRAFT, Strategy};
use crate::digest::sha256_bytes;
use crate::error::{Error, Result};
use crate::host::{cpu_name, user_cache};
use crate::limits;
use crate::read::read_file;

/// Folders of the user's cache.
const COSTS: &str = "draft-costs";
const LEARNED: &str = "draft-acceptance";

/// Positions that a measurement takes, and some to spare.
const LEAST_POSITIONS: usize = 64 + 2 * MAX_DRAFT;

/// Files that hold [`Costs`] and what was [`Learned`] of one model on one machine.
///
/// They are a convenience: one that is missing, damaged or cannot be written costs a measurement or is learned
/// again, and is no error.
#[derive(Debug)]
pub(super) struct DraftCosts {
    costs: PathBuf,
    learned: PathBuf,
}

impl DraftCosts {
    /// The files for a model, by its digest or another name of its own, with an engine; `None` if the
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
            costs: cache.join(COSTS).join(&name),
            learned: cache.join(LEARNED).join(&name),
        }
    }

    fn load_costs(&self) -> Option<Costs> {
        load(&self.costs, Costs::is_valid)
    }

    fn load_learned(&self) -> Option<Learned> {
        load(&self.learned, Learned::is_valid)
    }
}

fn load<T: DeserializeOwned>(path: &Path, is_valid: impl Fn(&T) -> bool) -> Option<T> {
    let bytes = match read_file(path, limits::DRAFT_COSTS_BYTES) {
        Ok(bytes) => bytes,
        Err(e) => {
            tracing::debug!("{e}: nothing is known of drafts");
            return None;
        }
    };
    let value: Option<T> = serde_json::from_slice(&bytes).ok();
    let value = value.filter(is_valid);
    if value.is_none() {
        tracing::debug!("{}: damaged, found out again", path.display());
    }
    value
}

fn save(path: &Path, value: &impl Serialize) {
    let folder = path.parent().unwrap_or(Path::new("."));
    // Renamed into place: a reader sees all of it or nothing.
    let written = fs::create_dir_all(folder).and_then(|()| {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&serde_json::to_vec(value)?)?;
        file.persist(path)?;
        Ok(())
    });
    if let Err(e) = written {
        tracing::debug!("{}: not written: {e}", path.display());
    }
}

impl Pipeline {
    /// Names of the drafters that can be asked for; none if the model cannot be drafted.
    pub fn drafters(&self) -> Vec<&'static str> {
        match self.backend.rows_are_independent() {
            true => self.speculator.names(),
            false => Vec::new(),
        }
    }

    /// Most tokens of a draft.
    pub fn most_draft_tokens(&self) -> usize {
        self.speculator.most()
    }

    /// Forgets earlier answers, from which `ngram` drafts.
    pub fn forget_answers(&mut self) {
        self.speculator.forget_answers();
    }

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
            && let Some(file) = &self.draft_costs
            && let Some(costs) = file.load_costs()
        {
            self.speculator.set_costs(costs);
            if let Some(learned) = file.load_learned() {
                self.speculator.set_learned(learned.clone());
                self.learned_before = Some(learned);
            }
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
            save(&file.costs, costs);
        }
        Ok(())
    }
}

/// What became of drafts is kept for later, if it is known what they cost: else nothing was drafted.
impl Drop for Pipeline {
    fn drop(&mut self) {
        if let Some(file) = &self.draft_costs
            && self.speculator.costs().is_some()
        {
            let learned = self.speculator.learned();
            if self.learned_before.as_ref() != Some(&learned) {
                save(&file.learned, &learned);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::decode::{DraftCost, Speculator};

    fn costs() -> Costs {
        let cost = DraftCost {
            token_ms: 0.25,
            prompt_row_ms: 0.5,
        };
        let drafters = BTreeMap::from([("ngram".to_owned(), cost)]);
        Costs::new((1..=9).map(f64::from).collect(), drafters).expect("costs")
    }

    #[test]
    fn costs_are_kept_for_each_model_and_engine() {
        let cache = tempfile::tempdir().expect("dir");
        let file = DraftCosts::at(cache.path(), "a model", "cpu 1");
        assert_eq!((file.load_costs(), file.load_learned()), (None, None));
        save(&file.costs, &costs());
        let learned = Speculator::off().learned();
        save(&file.learned, &learned);
        let again = DraftCosts::at(cache.path(), "a model", "cpu 1");
        assert_eq!(again.load_costs(), Some(costs()));
        assert_eq!(again.load_learned(), Some(learned));
        for (model, engine) in [("another", "cpu 1"), ("a model", "cpu 2")] {
            let other = DraftCosts::at(cache.path(), model, engine);
            assert_eq!((other.load_costs(), other.load_learned()), (None, None));
        }
    }

    #[test]
    fn what_stands_in_a_damaged_file_is_nothing() {
        let cache = tempfile::tempdir().expect("dir");
        let file = DraftCosts::at(cache.path(), "a model", "cpu 1");
        save(&file.costs, &costs());
        let good = fs::read(&file.costs).expect("read");
        let zeros = br#"{"passes_ms":[0,0,0,0,0,0,0,0,0],"drafters":{}}"#;
        let few = br#"{"passes_ms":[1,2],"drafters":{}}"#;
        let rich = br#"{"credit":1e9,"answer_tokens":9,"acceptance":[]}"#;
        let huge = vec![b' '; 1 << 20];
        for bytes in [
            b"",
            &good[..good.len() / 2],
            zeros,
            few,
            rich,
            b"null",
            &huge,
        ] {
            fs::write(&file.costs, bytes).expect("write");
            fs::create_dir_all(file.learned.parent().expect("folder")).expect("folder");
            fs::write(&file.learned, bytes).expect("write");
            assert_eq!((file.load_costs(), file.load_learned()), (None, None));
        }
        fs::remove_file(&file.costs).expect("remove");
        fs::create_dir(&file.costs).expect("a folder in its place");
        assert_eq!(file.load_costs(), None);
        // Not written, and no error either.
        save(&file.costs, &costs());
        assert_eq!(file.load_costs(), None);
    }

    #[test]
    fn costs_where_no_cache_can_be_made_are_not_kept() {
        let cache = tempfile::NamedTempFile::new().expect("a file");
        let file = DraftCosts::at(cache.path(), "a model", "cpu 1");
        save(&file.costs, &costs());
        assert_eq!(file.load_costs(), None);
    }
}
