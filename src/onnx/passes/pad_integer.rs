//! Pad integer convolutions with their zero point, in a node before them.
//!
//! The padding of `ConvInteger` stands for zero, which its input writes as `x_zero_point`. rten 0.27
//! (`rten-gemm`, `im2col.rs`) writes 0 there, whatever the zero point is, except in depthwise
//! convolutions; what dynamic quantization makes of a convolution is then wrong along its edges.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::onnx::OnnxModel;
use crate::onnx::graph::Names;
use crate::onnx::proto::{NodeProto, TensorProto};

/// Puts a `Pad` before every `ConvInteger` that pads, depthwise ones left out.
///
/// # Errors
/// [`Error::Unsupported`] for one whose padding depends on sizes that only a run knows
/// (`auto_pad`).
pub fn pad_integer_convs(model: &mut OnnxModel) -> Result<()> {
    let is_conv = |node: &NodeProto| node.op() == "ConvInteger";
    if !model.graph().node.iter().any(is_conv) {
        return Ok(());
    }
    let graph = model.graph_mut();
    let mut names = Names::of(graph);
    let kernels: HashMap<&str, &[i64]> = graph
        .initializer
        .iter()
        .map(|tensor| (tensor.name.as_str(), tensor.dims.as_slice()))
        .collect();
    let mut constants = Vec::new();
    let mut nodes = Vec::with_capacity(graph.node.len());
    for mut node in std::mem::take(&mut graph.node) {
        if is_conv(&node) && !is_depthwise(&node, &kernels) {
            let pads = padding(&node)?;
            if pads.iter().any(|&n| n != 0) {
                nodes.push(padded(&mut node, &pads, &mut names, &mut constants));
            }
        }
        nodes.push(node);
    }
    graph.node = nodes;
    graph.initializer.extend(constants);
    Ok(())
}

/// Convolutions that the engine does in another way, and right.
fn is_depthwise(node: &NodeProto, kernels: &HashMap<&str, &[i64]>) -> bool {
    let groups = node.attr("group").and_then(|group| group.i).unwrap_or(1);
    let kernel = node
        .input
        .get(1)
        .and_then(|name| kernels.get(name.as_str()));
    kernel.is_some_and(|kernel| kernel.len() == 4 && kernel[0] == groups && kernel[1] == 1)
}

/// How far each spatial axis is padded: all beginnings, then all ends.
fn padding(node: &NodeProto) -> Result<Vec<i64>> {
    let auto = node.attr("auto_pad").and_then(|auto| auto.s.as_deref());
    if auto.is_some_and(|auto| auto.starts_with(b"SAME")) {
        return Err(Error::Unsupported {
            node: node.label().to_owned(),
            op: node.op(),
            reason: "`auto_pad` is not supported here".to_owned(),
        });
    }
    Ok(node
        .attr("pads")
        .map_or(Vec::new(), |pads| pads.ints.clone()))
}

/// The node that pads the input of `conv`, which then pads no more.
fn padded(
    conv: &mut NodeProto,
    pads: &[i64],
    names: &mut Names,
    constants: &mut Vec<TensorProto>,
) -> NodeProto {
    let input = conv.input.first().cloned().unwrap_or_default();
    let zero = conv.input.get(2).cloned().unwrap_or_default();
    let out = names.fresh(&format!("{input}_padded"));
    let amounts = names.fresh(&format!("{out}_by"));
    // Neither batch nor channels are padded.
    let (begins, ends) = pads.split_at(pads.len() / 2);
    let all = [&[0, 0], begins, &[0, 0], ends].concat();
    constants.push(TensorProto::from_i64(&amounts, &[all.len() as i64], &all));
    for attribute in conv.attribute.iter_mut().filter(|a| a.name == "pads") {
        attribute.ints.fill(0);
    }
    if let Some(name) = conv.input.first_mut() {
        name.clone_from(&out);
    }
    match zero.is_empty() {
        true => NodeProto::new("Pad", &[&input, &amounts], &[&out]),
        false => NodeProto::new("Pad", &[&input, &amounts, &zero], &[&out]),
    }
}

#[cfg(test)]
mod tests {
    use rten_tensor::Tensor;
    use rten_tensor::prelude::*;

    use super::super::testing::{model, ops, shaped, value};
    use super::*;
    use crate::cpu::Session;
    use crate::onnx::{DataType, Dim};

    const SIDE: usize = 5;
    const KERNEL: usize = 3;

    /// A convolution of `channels` pictures of 5 x 5 with kernels of 3 x 3.
    #[derive(Debug)]
    struct Case {
        channels: usize,
        outputs: usize,
        groups: usize,
        /// Top, left, bottom, right.
        pads: [i64; 4],
        zero: Option<u8>,
    }

    fn pixel(i: usize) -> u8 {
        (i * 37 % 251) as u8
    }

    fn weight(i: usize) -> i8 {
        (i * 29 % 255) as i8
    }

    impl Case {
        fn n_weights(&self) -> usize {
            self.outputs * self.channels / self.groups * KERNEL * KERNEL
        }

        fn graph(&self) -> OnnxModel {
            let n = |n: usize| Dim::Fixed(n);
            let dims = [n(1), n(self.channels), n(SIDE), n(SIDE)];
            let input = shaped("x", DataType::U8, &dims);
            let dims = [self.outputs, self.channels / self.groups, KERNEL, KERNEL];
            let raw: Vec<u8> = (0..self.n_weights()).map(|i| weight(i) as u8).collect();
            let kernel = TensorProto::from_raw("w", DataType::I8, &dims.map(|n| n as i64), raw);
            let mut constants = vec![kernel];
            let mut inputs = vec!["x", "w"];
            if let Some(zero) = self.zero {
                constants.push(TensorProto::from_raw("zero", DataType::U8, &[], vec![zero]));
                inputs.push("zero");
            }
            let conv = NodeProto::new("ConvInteger", &inputs, &["y"])
                .with_ints("kernel_shape", &[KERNEL as i64; 2])
                .with_ints("pads", &self.pads)
                .with_int("group", self.groups as i64);
            let output = vec![value("y", DataType::I32)];
            model(vec![input], constants, vec![conv], output)
        }

        /// By the definition of the operator.
        fn expected(&self) -> Vec<i32> {
            let [top, left, bottom, right] = self.pads.map(|n| n as usize);
            let per_group = self.channels / self.groups;
            let zero = i32::from(self.zero.unwrap_or(0));
            let mut all = Vec::new();
            for output in 0..self.outputs {
                let first = output / (self.outputs / self.groups) * per_group;
                for y in 0..SIDE + top + bottom + 1 - KERNEL {
                    for x in 0..SIDE + left + right + 1 - KERNEL {
                        let mut sum = 0;
                        for channel in 0..per_group {
                            for (i, j) in (0..9).map(|n| (n / KERNEL, n % KERNEL)) {
                                let (Some(row), Some(column)) =
                                    ((y + i).checked_sub(top), (x + j).checked_sub(left))
                                else {
                                    continue;
                                };
                                if row >= SIDE || column >= SIDE {
                                    continue;
                                }
                                let at = ((first + channel) * SIDE + row) * SIDE + column;
                                let kernel = (output * per_group + channel) * 9 + i * KERNEL + j;
                                sum += (i32::from(pixel(at)) - zero) * i32::from(weight(kernel));
                            }
                        }
                        all.push(sum);
                    }
                }
            }
            all
        }
    }

    fn case(
        channels: usize,
        outputs: usize,
        groups: usize,
        pads: [i64; 4],
        zero: Option<u8>,
    ) -> Case {
        Case {
            channels,
            outputs,
            groups,
            pads,
            zero,
        }
    }

    #[test]
    fn integer_convolution_with_padding_is_that_of_the_definition() {
        let cases = [
            case(2, 3, 1, [1; 4], Some(113)),
            case(2, 3, 1, [2, 0, 1, 1], Some(7)),
            case(4, 4, 2, [1; 4], Some(255)),
            case(2, 3, 1, [1; 4], None),
            case(3, 3, 3, [1; 4], Some(113)),
            case(2, 3, 1, [0; 4], Some(113)),
        ];
        for case in cases {
            let mut graph = case.graph();
            pad_integer_convs(&mut graph).expect("pass");
            let n_pads = ops(&graph).iter().filter(|op| **op == "Pad").count();
            let wants = case.groups < 3 && case.pads != [0; 4];
            assert_eq!(n_pads, usize::from(wants), "{case:?}");
            // The engine's room calls the pass itself.
            for graph in [&graph, &case.graph()] {
                let session = Session::load(graph).expect("load");
                let pixels: Vec<u8> = (0..case.channels * SIDE * SIDE).map(pixel).collect();
                let x = Tensor::<u8>::from_data(&[1, case.channels, SIDE, SIDE], pixels);
                let inputs = vec![(session.input("x").expect("x"), x.into())];
                let y = session.run(inputs, &[session.output("y").expect("y")]);
                let y = y.expect("run").remove(0).into_tensor::<i32>().expect("i32");
                let y: Vec<i32> = y.iter().copied().collect();
                assert_eq!(y, case.expected(), "{case:?}");
            }
        }
    }

    #[test]
    fn padding_that_only_a_run_knows_is_refused() {
        use crate::onnx::proto::{AttributeProto, attribute_type};
        let mut graph = case(2, 3, 1, [1; 4], None).graph();
        graph.graph_mut().node[0].attribute = vec![AttributeProto {
            name: "auto_pad".to_owned(),
            s: Some("SAME_UPPER".into()),
            r#type: Some(attribute_type::STRING),
            ..AttributeProto::default()
        }];
        let error = pad_integer_convs(&mut graph).expect_err("refused");
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains("auto_pad"), "{error}");
    }
}
