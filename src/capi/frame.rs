//! Frames, as C describes them.

use super::status::{Failure, Status};
use super::types::{
    FrameView, TRTVLM_COLOUR_BT601, TRTVLM_COLOUR_BT709, TRTVLM_COLOUR_FULL, TRTVLM_FORMAT_BGR8,
    TRTVLM_FORMAT_ENCODED, TRTVLM_FORMAT_GREY8, TRTVLM_FORMAT_NV12, TRTVLM_FORMAT_RGB8,
    TRTVLM_MEMORY_CUDA, TRTVLM_MEMORY_HOST,
};
use crate::error::Result as PictureResult;
use crate::preprocess::{Colour, Frame, Plane, RawFormat, RawImage};

/// What errors call a frame.
pub(super) const NAME: &str = "frame";

/// What the planes of a frame hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Raw(RawFormat),
    Encoded,
}

impl Kind {
    /// Checks everything but sizes and planes.
    pub(super) fn of(view: &FrameView) -> Result<Self, Failure> {
        match view.memory {
            TRTVLM_MEMORY_HOST => {}
            TRTVLM_MEMORY_CUDA => {
                return Err(Failure::new(
                    Status::Unsupported,
                    "frame.memory: CUDA memory, and this model runs on the CPU engine",
                ));
            }
            other => return Err(Failure::argument("frame.memory", other)),
        }
        if view.reserved != 0 {
            return Err(Failure::argument("frame.reserved", "it is not zero"));
        }
        let colour = match view.colour {
            TRTVLM_COLOUR_BT601 => Colour::Bt601,
            TRTVLM_COLOUR_BT709 => Colour::Bt709,
            TRTVLM_COLOUR_FULL => Colour::Full,
            other => return Err(Failure::argument("frame.colour", other)),
        };
        Ok(match view.format {
            TRTVLM_FORMAT_RGB8 => Self::Raw(RawFormat::Rgb),
            TRTVLM_FORMAT_BGR8 => Self::Raw(RawFormat::Bgr),
            TRTVLM_FORMAT_GREY8 => Self::Raw(RawFormat::Grey),
            TRTVLM_FORMAT_NV12 => Self::Raw(RawFormat::Nv12(colour)),
            TRTVLM_FORMAT_ENCODED => Self::Encoded,
            other => return Err(Failure::argument("frame.format", other)),
        })
    }

    pub(super) fn n_planes(self) -> usize {
        match self {
            Self::Raw(format) => format.n_planes(),
            Self::Encoded => 1,
        }
    }
}

/// A frame whose memory is there; whether a picture is in it, [`read_into`](Self::read_into) says.
#[derive(Debug, Clone, Copy)]
pub(super) enum Picture<'a> {
    Raw(RawImage<'a>),
    Encoded(&'a [u8]),
}

impl<'a> Picture<'a> {
    /// Of a description and the bytes at its addresses.
    pub(super) fn new(kind: Kind, view: &FrameView, bytes: [&'a [u8]; 2]) -> Self {
        let Kind::Raw(format) = kind else {
            return Self::Encoded(bytes[0]);
        };
        let mut planes = [Plane::default(); 3];
        for ((plane, bytes), view) in planes.iter_mut().zip(bytes).zip(&view.planes) {
            let stride = view.stride;
            *plane = Plane { bytes, stride };
        }
        Self::Raw(RawImage {
            format,
            width: view.width as usize,
            height: view.height as usize,
            planes,
        })
    }

    /// Puts the picture into `frame`.
    pub(super) fn read_into(&self, frame: &mut Frame) -> PictureResult<()> {
        match self {
            Self::Raw(image) => frame.copy_from(image)?,
            Self::Encoded(bytes) => *frame = Frame::decode(NAME, bytes)?,
        }
        Ok(())
    }
}
