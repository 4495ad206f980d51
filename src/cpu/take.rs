//! Which nodes of a graph are products with a constant matrix, and what stands around them.

use std::collections::HashMap;

use bytes::Bytes;

use super::linear::{Activations, Elements, Matrix};
use crate::error::Result;
use crate::onnx::proto::{NodeProto, TensorProto};
use crate::onnx::{DataType, OnnxModel};

/// Longer sums of integer products might not fit 32 bits.
const MAX_DEPTH: usize = 1 << 15;

/// A product `y = x w` found in a graph.
#[derive(Debug, PartialEq)]
pub(super) struct Found {
    /// Index of its node.
    pub(super) node: usize,
    /// What is multiplied, before rounding.
    pub(super) x: String,
    /// How it is rounded.
    pub(super) activations: Activations,
    /// Rows and columns of the matrix.
    pub(super) dims: [usize; 2],
    /// True if the file has `[columns, rows]`.
    pub(super) is_transposed: bool,
    /// Element type of the matrix.
    pub(super) dtype: DataType,
    /// Elements of the matrix.
    pub(super) raw: Bytes,
    /// Scales of the columns, for integers.
    pub(super) scales: Vec<f32>,
    /// What is added to each row of the product, by name.
    pub(super) bias: Option<String>,
}

impl Found {
    /// The matrix, to be arranged.
    pub(super) fn matrix(&self) -> Matrix<'_> {
        let elements = match self.dtype {
            DataType::I8 => Elements::I8(&self.raw, &self.scales),
            DataType::F16 => Elements::F16(&self.raw),
            _ => Elements::F32(&self.raw),
        };
        Matrix {
            depth: self.dims[0],
            n: self.dims[1],
            elements,
            is_transposed: self.is_transposed,
        }
    }
}

/// A weight behind the nodes that prepare it.
struct Weight<'a> {
    tensor: &'a TensorProto,
    is_transposed: bool,
    /// Scales of the columns, of integers.
    scales: Vec<f32>,
}

struct Search<'a> {
    model: &'a OnnxModel,
    constants: HashMap<&'a str, &'a TensorProto>,
    producers: HashMap<&'a str, usize>,
    n_readers: HashMap<&'a str, usize>,
}

/// Products with matrices that nothing else reads, in the order of their nodes: `MatMul` and `Gemm`
/// with FP32, FP16 or dequantized int8 weights. Rows that are rounded to int8 just before (the
/// canonical Q/DQ form of `quantize`) are told apart.
///
/// # Errors
/// Those of reading a scale.
pub(super) fn find(model: &OnnxModel) -> Result<Vec<Found>> {
    let graph = model.graph();
    let search = Search {
        model,
        constants: graph.constants(),
        producers: graph.producers(),
        n_readers: graph
            .consumers()
            .into_iter()
            .map(|(name, readers)| (name, readers.len()))
            .collect(),
    };
    let constant = graph.constant_values();
    let mut found = Vec::new();
    for index in 0..graph.node.len() {
        if let Some(product) = search.product(index)?
            && !constant.contains(product.x.as_str())
        {
            found.push(product);
        }
    }
    Ok(found)
}

impl<'a> Search<'a> {
    fn product(&self, index: usize) -> Result<Option<Found>> {
        let node = &self.model.graph().node[index];
        let is_gemm = node.op() == "Gemm";
        if !(is_gemm || node.op() == "MatMul") || node.input.len() < 2 || node.output.len() != 1 {
            return Ok(None);
        }
        let (mut turned, mut bias) = (false, None);
        if is_gemm {
            let factor = |name| node.attr(name).is_none_or(|a| a.f.is_none_or(|f| f == 1.0));
            let flag = |name| node.attr(name).and_then(|a| a.i).unwrap_or(0) != 0;
            if !factor("alpha") || !factor("beta") || flag("transA") {
                return Ok(None);
            }
            turned = flag("transB");
            bias = node.input.get(2).filter(|name| !name.is_empty()).cloned();
        }
        let Some(weight) = self.weight(&node.input[1], turned)? else {
            return Ok(None);
        };
        let Some(dtype) = weight.tensor.dtype().ok() else {
            return Ok(None);
        };
        let &[rows, columns] = weight.tensor.dims.as_slice() else {
            return Ok(None);
        };
        let (Ok(rows), Ok(columns)) = (usize::try_from(rows), usize::try_from(columns)) else {
            return Ok(None);
        };
        let dims = match weight.is_transposed {
            true => [columns, rows],
            false => [rows, columns],
        };
        let Some(raw) = weight.tensor.raw_data.clone() else {
            return Ok(None);
        };
        let elements = rows.saturating_mul(columns) as u64;
        let fits = (1..=MAX_DEPTH).contains(&dims[0])
            && dims[1] > 0
            && dtype.bytes_for(elements) == Some(raw.len() as u64);
        if !fits || !(weight.scales.len() <= 1 || weight.scales.len() == dims[1]) {
            return Ok(None);
        }
        let rounded = match dtype {
            DataType::I8 => self.rounded(&node.input[0])?,
            _ => None,
        };
        let (x, activations) = match rounded {
            Some((x, scale)) => (x.to_owned(), Activations::Int8(scale)),
            None => (node.input[0].clone(), Activations::Float),
        };
        Ok(Some(Found {
            node: index,
            x,
            activations,
            dims,
            is_transposed: weight.is_transposed,
            dtype,
            raw,
            scales: weight.scales,
            bias,
        }))
    }

    fn producer(&self, name: &str, op: &str) -> Option<&'a NodeProto> {
        let node = &self.model.graph().node[*self.producers.get(name)?];
        (node.op() == op && !node.input.is_empty()).then_some(node)
    }

    /// True if one node reads `name`, and the graph does not return it.
    fn is_alone(&self, name: &str) -> bool {
        let returned = self.model.graph().output.iter().any(|o| o.name == name);
        self.n_readers.get(name) == Some(&1) && !returned
    }

    fn weight(&self, name: &str, mut turned: bool) -> Result<Option<Weight<'a>>> {
        let mut name = name;
        if let Some(node) = self.producer(name, "Transpose") {
            let perm = node.attr("perm").map(|a| a.ints.as_slice());
            if !self.is_alone(name) || !matches!(perm, None | Some([1, 0])) {
                return Ok(None);
            }
            (name, turned) = (&node.input[0], !turned);
        }
        if !self.is_alone(name) {
            return Ok(None);
        }
        if let Some(node) = self.producer(name, "DequantizeLinear") {
            return self.dequantized(node, turned);
        }
        let weight = self.constants.get(name).map(|&tensor| Weight {
            tensor,
            is_transposed: turned,
            scales: Vec::new(),
        });
        Ok(weight.filter(|w| matches!(w.tensor.dtype(), Ok(DataType::F32 | DataType::F16))))
    }

    /// Int8 weights with a scale for each column, or one for all, and zero points of 0.
    fn dequantized(&self, node: &NodeProto, turned: bool) -> Result<Option<Weight<'a>>> {
        let Some(&tensor) = self.constants.get(node.input[0].as_str()) else {
            return Ok(None);
        };
        let is_alone = self.is_alone(&node.input[0]);
        if !is_alone || tensor.dtype().ok() != Some(DataType::I8) || !self.is_centred(node, false) {
            return Ok(None);
        }
        let Some(scales) = self.scales(node)? else {
            return Ok(None);
        };
        let blocked = node.attr("block_size").and_then(|a| a.i).unwrap_or(0) != 0;
        let axis = node
            .attr("axis")
            .and_then(|a| a.i)
            .unwrap_or(1)
            .rem_euclid(2);
        let columns = if turned { 0 } else { 1 };
        if blocked || (scales.len() > 1 && axis != columns) {
            return Ok(None);
        }
        Ok(Some(Weight {
            tensor,
            is_transposed: turned,
            scales,
        }))
    }

    /// The value that was rounded to int8 to make `name`, and its scale.
    fn rounded(&self, name: &str) -> Result<Option<(&'a str, f32)>> {
        let Some(dequantize) = self.producer(name, "DequantizeLinear") else {
            return Ok(None);
        };
        let Some(quantize) = self.producer(&dequantize.input[0], "QuantizeLinear") else {
            return Ok(None);
        };
        if !self.is_centred(dequantize, true) || !self.is_centred(quantize, true) {
            return Ok(None);
        }
        let scales = (self.scales(dequantize)?, self.scales(quantize)?);
        match (scales.0.as_deref(), scales.1.as_deref()) {
            (Some(&[back]), Some(&[scale])) if back == scale && scale > 0.0 => {
                Ok(quantize.input.first().map(|x| (x.as_str(), scale)))
            }
            _ => Ok(None),
        }
    }

    /// The constant scales of a Q or DQ node.
    fn scales(&self, node: &NodeProto) -> Result<Option<Vec<f32>>> {
        let scales = node
            .input
            .get(1)
            .and_then(|name| self.constants.get(name.as_str()));
        scales.map(|t| t.to_f32(self.model.path())).transpose()
    }

    /// True if the zero points of a Q or DQ node are int8 and 0. Where they are left out, they are
    /// 0, but of a type that only the weight's tells.
    fn is_centred(&self, node: &NodeProto, must_be_there: bool) -> bool {
        let Some(name) = node.input.get(2).filter(|name| !name.is_empty()) else {
            return !must_be_there;
        };
        self.constants.get(name.as_str()).is_some_and(|zero| {
            let is_zero = match &zero.raw_data {
                Some(raw) => raw.iter().all(|&b| b == 0),
                None => zero.int32_data.iter().all(|&v| v == 0),
            };
            is_zero && zero.dtype().ok() == Some(DataType::I8)
        })
    }
}
