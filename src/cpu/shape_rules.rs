//! Shapes that operators give to their outputs, as far as sizes can grow.
//!
//! These are bounds for refusing, not shapes for computing: where an operator only keeps or
//! shrinks what it reads, or is not listed, its output may stay unknown. Operators are those of
//! <https://onnx.ai/onnx/operators/>.

use super::sizes::{FOLLOWED, Known, Scope};
use crate::onnx::proto::NodeProto;

type Dims = Vec<Option<u64>>;

/// What is known of the outputs of `node`, which may be fewer than it has.
pub(super) fn output(node: &NodeProto, scope: &Scope<'_>) -> Vec<Known> {
    let rule = Rule { node, scope };
    vec![rule.output().unwrap_or_default()]
}

struct Rule<'a> {
    node: &'a NodeProto,
    scope: &'a Scope<'a>,
}

impl Rule<'_> {
    fn output(&self) -> Option<Known> {
        Some(match self.node.op_type.as_str() {
            "Shape" => self.shape()?,
            "Size" => Known::scalar(product(self.dims(0)?).map(|n| n as f64)),
            "Identity" | "Cast" | "CastLike" => self.input(0)?.clone(),
            "Add" | "Sub" | "Mul" | "Div" | "Min" | "Max" | "Pow" | "Mod" => self.arithmetic(),
            "Neg" | "Floor" | "Ceil" | "Abs" => self.unary()?,
            "Sum" | "Mean" | "Where" | "Equal" | "Greater" | "GreaterOrEqual" | "Less"
            | "LessOrEqual" | "And" | "Or" | "Xor" | "PRelu" => Known::of_dims(self.broadcast()?),
            "Concat" => self.concat()?,
            "Gather" => self.gather()?,
            "Slice" => self.slice()?,
            "Squeeze" => self.squeeze()?,
            "Unsqueeze" => self.unsqueeze()?,
            "Reshape" => self.reshape()?,
            "Transpose" => self.transpose()?,
            "ConstantOfShape" => self.constant_of_shape()?,
            "RandomNormal" | "RandomUniform" => {
                Known::of_dims(self.ints("shape").map(size).collect())
            }
            "Expand" => Known::of_dims(broadcast(self.dims(0)?, &self.sizes(1)?)),
            "Tile" => {
                let repeats = self.sizes(1)?;
                let dims = self.dims(0)?.iter().zip(repeats);
                Known::of_dims(dims.map(|(&n, k)| times(n, k)).collect())
            }
            "Range" => self.range()?,
            "Pad" => self.pad()?,
            "Resize" | "Upsample" => self.resize()?,
            "OneHot" => self.one_hot()?,
            "Multinomial" => {
                let n = self.int("sample_size").unwrap_or(1);
                Known::of_dims(vec![self.dims(0)?.first().copied().flatten(), size(n)])
            }
            "MatMul" | "MatMulInteger" => self.mat_mul()?,
            "Gemm" => self.gemm()?,
            "Conv" | "ConvInteger" => self.conv()?,
            "ConvTranspose" => self.conv_transpose()?,
            "AveragePool" | "MaxPool" => self.pool()?,
            op if KEEPS_SHAPE.contains(&op) => Known::of_dims(self.dims(0)?.clone()),
            _ => return None,
        })
    }

    fn input(&self, index: usize) -> Option<&Known> {
        self.scope.get(self.node.input.get(index)?)
    }

    fn dims(&self, index: usize) -> Option<&Dims> {
        self.input(index)?.dims.as_ref()
    }

    fn elements(&self, index: usize) -> Option<&Vec<Option<f64>>> {
        self.input(index)?.elements.as_ref()
    }

    /// The elements of an input that are sizes.
    fn sizes(&self, index: usize) -> Option<Dims> {
        let elements = self.elements(index)?;
        Some(elements.iter().map(|&n| n.and_then(whole)).collect())
    }

    fn int(&self, name: &str) -> Option<i64> {
        self.node.attr(name)?.i
    }

    fn ints(&self, name: &str) -> impl Iterator<Item = i64> {
        let ints = self.node.attr(name).map(|a| a.ints.as_slice());
        ints.unwrap_or_default().iter().copied()
    }

    /// Axes from an input of newer operator sets, else from the attribute of older ones.
    fn axes(&self, index: usize) -> Option<Vec<i64>> {
        match self.input(index) {
            Some(known) => {
                let elements = known.elements.as_ref()?;
                elements.iter().map(|n| n.map(|n| n as i64)).collect()
            }
            None => Some(self.ints("axes").collect()),
        }
    }

    fn shape(&self) -> Option<Known> {
        let dims = self.dims(0)?;
        let rank = dims.len() as i64;
        let bound =
            |n: i64| (if n < 0 { n.saturating_add(rank) } else { n }).clamp(0, rank) as usize;
        let (start, end) = (
            self.int("start").unwrap_or(0),
            self.int("end").unwrap_or(rank),
        );
        let part = dims.get(bound(start)..bound(end)).unwrap_or_default();
        Some(Known::list(
            part.iter().map(|n| n.map(|n| n as f64)).collect(),
        ))
    }

    fn unary(&self) -> Option<Known> {
        let known = self.input(0)?;
        let apply = |x: f64| match self.node.op_type.as_str() {
            "Neg" => -x,
            "Floor" => x.floor(),
            "Ceil" => x.ceil(),
            _ => x.abs(),
        };
        let elements = known.elements.as_ref();
        Some(Known {
            dims: known.dims.clone(),
            elements: elements.map(|e| e.iter().map(|x| x.map(apply)).collect()),
        })
    }

    fn arithmetic(&self) -> Known {
        let apply = |a: f64, b: f64| match self.node.op_type.as_str() {
            "Add" => Some(a + b),
            "Sub" => Some(a - b),
            "Mul" => Some(a * b),
            // Integers are divided towards zero; for sizes one too many does not matter.
            "Div" if b != 0.0 => Some(a / b),
            "Min" => Some(a.min(b)),
            "Max" => Some(a.max(b)),
            "Pow" => Some(a.powf(b)),
            _ => None,
        };
        let elements = match (self.node.input.len(), self.elements(0), self.elements(1)) {
            (2, Some(a), Some(b)) if a.len() == b.len() || a.len() == 1 || b.len() == 1 => {
                let n = if a.len() == 1 { b.len() } else { a.len() };
                let at = |v: &[Option<f64>], i: usize| v[if v.len() == 1 { 0 } else { i }];
                let one = |i| Some(apply(at(a, i)?, at(b, i)?)).flatten();
                Some((0..n).map(one).collect())
            }
            _ => None,
        };
        Known {
            dims: self.broadcast().filter(|dims| dims.len() <= FOLLOWED),
            elements,
        }
    }

    /// Shape of what an operator that broadcasts all its inputs makes.
    fn broadcast(&self) -> Option<Dims> {
        (0..self.node.input.len()).try_fold(Vec::new(), |dims, index| {
            Some(broadcast(&dims, self.dims(index)?))
        })
    }

    fn concat(&self) -> Option<Known> {
        let inputs = 0..self.node.input.len();
        let mut dims = self.dims(0)?.clone();
        let axis = axis_of(self.int("axis")?, dims.len())?;
        let mut along = inputs
            .clone()
            .map(|i| self.dims(i)?.get(axis).copied().flatten());
        dims[axis] = along.try_fold(0u64, |sum, n| Some(sum.saturating_add(n?)));
        let parts: Option<Vec<_>> = inputs.map(|i| self.elements(i)).collect();
        let elements: Option<Vec<Option<f64>>> =
            parts.map(|parts| parts.into_iter().flatten().copied().collect());
        let elements = elements.filter(|e| dims.len() == 1 && e.len() <= FOLLOWED);
        Some(Known {
            dims: Some(dims),
            elements,
        })
    }

    fn gather(&self) -> Option<Known> {
        let (data, indices) = (self.dims(0)?, self.dims(1)?);
        let axis = axis_of(self.int("axis").unwrap_or(0), data.len())?;
        let mut dims = data[..axis].to_vec();
        dims.extend(indices);
        dims.extend(&data[axis + 1..]);
        let mut known = Known::of_dims(dims);
        if let (Some(elements), Some(picks), 1) = (self.elements(0), self.elements(1), data.len()) {
            let pick = |i: &Option<f64>| {
                let index = axis_of(i.as_ref().copied()? as i64, elements.len())?;
                elements[index]
            };
            known.elements = Some(picks.iter().map(pick).collect());
        }
        Some(known)
    }

    fn slice(&self) -> Option<Known> {
        let dims = self.dims(0)?;
        let list = |index| {
            let list = self.elements(index)?;
            list.iter().copied().collect::<Option<Vec<f64>>>()
        };
        if let (Some(elements), [Some(n)]) = (self.elements(0), dims.as_slice())
            && let (Some([start]), Some([end])) = (list(1).as_deref(), list(2).as_deref())
            && list(4).is_none_or(|steps| steps == [1.0])
        {
            let n = *n as f64;
            let bound = |i: f64| (if i < 0.0 { i + n } else { i }).clamp(0.0, n) as usize;
            let part = elements.get(bound(*start)..bound(*end)).unwrap_or_default();
            return Some(Known::list(part.to_vec()));
        }
        let axes = list(3).and_then(|axes| -> Option<Vec<usize>> {
            axes.iter()
                .map(|&a| axis_of(a as i64, dims.len()))
                .collect()
        });
        let cut = |axis| axes.as_ref().is_none_or(|axes| axes.contains(&axis));
        let dims = dims.iter().enumerate();
        Some(Known::of_dims(
            dims.map(|(axis, &n)| if cut(axis) { None } else { n })
                .collect(),
        ))
    }

    fn squeeze(&self) -> Option<Known> {
        let known = self.input(0)?;
        let dims = known.dims.as_ref()?;
        let axes = self.axes(1)?;
        let axes: Vec<usize> = axes
            .iter()
            .filter_map(|&a| axis_of(a, dims.len()))
            .collect();
        let goes = |axis: usize, n: Option<u64>| match axes.is_empty() {
            true => n == Some(1),
            false => axes.contains(&axis),
        };
        let stays = dims.iter().enumerate().filter(|&(axis, &n)| !goes(axis, n));
        Some(Known {
            dims: Some(stays.map(|(_, &n)| n).collect()),
            elements: known.elements.clone(),
        })
    }

    fn unsqueeze(&self) -> Option<Known> {
        let known = self.input(0)?;
        let mut dims = known.dims.clone()?;
        let axes = self.axes(1)?;
        let rank = dims.len() + axes.len();
        let mut axes: Vec<usize> = axes.iter().filter_map(|&a| axis_of(a, rank)).collect();
        axes.sort_unstable();
        for axis in axes {
            dims.insert(axis.min(dims.len()), Some(1));
        }
        Some(Known {
            elements: known.elements.clone(),
            ..Known::of_dims(dims)
        })
    }

    fn reshape(&self) -> Option<Known> {
        let shape = self.elements(1)?;
        let keeps_zero = self.int("allowzero").unwrap_or(0) == 0;
        let old = self.dims(0);
        let dims = shape.iter().enumerate().map(|(axis, n)| match n {
            Some(0.0) if keeps_zero => old.and_then(|dims| dims.get(axis).copied().flatten()),
            Some(n) => whole(*n),
            None => None,
        });
        Some(Known {
            elements: self.elements(0).cloned(),
            ..Known::of_dims(dims.collect())
        })
    }

    fn transpose(&self) -> Option<Known> {
        let dims = self.dims(0)?;
        let order: Vec<i64> = self.ints("perm").collect();
        if order.is_empty() {
            return Some(Known::of_dims(dims.iter().rev().copied().collect()));
        }
        let at = |&axis: &i64| Some(dims[axis_of(axis, dims.len())?]);
        Some(Known::of_dims(order.iter().map(at).collect::<Option<_>>()?))
    }

    fn constant_of_shape(&self) -> Option<Known> {
        let mut known = Known::of_dims(self.sizes(0)?);
        let fill = match self.node.attr("value").and_then(|a| a.t.as_ref()) {
            None => Some(0.0),
            Some(tensor) => {
                let path = std::path::Path::new("");
                let int = tensor
                    .to_i64(path)
                    .ok()
                    .and_then(|v| v.first().map(|&n| n as f64));
                int.or_else(|| tensor.to_f32(path).ok()?.first().copied().map(f64::from))
            }
        };
        let n = known.dims.as_ref().and_then(product);
        if let Some(n) = n.filter(|&n| n <= FOLLOWED as u64) {
            known.elements = Some(vec![fill; n as usize]);
        }
        Some(known)
    }

    fn range(&self) -> Option<Known> {
        let number = |index| self.elements(index)?.first().copied().flatten();
        let (start, limit, delta) = (number(0)?, number(1)?, number(2)?);
        let n = ((limit - start) / delta).ceil().max(0.0);
        let mut known = Known::of_dims(vec![whole(n)]);
        if n <= FOLLOWED as f64 {
            let at = |i| Some(start + f64::from(i) * delta);
            known.elements = Some((0..n as u32).map(at).collect());
        }
        Some(known)
    }

    fn pad(&self) -> Option<Known> {
        let mut dims = self.dims(0)?.clone();
        let pads: Vec<Option<f64>> = match self.elements(1) {
            Some(pads) => pads.clone(),
            None => self.ints("pads").map(|n| Some(n as f64)).collect(),
        };
        let axes = match self.input(3) {
            Some(_) => self.axes(3)?,
            None => (0..dims.len() as i64).collect(),
        };
        let (before, after) = pads.split_at_checked(axes.len())?;
        for ((&axis, before), after) in axes.iter().zip(before).zip(after) {
            let axis = axis_of(axis, dims.len())?;
            let sum = match (dims[axis], before, after) {
                (Some(n), Some(before), Some(after)) => Some(n as f64 + before + after),
                _ => None,
            };
            dims[axis] = sum.and_then(whole);
        }
        Some(Known::of_dims(dims))
    }

    fn resize(&self) -> Option<Known> {
        let dims = self.dims(0)?;
        let is_upsample = self.node.op_type == "Upsample";
        let axes: Vec<i64> = match self.node.attr("axes") {
            Some(axes) => axes.ints.clone(),
            None => (0..dims.len() as i64).collect(),
        };
        let scales = match self.elements(if is_upsample { 1 } else { 2 }) {
            Some(scales) => Some(scales.clone()),
            // The second input of operator set 10 has the scales, of later ones a region.
            None if self.node.input.len() == 2 => self.elements(1).cloned(),
            None => None,
        };
        let scales = scales.filter(|scales| !scales.is_empty());
        let sizes = self.elements(3).filter(|_| !is_upsample);
        let mut new = dims.clone();
        for (i, &axis) in axes.iter().enumerate() {
            let axis = axis_of(axis, dims.len())?;
            let scaled =
                || whole((dims[axis]? as f64 * scales.as_ref()?.get(i).copied()??).floor());
            let sized = || whole(sizes?.get(i).copied()??);
            new[axis] = sized().or_else(scaled);
        }
        Some(Known::of_dims(new))
    }

    fn one_hot(&self) -> Option<Known> {
        let mut dims = self.dims(0)?.clone();
        let depth = self.elements(1)?.first().copied().flatten().and_then(whole);
        let axis = axis_of(self.int("axis").unwrap_or(-1), dims.len() + 1)?;
        dims.insert(axis, depth);
        Some(Known::of_dims(dims))
    }

    fn mat_mul(&self) -> Option<Known> {
        let (a, b) = (self.dims(0)?, self.dims(1)?);
        let (&[.., rows, _], &[.., _, cols]) = (a.as_slice(), b.as_slice()) else {
            return None;
        };
        let mut dims = broadcast(&a[..a.len() - 2], &b[..b.len() - 2]);
        dims.extend([rows, cols]);
        Some(Known::of_dims(dims))
    }

    fn gemm(&self) -> Option<Known> {
        let (&[a0, a1], &[b0, b1]) = (self.dims(0)?.as_slice(), self.dims(1)?.as_slice()) else {
            return None;
        };
        let is_set = |name| self.int(name).unwrap_or(0) != 0;
        Some(Known::of_dims(vec![
            if is_set("transA") { a1 } else { a0 },
            if is_set("transB") { b0 } else { b1 },
        ]))
    }

    fn conv(&self) -> Option<Known> {
        let (x, w) = (self.dims(0)?, self.dims(1)?);
        let (&[n, _, ref spatial @ ..], &[filters, _, ref kernel @ ..]) =
            (x.as_slice(), w.as_slice())
        else {
            return None;
        };
        let mut dims = vec![n, filters];
        dims.extend(self.windows(spatial, kernel));
        Some(Known::of_dims(dims))
    }

    fn pool(&self) -> Option<Known> {
        let (&[n, channels, ref spatial @ ..], kernel) = (
            self.dims(0)?.as_slice(),
            self.ints("kernel_shape").map(size),
        ) else {
            return None;
        };
        let mut dims = vec![n, channels];
        dims.extend(self.windows(spatial, &kernel.collect::<Vec<_>>()));
        Some(Known::of_dims(dims))
    }

    /// Positions of a sliding window along each axis.
    fn windows(&self, spatial: &[Option<u64>], kernel: &[Option<u64>]) -> Dims {
        let attr = |name: &str, i: usize, default: i64| self.ints(name).nth(i).unwrap_or(default);
        let one = |i: usize| {
            let pads = attr("pads", i, 0) as f64 + attr("pads", i + spatial.len(), 0) as f64;
            let reach = (kernel.get(i).copied()?? as f64 - 1.0) * attr("dilations", i, 1) as f64;
            let stride = attr("strides", i, 1).max(1) as f64;
            whole(((spatial[i]? as f64 + pads - reach - 1.0) / stride).floor() + 1.0)
        };
        (0..spatial.len()).map(one).collect()
    }

    fn conv_transpose(&self) -> Option<Known> {
        let (x, w) = (self.dims(0)?, self.dims(1)?);
        let (&[n, _, ref spatial @ ..], &[_, per_group, ref kernel @ ..]) =
            (x.as_slice(), w.as_slice())
        else {
            return None;
        };
        let attr = |name: &str, i: usize, default: i64| self.ints(name).nth(i).unwrap_or(default);
        let one = |i: usize| {
            let pads = attr("pads", i, 0) as f64 + attr("pads", i + spatial.len(), 0) as f64;
            let reach = (kernel.get(i).copied()?? as f64 - 1.0) * attr("dilations", i, 1) as f64;
            let steps = attr("strides", i, 1) as f64 * (spatial[i]? as f64 - 1.0);
            whole(steps + attr("output_padding", i, 0) as f64 + reach + 1.0 - pads)
        };
        let groups = size(self.int("group").unwrap_or(1));
        let mut dims = vec![n, times(per_group, groups)];
        dims.extend((0..spatial.len()).map(one));
        Some(Known::of_dims(dims))
    }
}

/// Operators whose first output has the shape of their first input.
const KEEPS_SHAPE: [&str; 40] = [
    "Acos",
    "Asin",
    "Atan",
    "BatchNormalization",
    "Clip",
    "Cos",
    "CumSum",
    "DequantizeLinear",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "EyeLike",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "IsInf",
    "IsNaN",
    "LayerNormalization",
    "LeakyRelu",
    "Log",
    "LogSoftmax",
    "Not",
    "QuantizeLinear",
    "RMSNormalization",
    "RandomNormalLike",
    "RandomUniformLike",
    "Reciprocal",
    "Relu",
    "Round",
    "ScatterElements",
    "ScatterND",
    "Sigmoid",
    "Sign",
    "SimplifiedLayerNormalization",
    "Sin",
    "Softmax",
    "Sqrt",
    "Tanh",
    "Trilu",
];

fn size(n: i64) -> Option<u64> {
    u64::try_from(n).ok()
}

/// A size that was computed; anything above the numbers that are exact counts as the largest.
fn whole(n: f64) -> Option<u64> {
    (n >= 0.0).then_some(n as u64)
}

fn times(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.saturating_mul(b)),
        _ => None,
    }
}

fn product(dims: &Dims) -> Option<u64> {
    dims.iter()
        .try_fold(1u64, |n, dim| Some(n.saturating_mul((*dim)?)))
}

fn axis_of(axis: i64, rank: usize) -> Option<usize> {
    let axis = if axis < 0 {
        axis.checked_add(rank as i64)?
    } else {
        axis
    };
    usize::try_from(axis).ok().filter(|&axis| axis < rank)
}

/// Shape of two values that are broadcast to each other.
fn broadcast(a: &[Option<u64>], b: &[Option<u64>]) -> Dims {
    let rank = a.len().max(b.len());
    let at = |dims: &[Option<u64>], i: usize| match (i + dims.len()).checked_sub(rank) {
        Some(i) => dims[i],
        None => Some(1),
    };
    let one = |i| match (at(a, i), at(b, i)) {
        (Some(1), n) | (n, Some(1)) => n,
        (Some(m), Some(n)) => Some(m.max(n)),
        (n, None) | (None, n) => n,
    };
    (0..rank).map(one).collect()
}
