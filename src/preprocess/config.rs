//! What a model folder says about its image processor.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::filter::Filter;
use super::levels::Levels;
use crate::error::{Error, Result};
use crate::limits;
use crate::read::read_file;

/// An image processor, as its files describe it.
#[derive(Debug, Clone)]
pub(super) struct Config {
    pub(super) filter: Filter,
    pub(super) levels: Levels,
    /// Colour of padding: the mean, in levels.
    pub(super) fill: [u8; 3],
    pub(super) kind: Kind,
    /// The file that describes it.
    pub(super) path: PathBuf,
}

/// What becomes of a frame's shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// One image: resized, then cropped.
    Crop {
        /// Pad to a square before everything else.
        pad: bool,
        resize: Option<Resize>,
        crop: bool,
        /// Side of the result.
        side: usize,
    },
    /// Tiles and a global image.
    Tiled {
        resize: Option<Resize>,
        split: bool,
        /// Whether the processor returns a pixel mask.
        mask: bool,
        /// Side of a tile.
        side: usize,
    },
}

/// How `size` is to be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resize {
    ShortestEdge(usize),
    LongestEdge(usize),
    /// Width and height.
    Exact(usize, usize),
}

impl Config {
    /// Reads the configuration of the model folder `dir`.
    ///
    /// An `image_processor` inside `processor_config.json` comes first, as in `transformers`,
    /// then `preprocessor_config.json`.
    pub(super) fn load(dir: &Path) -> Result<Self> {
        let nested = dir.join("processor_config.json");
        let (path, entries) =
            match read_object(&nested)?.and_then(|mut e| e.remove("image_processor")) {
                Some(Value::Object(entries)) => (nested, entries),
                Some(_) => {
                    return Err(Error::malformed(
                        nested,
                        "`image_processor` is not an object",
                    ));
                }
                None => {
                    let path = dir.join("preprocessor_config.json");
                    let Some(entries) = read_object(&path)? else {
                        return Err(Error::io(path)(std::io::ErrorKind::NotFound.into()));
                    };
                    (path, entries)
                }
            };
        let model = dir.join("config.json");
        let pad = match read_object(&model)?
            .as_ref()
            .and_then(|e| e.get("image_aspect_ratio"))
        {
            None | Some(Value::Null) => false,
            Some(Value::String(s)) if s == "pad" => true,
            Some(Value::String(s)) if s == "square" => false,
            Some(other) => {
                let reason = format!("`image_aspect_ratio` {other} is not supported");
                return Err(Error::malformed(model, reason));
            }
        };
        Self::from_entries(path, &entries, pad)
    }

    fn from_entries(path: PathBuf, entries: &Map<String, Value>, pad: bool) -> Result<Self> {
        let e = Entries {
            path: &path,
            entries,
        };
        let name = e.string("image_processor_type")?;
        let tiled = match name.trim_end_matches("Fast").trim_end_matches("Pil") {
            "CLIPImageProcessor" | "CLIPFeatureExtractor" | "LlavaImageProcessor" => false,
            "Idefics3ImageProcessor" | "SmolVLMImageProcessor" => true,
            _ => {
                return Err(e.wrong(
                    "image_processor_type",
                    "names a processor that is not supported",
                ));
            }
        };
        // LLaVA's own processor pads to a square where the others pad a batch to one size.
        let pad = pad || (name.starts_with("Llava") && e.flag("do_pad", false)?);
        let kind = if tiled { e.tiled()? } else { e.crop(pad)? };
        let resizes = tiled || e.flag("do_resize", true)?;
        let filter = match e.entries.get("resample") {
            None if !resizes => Filter::Bicubic,
            _ => e.filter()?,
        };
        let normalize = match e.flag("do_normalize", true)? {
            true => Some([e.per_channel("image_mean")?, e.per_channel("image_std")?]),
            false => None,
        };
        if normalize.is_some_and(|[_, std]| std.iter().any(|&s| s <= 0.0)) {
            return Err(e.wrong("image_std", "must be positive"));
        }
        let rescale = match e.flag("do_rescale", true)? {
            true => Some(e.number("rescale_factor")?),
            false => None,
        };
        if rescale.is_some_and(|factor| factor <= 0.0) {
            return Err(e.wrong("rescale_factor", "must be positive"));
        }
        let levels = Levels::new(rescale, normalize);
        if !levels.all_finite() {
            return Err(Error::malformed(path, "normalised pixels are not finite"));
        }
        let fill = match e.entries.get("image_mean") {
            Some(_) => e
                .per_channel("image_mean")?
                .map(|mean| (mean * 255.0) as u8),
            None => [0; 3],
        };
        Ok(Self {
            filter,
            levels,
            fill,
            kind,
            path,
        })
    }
}

/// Reads a JSON object; `None` if there is no such file.
fn read_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    let bytes = match read_file(path, limits::TEXT_FILE_BYTES) {
        Ok(bytes) => bytes,
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(entries)) => Ok(Some(entries)),
        Ok(_) => Err(Error::malformed(path, "is not a JSON object")),
        Err(e) => Err(Error::malformed(path, format!("is not JSON: {e}"))),
    }
}

/// Entries of one file, and its name for errors.
struct Entries<'a> {
    path: &'a Path,
    entries: &'a Map<String, Value>,
}

impl Entries<'_> {
    fn wrong(&self, key: &str, reason: &str) -> Error {
        let reason = match self.entries.get(key) {
            Some(value) => {
                let mut text = value.to_string();
                if let Some((cut, _)) = text.char_indices().nth(60) {
                    text.truncate(cut);
                }
                format!("`{key}` {reason}: {text}")
            }
            None => format!("`{key}` is missing"),
        };
        Error::malformed(self.path, reason)
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.entries.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(_) => Err(self.wrong(key, "is not true or false")),
        }
    }

    fn string(&self, key: &str) -> Result<&str> {
        let value = self.entries.get(key).and_then(Value::as_str);
        value.ok_or_else(|| self.wrong(key, "is not a string"))
    }

    fn number(&self, key: &str) -> Result<f64> {
        let value = self.entries.get(key).and_then(Value::as_f64);
        value.ok_or_else(|| self.wrong(key, "is not a number"))
    }

    /// Three numbers, or one for all channels.
    fn per_channel(&self, key: &str) -> Result<[f64; 3]> {
        let numbers: Option<Vec<f64>> = match self.entries.get(key) {
            Some(Value::Array(list)) => list.iter().map(Value::as_f64).collect(),
            Some(value) => value.as_f64().map(|v| vec![v; 3]),
            None => None,
        };
        let three: Option<[f64; 3]> = numbers.and_then(|n| n.try_into().ok());
        three
            .filter(|n| n.iter().all(|v| v.abs() <= 255.0))
            .ok_or_else(|| self.wrong(key, "is not three numbers of at most 255"))
    }

    fn filter(&self) -> Result<Filter> {
        let code = self.entries.get("resample").and_then(Value::as_u64);
        code.and_then(Filter::from_code)
            .ok_or_else(|| self.wrong("resample", "is not a filter from 0 to 5"))
    }

    /// A positive side in `value`, of at most `limit` pixels.
    fn side(&self, key: &str, value: &Value, limit: u32) -> Result<usize> {
        let side = value.as_u64().filter(|&n| n > 0 && n <= u64::from(limit));
        match side {
            Some(side) => Ok(side as usize),
            None => Err(self.wrong(key, &format!("has a side that is not from 1 to {limit}"))),
        }
    }

    /// `{"shortest_edge": n}`, `{"longest_edge": n}` or `{"height": h, "width": w}`; a bare number
    /// is a shortest edge.
    fn size(&self, key: &str) -> Result<Resize> {
        let side = |value| self.side(key, value, limits::IMAGE_SIDE);
        let entries = match self.entries.get(key) {
            Some(Value::Object(entries)) => entries,
            Some(value @ Value::Number(_)) => return Ok(Resize::ShortestEdge(side(value)?)),
            _ => return Err(self.wrong(key, "is not an object")),
        };
        let edge = |name: &str| entries.get(name).filter(|v| !v.is_null());
        let known = (
            edge("shortest_edge"),
            edge("longest_edge"),
            edge("width"),
            edge("height"),
        );
        match known {
            (Some(edge), None, None, None) => Ok(Resize::ShortestEdge(side(edge)?)),
            (None, Some(edge), None, None) => Ok(Resize::LongestEdge(side(edge)?)),
            (None, None, Some(width), Some(height)) => {
                Ok(Resize::Exact(side(width)?, side(height)?))
            }
            _ => Err(self.wrong(
                key,
                "is none of `shortest_edge`, `longest_edge`, `height` and `width`",
            )),
        }
    }

    fn crop(&self, pad: bool) -> Result<Kind> {
        let resize = match self.flag("do_resize", true)? {
            true => Some(self.size("size")?),
            false => None,
        };
        if matches!(resize, Some(Resize::LongestEdge(_))) {
            return Err(self.wrong("size", "needs `shortest_edge`, or `height` and `width`"));
        }
        let crop = self.flag("do_center_crop", true)?;
        let (key, side) = match (crop, resize) {
            (true, _) => ("crop_size", self.square("crop_size")),
            (false, Some(Resize::ShortestEdge(edge))) if pad => ("size", Some(edge)),
            (false, Some(Resize::Exact(w, h))) if w == h => ("size", Some(w)),
            (false, _) => ("size", None),
        };
        let side = side.ok_or_else(|| self.wrong(key, "does not make a square"))?;
        if side > limits::VISION_SIDE {
            return Err(self.wrong(key, &format!("is larger than {}", limits::VISION_SIDE)));
        }
        Ok(Kind::Crop {
            pad,
            resize,
            crop,
            side,
        })
    }

    /// The side of a `crop_size`.
    fn square(&self, key: &str) -> Option<usize> {
        match self.size(key).ok()? {
            Resize::ShortestEdge(side) => Some(side),
            Resize::Exact(w, h) if w == h => Some(w),
            _ => None,
        }
    }

    fn tiled(&self) -> Result<Kind> {
        let resize = match self.flag("do_resize", true)? {
            true => Some(self.size("size")?),
            false => None,
        };
        if matches!(resize, Some(Resize::ShortestEdge(_))) {
            return Err(self.wrong("size", "needs `longest_edge`, or `height` and `width`"));
        }
        let side = match self
            .entries
            .get("max_image_size")
            .map(|v| &v["longest_edge"])
        {
            Some(side) => self.side("max_image_size", side, limits::VISION_SIDE as u32)?,
            None => return Err(self.wrong("max_image_size", "")),
        };
        Ok(Kind::Tiled {
            resize,
            split: self.flag("do_image_splitting", true)?,
            mask: self.flag("do_pad", true)?,
            side,
        })
    }
}
