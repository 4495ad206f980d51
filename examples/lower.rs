//! Write the lowered form of an ONNX file: operators of the standard only, same inputs and outputs.
//!
//! ```text
//! cargo run --example lower -- decoder_model_merged_q4f16.onnx lowered.onnx [f32|f16]
//! ```
//!
//! The last argument is the type in which dequantized weights are stored; by default that of the
//! operator they belong to. `tools/zoo/compare_lowered.py` compares both files in ONNX Runtime.

use std::path::PathBuf;

use trtvlm::onnx::passes::{LowerOptions, lower};
use trtvlm::onnx::{DataType, OnnxModel};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let from = PathBuf::from(
        args.next()
            .ok_or("usage: lower IN.onnx OUT.onnx [f32|f16]")?,
    );
    let to = PathBuf::from(args.next().ok_or("no file to write")?);
    let weights = match args.next().as_deref() {
        None => None,
        Some("f32") => Some(DataType::F32),
        Some("f16") => Some(DataType::F16),
        Some(other) => return Err(format!("{other} is neither f32 nor f16").into()),
    };
    let mut model = OnnxModel::load(&from)?;
    let report = lower(
        &mut model,
        &LowerOptions {
            weights,
            ..LowerOptions::default()
        },
    )?;
    model.save(&to)?;
    for (op, n) in report.lowered {
        println!("{n:5} {op}");
    }
    Ok(())
}
