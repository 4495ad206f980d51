//! JSON and text files of bounded size, and values looked up by pointer.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::limits;
use crate::read::read_file;
use crate::{Error, Result};

/// Reads a whole file of at most [`limits::TEXT_FILE_BYTES`].
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::Malformed`] if it is not a regular file,
/// [`Error::TooLarge`] before memory for it is asked for.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    read_file(path, limits::TEXT_FILE_BYTES)
}

/// Reads a whole UTF-8 file of at most [`limits::TEXT_FILE_BYTES`].
///
/// # Errors
/// Those of [`read_bytes`], and [`Error::Malformed`] if it is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read_bytes(path)?)
        .map_err(|e| Error::malformed(path, format!("not UTF-8: {}", e.utf8_error())))
}

/// A JSON file whose values are looked up by pointer (RFC 6901), `null` counting as absent.
///
/// Nesting is limited by the parser (128 levels).
#[derive(Debug, Clone)]
pub struct Json {
    path: PathBuf,
    root: Value,
}

impl Json {
    /// Reads a JSON object from a file.
    ///
    /// # Errors
    /// Those of [`read_bytes`]; [`Error::Malformed`] if it is not a JSON object.
    pub fn load(path: &Path) -> Result<Self> {
        Self::parse(path, &read_bytes(path)?)
    }

    /// Reads a JSON object from a file, `None` if there is no such file.
    ///
    /// # Errors
    /// Those of [`Json::load`].
    pub fn load_optional(path: &Path) -> Result<Option<Self>> {
        match Self::load(path) {
            Ok(json) => Ok(Some(json)),
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Parses a JSON object; `path` is the name used in errors.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is not a JSON object.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let root: Value = serde_json::from_slice(bytes)
            .map_err(|e| Error::malformed(path, format!("not JSON: {e}")))?;
        if !root.is_object() {
            return Err(Error::malformed(path, "not a JSON object"));
        }
        Ok(Self {
            path: path.to_path_buf(),
            root,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value at `pointer`, unless it is absent or `null`.
    pub fn at(&self, pointer: &str) -> Option<&Value> {
        self.root.pointer(pointer).filter(|v| !v.is_null())
    }

    /// The first pointer that has a value, with that value.
    pub fn first<'a>(&self, pointers: &[&'a str]) -> Option<(&'a str, &Value)> {
        pointers.iter().find_map(|p| Some((*p, self.at(p)?)))
    }

    /// The text at `pointer`.
    ///
    /// # Errors
    /// [`Error::Malformed`] if there is something else.
    pub fn text(&self, pointer: &str) -> Result<Option<&str>> {
        self.at(pointer)
            .map(|v| v.as_str().ok_or_else(|| self.wrong(pointer, "a string", v)))
            .transpose()
    }

    /// The whole number at the first pointer that has a value.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the value is not a number `>= 0` without fraction.
    pub fn whole(&self, pointers: &[&str]) -> Result<Option<u64>> {
        self.first(pointers)
            .map(|(p, v)| as_whole(v).ok_or_else(|| self.wrong(p, "a whole number", v)))
            .transpose()
    }

    /// The token id or ids at `pointer`: published files have a number or a list.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the value is neither.
    pub fn token_ids(&self, pointer: &str) -> Result<Option<Vec<u32>>> {
        let Some(value) = self.at(pointer) else {
            return Ok(None);
        };
        let one = |v: &Value| as_whole(v).and_then(|n| u32::try_from(n).ok());
        let ids = match value {
            Value::Array(list) => list.iter().map(one).collect(),
            v => one(v).map(|id| vec![id]),
        };
        ids.map(Some)
            .ok_or_else(|| self.wrong(pointer, "a token id or a list of them", value))
    }

    /// An error that names file, key and what stands there.
    pub fn wrong(&self, pointer: &str, expected: &str, actual: &Value) -> Error {
        let mut shown: String = actual.to_string().chars().take(60).collect();
        if shown.len() < actual.to_string().len() {
            shown.push('…');
        }
        self.malformed(format!(
            "`{}` is {shown}, expected {expected}",
            dotted(pointer)
        ))
    }

    /// An error that names the file and the keys of which one must be there.
    pub fn missing(&self, pointers: &[&str]) -> Error {
        let keys: Vec<String> = pointers
            .iter()
            .map(|p| format!("`{}`", dotted(p)))
            .collect();
        self.malformed(format!("{} is missing", keys.join(" or ")))
    }

    /// An error that names the file.
    pub fn malformed(&self, reason: impl Into<String>) -> Error {
        Error::malformed(&self.path, reason)
    }
}

/// `/text_config/hidden_size` as people write it.
pub(super) fn dotted(pointer: &str) -> String {
    pointer.trim_start_matches('/').replace('/', ".")
}

/// Integers, and floats without fraction as some exporters write them.
fn as_whole(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let x = value.as_f64()?;
        (x >= 0.0 && x.fract() == 0.0 && x <= 9e15).then_some(x as u64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Result<Json> {
        Json::parse(Path::new("c.json"), text.as_bytes())
    }

    #[test]
    fn json_of_other_kinds_is_refused() {
        let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        let deep_object = format!("{{\"a\":{deep}}}");
        for text in [
            "",
            "{",
            "[1]",
            "3",
            "null",
            "{\"a\":}",
            "\u{0}",
            &deep,
            &deep_object,
        ] {
            let e = json(text).expect_err("must be refused");
            assert!(matches!(e, Error::Malformed { .. }), "{e}");
            assert!(e.to_string().starts_with("c.json: "), "{e}");
        }
        assert!(Json::parse(Path::new("c.json"), b"{\"a\": \"\xff\"}").is_err());
    }

    #[test]
    fn value_of_wrong_kind_is_named_with_its_key() {
        let j = json(r#"{"t": {"n": "many"}, "neg": -1, "half": 0.5}"#).expect("json");
        let e = j.whole(&["/t/n"]).expect_err("not a number").to_string();
        assert_eq!(e, "c.json: `t.n` is \"many\", expected a whole number");
        assert!(j.whole(&["/neg"]).is_err());
        assert!(j.whole(&["/half"]).is_err());
        assert!(j.text("/neg").is_err());
        assert!(j.token_ids("/t").is_err());
    }

    #[test]
    fn value_null_counts_as_absent() {
        let j = json(r#"{"a": null, "b": 7.0, "c": [1, 2], "d": 3}"#).expect("json");
        assert_eq!(j.whole(&["/a", "/b"]).expect("whole"), Some(7));
        assert_eq!(j.whole(&["/a"]).expect("absent"), None);
        assert_eq!(j.token_ids("/c").expect("ids"), Some(vec![1, 2]));
        assert_eq!(j.token_ids("/d").expect("ids"), Some(vec![3]));
        assert_eq!(
            j.missing(&["/a", "/x/y"]).to_string(),
            "c.json: `a` or `x.y` is missing"
        );
    }

    #[test]
    fn file_over_the_limit_is_refused_unread() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("big.json");
        std::fs::File::create(&path)
            .and_then(|f| f.set_len(limits::TEXT_FILE_BYTES + 1))
            .expect("sparse file");
        assert!(matches!(Json::load(&path), Err(Error::TooLarge { .. })));
        assert!(matches!(
            Json::load(dir.path()),
            Err(Error::Malformed { .. })
        ));
        assert!(matches!(
            Json::load(&dir.path().join("none")),
            Err(Error::Io { .. })
        ));
        let none = Json::load_optional(&dir.path().join("none")).expect("optional");
        assert!(none.is_none());
    }
}
