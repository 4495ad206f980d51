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
    for group in group(tensors) {
        table.row([group.name, group.tensor.to_string()]);
    }
    let pad = " ".repeat(indent);
    match tensors.len() {
        0 => format!("{pad}{heading}  none\n"),
        n => format!("{pad}{heading} ({n})\n{}", table.render(indent + 2)),
    }
}

struct Group<'a> {
    name: String,
    tensor: &'a TensorInfo,
    pattern: (String, String),
    numbers: Vec<u64>,
}

/// Collects tensors by type, shape and name without its first number.
fn group(tensors: &[TensorInfo]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for tensor in tensors {
        let numbered = split_number(&tensor.name);
        let same = numbered.as_ref().and_then(|(pattern, _)| {
            groups.iter_mut().find(|g| {
                !g.numbers.is_empty()
                    && g.pattern == *pattern
                    && g.tensor.dtype == tensor.dtype
                    && g.tensor.shape == tensor.shape
            })
        });
        match (same, numbered) {
            (Some(group), Some((_, number))) => group.numbers.push(number),
            (_, Some((pattern, number))) => groups.push(Group {
                name: tensor.name.clone(),
                tensor,
                pattern,
                numbers: vec![number],
            }),
            (_, None) => groups.push(Group {
                name: tensor.name.clone(),
                tensor,
                pattern: Default::default(),
                numbers: Vec::new(),
            }),
        }
    }
    for group in &mut groups {
        let contiguous = group
            .numbers
            .windows(2)
            .all(|w| w[0].checked_add(1) == Some(w[1]));
        if let [first, .., last] = group.numbers.as_slice() {
            let (before, after) = &group.pattern;
            let n = group.numbers.len();
            group.name = match contiguous {
                true => format!("{before}{{{first}-{last}}}{after}"),
                false => format!("{before}*{after} ({n})"),
            };
        }
    }
    groups
}

/// What stands before and after the first number of a name, and the number.
fn split_number(name: &str) -> Option<((String, String), u64)> {
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
