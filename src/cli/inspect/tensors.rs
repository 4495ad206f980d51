//! Lists of inputs and outputs, the same for graphs, manifests and plans.

use crate::bundle::TensorInfo;
use crate::cli::table::Table;
use crate::onnx::ValueType;

/// Describes a graph's input or output.
pub fn describe(value: &ValueType) -> TensorInfo {
    let dtype = value.dtype.map_or("?".to_owned(), |d| d.to_string());
    let dims = match &value.dims {
        Some(dims) => dims.iter().map(ToString::to_string).collect(),
        // Not even the rank is known.
        None => vec!["..".to_owned()],
    };
    TensorInfo::new(&value.name, dtype, dims)
}

/// Aligned lines; tensors that differ in a layer's number only share one.
pub fn text(heading: &str, tensors: &[TensorInfo], indent: usize) -> String {
    let mut table = Table::default();
    let alike = |a: &TensorInfo, b: &TensorInfo| a.dtype == b.dtype && a.shape == b.shape;
    for (name, tensor) in group(tensors, |t| &t.name, alike) {
        table.row([name, tensor.to_string()]);
    }
    let pad = " ".repeat(indent);
    match tensors.len() {
        0 => format!("{pad}{heading}  none\n"),
        n => format!("{pad}{heading} ({n})\n{}", table.render(indent + 2)),
    }
}

/// Things whose names differ in their first number only and that are alike otherwise, by the
/// first of each kind and a name for all of it, such as `past.{0-23}.key`.
pub fn group<T>(
    things: &[T],
    name: impl Fn(&T) -> &String,
    alike: impl Fn(&T, &T) -> bool,
) -> Vec<(String, &T)> {
    let mut groups: Vec<(&T, Option<Pattern>, Vec<u64>)> = Vec::new();
    for thing in things {
        let Some((pattern, number)) = split_number(name(thing)) else {
            groups.push((thing, None, Vec::new()));
            continue;
        };
        let same = groups
            .iter_mut()
            .find(|g| g.1.as_ref() == Some(&pattern) && alike(g.0, thing));
        match same {
            Some(group) => group.2.push(number),
            None => groups.push((thing, Some(pattern), vec![number])),
        }
    }
    let named = groups.into_iter().map(|(thing, pattern, numbers)| {
        let name = match (pattern, numbers.as_slice()) {
            (Some((before, after)), [first, .., last]) => {
                let rising = |w: &[u64]| w[0].checked_add(1) == Some(w[1]);
                match numbers.windows(2).all(rising) {
                    true => format!("{before}{{{first}-{last}}}{after}"),
                    false => format!("{before}*{after} ({})", numbers.len()),
                }
            }
            _ => name(thing).clone(),
        };
        (name, thing)
    });
    named.collect()
}

/// What stands before and after the first number of a name.
type Pattern = (String, String);

/// A name without its first number, and the number.
fn split_number(name: &str) -> Option<(Pattern, u64)> {
    let start = name.find(|c: char| c.is_ascii_digit())?;
    let rest = &name[start..];
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    let number = rest[..end].parse().ok()?;
    Some(((name[..start].to_owned(), rest[end..].to_owned()), number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_share_a_line_and_others_do_not() {
        let f32 = |name: &str, dims: &[&str]| TensorInfo::new(name, "f32", dims);
        let tensors = [
            f32("inputs_embeds", &["1", "n"]),
            f32("past.0.key", &["1", "2"]),
            f32("past.0.value", &["1", "2"]),
            f32("past.1.key", &["1", "2"]),
            f32("past.1.value", &["1", "2"]),
            f32("past.2.key", &["1", "2"]),
            f32("past.2.value", &["1", "3"]),
            f32("x1", &["1"]),
            f32("x7", &["1"]),
        ];
        assert_eq!(
            text("inputs", &tensors, 0),
            "inputs (9)\n  inputs_embeds     f32 [1, n]\n  past.{0-2}.key    f32 [1, 2]\n  \
             past.{0-1}.value  f32 [1, 2]\n  past.2.value      f32 [1, 3]\n  x* (2)            f32 [1]\n"
        );
        assert_eq!(text("outputs", &[], 2), "  outputs  none\n");
    }
}
