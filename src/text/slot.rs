//! What stands for an image in a prompt.

use crate::limits;
use crate::model::{ModelConfig, TileMarks};
use crate::{Error, Result};

/// How one image is shown to the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageSlot {
    /// No image.
    None,
    /// One picture: `tokens_per_tile` image tokens, between the family's marks if it has any.
    Single,
    /// `rows x cols` tiles, row by row, and after them the view of the whole image. Without rows
    /// and columns the same as `Single`.
    Tiled {
        /// Rows of tiles.
        rows: usize,
        /// Columns of tiles.
        cols: usize,
    },
}

impl ImageSlot {
    /// Pictures that the vision tower sees.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for more than [`limits::TILES`]; [`Error::Argument`] for rows without
    /// columns or the other way round.
    pub fn n_pictures(self) -> Result<usize> {
        match self {
            Self::None => Ok(0),
            Self::Single | Self::Tiled { rows: 0, cols: 0 } => Ok(1),
            Self::Tiled { rows, cols } if rows == 0 || cols == 0 => Err(Error::Argument {
                name: "tiles",
                reason: format!("{rows} rows and {cols} columns are no tiles"),
            }),
            Self::Tiled { rows, cols } => {
                let n = rows.saturating_mul(cols).saturating_add(1);
                if n > limits::TILES {
                    return Err(Error::TooLarge {
                        what: "number of image tiles".into(),
                        actual: n as u64,
                        limit: limits::TILES as u64,
                    });
                }
                Ok(n)
            }
        }
    }
}

/// Checks that a prompt with these images can be written down at all.
///
/// # Errors
/// Those of [`ImageSlot::n_pictures`]; [`Error::Argument`] for tiles in a family without;
/// [`Error::TooLarge`] for more visual tokens than [`limits::CONTEXT_TOKENS`].
pub(super) fn check(images: &[ImageSlot], config: &ModelConfig) -> Result<()> {
    let mut n = 0usize;
    for slot in images {
        let pictures = slot.n_pictures()?;
        if pictures > 1 && config.family.tile_marks.is_none() {
            return Err(Error::Argument {
                name: "tiles",
                reason: format!("{} models see one picture an image", config.family.name),
            });
        }
        n = n.saturating_add(pictures * config.tokens_per_tile);
    }
    if n > limits::CONTEXT_TOKENS {
        return Err(Error::TooLarge {
            what: "number of visual tokens".into(),
            actual: n as u64,
            limit: limits::CONTEXT_TOKENS as u64,
        });
    }
    Ok(())
}

/// The words of one image, `mark` being the image token: what the hub's processors write.
pub(super) fn words(
    slot: ImageSlot,
    mark: &str,
    n_tokens: usize,
    marks: Option<&TileMarks>,
) -> String {
    let picture = mark.repeat(n_tokens);
    let Some(TileMarks {
        fence,
        global,
        tile,
    }) = marks
    else {
        return match slot {
            ImageSlot::None => String::new(),
            _ => picture,
        };
    };
    let whole = format!("{fence}{global}{picture}{fence}");
    match slot {
        ImageSlot::None => String::new(),
        ImageSlot::Single | ImageSlot::Tiled { rows: 0, cols: 0 } => whole,
        ImageSlot::Tiled { rows, cols } => {
            let mut out = String::new();
            for r in 1..=rows {
                for c in 1..=cols {
                    let tile = tile
                        .replace("{r}", &r.to_string())
                        .replace("{c}", &c.to_string());
                    out += fence;
                    out += &tile;
                    out += &picture;
                }
                out.push('\n');
            }
            out.push('\n');
            out + &whole
        }
    }
}
