//! Measuring what each way to be faster costs and gains, side by side.
//!
//! Position in the flow: items + `pipeline` -> **`bench`** -> `results.json`, a Markdown table, plots.
//! Every item is asked in every configuration before the next item's turn, each item beginning with
//! another configuration, so that a machine that becomes slower does so for all of them.
//!
//! | rows | what |
//! |------|------|
//! | ablation | all tokens; pruning; speculation; both; with a second, quantized model also that alone and everything together |
//! | sweep | every policy at every share of the visual tokens, without drafts |
//! | drafts | every drafter of the model with drafts of 1 token to the most that it takes, all visual tokens |
//!
//! No answer is drafted from earlier ones: the same question is asked again and again.

mod chart;
mod configuration;
mod draft_plots;
mod machine;
mod order;
mod plots;
mod report;

pub use configuration::{Configuration, Plan, SHARES};
pub use machine::{Machine, ModelDigest};
pub use order::{Progress, Sample, measure};
pub use plots::{Plot, plots};
pub use report::{Ran, Results, RowReport};
