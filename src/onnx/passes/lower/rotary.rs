//! Rotary position embeddings.
//!
//! | tensor | shape | dtype |
//! |--------|-------|-------|
//! | input  | `[b, rows, heads · d]` or `[b, heads, rows, d]` | f32, f16 |
//! | positions | `[b, rows]`, or `[1]`: that of the first row | i64, i32 |
//! | `cos`, `sin` | `[positions, width / 2]` | as input |
//!
//! The first `width` elements of each head are turned, pair by pair:
//! `y = x · cos + swapped(x) · ±sin`, where a pair is `(i, i + width/2)`, or `(2i, 2i + 1)` if
//! interleaved. The tables are looked up once for all layers that share positions.

use super::attrs::{Attrs, required, result};
use super::emit::Emitter;
use crate::onnx::DataType;
use crate::onnx::proto::NodeProto;

/// Factors of one set of positions, `[b, rows, 1, width]`, or `[b, 1, rows, width]`.
pub(super) struct Tables {
    cos: String,
    /// With the signs of the pairs.
    sin: String,
    pub(super) width: usize,
    interleaved: bool,
}

impl Tables {
    /// Looks up the factors of `positions` `[b, rows]`; `head_axis` is where heads stand in what
    /// is turned, 1 or 2.
    pub(super) fn look_up(
        e: &mut Emitter<'_>,
        cos: &str,
        sin: &str,
        positions: &str,
        interleaved: bool,
        head_axis: i64,
        dtype: DataType,
    ) -> Result<Self, String> {
        for table in [cos, sin] {
            if e.dims.rank(table) != Some(2) || e.float_type(table)? != dtype {
                return Err(format!(
                    "`{table}` is no table of {dtype} with two dimensions"
                ));
            }
        }
        let half = e.dims.last(cos).filter(|&half| half > 0);
        let half = half.ok_or_else(|| format!("width of `{cos}` is not known"))?;
        if e.dims.last(sin) != Some(half) {
            return Err(format!("`{cos}` and `{sin}` differ in width"));
        }
        let width = 2 * half;
        let key = |what: &str, table: &str| {
            format!("rotary {what} {table} {positions} {interleaved} {head_axis}")
        };
        let rows = |e: &mut Emitter<'_>, table: &str, what: &str| {
            e.op_with("Gather", &[table, positions], what, |node| {
                node.with_int("axis", 0)
            })
        };
        let spread = |e: &mut Emitter<'_>, pair: [&str; 2], what: &str| {
            if !interleaved {
                let all = e.concat(&pair, -1, &format!("{what}_pairs"));
                return e.unsqueeze(&all, &[head_axis], what);
            }
            let columns = pair.map(|part| e.unsqueeze(part, &[3], &format!("{what}_column")));
            let pairs = [columns[0].as_str(), columns[1].as_str()];
            let pairs = e.concat(&pairs, 3, &format!("{what}_pairs"));
            let width = width as i64;
            let shape = if head_axis == 1 {
                [0, 1, -1, width]
            } else {
                [0, 0, 1, width]
            };
            e.reshape(&pairs, &shape, what)
        };
        let cos = e.once(key("cos", cos), |e| {
            e.in_scope("rotary", |e| {
                let cos = rows(e, cos, "cos_rows");
                spread(e, [&cos, &cos], "cos")
            })
        });
        let sin = e.once(key("sin", sin), |e| {
            e.in_scope("rotary", |e| {
                let sin = rows(e, sin, "sin_rows");
                let negative = e.op("Neg", &[&sin], "minus_sin");
                spread(e, [&negative, &sin], "sin")
            })
        });
        Ok(Self {
            cos,
            sin,
            width,
            interleaved,
        })
    }

    /// Turns heads of `d` elements.
    pub(super) fn turn(
        &self,
        e: &mut Emitter<'_>,
        x: &str,
        d: usize,
        what: &str,
    ) -> Result<String, String> {
        if d == self.width {
            return Ok(self.turn_all(e, x, what));
        }
        let Some(rest) = d.checked_sub(self.width) else {
            return Err(format!("heads of {d} are narrower than {}", self.width));
        };
        let parts = [format!("{what}_head"), format!("{what}_rest")];
        let names = [parts[0].as_str(), parts[1].as_str()];
        let [head, rest] = e.split(x, [self.width, rest], -1, names);
        let turned = self.turn_all(e, &head, &format!("{what}_turned"));
        Ok(e.concat(&[&turned, &rest], -1, what))
    }

    fn turn_all(&self, e: &mut Emitter<'_>, x: &str, what: &str) -> String {
        let names = [format!("{what}_first"), format!("{what}_second")];
        let names = [names[0].as_str(), names[1].as_str()];
        let swapped = format!("{what}_swapped");
        let swapped = if self.interleaved {
            let pairs = e.reshape(x, &[0, 0, -1, 2], &format!("{what}_pairs"));
            let [first, second] = e.split(&pairs, [1, 1], -1, names);
            let pairs = e.concat(&[&second, &first], -1, &format!("{what}_swapped_pairs"));
            e.reshape(&pairs, &[0, 0, -1, self.width as i64], &swapped)
        } else {
            let [first, second] = e.split(x, [self.width / 2; 2], -1, names);
            e.concat(&[&second, &first], -1, &swapped)
        };
        let along = e.op("Mul", &[x, &self.cos], &format!("{what}_cos"));
        let across = e.op("Mul", &[&swapped, &self.sin], &format!("{what}_sin"));
        e.op("Add", &[&along, &across], what)
    }
}

/// Lowers `com.microsoft.RotaryEmbedding`.
pub(super) fn rotary(e: &mut Emitter<'_>, node: &NodeProto) -> Result<(), String> {
    let known = ["interleaved", "num_heads", "rotary_embedding_dim", "scale"];
    let attrs = Attrs::new(node, &known, &[("is_packed_batching", &[0])])?;
    if attrs.float("scale", 1.0)? != 1.0 {
        return Err("a `scale` is not supported".to_owned());
    }
    let x = required(node, 0, "input")?;
    let positions = required(node, 1, "position_ids")?;
    let (cos, sin) = (
        required(node, 2, "cos_cache")?,
        required(node, 3, "sin_cache")?,
    );
    let interleaved = attrs.flag("interleaved")?;
    let n_heads = attrs.int("num_heads", 0)?;
    let partial = attrs.int("rotary_embedding_dim", 0)?;
    let dtype = e.float_type(x)?;
    let rank = e.dims.rank(x);
    let (head_axis, row_axis) = match rank {
        Some(3) => (2, 1),
        Some(4) => (1, 2),
        _ => return Err("the rank of its input is not known to be 3 or 4".to_owned()),
    };
    let positions = match e.dims.rank(positions) {
        Some(2) => positions.to_owned(),
        Some(0 | 1) => from_offset(e, positions, x, row_axis),
        _ => return Err("the rank of its positions is not known".to_owned()),
    };
    let tables = Tables::look_up(e, cos, sin, &positions, interleaved, head_axis, dtype)?;
    let d = match (rank, partial) {
        (Some(4), 0) => e.dims.last(x).unwrap_or(tables.width),
        (_, 0) => tables.width,
        (Some(4), _) => e.dims.last(x).ok_or("the size of its heads is not known")?,
        _ => {
            let n_heads = usize::try_from(n_heads).ok().filter(|&n| n > 0);
            let n_heads = n_heads.ok_or("`rotary_embedding_dim` without `num_heads`")?;
            let hidden = e.dims.last(x).filter(|hidden| hidden % n_heads == 0);
            hidden.ok_or("the size of its heads is not known")? / n_heads
        }
    };
    if partial != 0 && partial != tables.width as i64 {
        return Err(format!(
            "turns {partial} elements with tables for {}",
            tables.width
        ));
    }
    if rank == Some(4) {
        let turned = tables.turn(e, x, d, "turned")?;
        e.op_to("Identity", &[&turned], result(node)?);
        return Ok(());
    }
    let heads = e.reshape(x, &[0, 0, -1, d as i64], "heads");
    let turned = tables.turn(e, &heads, d, "turned")?;
    let shape = e.ints(&[0, 0, -1]);
    e.op_to("Reshape", &[&turned, &shape], result(node)?);
    Ok(())
}

/// Positions `[1, rows]` that count on from `offset`.
fn from_offset(e: &mut Emitter<'_>, offset: &str, x: &str, row_axis: i64) -> String {
    e.once(format!("offset {offset} {row_axis}"), |e| {
        e.in_scope("rotary", |e| {
            let rows = e.size_of(x, row_axis, "rows");
            let rows = e.count_to(&rows, "row_index");
            let offset = e.cast(offset, DataType::I64);
            let offset = e.reshape(&offset, &[1, 1], "offset");
            e.op("Add", &[&offset, &rows], "positions")
        })
    })
}
