//! Pruners: which visual tokens a question needs, learned from what the model's answers look at.

mod collect;
mod net;
mod order;

pub use order::{PrunerEpoch, PrunerEvent, PrunerOptions, PrunerOutcome, train_pruner};
