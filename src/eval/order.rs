//! The order of an evaluation: every item is asked, one after the other.

use std::path::PathBuf;
use std::time::Instant;

use super::energy::{Meter, Watched};
use super::quick::Beside;
use super::stats::Share;
use crate::decode::Stop;
use crate::error::{Error, Result};
use crate::host::peak_resident_bytes;
use crate::items::Item;
use crate::pipeline::{Answer, Ask, Mode, ModeReport, Pipeline, Reason};
use crate::preprocess::Frame;

/// How to ask.
#[derive(Debug, Clone, Copy)]
pub struct EvalOptions<'a> {
    /// As for one question; a set `cancel` ends the evaluation.
    pub ask: Ask<'a>,
    /// Pass over pictures that cannot be read.
    pub skip_missing: bool,
    /// Questions that are asked before anything is measured.
    pub warm_up: usize,
}

/// How far an evaluation is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Items that are done, skipped ones included.
    pub done: usize,
    /// All items.
    pub total: usize,
    /// Right answers so far, of those that can be judged.
    pub right: Share,
    /// Answers so far whose ids are the reference's.
    pub agreeing: Share,
}

/// What came of all items.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// Each item that was asked, in order.
    pub outcomes: Vec<Outcome>,
    /// Pictures that could not be read.
    pub unreadable: Vec<PathBuf>,
    /// Wall time of everything, the reference's answers included.
    pub seconds: f64,
    /// Energy of the answers, the reference's not included.
    pub energy: Watched,
    /// Largest resident memory of the process at the end, in bytes; `None` if a reference was in it.
    pub peak_memory_bytes: Option<u64>,
}

/// What came of one item.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Its place in the list.
    pub item: usize,
    /// The answer.
    pub answer: Answer,
    /// Whether it is right; `None` if nobody knows the right one.
    pub right: Option<bool>,
    /// How it compares with the reference's; `None` without one.
    pub agreement: Option<Agreement>,
    /// Whether the reference's answer is right, where a model gave it.
    pub reference_right: Option<bool>,
    /// What the language model says, where others than it were to answer.
    pub full: Option<Beside>,
}

/// An answer's ids beside a reference's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreement {
    /// The reference's ids.
    pub reference: Vec<u32>,
    /// How many at the beginning are the same.
    pub n_equal: usize,
    /// Whether all are.
    pub agrees: bool,
}

/// Asks every item of `items`, and the reference, too, if there is one; without one the ids of the
/// items are the reference. Where quick answers are allowed the language model is asked, too, when it was not; a question that has none
/// counts as answered wrong.
///
/// # Errors
/// [`Error::Cancelled`] after a stop; [`Error::Image`] and others of reading a picture, unless they
/// are passed over; [`Error::Malformed`] if none could be read; those of asking.
pub fn evaluate(
    pipeline: &mut Pipeline,
    mut reference: Option<&mut Pipeline>,
    items: &[Item],
    options: &EvalOptions<'_>,
    on_progress: &mut dyn FnMut(&Progress),
) -> Result<Evaluation> {
    let start = Instant::now();
    let meter = Meter::open();
    let mut joules = 0.0;
    let (mut outcomes, mut unreadable) = (Vec::with_capacity(items.len()), Vec::new());
    let mut progress = Progress {
        done: 0,
        total: items.len(),
        right: Share::new(0, 0),
        agreeing: Share::new(0, 0),
    };
    on_progress(&progress);
    let mut warm_up = options.warm_up;
    for (index, item) in items.iter().enumerate() {
        match Frame::load(&item.image) {
            Ok(frame) => {
                for _ in 0..std::mem::take(&mut warm_up) {
                    ask(pipeline, &frame, item, &options.ask)?;
                }
                let answer =
                    meter.measure(&mut joules, || ask(pipeline, &frame, item, &options.ask))?;
                let theirs = match reference.as_deref_mut() {
                    Some(reference) => Some(ask(reference, &frame, item, &options.ask)?),
                    None => None,
                };
                let full = beside(pipeline, &frame, item, &options.ask, &answer)?;
                let eos = &pipeline.config().eos;
                let outcome = judge(index, item, answer, (theirs, full), eos);
                add(&mut progress.right, outcome.right);
                let agrees = outcome.agreement.as_ref().map(|a| a.agrees);
                add(&mut progress.agreeing, agrees);
                outcomes.push(outcome);
            }
            Err(error) if options.skip_missing => {
                tracing::warn!("skipped: {error}");
                unreadable.push(item.image.clone());
            }
            Err(error) => return Err(error),
        }
        progress.done = index + 1;
        on_progress(&progress);
    }
    if outcomes.is_empty() {
        let first = unreadable.into_iter().next().unwrap_or_default();
        let reason = format!("none of {} pictures can be read", items.len());
        return Err(Error::malformed(first, reason));
    }
    Ok(Evaluation {
        outcomes,
        unreadable,
        seconds: start.elapsed().as_secs_f64(),
        energy: meter.says(joules),
        peak_memory_bytes: match reference {
            Some(_) => None,
            None => Some(peak_resident_bytes()).filter(|&bytes| bytes > 0),
        },
    })
}

/// What the language model says, if another mode was asked for.
fn beside(
    pipeline: &mut Pipeline,
    frame: &Frame,
    item: &Item,
    ask: &Ask<'_>,
    answer: &Answer,
) -> Result<Option<Beside>> {
    if ask.mode == Mode::Full {
        return Ok(None);
    }
    if answer.mode.answered == Mode::Full {
        return Ok(Some(Beside::in_auto(item, answer)));
    }
    let ask = Ask {
        mode: Mode::Full,
        ..*ask
    };
    let full = self::ask(pipeline, frame, item, &ask)?;
    Ok(Some(Beside::new(item, &full)))
}

/// One whole answer.
fn ask(pipeline: &mut Pipeline, frame: &Frame, item: &Item, ask: &Ask<'_>) -> Result<Answer> {
    let answer = pipeline.ask(frame, &item.prompt, ask, &mut |_| {});
    match answer {
        Ok(answer) if answer.stop == Stop::Cancelled => Err(Error::Cancelled),
        Err(Error::Prompt { reason }) => Err(Error::Prompt {
            reason: format!("{}: {reason}", item.origin),
        }),
        Err(Error::NotQuick { .. }) => Ok(Answer {
            mode: ModeReport {
                asked: ask.mode,
                answered: Mode::Quick,
                reason: Reason::Refused,
                ..ModeReport::default()
            },
            ..Answer::default()
        }),
        other => other,
    }
}

fn add(share: &mut Share, hit: Option<bool>) {
    if let Some(hit) = hit {
        *share = Share::new(share.hits + usize::from(hit), share.of + 1);
    }
}

/// Whether a text is the item's answer, spaces at their ends aside; `None` if it has none.
pub fn is_right(item: &Item, text: &str) -> Option<bool> {
    let wanted = item.answer.as_ref()?;
    Some(wanted.trim() == text.trim())
}

fn judge(
    index: usize,
    item: &Item,
    answer: Answer,
    (theirs, full): (Option<Answer>, Option<Beside>),
    eos: &[u32],
) -> Outcome {
    let right = match answer.mode.reason {
        Reason::Refused => item.answer.as_ref().map(|_| false),
        _ => is_right(item, &answer.text),
    };
    let ended = answer.stop == Stop::Eos;
    let reference_right = theirs
        .as_ref()
        .and_then(|theirs| is_right(item, &theirs.text));
    let reference = match theirs {
        Some(theirs) => Some((theirs.token_ids, theirs.stop == Stop::Eos)),
        None => item.token_ids.clone().map(|ids| {
            let eos = item.eos.as_deref().unwrap_or(eos);
            let ended = ids.last().is_some_and(|last| eos.contains(last));
            (ids, ended)
        }),
    };
    // Nothing decoded a quick answer, so that it has no ids.
    let reference = reference.filter(|_| answer.mode.answered == Mode::Full);
    Outcome {
        item: index,
        agreement: reference
            .map(|(ids, their_end)| Agreement::new(&answer.token_ids, ended, ids, their_end)),
        answer,
        right,
        reference_right,
        full,
    }
}

impl Agreement {
    /// Compares ids; an answer that was cut (it did not end by itself) agrees with what it is the
    /// beginning of.
    fn new(ours: &[u32], our_end: bool, reference: Vec<u32>, their_end: bool) -> Self {
        let pairs = ours.iter().zip(&reference);
        let n_equal = pairs.take_while(|(a, b)| a == b).count();
        let agrees = match (our_end, their_end) {
            (true, true) => ours == reference,
            (false, true) => n_equal == ours.len(),
            (true, false) => n_equal == reference.len(),
            (false, false) => n_equal == ours.len().min(reference.len()),
        };
        Self {
            reference,
            n_equal,
            agrees,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_agree_if_all_ids_are_equal_up_to_where_one_was_cut() {
        // An answer: ids, and whether it ended by itself.
        type Given<'a> = (&'a [u32], bool);
        let cases: [(Given<'_>, Given<'_>, (usize, bool)); 9] = [
            ((&[1, 2, 9], true), (&[1, 2, 9], true), (3, true)),
            ((&[1, 3, 9], true), (&[1, 2, 9], true), (1, false)),
            ((&[1, 9], true), (&[1, 2, 9], true), (1, false)),
            ((&[1, 2], false), (&[1, 2, 9], true), (2, true)),
            ((&[1, 3], false), (&[1, 2, 9], true), (1, false)),
            ((&[1, 2, 3], false), (&[1, 2, 9], true), (2, false)),
            ((&[1, 2, 3, 9], true), (&[1, 2], false), (2, true)),
            ((&[1, 9], true), (&[1, 2, 3], false), (1, false)),
            ((&[1, 2, 3], false), (&[1, 2], false), (2, true)),
        ];
        for ((ours, our_end), (theirs, their_end), expected) in cases {
            let agreement = Agreement::new(ours, our_end, theirs.to_vec(), their_end);
            let found = (agreement.n_equal, agreement.agrees);
            assert_eq!(found, expected, "{ours:?} {theirs:?}");
        }
    }
}
