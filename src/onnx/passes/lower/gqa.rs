//! Grouped-query attention with its cache.
//!
//! | operand | shape | |
//! |---------|-------|-|
//! | 0 query | `[b, rows, heads · d]`, or `[b, rows, (heads + 2 kv_heads) · d]` | packed if 1 and 2 are left out |
//! | 1, 2 key, value | `[b, rows, kv_heads · d]` | |
//! | 3, 4 past | `[b, kv_heads, past, d]` | may be left out |
//! | 5 `seqlens_k`, 6 total | `[b]`, one | 6 is past + rows, which the shapes say |
//! | 7, 8 `cos`, `sin` | `[positions, width / 2]` | with `do_rotary` |
//! | 9 `position_ids` | `[b, rows]` | in place of those that `seqlens_k` says |
//! | 10 `attention_bias` | broadcasts to `[b, heads, rows, total]` | |
//!
//! Outputs 1 and 2 are the cache with the new rows appended, `[b, kv_heads, past + rows, d]`.
//! Not supported: local windows, soft caps, sinks, quantized or windowed caches, norms of query
//! and key inside.

use super::attention::Attention;
use super::attrs::{Attrs, input, no_inputs_from, output, required, result};
use super::causal::Sequence;
use super::emit::Emitter;
use super::rotary::Tables;
use crate::onnx::proto::NodeProto;

/// Attributes that are read.
const KNOWN: [&str; 9] = [
    "num_heads",
    "kv_num_heads",
    "scale",
    "do_rotary",
    "rotary_interleaved",
    "softcap",
    "k_quant_type",
    "v_quant_type",
    "qk_norm_epsilon",
];

/// Attributes that have to say that something is not used.
const FIXED: [(&str, &[i64]); 6] = [
    ("local_window_size", &[-1]),
    ("smooth_softmax", &[-1, 0]),
    ("qk_output", &[0]),
    ("causal", &[1]),
    ("sliding_window_cache", &[0]),
    ("kv_cache_bit_width", &[0]),
];

/// Lowers `com.microsoft.GroupQueryAttention`.
pub(super) fn gqa(e: &mut Emitter<'_>, node: &NodeProto) -> Result<(), String> {
    let attrs = Attrs::new(node, &KNOWN, &FIXED)?;
    if attrs.float("softcap", 0.0)? != 0.0 {
        return Err("a `softcap` is not supported".to_owned());
    }
    for name in ["k_quant_type", "v_quant_type"] {
        if attrs.text(name, "NONE")? != "NONE" {
            return Err("a quantized cache is not supported".to_owned());
        }
    }
    no_inputs_from(node, 11, "a sink, or a norm or quantized cache inside,")?;
    if output(node, 3).is_some_and(|name| e.is_read(name)) {
        return Err("output 3 is not supported".to_owned());
    }
    let (heads, kv_heads) = (attrs.size("num_heads")?, attrs.size("kv_num_heads")?);
    if heads % kv_heads != 0 {
        return Err(format!("{heads} heads do not share {kv_heads}"));
    }
    let query = required(node, 0, "query")?;
    let dtype = e.float_type(query)?;
    let past = (input(node, 3), input(node, 4));
    if past.0.is_some() != past.1.is_some() {
        return Err("has a past of one kind only".to_owned());
    }
    for past in [past.0, past.1].into_iter().flatten() {
        if e.float_type(past)? != dtype {
            return Err("its cache has another type than its query".to_owned());
        }
    }
    let sequence = Sequence {
        query,
        past_key: past.0,
        seqlens_k: required(node, 5, "seqlens_k")?,
    };
    let d = head_size(e, node, heads, kv_heads)?;
    let tables = match attrs.flag("do_rotary")? {
        false => None,
        true => {
            let positions = match input(node, 9) {
                Some(positions) => positions.to_owned(),
                None => sequence.positions(e),
            };
            let (cos, sin) = (
                required(node, 7, "cos_cache")?,
                required(node, 8, "sin_cache")?,
            );
            let interleaved = attrs.flag("rotary_interleaved")?;
            let tables = Tables::look_up(e, cos, sin, &positions, interleaved, 2, dtype);
            Some(tables?)
        }
    };
    let (query, key, value) = heads_of(e, node, heads, kv_heads, d, tables.as_ref())?;
    let by_head =
        |e: &mut Emitter<'_>, value: &str, what: &str| e.transpose(value, &[0, 2, 1, 3], what);
    let query = by_head(e, &query, "query_by_head");
    let key = by_head(e, &key, "key_by_head");
    let value = by_head(e, &value, "value_by_head");
    let key = append(e, past.0, key, output(node, 1), "present_key");
    let value = append(e, past.1, value, output(node, 2), "present_value");

    let mut masks = vec![sequence.mask(e)];
    if let Some(bias) = input(node, 10) {
        let bias_type = e.float_type(bias)?;
        masks.push(e.widen(bias, bias_type));
    }
    let scale = match attrs.float("scale", 0.0)? {
        0.0 => 1.0 / (d as f32).sqrt(),
        scale => scale,
    };
    Attention {
        query: &query,
        key: &key,
        value: &value,
        n_heads: heads,
        n_kv_heads: kv_heads,
        scale,
        masks: &masks,
        dtype,
    }
    .emit(e, result(node)?);
    Ok(())
}

/// Query, key and value as `[b, rows, heads, d]`, turned by `tables`.
fn heads_of(
    e: &mut Emitter<'_>,
    node: &NodeProto,
    heads: usize,
    kv_heads: usize,
    d: usize,
    tables: Option<&Tables>,
) -> Result<(String, String, String), String> {
    let query = required(node, 0, "query")?;
    let shape = |heads: usize| [0, 0, heads as i64, d as i64];
    match (input(node, 1), input(node, 2)) {
        (Some(key), Some(value)) => {
            let mut query = e.reshape(query, &shape(heads), "query");
            let mut key = e.reshape(key, &shape(kv_heads), "key");
            let value = e.reshape(value, &shape(kv_heads), "value");
            if let Some(tables) = tables {
                query = tables.turn(e, &query, d, "turned_query")?;
                key = tables.turn(e, &key, d, "turned_key")?;
            }
            Ok((query, key, value))
        }
        (None, None) => {
            let all = e.reshape(query, &shape(heads + 2 * kv_heads), "heads");
            let Some(tables) = tables else {
                let sizes = [heads, kv_heads, kv_heads];
                let [query, key, value] = e.split(&all, sizes, 2, ["query", "key", "value"]);
                return Ok((query, key, value));
            };
            // Query and key are turned together.
            let turned = heads + kv_heads;
            let [both, value] = e.split(&all, [turned, kv_heads], 2, ["query_key", "value"]);
            let both = tables.turn(e, &both, d, "turned")?;
            let [query, key] = e.split(&both, [heads, kv_heads], 2, ["query", "key"]);
            Ok((query, key, value))
        }
        _ => Err("has a key or a value, not both".to_owned()),
    }
}

/// The cache with the new rows behind it, under the name of the output if there is one.
fn append(
    e: &mut Emitter<'_>,
    past: Option<&str>,
    new: String,
    present: Option<&str>,
    what: &str,
) -> String {
    match (past, present) {
        (Some(past), Some(present)) => {
            let concat = NodeProto::new("Concat", &[past, &new], &[present]);
            e.push(concat.with_int("axis", 2));
            present.to_owned()
        }
        (Some(past), None) => e.concat(&[past, &new], 2, what),
        (None, Some(present)) => {
            e.op_to("Identity", &[&new], present);
            new
        }
        (None, None) => new,
    }
}

/// Elements of a head: as the cache says, else as the projections do.
fn head_size(
    e: &Emitter<'_>,
    node: &NodeProto,
    heads: usize,
    kv_heads: usize,
) -> Result<usize, String> {
    let parts = |index: usize, n: usize| {
        let hidden = e.dims.last(input(node, index)?)?;
        hidden.is_multiple_of(n).then_some(hidden / n)
    };
    let n_query = match input(node, 1) {
        Some(_) => heads,
        None => heads + 2 * kv_heads,
    };
    let found = [
        parts(3, 1),
        parts(4, 1),
        parts(0, n_query),
        parts(1, kv_heads),
        parts(2, kv_heads),
    ];
    let mut found = found.into_iter().flatten().filter(|&d| d > 0);
    let d = found.next().ok_or("the size of its heads is not known")?;
    match found.find(|&other| other != d) {
        Some(other) => Err(format!("its heads have {d} and {other} elements")),
        None => Ok(d),
    }
}
