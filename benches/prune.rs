//! What choosing visual tokens takes: every policy, a tenth of the tokens of FastVLM-0.5B (256 x 896)
//! and of a SmolVLM frame in 17 pictures (1088 x 576).
//!
//!     cargo bench --bench prune
//!
//! One thread. Averages of merged rows are included; the model's own pass for `attention` is not.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::Path;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use trtvlm::model::{TrainedFile, TrainedKind, TrainedSpec, TrainedTensor, trained_bytes};
use trtvlm::prune::{Features, Inputs, Keep, Learned, LearnedSettings, Place, Pruner};

fn numbers(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
    let number = |_| (rng.next_u32() >> 8) as f32 / (1 << 24) as f32 - 0.5;
    (0..n).map(number).collect()
}

/// A net of the size that `train pruner` makes, for rows of width `d`.
fn learned(rng: &mut ChaCha8Rng, d: usize) -> Learned {
    let layers = [
        ("question", d, 32),
        ("condition", 32, 16),
        ("mlp", 48, 32),
        ("score", 32, 1),
    ];
    let mut tensors = BTreeMap::new();
    let mut add = |name: &str, shape: Vec<usize>| {
        let data = numbers(rng, shape.iter().product());
        tensors.insert(name.to_owned(), TrainedTensor { shape, data });
    };
    add("visual", vec![d, 16]);
    for (name, inputs, outputs) in layers {
        add(name, vec![inputs, outputs]);
        add(&format!("{name}.bias"), vec![outputs]);
    }
    let settings = LearnedSettings {
        neighbours: 0.05,
        anchors: 0.3,
    };
    let spec = TrainedSpec {
        format: TrainedSpec::FORMAT,
        kind: TrainedKind::Pruner,
        targets: Vec::new(),
        tokenizer_sha256: "0".repeat(64),
        d_model: d,
        settings: serde_json::json!(settings),
        training: serde_json::Value::Null,
    };
    let bytes = trained_bytes(Path::new("drawn"), &spec, &tensors).expect("file");
    let file = TrainedFile::parse("drawn".into(), TrainedKind::Pruner, &bytes);
    Learned::new(file.expect("file")).expect("net")
}

fn policies(c: &mut Criterion) {
    for (pictures, side, d) in [(1usize, 16usize, 896usize), (17, 8, 576)] {
        let n = pictures * side * side;
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let rows = numbers(&mut rng, n * d);
        let (question, saliency) = (numbers(&mut rng, d), numbers(&mut rng, n));
        let place = |i: usize| Place {
            picture: i / (side * side),
            row: i / side % side,
            column: i % side,
        };
        let places: Vec<Place> = (0..n).map(place).collect();
        let inputs = Inputs {
            features: Features::new(&rows, d).expect("rows"),
            places: &places,
            question: Some(&question),
            saliency: Some(&saliency),
        };
        let keep = Keep::new(0.1).expect("share").count(n, n);
        let learned = learned(&mut rng, d);
        let mut group = c.benchmark_group(format!("prune {n}x{d} to {keep}"));
        for pruner in Pruner::ALL {
            let policy = pruner.policy(1, Some(&learned)).expect("policy");
            group.bench_function(BenchmarkId::from_parameter(pruner), |b| {
                b.iter(|| {
                    let kept = policy.choose(black_box(&inputs), keep).expect("choice");
                    let merged = kept.merge.as_ref();
                    let merged = merged.map(|merge| merge.apply(&inputs.features, keep));
                    black_box((kept, merged))
                });
            });
        }
    }
}

criterion_group!(benches, policies);
criterion_main!(benches);
