//! Quick answers: a linear probe of the visual rows, and how sure its answers are.

mod calibrate;
mod collect;
mod net;
mod order;
mod scenes;

pub use calibrate::{ClassReport, FormReport, Judged};
pub use order::{QuickEpoch, QuickEvent, QuickOptions, QuickOutcome, train_quick};
pub use scenes::{TrueScene, read_scenes};
