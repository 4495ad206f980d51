//! Rewrites of a graph, one a file; the builder of each kind of bundle states their order.

mod logit_rows;

pub use logit_rows::{LOGIT_ROWS, select_logit_rows};
