//! Positions and mask of grouped-query attention, made once for all layers.
//!
//! | value | shape | dtype |
//! |-------|-------|-------|
//! | `seqlens_k` | `[b]` or `[b, 1]` | i32, i64 |
//! | positions | `[b, rows]` | i64 |
//! | mask | `[b, 1, rows, total]`, 0 or [`MASK_FILL`] | f32 |
//!
//! `seqlens_k + 1` rows of the sequence are valid, the new ones included: `cached` of the rows
//! that the cache holds, `max(seqlens_k + 1 - rows, 0)`. New row `i` is at position
//! `cached + i`; it sees the first `cached` rows of the cache, and new rows up to itself. In a
//! prompt that is padded on the right, valid rows do not see the padding because they stand
//! before it.
//!
//! Where fewer rows are valid than the cache holds, ONNX Runtime writes new rows over the first
//! that is not; here they are appended, and the rows between are masked: what attention computes
//! is the same, what the cache holds is not, and an `attention_bias` has its columns in the order
//! of the cache.

use super::super::mask_fill::MASK_FILL;
use super::emit::Emitter;
use crate::onnx::DataType;

/// Names of the shared values begin so.
const SCOPE: &str = "gqa";

/// Keys of the shared values.
pub(super) const POSITIONS: &str = "positions";
pub(super) const MASK: &str = "mask";

/// What positions and mask are made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sequence<'n> {
    /// `[b, rows, ..]`
    pub(super) query: &'n str,
    /// `[b, kv_heads, past, d]`
    pub(super) past_key: Option<&'n str>,
    pub(super) seqlens_k: &'n str,
}

impl Sequence<'_> {
    /// Positions of the new rows.
    pub(super) fn positions(&self, e: &mut Emitter<'_>) -> String {
        self.shared(e, POSITIONS, |s, e| {
            let (cached, rows) = (s.cached(e), s.row_index(e));
            e.op("Add", &[&cached, &rows], "positions")
        })
    }

    /// What is added to scores.
    pub(super) fn mask(&self, e: &mut Emitter<'_>) -> String {
        self.shared(e, MASK, |s, e| {
            let (rows, past) = (s.rows(e), s.past(e));
            let total = e.op("Add", &[&past, &rows], "total");
            let keys = e.count_to(&total, "key_index");
            let rows = s.row_index(e);
            let last = e.op("Add", &[&rows, &past], "row_key");
            let last = e.unsqueeze(&last, &[1], "row_key_column");
            let causal = e.op("LessOrEqual", &[&keys, &last], "not_after");
            let cached = s.cached(e);
            let cached = e.op("Less", &[&keys, &cached], "is_cached");
            let new = e.op("GreaterOrEqual", &[&keys, &past], "is_new");
            let valid = e.op("Or", &[&cached, &new], "is_valid");
            let valid = e.unsqueeze(&valid, &[1, 2], "is_valid_key");
            let visible = e.op("And", &[&causal, &valid], "is_visible");
            let zero = e.float(0.0, DataType::F32);
            let fill = e.float(MASK_FILL, DataType::F32);
            e.op("Where", &[&visible, &zero, &fill], "mask")
        })
    }

    /// Rows of the cache that are valid, `[b, 1]`.
    fn cached(&self, e: &mut Emitter<'_>) -> String {
        self.shared(e, "cached", |s, e| {
            let last = e.cast(s.seqlens_k, DataType::I64);
            let last = e.reshape(&last, &[-1, 1], "last_position");
            let one = e.int(1);
            let valid = e.op("Add", &[&last, &one], "n_valid");
            let rows = s.rows(e);
            let cached = e.op("Sub", &[&valid, &rows], "n_valid_before");
            let zero = e.int(0);
            e.op("Max", &[&cached, &zero], "n_cached")
        })
    }

    fn rows(&self, e: &mut Emitter<'_>) -> String {
        self.shared(e, "rows", |s, e| e.size_of(s.query, 1, "rows"))
    }

    fn row_index(&self, e: &mut Emitter<'_>) -> String {
        self.shared(e, "row index", |s, e| {
            let rows = s.rows(e);
            e.count_to(&rows, "row_index")
        })
    }

    fn past(&self, e: &mut Emitter<'_>) -> String {
        self.shared(e, "past", |s, e| match s.past_key {
            Some(past) => e.size_of(past, 2, "past"),
            None => e.int(0),
        })
    }

    fn shared(
        &self,
        e: &mut Emitter<'_>,
        what: &str,
        make: impl FnOnce(&Self, &mut Emitter<'_>) -> String,
    ) -> String {
        let cache = self.past_key.is_some();
        e.once(format!("{what} {} {cache}", self.seqlens_k), |e| {
            e.in_scope(SCOPE, |e| make(self, e))
        })
    }
}
