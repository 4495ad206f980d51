//! `--collect`: refused drafts, kept for training.

use std::path::{Path, PathBuf};

use super::knobs::Knobs;
use super::main::say;
use crate::corrections::{Collector, Correction, Refused};
use crate::decode::Strategy;
use crate::digest::sha256_file;
use crate::error::{Error, Result};
use crate::model::DraftKind;
use crate::pipeline::{Answer, Pipeline};

/// Where refused drafts go.
#[derive(clap::Args)]
pub struct CollectArgs {
    /// Add drafts of trained drafters that the model refused, and what it said instead, to this file, which `train
    /// draft --corrections` learns from
    #[arg(long, value_name = "FILE.jsonl")]
    collect: Option<PathBuf>,
}

/// A file of corrections that is open.
pub struct Collecting {
    collector: Collector,
    decoder: String,
    n_refused: usize,
}

impl CollectArgs {
    /// Refuses what collects nothing, before a model is loaded.
    ///
    /// # Errors
    /// [`Error::Argument`].
    pub fn check(&self, knobs: &Knobs) -> Result<()> {
        let ask = knobs.ask();
        let is_trained = match ask.draft {
            Strategy::Auto => true,
            Strategy::Always { drafter, .. } => is_trained(drafter),
            Strategy::Off => false,
        };
        let reason = match (is_trained, ask.sampling.temperature > 0.0) {
            (false, _) => "acts with --draft auto, head or early-exit",
            (true, true) => "acts with greedy answers, not with those that are drawn",
            (true, false) => return Ok(()),
        };
        match self.collect {
            None => Ok(()),
            Some(_) => Err(Error::Argument {
                name: "collect",
                reason: reason.to_owned(),
            }),
        }
    }

    /// Opens the file, if there is to be one.
    ///
    /// # Errors
    /// Those of [`Collector::open`]; [`Error::Unavailable`] if the model has no trained drafts.
    pub fn open(&self, pipeline: &Pipeline) -> Result<Option<Collecting>> {
        let Some(path) = &self.collect else {
            return Ok(None);
        };
        let Some(decoder) = pipeline.drafted_decoder() else {
            return Err(Error::Unavailable {
                what: "--collect".to_owned(),
                reason: "this model has no trained drafts".to_owned(),
            });
        };
        Ok(Some(Collecting {
            collector: Collector::open(path, decoder)?,
            decoder: decoder.to_owned(),
            n_refused: 0,
        }))
    }
}

impl Collecting {
    /// Adds what was refused in an answer.
    ///
    /// # Errors
    /// [`Error::Io`], after which the file is as it was before.
    pub fn add(&mut self, image: &Path, prompt: &str, answer: &Answer) -> Result<()> {
        let refused = answer.speculation.refused.iter();
        let refused = refused.filter(|r| is_trained(r.drafter));
        let refused: Vec<Refused> = refused
            .map(|r| Refused {
                drafter: r.drafter.to_owned(),
                index: r.index,
                drafted: r.drafted,
                chosen: r.chosen,
            })
            .collect();
        if refused.is_empty() {
            return Ok(());
        }
        self.n_refused += refused.len();
        self.collector.add(&Correction {
            image: std::path::absolute(image).map_err(Error::io(image))?,
            image_sha256: sha256_file(image, |_| {})?.sha256,
            prompt: prompt.to_owned(),
            token_ids: answer.token_ids.clone(),
            refused,
            decoder: self.decoder.clone(),
        })
    }

    /// Says what came of it.
    pub fn finish(self) {
        let lost = match self.collector.n_lost() {
            0 => String::new(),
            n => format!(", {n} answers did not fit"),
        };
        say(format_args!(
            "  {} refused drafts collected{lost}",
            self.n_refused
        ));
    }
}

fn is_trained(drafter: &str) -> bool {
    DraftKind::ALL.iter().any(|kind| kind.name() == drafter)
}
