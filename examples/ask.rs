//! A question about an image: the same lines stand in the README.

use std::path::Path;

use trtvlm::pipeline::{Ask, Pipeline};
use trtvlm::preprocess::Frame;

fn main() -> trtvlm::Result<()> {
    let mut pipeline = Pipeline::open(Path::new("onnx/uav-tiny"), None)?;
    let frame = Frame::load(Path::new("calibration/images/0024.png"))?;
    let mut print = |piece: &str| print!("{piece}");
    let answer = pipeline.ask(&frame, "describe the scene", &Ask::default(), &mut print)?;
    println!(" ({:.0} ms)", answer.timings_ms.total);
    Ok(())
}
