//! Every backend gives PyTorch's numbers, stage by stage, on every form of published graphs.
//!
//! The folders in `tests/data/tiny` have random weights; their `golden.safetensors` come from
//! PyTorch in FP32 (`tools/zoo`). They hold pixel values, image features, prompt ids, the prompt's
//! logits and 32 greedy ids with the margin between first and second choice.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use trtvlm::backend::{Backend, CpuBackend, Prefill};
use trtvlm::model::Model;
use trtvlm::preprocess::PixelValues;
use trtvlm::tensor::Tensor;

/// Folder, variant, largest difference of features and of logits to PyTorch in FP32.
///
/// FP16 files differ by the rounding of their weights.
const CASES: &[(&str, &str, f32, f32)] = &[
    ("fastvlm-tiny-plain", "fp32", 2e-4, 2e-4),
    ("fastvlm-tiny-contrib", "fp32", 2e-4, 2e-4),
    ("fastvlm-tiny-contrib-sep", "fp32", 2e-4, 2e-4),
    ("smolvlm-tiny-plain", "fp32", 2e-4, 2e-4),
    ("smolvlm-tiny-contrib", "fp32", 2e-4, 2e-4),
    ("smolvlm-tiny-contrib-sep", "fp32", 2e-4, 2e-4),
];

struct Golden {
    floats: HashMap<String, (Vec<usize>, Vec<f32>)>,
    ints: HashMap<String, Vec<i64>>,
    bytes: HashMap<String, (Vec<usize>, Vec<u8>)>,
}

impl Golden {
    fn load(path: &Path) -> Self {
        let file = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let tensors = SafeTensors::deserialize(&file).expect("safetensors");
        let mut golden = Self {
            floats: HashMap::new(),
            ints: HashMap::new(),
            bytes: HashMap::new(),
        };
        for (name, view) in tensors.tensors() {
            let (shape, data) = (view.shape().to_vec(), view.data());
            match view.dtype() {
                Dtype::F32 => {
                    let data = data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                    golden.floats.insert(name, (shape, data.collect()));
                }
                Dtype::I64 => {
                    let data = data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("8")));
                    golden.ints.insert(name, data.collect());
                }
                Dtype::U8 => {
                    golden.bytes.insert(name, (shape, data.to_vec()));
                }
                other => panic!("{name}: {other:?}"),
            }
        }
        golden
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        self.ints[name].iter().map(|&id| u32::try_from(id).expect("id")).collect()
    }

    /// Pixels and mask of the vision input `<prefix>pixel_values`, without the batch dimension.
    fn image(&self, prefix: &str, tiled: bool) -> PixelValues {
        let (shape, data) = &self.floats[&format!("{prefix}pixel_values")];
        let shape = &shape[usize::from(tiled)..];
        let pixels = Tensor::new("pixel_values", shape, data.clone()).expect("pixels");
        let side = *shape.last().expect("side");
        let mask = self.bytes.get(&format!("{prefix}pixel_attention_mask")).map(|(shape, data)| {
            Tensor::new("mask", &shape[1..], data.clone()).expect("mask")
        });
        PixelValues {
            pixels,
            mask: mask.filter(|_| tiled),
            grid: None,
            content: [0, 0, side, side],
            notes: Default::default(),
        }
    }
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny").join(name)
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

#[test]
fn cpu_backend_gives_the_reference_ids_and_logits() {
    let mut failures = Vec::new();
    for &(name, variant, _, tolerance) in CASES {
        let dir = folder(name);
        let golden = Golden::load(&dir.join("golden.safetensors"));
        let model = Model::load(&dir, Some(variant)).expect(name);
        let mut backend = CpuBackend::load(&model).expect(name);
        let ids = golden.ids("input_ids");
        let expected = golden.ids("greedy_ids");
        let margins = &golden.floats["greedy_margin"].1;

        let n = backend.encode(&golden.image("", model.config.family.tiled)).expect(name);
        let positions: Vec<u32> = (0..ids.len() as u32).collect();
        let visual: Vec<usize> = (0..n).collect();
        let prompt = Prefill {
            ids: &ids,
            positions: &positions,
            visual: &visual,
            image_token: model.config.image_token_id,
            reserve: expected.len(),
        };
        let mut logits = backend.prefill(&prompt).expect(name);
        let (shape, reference) = &golden.floats["prefill_logits"];
        let last = &reference[reference.len() - shape[2]..];
        let difference = largest_difference(logits.last_row(), last);
        if difference > tolerance {
            failures.push(format!("{name} {variant}: logits differ by {difference}"));
        }
        let mut position = ids.len() as u32;
        for (step, &id) in expected.iter().enumerate() {
            let row = logits.last_row();
            let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).expect("row");
            if best as u32 != id {
                failures.push(format!(
                    "{name} {variant}: step {step} gives {best}, reference {id} (margin {})",
                    margins[step]
                ));
                break;
            }
            if model.config.eos.contains(&id) {
                break;
            }
            logits = backend.step(&[id], position).expect(name);
            position += 1;
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn cpu_backend_after_rollback_gives_the_same_logits() {
    for &(name, variant, _, tolerance) in CASES {
        let dir = folder(name);
        let golden = Golden::load(&dir.join("golden.safetensors"));
        let model = Model::load(&dir, Some(variant)).expect(name);
        let mut backend = CpuBackend::load(&model).expect(name);
        let (ids, next) = (golden.ids("input_ids"), golden.ids("greedy_ids"));
        let n = backend.encode(&golden.image("", model.config.family.tiled)).expect(name);
        let positions: Vec<u32> = (0..ids.len() as u32).collect();
        let visual: Vec<usize> = (0..n).collect();
        let prompt = Prefill {
            ids: &ids,
            positions: &positions,
            visual: &visual,
            image_token: model.config.image_token_id,
            reserve: 8,
        };
        backend.prefill(&prompt).expect(name);
        let at = ids.len() as u32;
        let three = backend.step(&next[..3], at).expect(name);
        assert_eq!(three.n_rows(), 3, "{name}");
        backend.rollback(ids.len() + 1).expect(name);
        let again = backend.step(&next[1..3], at + 1).expect(name);
        // Other row counts choose other kernels: equal up to rounding.
        let difference = largest_difference(three.row(2), again.row(1));
        assert!(difference <= tolerance, "{name} {variant}: {difference}");
        assert!(backend.rollback(ids.len() + 9).is_err(), "{name}");
    }
}

#[test]
fn cpu_backend_encodes_tiles_and_drops_empty_ones() {
    for &(name, variant, tolerance, _) in CASES {
        let dir = folder(name);
        let golden = Golden::load(&dir.join("golden.safetensors"));
        let model = Model::load(&dir, Some(variant)).expect(name);
        if !model.config.family.tiled {
            continue;
        }
        let mut backend = CpuBackend::load(&model).expect(name);
        let (shape, _) = &golden.floats["padded_image_features"];
        let n = backend.encode(&golden.image("padded_", true)).expect(name);
        // One of five tiles is all zero: the tower leaves it out.
        assert_eq!(n, shape[0] * shape[1], "{name}");
        assert_eq!(n, 4 * model.config.tokens_per_tile, "{name}");
        let difference = largest_difference(backend.features(), &golden.floats["padded_image_features"].1);
        assert!(difference <= tolerance, "{name} {variant}: {difference}");
    }
}
