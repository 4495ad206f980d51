//! What decoding a file would cost, found out before it is decoded.
//!
//! Protobuf expands: a node without content takes two bytes of a file and some two hundred in
//! memory. The file is scanned once in its wire format
//! (<https://protobuf.dev/programming-guides/encoding/>), along the messages of
//! [`proto`](super::proto), with nothing allocated; weights are stepped over.

use std::path::Path;

use super::proto::{
    AttributeProto, DimensionProto, FunctionProto, GraphProto, ModelProto, NodeProto,
    OperatorSetIdProto, SparseTensorProto, StringStringEntryProto, TensorProto, TensorShapeProto,
    TensorTypeProto, TypeProto, ValueInfoProto,
};
use crate::error::{Error, Result};
use crate::limits;

/// The messages of a file.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Sparse,
    ValueInfo,
    Type,
    TensorType,
    Shape,
    Dimension,
    Opset,
    Entry,
    Function,
}

/// What a field of bytes holds, as far as it takes memory when it is decoded.
enum Field {
    Message(Kind),
    /// A text, or bytes that stay in the file.
    Text,
    /// A list of numbers, each of so many bytes in memory.
    Numbers(u64),
    /// Nothing of ours: skipped when decoded, too.
    Unknown,
}

impl Kind {
    /// The field with number `tag`.
    fn field(self, tag: u64) -> Field {
        use Field::{Message, Numbers, Text, Unknown};
        match (self, tag) {
            (Self::Model, 7) => Message(Self::Graph),
            (Self::Model, 8) | (Self::Function, 9) => Message(Self::Opset),
            (Self::Model, 14) | (Self::Tensor, 13) => Message(Self::Entry),
            (Self::Model, 25) => Message(Self::Function),
            (Self::Model, 2..=4 | 6) => Text,
            (Self::Graph, 1) | (Self::Function, 7) => Message(Self::Node),
            (Self::Graph, 5) | (Self::Attribute, 5 | 10) | (Self::Sparse, 1 | 2) => {
                Message(Self::Tensor)
            }
            (Self::Graph, 11..=13) | (Self::Function, 12) => Message(Self::ValueInfo),
            (Self::Graph, 15) => Message(Self::Sparse),
            (Self::Graph, 2 | 10) => Text,
            (Self::Node, 5) | (Self::Function, 11) => Message(Self::Attribute),
            (Self::Node, 1..=4 | 6..=8) => Text,
            (Self::Attribute, 6 | 11) => Message(Self::Graph),
            (Self::Attribute, 7) => Numbers(4),
            (Self::Attribute, 8) => Numbers(8),
            (Self::Attribute, 1 | 4 | 9 | 13 | 21) => Text,
            (Self::Tensor, 1 | 7 | 11) | (Self::Sparse, 3) => Numbers(8),
            (Self::Tensor, 5) => Numbers(4),
            (Self::Tensor, 6 | 8 | 9 | 12) => Text,
            (Self::ValueInfo, 2) => Message(Self::Type),
            (Self::ValueInfo, 1 | 3) => Text,
            (Self::Type, 1) => Message(Self::TensorType),
            (Self::Type, 6) => Text,
            (Self::TensorType, 2) => Message(Self::Shape),
            (Self::Shape, 1) => Message(Self::Dimension),
            (Self::Dimension, 2 | 3) => Text,
            (Self::Opset, 1) | (Self::Entry, 1 | 2) => Text,
            (Self::Function, 1 | 4..=6 | 8 | 10 | 13) => Text,
            _ => Unknown,
        }
    }

    /// Bytes of one in memory.
    fn bytes(self) -> u64 {
        let bytes = match self {
            Self::Model => size_of::<ModelProto>(),
            Self::Graph => size_of::<GraphProto>(),
            Self::Node => size_of::<NodeProto>(),
            Self::Attribute => size_of::<AttributeProto>(),
            Self::Tensor => size_of::<TensorProto>(),
            Self::Sparse => size_of::<SparseTensorProto>(),
            Self::ValueInfo => size_of::<ValueInfoProto>(),
            Self::Type => size_of::<TypeProto>(),
            Self::TensorType => size_of::<TensorTypeProto>(),
            Self::Shape => size_of::<TensorShapeProto>(),
            Self::Dimension => size_of::<DimensionProto>(),
            Self::Opset => size_of::<OperatorSetIdProto>(),
            Self::Entry => size_of::<StringStringEntryProto>(),
            Self::Function => size_of::<FunctionProto>(),
        };
        bytes as u64
    }
}

/// Bytes of a text in memory, beside its letters: the larger of `String` and `Bytes`.
const TEXT_BYTES: u64 = size_of::<bytes::Bytes>() as u64;

/// Refuses files that would take more memory, nodes or nesting than [`limits`] allow.
///
/// # Errors
/// [`Error::TooLarge`]; [`Error::Malformed`] if the file is not in the wire format.
pub(super) fn check(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut scan = Scan {
        path,
        decoded: Kind::Model.bytes(),
        nodes: 0,
    };
    scan.message(bytes, Kind::Model, 0)
}

struct Scan<'a> {
    path: &'a Path,
    /// Bytes in memory so far.
    decoded: u64,
    nodes: u64,
}

impl Scan<'_> {
    /// `depth` is the number of graphs around the message.
    fn message(&mut self, mut bytes: &[u8], kind: Kind, depth: u64) -> Result<()> {
        let depth = depth + u64::from(matches!(kind, Kind::Graph));
        // The outermost graph is no subgraph.
        self.limit(
            "depth of subgraphs",
            depth.saturating_sub(1),
            limits::ONNX_DEPTH as u64,
        )?;
        while !bytes.is_empty() {
            let key = self.varint(&mut bytes)?;
            let field = kind.field(key >> 3);
            match key & 7 {
                0 => {
                    self.varint(&mut bytes)?;
                    if let Field::Numbers(size) = field {
                        self.take(size)?;
                    }
                }
                1 => drop(self.cut(&mut bytes, 8)?),
                5 => {
                    self.cut(&mut bytes, 4)?;
                    if let Field::Numbers(size) = field {
                        self.take(size)?;
                    }
                }
                2 => {
                    let len = self.varint(&mut bytes)?;
                    let part = self.cut(&mut bytes, len)?;
                    self.part(part, field, depth)?;
                }
                // Groups, which neither ONNX nor any of its writers has.
                _ => return Err(self.malformed()),
            }
        }
        Ok(())
    }

    fn part(&mut self, part: &[u8], field: Field, depth: u64) -> Result<()> {
        match field {
            Field::Message(kind) => {
                self.take(kind.bytes())?;
                if matches!(kind, Kind::Node) {
                    self.nodes += 1;
                    self.limit("nodes", self.nodes, limits::ONNX_NODES as u64)?;
                }
                self.message(part, kind, depth)
            }
            Field::Text => self.take(TEXT_BYTES),
            Field::Numbers(size) => {
                // Each number ends with a byte without the highest bit.
                let n = part.iter().filter(|&&byte| byte < 0x80).count();
                self.take(size.saturating_mul(n as u64))
            }
            Field::Unknown => Ok(()),
        }
    }

    /// Counts memory.
    fn take(&mut self, bytes: u64) -> Result<()> {
        self.decoded = self.decoded.saturating_add(bytes);
        self.limit(
            "bytes when decoded",
            self.decoded,
            limits::ONNX_DECODED_BYTES,
        )
    }

    fn limit(&self, what: &str, actual: u64, limit: u64) -> Result<()> {
        if actual <= limit {
            return Ok(());
        }
        Err(Error::TooLarge {
            what: format!("{} ({what})", self.path.display()),
            actual,
            limit,
        })
    }

    fn varint(&self, bytes: &mut &[u8]) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let Some((&byte, rest)) = bytes.split_first() else {
                break;
            };
            *bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.malformed())
    }

    /// The next `len` bytes.
    fn cut<'b>(&self, bytes: &mut &'b [u8], len: u64) -> Result<&'b [u8]> {
        let parts = usize::try_from(len)
            .ok()
            .and_then(|len| bytes.split_at_checked(len));
        let (part, rest) = parts.ok_or_else(|| self.malformed())?;
        *bytes = rest;
        Ok(part)
    }

    fn malformed(&self) -> Error {
        Error::malformed(self.path, "not an ONNX file, or cut short")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    fn key(tag: u8) -> u8 {
        tag << 3 | 2
    }

    /// A file whose graph consists of `part`, `n` times.
    fn file(part: &[u8], n: usize) -> Vec<u8> {
        let graph = part.repeat(n);
        let mut file = vec![key(7)];
        prost::encode_length_delimiter(graph.len(), &mut file).expect("buffer grows");
        file.extend(graph);
        file
    }

    fn refusal(bytes: &[u8]) -> String {
        match check(Path::new("x.onnx"), bytes) {
            Err(Error::TooLarge {
                what,
                actual,
                limit,
            }) => {
                assert!(actual > limit);
                what
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn empty_nodes_are_refused_by_number() {
        let node = [key(1), 0];
        assert!(check(Path::new("x"), &file(&node, limits::ONNX_NODES)).is_ok());
        assert_eq!(
            refusal(&file(&node, limits::ONNX_NODES + 1)),
            "x.onnx (nodes)"
        );
    }

    #[test]
    fn empty_parts_are_refused_by_what_they_take_in_memory() {
        let names = [key(1), 2, key(1), 0];
        let dims = [key(5), 3, key(1), 1, 0];
        let parts: [(&[u8], u64); 4] = [
            (&[key(5), 0], Kind::Tensor.bytes()),
            (&[key(13), 0], Kind::ValueInfo.bytes()),
            // A node that reads a value without a name.
            (&names, 0),
            // A tensor with one dimension.
            (&dims, Kind::Tensor.bytes() + 8),
        ];
        for (part, bytes) in parts {
            if bytes == 0 {
                let inputs = [key(1), 0].repeat((limits::ONNX_DECODED_BYTES / TEXT_BYTES) as usize);
                let mut node = vec![key(1)];
                prost::encode_length_delimiter(inputs.len(), &mut node).expect("buffer grows");
                node.extend(inputs);
                assert_eq!(refusal(&file(&node, 1)), "x.onnx (bytes when decoded)");
                continue;
            }
            let n = (limits::ONNX_DECODED_BYTES / bytes) as usize + 1;
            assert_eq!(refusal(&file(part, n)), "x.onnx (bytes when decoded)");
        }
    }

    #[test]
    fn nesting_is_refused_by_its_depth() {
        let mut graph = GraphProto::default();
        for _ in 0..limits::ONNX_DEPTH + 1 {
            let attribute = AttributeProto {
                g: Some(graph),
                ..AttributeProto::default()
            };
            graph = GraphProto {
                node: vec![NodeProto {
                    attribute: vec![attribute],
                    ..NodeProto::default()
                }],
                ..GraphProto::default()
            };
        }
        let model = ModelProto {
            graph: Some(graph),
            ..ModelProto::default()
        };
        assert_eq!(
            refusal(&model.encode_to_vec()),
            "x.onnx (depth of subgraphs)"
        );
    }

    proptest! {
        /// What the scan lets through, a decoder may still refuse, but never the other way round.
        #[test]
        fn bytes_that_decode_are_let_through(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let groups = bytes.iter().any(|byte| matches!(byte & 7, 3 | 4));
            let scanned = check(Path::new("x"), &bytes);
            let decoded = ModelProto::decode(bytes.as_slice());
            prop_assert!(scanned.is_ok() || decoded.is_err() || groups);
        }
    }
}
