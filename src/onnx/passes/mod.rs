//! Rewrites of a graph, one a file.
//!
//! The order for a TensorRT engine is that of [`prepare_fp16`] and [`prepare_fp32`], in
//! `prepare.rs` ([`lower()`] is its first part alone); a CPU bundle needs [`select_logit_rows`],
//! [`place_rows`] and, for half the bytes, [`store_weights_fp16`]; the CPU engine itself
//! [`pad_integer_convs`].
//!
//! | pass                  | what it changes |
//! |-----------------------|-----------------|
//! | [`select_logit_rows`] | logits of the rows that are asked for, before everything else |
//! | [`place_rows`]        | attention that counts rows by itself is told their positions, before it is lowered |
//! | [`all_logit_rows`]    | takes that back, after everything else, in graphs for other runtimes |
//! | [`return_new_rows`]   | new rows of the KV cache, not the whole of it |
//! | [`add_taps`]          | inner values of the decoder become outputs, if asked for |
//! | [`split_lm_head`]     | the LM head in parts, if asked for |
//! | [`set_dims`]          | named dimensions become numbers |
//! | [`sort_nodes`]        | nodes stand in topological order |
//! | [`lift_constants`]    | `Constant` nodes become initializers |
//! | [`keep_all_tiles`]    | the filter of padded picture tiles goes |
//! | [`lower_contrib`]     | contrib operators become operators of the standard |
//! | [`declare_opset`]     | the file says that it is of an opset that parsers know |
//! | [`clamp_mask_fill`]   | −3.4e38 and −inf in masks become −3e4 |
//! | [`raise_opset`]       | the file says an opset whose Q/DQ operators take FP16 scales |
//! | [`fold_scales`]       | factors of channels move into the weights before them |
//! | [`group_queries`]     | queries grouped by the key they share, no expanded KV |
//! | [`scale_query`]       | the factor of attention scores moves to the query |
//! | [`to_fp16`], [`to_fp32`] | every float gets its type |
//! | [`pack_blocks`]       | 4-bit blocks become packed products, for the CPU engine |
//! | [`check_operators`]   | nothing: refuses what a parser does not take |
//! | [`pad_integer_convs`] | integer convolutions are padded with their zero point by a node of their own |
//! | [`store_weights_fp16`] | large weights become FP16, with a cast to FP32 behind them |

mod allowed;
mod casts;
mod constants;
mod fold_scales;
mod fp16;
mod group_queries;
mod logit_rows;
mod lower;
mod mask_fill;
mod narrow;
mod new_rows;
mod ops;
mod opset;
mod order;
mod pack_blocks;
mod pad_integer;
mod padded_tiles;
mod place_rows;
mod precision;
#[cfg(test)]
mod precision_tests;
mod prepare;
mod retype;
mod scale_query;
mod split_head;
mod static_dims;
mod store_weights;
mod taps;
#[cfg(test)]
mod testing;
mod types;

pub use allowed::check_operators;
pub use constants::lift_constants;
pub use fold_scales::fold_scales;
pub use fp16::{Fp16Options, Fp16Report, to_fp16, to_fp32};
pub use group_queries::group_queries;
pub(crate) use logit_rows::lm_head;
pub use logit_rows::{LOGIT_ROWS, all_logit_rows, select_logit_rows};
pub use lower::{LowerOptions, LowerReport, PackedWeights, lower_contrib};
pub use mask_fill::{MASK_FILL, clamp_mask_fill};
pub use new_rows::{NEW_PREFIX, return_new_rows};
pub use opset::{BLOCKS_OPSET, declare_opset, has_blocks, raise_opset};
pub use order::sort_nodes;
pub use pack_blocks::pack_blocks;
pub use pad_integer::pad_integer_convs;
pub use padded_tiles::keep_all_tiles;
pub use place_rows::place_rows;
pub use prepare::{lower, prepare_fp16, prepare_fp32, prepare_plain};
pub use scale_query::scale_query;
pub use split_head::split_lm_head;
pub(crate) use split_head::whole_label;
pub use static_dims::set_dims;
pub use store_weights::store_weights_fp16;
pub use taps::{HIDDEN, SALIENCY, SALIENCY_ROWS, Tap, TapNames, add_taps};
pub use types::{Types, check_types};
