//! The vision tower: pixels in, visual rows that stay on the device.

use super::arena::Arena;
use super::floats::{Floats, float_of};
use super::replay::Replay;
use crate::cuda::kernels::Float;
use crate::cuda::{Device, Memory};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::preprocess::PixelValues;
use crate::trt::{Engine, Execution, element_bytes};

pub(super) struct Vision {
    run: Execution,
    replay: Replay,
    config: ModelConfig,
    pixels: Memory,
    pixel_floats: Floats,
    /// Where the tower asks which pixels count; a byte or more each.
    mask: Option<(Memory, usize)>,
    mask_bytes: Vec<u8>,
    /// Visual rows of the newest frame, `[n, d_model]`.
    pub features: Memory,
    /// Their width.
    pub float: Float,
    /// Most rows of a frame.
    pub most_rows: usize,
    /// Pictures of the frames that it is set to.
    tiles: usize,
    most_tiles: usize,
}

impl Vision {
    /// Binds a plan for frames of at most `most_tiles` pictures.
    ///
    /// # Errors
    /// [`Error::Shape`] if its tensors are not the family's; those of the device.
    pub fn new(
        engine: &Engine,
        config: &ModelConfig,
        most_tiles: usize,
        arena: &mut Arena<'_>,
    ) -> Result<Self> {
        let family = config.family;
        let tensor = |name: &str| {
            engine.tensor(name).ok_or_else(|| Error::Shape {
                name: name.to_owned(),
                expected: "a tensor of the vision plan".to_owned(),
                actual: "none".to_owned(),
            })
        };
        let side = config.image_size;
        let pixel_float = float_of(tensor(family.pixel_values)?)?;
        let float = float_of(tensor(family.image_features)?)?;
        let most_rows = most_tiles * config.tokens_per_tile;
        let pixels = arena.alloc("frame", &[most_tiles, 3, side, side, pixel_float.bytes()])?;
        let features = arena.alloc("visual rows", &[most_rows, config.d_model, float.bytes()])?;
        let mask_name = family
            .pixel_attention_mask
            .filter(|name| engine.tensor(name).is_some());
        let mask = match mask_name {
            Some(name) => {
                let bytes = element_bytes(&tensor(name)?.dtype).unwrap_or(1);
                Some((
                    arena.alloc("frame", &[most_tiles, side, side, bytes])?,
                    bytes,
                ))
            }
            None => None,
        };
        let mut run = engine.execution(0)?;
        run.bind(family.pixel_values, &pixels, 0)?;
        run.bind(family.image_features, &features, 0)?;
        if let (Some(name), Some((mask, _))) = (mask_name, &mask) {
            run.bind(name, mask, 0)?;
        }
        Ok(Self {
            run,
            replay: Replay::default(),
            config: config.clone(),
            pixels,
            pixel_floats: Floats::new(pixel_float, most_tiles * 3 * side * side),
            mask_bytes: Vec::new(),
            mask,
            features,
            float,
            most_rows,
            tiles: 0,
            most_tiles,
        })
    }

    /// Gives it the scratch that all executions share.
    ///
    /// # Errors
    /// Those of TensorRT.
    pub fn set_scratch(&mut self, scratch: &Memory) -> Result<()> {
        self.run.set_scratch(scratch)
    }

    /// Encodes a frame; returns the number of its visual rows.
    ///
    /// # Errors
    /// [`Error::Shape`] for more pictures than the bundle was built for; those of the device.
    pub fn encode(&mut self, device: &Device, image: &PixelValues) -> Result<usize> {
        let shape = image.pixels.shape();
        let side = self.config.image_size;
        let tiles = shape.first().copied().unwrap_or(0);
        if shape != [tiles, 3, side, side] || !(1..=self.most_tiles).contains(&tiles) {
            return Err(Error::Shape {
                name: self.config.family.pixel_values.to_owned(),
                expected: format!("[1 to {}, 3, {side}, {side}]", self.most_tiles),
                actual: format!("{shape:?}"),
            });
        }
        self.set_tiles(tiles)?;
        self.pixel_floats
            .upload(device, &self.pixels, 0, image.pixels.data())?;
        self.upload_mask(device, image, tiles * side * side)?;
        let run = &mut self.run;
        self.replay
            .run("the vision tower", device, || run.enqueue())?;
        Ok(tiles * self.config.tokens_per_tile)
    }

    /// Sets shapes for frames of so many pictures.
    fn set_tiles(&mut self, tiles: usize) -> Result<()> {
        if tiles == self.tiles {
            return Ok(());
        }
        let family = self.config.family;
        let side = self.config.image_size;
        let pixels: &[usize] = match family.tiled {
            true => &[1, tiles, 3, side, side],
            false => &[1, 3, side, side],
        };
        self.run.set_shape(family.pixel_values, pixels)?;
        if let (Some(name), true) = (family.pixel_attention_mask, self.mask.is_some()) {
            self.run.set_shape(name, &[1, tiles, side, side])?;
        }
        self.replay.reset();
        self.tiles = tiles;
        Ok(())
    }

    /// Uploads which pixels count: all, where the processor makes no mask.
    fn upload_mask(&mut self, device: &Device, image: &PixelValues, n: usize) -> Result<()> {
        let Some((mask, bytes)) = &self.mask else {
            return Ok(());
        };
        self.mask_bytes.clear();
        self.mask_bytes.resize(n * bytes, 0);
        for (at, element) in self.mask_bytes.chunks_exact_mut(*bytes).enumerate() {
            // Little-endian: the first byte of any integer.
            element[0] = image.mask.as_ref().map_or(1, |mask| mask.data()[at]);
        }
        device.upload(mask, 0, &self.mask_bytes)
    }
}
