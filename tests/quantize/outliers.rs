//! Outliers, which small models lack: the demo model with norm gains and gated units scaled up and
//! the weights behind them scaled down, which changes no answer in FP32.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use trtvlm::backend::CpuBackend;
use trtvlm::build::{Capacity, ComponentKind, Cuts, Numerics, Quantization, Runner, prepare};
use trtvlm::bundle::Precision;
use trtvlm::cpu::{Observed, Observer, Session};
use trtvlm::model::Model;
use trtvlm::onnx::passes::{check_types, prepare_fp32, select_logit_rows};
use trtvlm::onnx::proto::{NodeProto, TensorProto};
use trtvlm::onnx::{DataType, OnnxModel};
use trtvlm::pipeline::{Ask, Pipeline};
use trtvlm::preprocess::Frame;
use trtvlm::quantize::Method;

use super::support::{demo, items, observe};

const ITEMS: usize = 8;

/// Multiplies rows (axis 0) or columns of a matrix, or elements of a vector.
fn scale(tensor: &mut TensorProto, axis: usize, factor: impl Fn(usize) -> f32) {
    let mut values = tensor.to_f32(Path::new("t")).expect("floats");
    let cols = *tensor.dims.last().expect("dimensions") as usize;
    for (index, value) in values.iter_mut().enumerate() {
        let at = if axis == 0 && tensor.dims.len() == 2 {
            index / cols
        } else {
            index % cols
        };
        *value *= factor(at);
    }
    *tensor = TensorProto::from_f32(&tensor.name, &tensor.dims, &values);
}

fn node<'a>(graph: &'a OnnxModel, name: &str) -> &'a NodeProto {
    let mut nodes = graph.graph().node.iter();
    nodes.find(|node| node.name == name).expect(name)
}

/// The demo model with outliers, as FP32 files.
fn with_outliers(to: &Path) -> PathBuf {
    let dir = to.join("outliers");
    std::fs::create_dir_all(dir.join("onnx")).expect("folder");
    for entry in std::fs::read_dir(demo()).expect("folder").flatten() {
        if entry.file_type().expect("type").is_file() {
            std::fs::copy(entry.path(), dir.join(entry.file_name())).expect("copy");
        }
    }
    let model = Model::load(&demo(), None).expect("model");
    let single = |path: &Path| {
        let mut graph = OnnxModel::load(path).expect("graph");
        prepare_fp32(&mut graph, &[]).expect("fp32");
        graph
    };
    let save = |graph: &OnnxModel, name: &str| {
        graph.save(&dir.join("onnx").join(name)).expect("save");
    };
    save(&single(&model.files.vision), "vision_encoder.onnx");
    save(&single(&model.files.embed), "embed_tokens.onnx");
    let mut decoder = single(&model.files.decoder);
    let is_outlier = |channel: usize| channel % 31 == 7;
    // Which weights take which factors: by the names of nodes that read them.
    let mut scaled: HashMap<String, (usize, f32)> = HashMap::new();
    for layer in 0..4 {
        let suffix = if layer == 0 {
            String::new()
        } else {
            format!("_{layer}")
        };
        let weight = |op: &str| node(&decoder, &format!("/{op}{suffix}/MatMul")).input[1].clone();
        for (gain, readers) in [
            ("input_layernorm", &["q_proj", "k_proj", "v_proj"][..]),
            ("post_attention_layernorm", &["gate_proj"]),
        ] {
            scaled.insert(format!("lm.layers.{layer}.{gain}.weight"), (1, 200.0));
            for reader in readers {
                scaled.insert(weight(reader), (0, 1.0 / 200.0));
            }
        }
        scaled.insert(weight("down_proj"), (0, 1.0 / 1000.0));
        // Read behind the gain, and scaled up itself.
        let up = weight("up_proj");
        for tensor in &mut decoder.graph_mut().initializer {
            if tensor.name == up {
                scale(
                    tensor,
                    0,
                    |row| if is_outlier(row) { 1.0 / 200.0 } else { 1.0 },
                );
                scale(tensor, 1, |col| if is_outlier(col) { 1000.0 } else { 1.0 });
            }
        }
    }
    let mut found = 0;
    for tensor in &mut decoder.graph_mut().initializer {
        if let Some(&(axis, factor)) = scaled.get(&tensor.name) {
            scale(tensor, axis, |at| if is_outlier(at) { factor } else { 1.0 });
            found += 1;
        }
    }
    assert_eq!(found, scaled.len(), "{scaled:?}");
    save(&decoder, "decoder_model_merged.onnx");
    dir
}

/// Answers of graphs to the first items.
fn answers(model: &Model, vision: Session, decoder: Session) -> Vec<Vec<u32>> {
    let backend = CpuBackend::new(model, vision, decoder).expect("backend");
    let boxed = Box::new(backend);
    let pipeline = Pipeline::with_backend(model.clone(), "fp32".to_owned(), "cpu", boxed);
    let mut pipeline = pipeline.expect("pipeline");
    let items = items();
    let ask = |item: &trtvlm::items::Item| {
        let frame = Frame::load(&item.image).expect("frame");
        let answer = pipeline.ask(&frame, &item.prompt, &Ask::default(), &mut |_| {});
        answer.expect("answer").token_ids
    };
    items[..ITEMS].iter().map(ask).collect()
}

/// Answers of the model's own files.
fn of_files(dir: &Path) -> Vec<Vec<u32>> {
    let model = Model::load(dir, None).expect("model");
    let vision = Session::open(&model.files.vision).expect("vision");
    let mut decoder = OnnxModel::load(&model.files.decoder).expect("decoder");
    select_logit_rows(&mut decoder).expect("rows");
    let decoder = Session::load(&decoder).expect("decoder");
    answers(&model, vision, decoder)
}

fn prepared(model: &Model, runner: Runner, numerics: Numerics<'_>) -> [OnnxModel; 2] {
    let capacity = Capacity::new(&model.config, None, 0, 1).expect("capacity");
    [ComponentKind::Vision, ComponentKind::Decoder].map(|kind| {
        let made = prepare(
            kind,
            model,
            runner,
            numerics,
            &Cuts::default(),
            &capacity,
            &Arc::default(),
        );
        made.expect("prepared").graph
    })
}

#[test]
fn int8_of_outliers_answers_like_fp32_with_smoothing_and_not_without() {
    let dir = tempfile::tempdir().expect("dir");
    let outliers = with_outliers(dir.path());
    let expected = of_files(&demo());
    assert_eq!(
        of_files(&outliers),
        expected,
        "the variant computes the same"
    );

    let model = Model::load(&outliers, None).expect("model");
    let scales = observe(&outliers, ITEMS);
    let same = |smooth: Option<f32>| {
        let mut quantization =
            Quantization::with_scales(scales.clone(), Method::Max).expect("scales");
        quantization.options.smooth = smooth;
        let numerics = Numerics {
            precision: Precision::Int8,
            quantization: Some(&quantization),
        };
        // The outliers are the decoder's; the noise of the vision tower would blur the picture.
        let [_, decoder] = prepared(&model, Runner::Cpu, numerics);
        let vision = Session::open(&model.files.vision).expect("vision");
        let found = answers(&model, vision, Session::load(&decoder).expect("decoder"));
        found.iter().zip(&expected).filter(|(a, b)| a == b).count()
    };
    let (smooth, rough) = (same(Some(0.5)), same(None));
    assert!(smooth >= ITEMS - 1, "{smooth} of {ITEMS} with smoothing");
    assert!(rough < smooth, "{rough} of {ITEMS} without");
}

/// Largest absolute value of each observed value.
struct Largest(Arc<Mutex<Vec<f32>>>);

impl Observer for Largest {
    fn observe(&mut self, values: &[Observed<'_>]) -> trtvlm::Result<()> {
        let mut largest = self.0.lock().expect("lock");
        for value in values {
            let most = value.data.iter().fold(0f32, |most, x| most.max(x.abs()));
            largest[value.tap] = largest[value.tap].max(most);
        }
        Ok(())
    }
}

#[test]
fn fp16_of_outliers_leaves_its_range_nowhere() {
    let dir = tempfile::tempdir().expect("dir");
    let model = Model::load(&with_outliers(dir.path()), None).expect("model");
    let numerics = Numerics {
        precision: Precision::Fp16,
        quantization: None,
    };
    let [vision, mut decoder] = prepared(&model, Runner::Onnx, numerics);
    select_logit_rows(&mut decoder).expect("rows");
    let types = check_types(&decoder).expect("types");
    let graph = decoder.graph();
    let data: HashSet<&str> = graph.data_values();
    let made = graph.node.iter().flat_map(|node| &node.output);
    let halves =
        |name: &&String| types.get(name) == Some(DataType::F16) && data.contains(name.as_str());
    let names: Vec<String> = made.filter(halves).cloned().collect();
    assert!(names.len() > 100, "{}", names.len());
    let largest = Arc::new(Mutex::new(vec![0f32; names.len()]));
    let observer = Box::new(Largest(Arc::clone(&largest)));
    let decoder = Session::load_observed(decoder, &names, observer).expect("decoder");
    let found = answers(&model, Session::load(&vision).expect("vision"), decoder);
    assert_eq!(found, of_files(&demo()));
    let largest = largest.lock().expect("lock");
    for (name, most) in names.iter().zip(largest.iter()) {
        // A margin for pictures that were not asked about.
        assert!(*most < 65504.0 / 4.0, "{name}: {most}");
    }
    assert!(
        largest.iter().any(|most| *most > 100.0),
        "something was seen"
    );
}
