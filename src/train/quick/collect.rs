//! Runs the frozen vision tower over pictures, and notes what is where.
//!
//! A record is a picture:
//!
//! | tensor | shape | what |
//! |--------|-------|------|
//! | `features` | `[n, d]` f16 | visual rows of its last picture, cell by cell |
//! | `grid`     | `[7]` f64    | side, corner, cell, size of [`Grid`] |
//! | `kinds`    | `[n]` u32    | 0, or 1 and the kind of the object whose centre lies in the cell |
//! | `coloured` | `[c]` u32    | cells of objects whose colour is known |
//! | `colours`  | `[c]` u32    | their colours |
//! | `ground`   | `[1]` u32    | where it is known |
//! | `things`   | `[m, 4]` f64 | of each object that the model sees: kind, colour (-1: not known), centre |
//!
//! Those without anything in them are not there; a picture that cannot be read has an empty record.

use std::path::PathBuf;

use candle_core::{Device, Tensor};
use half::f16;

use super::super::failed;
use super::super::shards::{Record, Shards, part};
use super::scenes::TrueScene;
use crate::backend::CpuBackend;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::pipeline::{Ask, Pipeline};
use crate::preprocess::Frame;
use crate::quick::{Grid, Scene, Thing};

/// Looks at every picture that has no record yet, and adds the records; returns the pictures that could not be read.
/// `on_picture` is told how many are done.
///
/// # Errors
/// [`Error::Cancelled`] after a stop, with what is written kept; [`Error::Unavailable`] if the model's visual rows are no
/// grid; those of the model.
pub(super) fn collect(
    model: &Model,
    shards: &mut Shards,
    scenes: &[TrueScene],
    cancel: &dyn Fn() -> bool,
    on_picture: &mut dyn FnMut(usize),
) -> Result<Vec<PathBuf>> {
    let resumed = shards.len();
    let mut skipped = Vec::new();
    on_picture(resumed);
    if resumed == scenes.len() {
        return Ok(skipped);
    }
    let backend = Box::new(CpuBackend::load(model)?);
    let variant = model.files.variant.clone();
    let mut pipeline = Pipeline::with_backend(model.clone(), variant, "cpu", backend)?;
    for scene in &scenes[resumed..] {
        if cancel() {
            shards.flush()?;
            return Err(Error::Cancelled);
        }
        match Frame::load(&scene.image) {
            Ok(frame) => shards.push(record(&mut pipeline, &frame, scene)?)?,
            Err(error) => {
                tracing::warn!("skipped: {error}");
                skipped.push(scene.image.clone());
                shards.push(Record::new())?;
            }
        }
        on_picture(shards.len());
    }
    shards.flush()?;
    Ok(skipped)
}

fn record(pipeline: &mut Pipeline, frame: &Frame, truth: &TrueScene) -> Result<Record> {
    let mut rows = Vec::new();
    let grid = pipeline.look(frame, &Ask::default(), &mut rows)?;
    let d = pipeline.config().d_model;
    let n = grid.n();
    let features: Vec<f16> = rows[grid.first * d..]
        .iter()
        .map(|&x| f16::from_f32(x))
        .collect();
    let long = frame.width().max(frame.height()) as f64;
    let mut kinds = vec![0u32; n];
    let (mut coloured, mut colours, mut things) = (Vec::new(), Vec::new(), Vec::new());
    for &(kind, colour, centre) in &truth.objects {
        let [x, y] = centre.map(|pixel| pixel / long);
        let Some(cell) = grid.cell_at([x, y]) else {
            continue;
        };
        kinds[cell] = 1 + kind as u32;
        if let Some(colour) = colour {
            coloured.push(cell as u32);
            colours.push(colour as u32);
        }
        let colour = colour.map_or(-1.0, |colour| colour as f64);
        things.extend([kind as f64, colour, x, y]);
    }
    let m = things.len() / 4;
    let told = [
        grid.side as f64,
        grid.corner[0],
        grid.corner[1],
        grid.cell[0],
        grid.cell[1],
        grid.size[0],
        grid.size[1],
    ];
    let cpu = &Device::Cpu;
    let make = || -> candle_core::Result<Record> {
        let mut record = Record::from([
            (
                "features".to_owned(),
                Tensor::from_vec(features, (n, d), cpu)?,
            ),
            ("grid".to_owned(), Tensor::new(&told, cpu)?),
            ("kinds".to_owned(), Tensor::from_vec(kinds, n, cpu)?),
        ]);
        if !coloured.is_empty() {
            let c = coloured.len();
            let coloured = Tensor::from_vec(coloured, c, cpu)?;
            record.insert("coloured".to_owned(), coloured);
            let colours = Tensor::from_vec(colours, c, cpu)?;
            record.insert("colours".to_owned(), colours);
        }
        if let Some(ground) = truth.ground {
            let ground = Tensor::new(&[ground as u32], cpu)?;
            record.insert("ground".to_owned(), ground);
        }
        if m > 0 {
            let things = Tensor::from_vec(things, (m, 4), cpu)?;
            record.insert("things".to_owned(), things);
        }
        Ok(record)
    };
    make().map_err(failed)
}

/// What a record tells: visual rows, their grid, and what is there.
pub(super) struct Seen {
    pub(super) rows: Vec<f32>,
    pub(super) grid: Grid,
    pub(super) truth: Scene,
}

impl Seen {
    /// Of a record; `None` of an empty one.
    pub(super) fn of(record: &Record) -> Result<Option<Self>> {
        if record.is_empty() {
            return Ok(None);
        }
        let told = part(record, "grid")?.to_vec1::<f64>().map_err(failed)?;
        let &[side, left, top, width, height, across, down] = told.as_slice() else {
            return Err(Error::Shape {
                name: "grid".to_owned(),
                expected: "[7]".to_owned(),
                actual: format!("[{}]", told.len()),
            });
        };
        let rows = part(record, "features")?
            .to_dtype(candle_core::DType::F32)
            .and_then(|rows| rows.flatten_all()?.to_vec1::<f32>());
        let ground = record.get("ground").map(Tensor::to_vec1::<u32>);
        let ground = ground.transpose().map_err(failed)?;
        let things = record.get("things").map(Tensor::to_vec2::<f64>);
        let things = things.transpose().map_err(failed)?.unwrap_or_default();
        let thing = |told: &Vec<f64>| Thing {
            kind: told[0] as usize,
            colour: (told[1] >= 0.0).then_some(told[1] as usize),
            at: [told[2], told[3]],
        };
        Ok(Some(Self {
            rows: rows.map_err(failed)?,
            grid: Grid {
                side: side as usize,
                first: 0,
                corner: [left, top],
                cell: [width, height],
                size: [across, down],
            },
            truth: Scene {
                things: things.iter().map(thing).collect(),
                ground: ground.and_then(|ground| ground.first().map(|&g| g as usize)),
                size: [across, down],
            },
        }))
    }
}
