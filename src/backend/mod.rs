//! The steps of a model, wherever its data lives.
//!
//! Position in the flow: `preprocess` + `text` -> **`backend`** -> `decode`. One trait, few
//! methods: visual features and the KV cache stay inside the backend, only ids go in and only
//! logits come out.
//!
//! | step      | in                                     | out                      |
//! |-----------|----------------------------------------|--------------------------|
//! | `encode`  | pixels `[tiles, 3, s, s]` f32          | features stay inside     |
//! | `prune`   | a policy, rows to choose from, a count | which of them stay       |
//! | `prefill` | ids, their positions, kept visual rows | logits of the last row   |
//! | `step`    | ids of new rows                        | logits of all new rows   |
//! | `rollback`| number of rows to keep                 |                          |

mod ask_policy;
pub mod contract;
pub mod cpu;
mod cpu_decoder;
mod cpu_draft;
pub mod draft;
mod saliency;
#[cfg(feature = "tensorrt")]
mod tensorrt;

pub use cpu::CpuBackend;
pub use draft::DraftModel;
pub use saliency::Saliency;
#[cfg(feature = "tensorrt")]
pub use tensorrt::TensorRtBackend;

use crate::error::{Error, Result};
use crate::preprocess::PixelValues;
use crate::prune::{Kept, Needs, Place, Policy};

/// A prompt, ready for the decoder.
#[derive(Debug, Clone, Copy)]
pub struct Prefill<'a> {
    /// Token ids; each `image_token` is a slot for one visual row.
    pub ids: &'a [u32],
    /// Position of each id: ascending, with gaps where visual tokens were dropped.
    pub positions: &'a [u32],
    /// Visual rows that fill the slots, in order; as many as there are slots.
    pub visual: &'a [usize],
    /// The id that marks a slot.
    pub image_token: u32,
    /// Most rows that steps will add.
    pub reserve: usize,
}

/// Visual rows of which some are to stay.
#[derive(Clone, Copy)]
pub struct Prune<'a> {
    /// Who chooses.
    pub policy: &'a dyn Policy,
    /// How many stay.
    pub keep: usize,
    /// Visual rows to choose from, ascending.
    pub candidates: &'a [usize],
    /// Where each of them stands in the frame; empty if nobody knows.
    pub places: &'a [Place],
    /// Ids of the question's words.
    pub question: &'a [u32],
    /// The prompt with all candidates.
    pub prompt: Prefill<'a>,
}

/// Logits of some rows, `[rows, n_vocab]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Logits {
    n_vocab: usize,
    data: Vec<f32>,
}

impl Logits {
    /// Wraps row-major logits; `data.len()` is a positive multiple of `n_vocab`.
    pub fn new(n_vocab: usize, data: Vec<f32>) -> Self {
        debug_assert!(n_vocab > 0 && !data.is_empty() && data.len().is_multiple_of(n_vocab));
        Self { n_vocab, data }
    }

    /// Size of the vocabulary.
    pub fn n_vocab(&self) -> usize {
        self.n_vocab
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.data.len() / self.n_vocab
    }

    /// Logits of one row, `[n_vocab]`.
    ///
    /// # Panics
    /// If `row` is not below [`n_rows`](Self::n_rows).
    pub fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.n_vocab..][..self.n_vocab]
    }

    /// Logits after the newest token.
    pub fn last_row(&self) -> &[f32] {
        self.row(self.n_rows() - 1)
    }
}

/// Tokens that a backend chose itself, the largest logit of each row, the lowest id among equals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// Size of the vocabulary.
    pub n_vocab: usize,
    /// The drafts that it agrees with, and its own token behind them: at least one.
    pub ids: Vec<u32>,
}

/// Runs a model's steps; holds the features of one frame and the KV cache of one sequence.
pub trait Backend: Send {
    /// Encodes a frame and keeps its visual rows; returns how many there are.
    ///
    /// # Errors
    /// [`Error::Cpu`], [`Error::Engine`] or
    /// [`Error::Cuda`] from the engine, [`Error::Shape`]
    /// if the model's features do not have the decoder's width.
    fn encode(&mut self, image: &PixelValues) -> Result<usize>;

    /// Makes ready what [`prune`](Self::prune) needs for a policy that needs this, once, so that no answer's
    /// time includes it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the backend cannot prune; those of loading what is needed.
    fn prepare_prune(&mut self, _needs: Needs) -> Result<()> {
        Err(Error::Unavailable {
            what: "pruning of visual tokens".to_owned(),
            reason: "this backend has none".to_owned(),
        })
    }

    /// Chooses the visual rows of the newest frame that stay: indices into the candidates.
    ///
    /// Where the policy averages rows, each row that stays becomes its average, until the next frame.
    /// Saliency is the attention of the rows behind the last visual one, the question and what the
    /// template writes after it, in the decoder's first two layers.
    ///
    /// # Errors
    /// Those of the policy; [`Error::Unavailable`] if nothing was made ready; those of the engine.
    fn prune(&mut self, _request: &Prune<'_>) -> Result<Kept> {
        Err(Error::Unavailable {
            what: "pruning of visual tokens".to_owned(),
            reason: "this backend has none".to_owned(),
        })
    }

    /// Copies the visual rows of the newest frame to the host, `[n, d_model]` f32, for those who answer from them
    /// alone.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the backend does not give them; those of the engine.
    fn visual_rows(&mut self, _rows: &mut Vec<f32>) -> Result<()> {
        Err(Error::Unavailable {
            what: "visual rows".to_owned(),
            reason: "this backend keeps them".to_owned(),
        })
    }

    /// Makes room for sequences of at most so many rows, so that none needs more.
    fn reserve(&mut self, _n_rows: usize) {}

    /// Whether rows stand at the positions that they are given. Where they do not, because the
    /// model counts them itself, a prompt may have no gaps, and no visual token can be dropped.
    fn takes_positions(&self) -> bool {
        true
    }

    /// Whether the logits of a row are the same whatever other rows are in its pass. Where they are
    /// not, because the model quantizes all rows with one scale that it finds in them, drafts would
    /// change the answer.
    fn rows_are_independent(&self) -> bool {
        true
    }

    /// Starts a new sequence; returns the logits after the prompt's last token, one row.
    ///
    /// # Errors
    /// As [`Backend::encode`]; [`Error::Shape`] if slots and rows disagree.
    fn prefill(&mut self, prompt: &Prefill<'_>) -> Result<Logits>;

    /// Appends rows to the sequence, the first at `position`; returns logits after each of them.
    ///
    /// # Errors
    /// As [`Backend::encode`].
    fn step(&mut self, ids: &[u32], position: u32) -> Result<Logits>;

    /// As [`prefill`](Self::prefill), for a caller who takes the largest logit and looks at no other; `None`
    /// from a backend that leaves the choice to its caller, which has then done nothing.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill); [`Error::Logits`] if there is no largest one.
    fn prefill_greedily(&mut self, _prompt: &Prefill<'_>) -> Result<Option<Chosen>> {
        Ok(None)
    }

    /// As [`step`](Self::step), for the same caller: all `ids` behind the first are drafts.
    ///
    /// # Errors
    /// As [`prefill_greedily`](Self::prefill_greedily).
    fn step_greedily(&mut self, _ids: &[u32], _position: u32) -> Result<Option<Chosen>> {
        Ok(None)
    }

    /// Forgets all rows of the sequence but the first `n_rows`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the sequence is shorter.
    fn rollback(&mut self, n_rows: usize) -> Result<()>;

    /// Hidden states before the LM head for the rows whose logits the newest pass returned,
    /// `[rows, d_model]` f32 on the host, where the backend keeps them for a drafter that reads
    /// them.
    fn hidden(&self) -> Option<&[f32]> {
        None
    }
}
