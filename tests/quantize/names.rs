//! Ranges are kept by the names of the graph that was observed, and asked for by those of the graph
//! that is built: cut for a cache of fixed capacity, with queries grouped and sizes fixed.

use std::sync::Arc;

use trtvlm::build::{
    COMPONENTS, Capacity, ComponentKind, Cuts, Numerics, Quantization, Runner, prepare,
};
use trtvlm::bundle::Precision;
use trtvlm::model::Model;
use trtvlm::onnx::DataType;
use trtvlm::onnx::passes::check_types;
use trtvlm::quantize::{Kept, Method, Scales};

use super::support::{demo, demo_scales, observe, tiny};

fn check(dir: &std::path::Path, scales: Scales) {
    let model = Model::load(dir, None).expect("model");
    let quantization = Quantization::with_scales(scales, Method::Max).expect("scales");
    let capacity = Capacity::new(&model.config, None, 4, 5).expect("capacity");
    let numerics = Numerics {
        precision: Precision::Int8,
        quantization: Some(&quantization),
    };
    let cancel = Arc::default();
    for kind in COMPONENTS {
        let of = |runner| {
            prepare(
                kind,
                &model,
                runner,
                numerics,
                &Cuts::default(),
                &capacity,
                &cancel,
            )
        };
        let [gpu, cpu] = [Runner::TensorRt, Runner::Cpu].map(|runner| of(runner).expect("graph"));
        let types = check_types(&gpu.graph).expect("strongly typed");
        let graph = gpu.graph.graph();
        assert!(
            graph
                .output
                .iter()
                .all(|o| types.get(&o.name) == Some(DataType::F16))
        );
        assert!(matches!(gpu.graph.opset(""), Some(19 | 20)), "{kind:?}");
        if kind == ComponentKind::Embed {
            continue;
        }
        let [gpu, cpu] = [gpu, cpu].map(|prepared| prepared.report.expect("report"));
        assert_eq!(
            gpu.quantized,
            cpu.quantized,
            "{kind:?} of {}",
            dir.display()
        );
        assert_eq!(gpu.kept, cpu.kept, "{kind:?} of {}", dir.display());
        assert!(gpu.quantized.len() > 10, "{kind:?}: {:?}", gpu.quantized);
        // Nothing but attention and tables of positions computes without integers.
        let unexpected = gpu.kept.iter().filter(|kept| {
            !matches!(
                kept.reason,
                Kept::TwoActivations | Kept::NoData | Kept::ZeroRange
            )
        });
        assert_eq!(unexpected.count(), 0, "{:?}", gpu.kept);
    }
}

#[test]
fn ranges_of_the_demo_model_are_found_by_every_graph() {
    check(&demo(), demo_scales().clone());
}

#[test]
fn ranges_of_each_family_and_decoder_form_are_found_by_every_graph() {
    for name in [
        "fastvlm-tiny-plain",
        "fastvlm-tiny-contrib",
        "smolvlm-tiny-plain",
        "smolvlm-tiny-contrib-sep",
    ] {
        let dir = tiny(name);
        check(&dir, observe(&dir, 1));
    }
}
