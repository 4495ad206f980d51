//! Every backend gives PyTorch's numbers, stage by stage, on every form of published graphs.
//!
//! The folders in `tests/data/tiny` have random weights; their `golden.safetensors` come from
//! PyTorch in FP32 (`tools/zoo`). They hold pixel values, image features, prompt ids, the prompt's
//! logits and 32 greedy ids with the margin between first and second choice.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use trtvlm::backend::{Backend, CpuBackend, Logits, Prefill};
use trtvlm::model::Model;
use trtvlm::preprocess::{Fit, Frame, Notes, PixelValues, Processor, Tiles};
use trtvlm::tensor::Tensor;

/// Folder, variant, file of golden values, largest difference of features and of logits to them.
///
/// FP16 files differ from PyTorch in FP32 by the rounding of their weights.
const CASES: &[(&str, &str, &str, f32, f32)] = &[
    ("fastvlm-tiny-plain", "fp32", PYTORCH, 2e-4, 2e-4),
    ("fastvlm-tiny-external", "fp32", PYTORCH, 2e-4, 2e-4),
    ("fastvlm-tiny-contrib", "fp32", PYTORCH, 2e-4, 2e-4),
    ("fastvlm-tiny-contrib", "fp16", PYTORCH, 2e-2, 2e-2),
    ("fastvlm-tiny-contrib-sep", "fp32", PYTORCH, 2e-4, 2e-4),
    (
        "fastvlm-tiny-contrib-sep",
        "q4f16",
        "golden_q4f16.safetensors",
        2e-2,
        2e-2,
    ),
    ("smolvlm-tiny-plain", "fp32", PYTORCH, 2e-4, 2e-4),
    ("smolvlm-tiny-contrib", "fp32", PYTORCH, 2e-4, 2e-4),
    ("smolvlm-tiny-contrib-sep", "fp32", PYTORCH, 2e-4, 2e-4),
];

const PYTORCH: &str = "golden.safetensors";

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
                    let data = data
                        .chunks_exact(4)
                        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                    golden.floats.insert(name, (shape, data.collect()));
                }
                Dtype::I64 => {
                    let data = data
                        .chunks_exact(8)
                        .map(|b| i64::from_le_bytes(b.try_into().expect("8")));
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
        self.ints[name]
            .iter()
            .map(|&id| u32::try_from(id).expect("id"))
            .collect()
    }

    fn frame(&self, name: &str, index: usize) -> Frame {
        let (shape, data) = &self.bytes[name];
        let (h, w) = (shape[shape.len() - 3], shape[shape.len() - 2]);
        let pixels = data[index * h * w * 3..][..h * w * 3].to_vec();
        Frame::new(name, w, h, pixels).expect("frame")
    }

    /// The picture that the golden values are for; it has the model's size.
    fn image(&self, model: &Model) -> PixelValues {
        let processor = Processor::load(&model.dir).expect("processor");
        let image = processor.run(&self.frame("image", 0), Fit::Processor, Tiles::Count(1));
        image.expect("pixel values")
    }

    /// Five pictures of one frame: the lower half of the second is padding, the fourth is empty.
    fn padded_tiles(&self, model: &Model) -> PixelValues {
        let processor = Processor::load(&model.dir).expect("processor");
        let side = model.config.image_size;
        let area = side * side;
        let (mut pixels, mut mask) = (Vec::new(), vec![1u8; 5 * area]);
        for tile in 0..5 {
            let frame = self.frame("tiles", tile);
            let image = processor.run(&frame, Fit::Processor, Tiles::Count(1));
            pixels.extend_from_slice(image.expect("pixel values").pixels.data());
        }
        mask[area + area / 2..2 * area].fill(0);
        for channel in 0..3 {
            pixels[(3 + channel) * area + area / 2..(4 + channel) * area].fill(0.0);
        }
        pixels[9 * area..12 * area].fill(0.0);
        PixelValues {
            pixels: Tensor::new("pixels", [5, 3, side, side], pixels).expect("pixels"),
            mask: Some(Tensor::new("mask", [5, side, side], mask).expect("mask")),
            grid: Some((2, 2)),
            content: [0, 0, 2 * side, 2 * side],
            shown: [0.0, 0.0, 1.0, 1.0],
            notes: Notes::default(),
        }
    }
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/tiny")
        .join(name)
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(x, y)| (x - y).abs())
        .fold(0.0, f32::max)
}

/// A case, loaded: folder of the model, its inputs, and what it should give.
struct Case {
    label: String,
    model: Model,
    inputs: Golden,
    expected: Golden,
    features_tolerance: f32,
    logits_tolerance: f32,
}

fn cases() -> impl Iterator<Item = Case> {
    CASES.iter().map(
        |&(name, variant, values, features_tolerance, logits_tolerance)| {
            let dir = folder(name);
            Case {
                label: format!("{name} {variant}"),
                model: Model::load(&dir, Some(variant)).expect(name),
                inputs: Golden::load(&dir.join(PYTORCH)),
                expected: Golden::load(&dir.join(values)),
                features_tolerance,
                logits_tolerance,
            }
        },
    )
}

impl Case {
    /// A backend that has seen the picture, and the prompt's ids, positions and visual rows.
    fn start(&self) -> (CpuBackend, Vec<u32>, Vec<u32>, Vec<usize>) {
        let mut backend = CpuBackend::load(&self.model).expect(&self.label);
        let image = self.inputs.image(&self.model);
        let n = backend.encode(&image).expect(&self.label);
        let ids = self.inputs.ids("input_ids");
        let positions = (0..ids.len() as u32).collect();
        (backend, ids, positions, (0..n).collect())
    }

    /// Logits after the prompt's last token.
    fn last_logits(&self) -> &[f32] {
        if let Some((_, logits)) = self.expected.floats.get("last_logits") {
            return logits;
        }
        let (shape, logits) = &self.expected.floats["prefill_logits"];
        &logits[logits.len() - shape[2]..]
    }
}

#[test]
fn cpu_backend_gives_the_reference_ids_and_logits() {
    let mut failures = Vec::new();
    for case in cases() {
        let label = &case.label;
        let (mut backend, ids, positions, visual) = case.start();
        let features = &case.expected.floats["image_features"].1;
        let difference = largest_difference(backend.features(), features);
        if difference > case.features_tolerance {
            failures.push(format!("{label}: features differ by {difference}"));
        }
        let expected = case.expected.ids("greedy_ids");
        let margins = &case.expected.floats["greedy_margin"].1;
        let prompt = Prefill {
            ids: &ids,
            positions: &positions,
            visual: &visual,
            image_token: case.model.config.image_token_id,
            reserve: expected.len(),
        };
        let mut logits = backend.prefill(&prompt).expect(label);
        assert_eq!(logits.n_rows(), 1, "{label}: only the last row is computed");
        let difference = largest_difference(logits.last_row(), case.last_logits());
        if difference > case.logits_tolerance {
            failures.push(format!("{label}: logits differ by {difference}"));
        }
        let position = ids.len() as u32;
        for (step, &id) in expected.iter().enumerate() {
            let row = logits.last_row();
            let best = (0..row.len())
                .max_by(|&a, &b| row[a].total_cmp(&row[b]))
                .expect("row");
            if best as u32 != id {
                let margin = margins[step];
                failures.push(format!(
                    "{label}: step {step} gives {best}, not {id} (margin {margin})"
                ));
                break;
            }
            if case.model.config.eos.contains(&id) {
                break;
            }
            logits = backend.step(&[id], position + step as u32).expect(label);
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn cpu_backend_after_rollback_gives_the_same_logits() {
    for case in cases() {
        let label = &case.label;
        let (mut backend, ids, positions, visual) = case.start();
        let next = case.expected.ids("greedy_ids");
        let prompt = Prefill {
            ids: &ids,
            positions: &positions,
            visual: &visual,
            image_token: case.model.config.image_token_id,
            reserve: 8,
        };
        backend.prefill(&prompt).expect(label);
        let at = ids.len() as u32;
        let three = backend.step(&next[..3], at).expect(label);
        assert_eq!(three.n_rows(), 3, "{label}");
        backend.rollback(ids.len() + 1).expect(label);
        let again = backend.step(&next[1..3], at + 1).expect(label);
        // Other row counts choose other kernels: equal up to rounding.
        let difference = largest_difference(three.row(2), again.row(1));
        assert!(difference <= case.logits_tolerance, "{label}: {difference}");
        assert!(backend.rollback(ids.len() + 9).is_err(), "{label}");
    }
}

#[test]
fn cpu_backend_with_gaps_between_positions_gives_the_same_logits_in_every_form() {
    // The forms of a family have the same weights. The plain one is PyTorch's own export, and reads
    // `position_ids`; what the others do with them must come to the same.
    for family in ["fastvlm", "smolvlm"] {
        let mut reference: Option<[Logits; 2]> = None;
        let forms = cases()
            .filter(|case| case.label.starts_with(family) && case.model.files.variant == "fp32");
        let mut n_forms = 0;
        for case in forms {
            let label = &case.label;
            let (mut backend, all_ids, _, visual) = case.start();
            assert!(backend.takes_positions(), "{label}");
            let image_token = case.model.config.image_token_id;
            // Every third visual token stays, each where it was.
            let (mut n_seen, mut ids, mut positions) = (0, Vec::new(), Vec::new());
            for (position, &id) in (0u32..).zip(&all_ids) {
                n_seen += usize::from(id == image_token);
                if id != image_token || (n_seen - 1).is_multiple_of(3) {
                    ids.push(id);
                    positions.push(position);
                }
            }
            assert!(ids.len() < all_ids.len());
            let kept: Vec<usize> = visual.iter().copied().step_by(3).collect();
            let prompt = Prefill {
                ids: &ids,
                positions: &positions,
                visual: &kept,
                image_token,
                reserve: 2,
            };
            let prefill = backend.prefill(&prompt).expect(label);
            let next = case.expected.ids("greedy_ids");
            let step = backend.step(&next[..2], all_ids.len() as u32);
            let given = [prefill, step.expect(label)];
            n_forms += 1;
            let Some(reference) = &reference else {
                reference = Some(given);
                continue;
            };
            for (ours, theirs) in given.iter().zip(reference) {
                let difference = largest_difference(ours.last_row(), theirs.last_row());
                assert!(difference <= case.logits_tolerance, "{label}: {difference}");
            }
        }
        assert!(n_forms >= 3, "{family}: {n_forms} forms");
    }
}

#[test]
fn cpu_backend_encodes_tiles_and_drops_empty_ones() {
    let tiled: Vec<Case> = cases()
        .filter(|case| case.model.config.family.tiled)
        .collect();
    assert!(!tiled.is_empty());
    for case in tiled {
        let label = &case.label;
        let mut backend = CpuBackend::load(&case.model).expect(label);
        let n = backend
            .encode(&case.inputs.padded_tiles(&case.model))
            .expect(label);
        // One of five tiles is all zero: the tower leaves it out.
        assert_eq!(n, 4 * case.model.config.tokens_per_tile, "{label}");
        let features = &case.expected.floats["padded_image_features"].1;
        let difference = largest_difference(backend.features(), features);
        assert!(
            difference <= case.features_tolerance,
            "{label}: {difference}"
        );
    }
}
