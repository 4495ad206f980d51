//! Turn an image file or a raw frame into what a vision encoder takes.
//!
//! Position in the pipeline: file or camera -> **`preprocess`** -> `vision`.
//!
//! | value         | shape          | dtype | where | range |
//! |---------------|----------------|-------|-------|-------|
//! | [`Frame`]     | `[h, w, 3]`    | u8    | host  | RGB, rows top to bottom |
//! | pixel values  | `[n, 3, s, s]` | f32   | host  | as `rescale_factor`, `image_mean`, `image_std` say |
//! | pixel mask    | `[n, s, s]`    | u8    | host  | 1 = image; tiled processors only |
//!
//! What happens is read from the model folder ([`Processor::load`]), and the numbers are those
//! of the published image processors, bit for bit, for the same RGB pixels:
//!
//! * Reference: the PIL backend of `transformers` 5.23 (`CLIPImageProcessorPil`,
//!   `LlavaImageProcessorPil`, `Idefics3ImageProcessorPil`, `SmolVLMImageProcessorPil`) on
//!   Pillow 13. `image_aspect_ratio: pad` is LLaVA's pad to a square in the colour of the mean.
//! * Pillow up to 12 differs from 13 only where the vertical pass comes first in 13: when a
//!   resize takes away more than twice as many rows as columns, as in images taller than 2:1.
//! * The torchvision backend of the same version resizes with shorter fixed-point weights and
//!   fuses rescaling with normalisation: its results differ by at most 2 of 255 levels, in less
//!   than 2 % of the values, on the pictures that were compared.
//!
//! Files are converted as `PIL.Image.open(..).convert("RGB")` does: alpha is dropped, not
//! composited, EXIF orientation is not applied, 16-bit grey is *clipped* to 255 (not scaled),
//! 16-bit colour keeps its high byte. Only the first frame of an animation is read. JPEG decoders
//! differ from each other by a few levels (to libjpeg-turbo 5 at most, 2 or less in 99.99 % of the
//! values of 70 files), so for JPEG (and JPEG inside TIFF) the promise holds from the decoded
//! pixels on. PNM files with a maximum other than 255 and 65,535 may be off by one level.

mod axes;
mod config;
mod decode;
mod filter;
mod frame;
mod geometry;
mod levels;
mod processor;
mod raw;
mod resample;

pub use frame::Frame;
pub use processor::{Fit, Notes, PixelRoom, PixelValues, Processor, Tiles, View};
pub use raw::{Colour, Plane, RawFormat, RawImage};
