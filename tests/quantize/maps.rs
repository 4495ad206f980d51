//! Feature maps whose channels differ in size, as in towers of convolutions: what smoothing makes of
//! them computes the same, and with less noise.

use std::collections::BTreeMap;

use trtvlm::onnx::OnnxModel;
use trtvlm::onnx::proto::{NodeProto, TensorProto};
use trtvlm::quantize::{GraphRanges, QuantizeOptions, Scheme, TensorRange, quantize};

use super::support::{graph, run, sqnr_db};

const CHANNELS: usize = 8;
const SIDE: usize = 6;

/// Numbers from -1 to 1 that look random.
fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(next).collect()
}

/// Times 10 to the power of how far a channel, one of `inner` neighbouring elements, is from the first.
fn spread(values: Vec<f32>, inner: usize) -> Vec<f32> {
    let size = |i: usize| 10f32.powf(-((i / inner % CHANNELS) as f32) / 2.0);
    let values = values.into_iter().enumerate();
    values.map(|(i, value)| value * size(i)).collect()
}

/// A tail of GELU, a depthwise convolution, a residual block with two dense ones, and another
/// depthwise one that makes two maps of each.
fn tower() -> OnnxModel {
    let node = |op: &str, inputs: &[&str], output: &str| NodeProto::new(op, inputs, &[output]);
    let conv = |inputs: &[&str], output: &str, groups: usize| {
        node("Conv", inputs, output)
            .with_int("group", groups as i64)
            .with_ints("pads", &[0; 4])
            .with_ints("strides", &[1, 1])
            .with_ints("dilations", &[1, 1])
    };
    let c = CHANNELS as i64;
    let weight = |name: &str, dims: [i64; 4], seed: u32| {
        let n = dims.iter().product::<i64>() as usize;
        TensorProto::from_f32(name, &dims, &noise(n, seed))
    };
    graph(
        vec![
            node("Mul", &["x", "half"], "a"),
            conv(&["a", "mixer", "bias"], "b", CHANNELS),
            conv(&["b", "fc1", "bias"], "c", 1),
            node("Relu", &["c"], "d"),
            node("Mul", &["d", "gain"], "e"),
            conv(&["e", "fc2"], "f", 1),
            node("Add", &["b", "f"], "g"),
            conv(&["g", "down"], "y", CHANNELS),
        ],
        vec![
            TensorProto::from_f32("half", &[], &[0.5]),
            TensorProto::from_f32("gain", &[c, 1, 1], &spread(vec![2.0; CHANNELS], 1)),
            TensorProto::from_f32("bias", &[c], &spread(noise(CHANNELS, 1), 1)),
            weight("mixer", [c, 1, 1, 1], 2),
            weight("fc1", [c, c, 1, 1], 3),
            weight("fc2", [c, c, 1, 1], 4),
            weight("down", [2 * c, 1, 3, 3], 5),
        ],
    )
}

fn shape() -> [usize; 4] {
    [1, CHANNELS, SIDE, SIDE]
}

fn x() -> Vec<f32> {
    let inner = SIDE * SIDE;
    spread(noise(CHANNELS * inner, 6), inner)
}

/// Ranges of the maps that are read by what is quantized.
fn ranges(model: &OnnxModel) -> GraphRanges {
    let range = |name: &str| {
        let mut asked = model.clone();
        asked.graph_mut().output[0].name = name.to_owned();
        let values = run(&asked, &[("x", &shape(), &x())], name);
        let most = |values: &[f32]| values.iter().fold(0f32, |most, v| most.max(v.abs()));
        let channels: Vec<f32> = values.chunks(SIDE * SIDE).map(most).collect();
        let amax = most(&values);
        let range = TensorRange {
            amax,
            min: -amax,
            max: amax,
            channel_amax: channels,
        };
        (name.to_owned(), range)
    };
    GraphRanges {
        source_sha256: String::new(),
        tensors: ["a", "b", "e", "f", "g"].map(range).into(),
    }
}

fn quantized(options: &QuantizeOptions, ranges: &GraphRanges) -> (Vec<f32>, Vec<String>) {
    let mut model = tower();
    let report = quantize(&mut model, Some(ranges), options).expect("quantize");
    (run(&model, &[("x", &shape(), &x())], "y"), report.smoothed)
}

#[test]
fn maps_are_evened_out_through_residuals_without_changing_what_is_computed() {
    let model = tower();
    let expected = run(&model, &[("x", &shape(), &x())], "y");
    let ranges = ranges(&model);
    let mut options = QuantizeOptions::new(Scheme::Int8);
    options.only = Some([].into());
    let (same, smoothed) = quantized(&options, &ranges);
    assert_eq!(smoothed, ["a", "b", "e", "f", "g"]);
    assert!(sqnr_db(&expected, &same) > 120.0);

    options.only = None;
    let (even, _) = quantized(&options, &ranges);
    options.smooth = None;
    let (rough, smoothed) = quantized(&options, &ranges);
    assert!(smoothed.is_empty());
    // Of the channel that suffers most.
    let [even, rough] = [even, rough].map(|found| {
        let of_channel = expected.len() / (2 * CHANNELS);
        let channels = expected.chunks(of_channel).zip(found.chunks(of_channel));
        let worst = channels.map(|(expected, found)| sqnr_db(expected, found));
        worst.fold(f64::INFINITY, f64::min)
    });
    assert!(even > rough + 10.0, "{even} dB with, {rough} dB without");
}

#[test]
fn maps_that_something_else_reads_or_makes_or_that_were_not_seen_stay() {
    let model = tower();
    let all = ranges(&model);
    let smoothed = |change: &dyn Fn(&mut OnnxModel), ranges: &GraphRanges| {
        let mut model = tower();
        change(&mut model);
        let options = QuantizeOptions::new(Scheme::Int8);
        let report = quantize(&mut model, Some(ranges), &options);
        report.expect("quantize").smoothed
    };
    let insert = |op: &'static str, read: &'static str| {
        move |model: &mut OnnxModel| {
            let node = NodeProto::new(op, &[read], &["other"]);
            let graph = model.graph_mut();
            let output = graph.output[0].clone();
            graph.node.push(node);
            graph.output.push(output);
            graph.output[1].name = "other".to_owned();
        }
    };
    // The residual is one group: whatever concerns one of its maps concerns all.
    assert_eq!(smoothed(&insert("Sigmoid", "g"), &all), ["a", "e"]);
    assert_eq!(
        smoothed(&insert("Identity", "a"), &all),
        ["b", "e", "f", "g"]
    );
    let squared = |model: &mut OnnxModel| {
        let graph = model.graph_mut();
        graph.node[0].input[1] = "x".to_owned();
    };
    assert_eq!(smoothed(&squared, &all), ["b", "e", "f", "g"]);
    let shared = |model: &mut OnnxModel| model.graph_mut().node[5].input[1] = "fc1".to_owned();
    assert_eq!(smoothed(&shared, &all), ["a"]);

    let mut unseen = all.clone();
    let range = unseen.tensors.get_mut("f").expect("range");
    range.channel_amax.pop();
    assert_eq!(smoothed(&|_| {}, &unseen), ["a", "e"]);
    let none = GraphRanges {
        tensors: BTreeMap::new(),
        ..all
    };
    let mut options = QuantizeOptions::new(Scheme::Int8);
    options.only = Some([].into());
    let report = quantize(&mut tower(), Some(&none), &options).expect("quantize");
    assert!(report.smoothed.is_empty());
}
