//! Attributes and operands of a node that is lowered.

use crate::limits;
use crate::onnx::proto::{NodeProto, attribute_type};

/// Attributes of one node; every error is a reason for refusing it.
pub(super) struct Attrs<'a>(&'a NodeProto);

impl<'a> Attrs<'a> {
    /// The attributes of `node`, which may have only those that are `known`, and those of `fixed`
    /// with one of the integers listed there: an attribute that we do not know may change what the
    /// operator computes.
    pub(super) fn new(
        node: &'a NodeProto,
        known: &[&str],
        fixed: &[(&str, &[i64])],
    ) -> Result<Self, String> {
        let attrs = Self(node);
        for attribute in &node.attribute {
            let name = attribute.name.as_str();
            if known.contains(&name) {
                continue;
            }
            let allowed = fixed.iter().find(|(fixed, _)| *fixed == name);
            let (_, values) =
                allowed.ok_or_else(|| format!("attribute `{name}` is not supported"))?;
            let value = attrs.int(name, 0)?;
            if !values.contains(&value) {
                return Err(format!("`{name}` {value} is not supported"));
            }
        }
        Ok(attrs)
    }

    /// An integer.
    pub(super) fn int(&self, name: &str, default: i64) -> Result<i64, String> {
        let Some(attribute) = self.0.attr(name) else {
            return Ok(default);
        };
        let zero = (attribute.r#type == Some(attribute_type::INT)).then_some(0);
        let value = attribute.i.or(zero);
        value.ok_or_else(|| format!("attribute `{name}` is no integer"))
    }

    /// A flag: 0 or 1.
    pub(super) fn flag(&self, name: &str) -> Result<bool, String> {
        match self.int(name, 0)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(format!("`{name}` {other} is neither 0 nor 1")),
        }
    }

    /// A finite float.
    pub(super) fn float(&self, name: &str, default: f32) -> Result<f32, String> {
        let Some(attribute) = self.0.attr(name) else {
            return Ok(default);
        };
        let zero = (attribute.r#type == Some(attribute_type::FLOAT)).then_some(0.0);
        let value = attribute.f.or(zero).filter(|value| value.is_finite());
        value.ok_or_else(|| format!("attribute `{name}` is no finite float"))
    }

    /// A text.
    pub(super) fn text(&self, name: &str, default: &str) -> Result<String, String> {
        let Some(attribute) = self.0.attr(name) else {
            return Ok(default.to_owned());
        };
        let text = attribute
            .s
            .as_ref()
            .and_then(|s| std::str::from_utf8(s).ok());
        text.map(str::to_owned)
            .ok_or_else(|| format!("attribute `{name}` is no text"))
    }

    /// A size that the node must have.
    pub(super) fn size(&self, name: &str) -> Result<usize, String> {
        let value = self.int(name, 0)?;
        usize::try_from(value)
            .ok()
            .filter(|size| (1..=limits::VOCABULARY).contains(size))
            .ok_or_else(|| format!("`{name}` is {value}, expected 1 to {}", limits::VOCABULARY))
    }
}

/// The operand with this index, unless it is left out.
pub(super) fn input(node: &NodeProto, index: usize) -> Option<&str> {
    let name = node.input.get(index).map(String::as_str);
    name.filter(|name| !name.is_empty())
}

/// The operand with this index, which the node must have.
pub(super) fn required<'a>(
    node: &'a NodeProto,
    index: usize,
    what: &str,
) -> Result<&'a str, String> {
    input(node, index).ok_or_else(|| format!("has no {what}"))
}

/// Refuses operands from `first` on.
pub(super) fn no_inputs_from(node: &NodeProto, first: usize, what: &str) -> Result<(), String> {
    match (first..node.input.len()).find(|&index| input(node, index).is_some()) {
        Some(index) => Err(format!("{what} (operand {index}) is not supported")),
        None => Ok(()),
    }
}

/// The output with this index, if it has a name.
pub(super) fn output(node: &NodeProto, index: usize) -> Option<&str> {
    let name = node.output.get(index).map(String::as_str);
    name.filter(|name| !name.is_empty())
}

/// The first output, which every node has that types were inferred for.
pub(super) fn result(node: &NodeProto) -> Result<&str, String> {
    output(node, 0).ok_or_else(|| "makes nothing".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::AttributeProto;

    #[test]
    fn attrs_refuse_what_is_unknown_or_of_another_type() {
        let node = NodeProto::new("Op", &["a", "", "c"], &["y"]).with_int("window", -1);
        assert!(Attrs::new(&node, &["window"], &[]).is_ok());
        assert!(Attrs::new(&node, &[], &[("window", &[-1])]).is_ok());
        assert!(Attrs::new(&node, &[], &[("window", &[0])]).is_err());
        assert!(Attrs::new(&node, &[], &[]).is_err());
        let attrs = Attrs::new(&node, &["window"], &[]).expect("known");
        assert_eq!(attrs.int("window", 3), Ok(-1));
        assert_eq!(attrs.int("other", 3), Ok(3));
        assert!(attrs.float("window", 1.0).is_err() && attrs.text("window", "").is_err());
        assert!(attrs.size("window").is_err() && attrs.flag("window").is_err());
        let mut empty = NodeProto::new("Op", &[], &[]);
        empty.attribute.push(AttributeProto {
            name: "f".to_owned(),
            f: Some(f32::NAN),
            ..AttributeProto::default()
        });
        assert!(
            Attrs::new(&empty, &["f"], &[])
                .expect("known")
                .float("f", 0.0)
                .is_err()
        );
    }

    #[test]
    fn operands_that_are_left_out_are_none() {
        let node = NodeProto::new("Op", &["a", "", "c"], &["y", ""]);
        assert_eq!((input(&node, 0), input(&node, 1)), (Some("a"), None));
        assert!(required(&node, 1, "key").is_err());
        assert!(no_inputs_from(&node, 1, "mask").is_err());
        assert!(no_inputs_from(&node, 3, "mask").is_ok());
        assert_eq!((output(&node, 1), output(&node, 2)), (None, None));
        assert_eq!(result(&node), Ok("y"));
    }
}
