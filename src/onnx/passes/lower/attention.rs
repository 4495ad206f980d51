//! Scaled dot-product attention in plain operators.
//!
//! | tensor | shape |
//! |--------|-------|
//! | query  | `[b, heads, rows, d]` |
//! | key, value | `[b, kv_heads, total, d]` |
//! | masks  | broadcast to `[b, heads, rows, total]`, f32 |
//! | result | `[b, rows, heads · d]` |
//!
//! Heads that share a key are rows of one product: the query becomes
//! `[b, kv_heads, group · rows, d]`, and keys and values are read once, never repeated. Between
//! the two products the scores have a dimension for each head, so that one mask
//! `[b, 1, rows, total]` serves them all. The query is scaled, not the scores; Softmax is in FP32.

use super::emit::Emitter;
use crate::onnx::DataType;

/// Operands of attention.
pub(super) struct Attention<'n> {
    pub(super) query: &'n str,
    pub(super) key: &'n str,
    pub(super) value: &'n str,
    pub(super) n_heads: usize,
    pub(super) n_kv_heads: usize,
    pub(super) scale: f32,
    pub(super) masks: &'n [String],
    pub(super) dtype: DataType,
}

impl Attention<'_> {
    /// Makes the value `result`.
    pub(super) fn emit(&self, e: &mut Emitter<'_>, result: &str) {
        // A factor that is no power of two has no place in FP16.
        let query = e.widen(self.query, self.dtype);
        let scale = e.float(self.scale, DataType::F32);
        let mut query = e.op("Mul", &[&query, &scale], "scaled_query");
        if self.dtype != DataType::F32 {
            query = e.cast(&query, self.dtype);
        }
        let query = self.by_kv_head(e, query, "grouped_query");
        let key = e.transpose(self.key, &[0, 1, 3, 2], "key_columns");
        let scores = e.op("MatMul", &[&query, &key], "scores");
        let scores = self.by_head(e, scores, "scores_by_head");
        let mut scores = e.widen(&scores, self.dtype);
        for mask in self.masks {
            scores = e.op("Add", &[&scores, mask], "masked_scores");
        }
        let softmax = |node: crate::onnx::proto::NodeProto| node.with_int("axis", -1);
        let mut weights = e.op_with("Softmax", &[&scores], "probabilities", softmax);
        if self.dtype != DataType::F32 {
            weights = e.cast(&weights, self.dtype);
        }
        let weights = self.by_kv_head(e, weights, "grouped_probabilities");
        let context = e.op("MatMul", &[&weights, self.value], "context");
        let context = self.by_head(e, context, "context_by_head");
        let context = e.transpose(&context, &[0, 2, 1, 3], "context_by_row");
        let rows = e.ints(&[0, 0, -1]);
        e.op_to("Reshape", &[&context, &rows], result);
    }

    /// `[b, heads, rows, n]` as `[b, kv_heads, group · rows, n]`.
    fn by_kv_head(&self, e: &mut Emitter<'_>, value: String, what: &str) -> String {
        if self.n_heads == self.n_kv_heads {
            return value;
        }
        e.reshape(&value, &[0, self.n_kv_heads as i64, -1, 0], what)
    }

    /// The way back.
    fn by_head(&self, e: &mut Emitter<'_>, value: String, what: &str) -> String {
        if self.n_heads == self.n_kv_heads {
            return value;
        }
        e.reshape(&value, &[0, self.n_heads as i64, -1, 0], what)
    }
}
