//! The order of a benchmark.

use super::configuration::Configuration;
use crate::decode::{Report, Stop};
use crate::error::{Error, Result};
use crate::eval::is_right;
use crate::items::Item;
use crate::pipeline::{Answer, Pipeline, Timings};
use crate::preprocess::Frame;

/// One answer of one configuration.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Whether it is right; `None` if nobody knows the right one.
    pub right: Option<bool>,
    /// Whether its ids are the baseline's.
    pub agrees: bool,
    /// Visual tokens that the model read.
    pub kept: usize,
    /// Tokens of the answer.
    pub tokens: usize,
    /// How drafts fared.
    pub speculation: Report,
    /// What it took.
    pub timings: Timings,
}

/// How far a benchmark is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Answers that are there.
    pub done: usize,
    /// All answers.
    pub total: usize,
}

/// Asks every item in every configuration, the first of which is the baseline; returns the samples of
/// each configuration, in the order of the items. The first item is asked `warm_up` times more before anything is
/// measured.
///
/// # Errors
/// [`Error::Cancelled`] after a stop; [`Error::Unavailable`] if a configuration asks the quantized
/// model and there is none; those of reading a picture and of asking.
pub fn measure(
    pipeline: &mut Pipeline,
    mut quantized: Option<&mut Pipeline>,
    items: &[Item],
    configurations: &[Configuration<'_>],
    warm_up: usize,
    on_progress: &mut dyn FnMut(&Progress),
) -> Result<Vec<Vec<Sample>>> {
    let n = configurations.len();
    let mut progress = Progress {
        done: 0,
        total: n * items.len(),
    };
    on_progress(&progress);
    let mut samples: Vec<Vec<Sample>> = vec![Vec::with_capacity(items.len()); n];
    for (index, item) in items.iter().enumerate() {
        let frame = Frame::load(&item.image)?;
        let mut ask = |configuration: &Configuration<'_>| {
            let model = match configuration.quantized {
                false => Some(&mut *pipeline),
                true => quantized.as_deref_mut(),
            };
            let model = model.ok_or_else(|| Error::Unavailable {
                what: "the quantized model".to_owned(),
                reason: "none was given".to_owned(),
            })?;
            // Else the same answer in another configuration would be its draft.
            model.forget_answers();
            let answer = model.ask(&frame, &item.prompt, &configuration.ask, &mut |_| {})?;
            match answer.stop {
                Stop::Cancelled => Err(Error::Cancelled),
                _ => Ok(answer),
            }
        };
        if index == 0 {
            for configuration in configurations.iter().cycle().take(n * warm_up) {
                ask(configuration)?;
            }
        }
        let mut answers: Vec<Option<Answer>> = vec![None; n];
        for place in (0..n).map(|i| (i + index) % n) {
            answers[place] = Some(ask(&configurations[place])?);
            progress.done += 1;
            on_progress(&progress);
        }
        let answers: Vec<Answer> = answers.into_iter().flatten().collect();
        let baseline = answers[0].token_ids.clone();
        for (of, answer) in samples.iter_mut().zip(answers) {
            of.push(Sample {
                right: is_right(item, &answer.text),
                agrees: answer.token_ids == baseline,
                kept: answer.visual_tokens.kept,
                tokens: answer.token_ids.len(),
                speculation: answer.speculation,
                timings: answer.timings_ms,
            });
        }
    }
    Ok(samples)
}
