//! Asking a model many questions whose answers are known, and saying how it fared.
//!
//! Position in the flow: items + `pipeline` -> **`eval`** -> a report. Every claim about accuracy or
//! speed rests on it: the command line prints its report, the accuracy gate and the benchmark ask
//! through it.
//!
//! | measured | how |
//! |----------|-----|
//! | accuracy | the answer's text is the item's, spaces at its ends aside; with [`Share`]'s interval, by family |
//! | agreement | the ids are those of a reference: the item's own, or another model's that runs alongside |
//! | latency | each stage of each answer: mean, 50th, 95th, 99th percentile, greatest |
//! | tokens a second | all tokens but each answer's first, by the time that they took |
//! | quick answers | how many there were, how many were right, and beside them what the language model says to the same questions |
//! | energy | counters of the machine around each answer, where it has any |

mod check;
mod energy;
mod order;
mod quick;
mod report;
mod stats;

pub use check::{Checked, check_items};
pub use energy::{Meter, Watched};
pub use order::{Agreement, EvalOptions, Evaluation, Outcome, Progress, evaluate, is_right};
pub use quick::{Beside, QuickReport};
pub use report::{
    AgreementReport, Difference, Energy, FamilyReport, ItemsReport, LatencyReport, OTHER, Report,
    TokensReport,
};
pub use stats::{Share, Spread};
