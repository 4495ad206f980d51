//! Training, beside a model that stays as it is.
//!
//! Position in the flow: items -> **`train`** -> a file in the model folder.
//!
//! | part | what |
//! |------|------|
//! | `collect` | runs the frozen model once over the items, and writes what it did in shards |
//! | `corrected` | drafts that the model refused, to be learned from |
//! | `checks`  | what is checked before a model is loaded |
//! | `once`    | frames that are looked at once |
//! | `shards`  | records of tensors in files of bounded size |
//! | `params`  | weights, and the optimizer with its moments |
//! | `fit`     | epochs, held-out scores, early stopping, checkpoints |
//! | `net`     | the nets of drafts |
//! | `export`  | nets as ONNX graphs |
//! | `draft`   | the order of `train draft` |
//! | `pruner`  | the net of the learned pruner, and the order of `train pruner` |
//! | `quick`   | the probe of quick answers, its calibration, and the order of `train quick` |
//!
//! `shards`, `params` and `fit` know nothing of what is trained. A run that was interrupted goes on where it was, and
//! gives the files that it would have given: order and start depend on the seed alone, and the
//! state of each epoch is kept whole.

mod checks;
mod collect;
mod corrected;
mod draft;
mod export;
mod fit;
mod net;
mod once;
mod params;
mod pruner;
mod quick;
mod shards;

pub use collect::Collected;
pub use draft::{
    DraftOptions, DraftOutcome, EpochReport, Event as DraftEvent, decoder_fingerprints, train_draft,
};
pub use fit::{Epoch, Event, FitOptions, Trainee, fit};
pub use params::{Params, Schedule};
pub use pruner::{PrunerEpoch, PrunerEvent, PrunerOptions, PrunerOutcome, train_pruner};
pub use quick::{
    ClassReport, FormReport, Judged, QuickEpoch, QuickEvent, QuickOptions, QuickOutcome, TrueScene,
    read_scenes, train_quick,
};
pub use shards::{Record, Shards};

use crate::error::Error;

/// An error of the library that computes gradients.
fn failed(error: candle_core::Error) -> Error {
    Error::Cpu {
        graph: "training".to_owned(),
        message: error.to_string(),
    }
}
