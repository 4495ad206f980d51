//! Lists of pictures with questions: what calibration, evaluation and benchmarks read.
//!
//! An `items.jsonl` has one JSON object a line; blank lines and unknown keys are passed over:
//!
//! | key         | what |
//! |-------------|------|
//! | `image`     | path, relative to the file, without `..` |
//! | `prompt`    | the question |
//! | `answer`    | optional: the right answer |
//! | `family`    | optional: kind of question |
//! | `token_ids` | optional: greedy ids of the answer, closing eos included |
//! | `eos`       | optional: ids that end an answer |
//!
//! A folder stands for its `items.jsonl` if it has one, else for its pictures, recursively and
//! in the order of their paths, each with one of [`DEFAULT_QUESTIONS`] in turn.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::limits;

/// Questions about pictures that come without any: short and long answers, on the whole picture
/// and on parts of it.
pub const DEFAULT_QUESTIONS: [&str; 8] = [
    "Describe the picture.",
    "What is in the middle of the picture?",
    "How many people do you see?",
    "Is there a vehicle in the picture?",
    "What colour is the largest object?",
    "Where is the nearest obstacle?",
    "What is on the left side?",
    "Read the text in the picture.",
];

/// File that lists the items of a folder.
const LIST: &str = "items.jsonl";

/// Endings of picture files, in lower case.
const ENDINGS: [&str; 12] = [
    "bmp", "gif", "jpeg", "jpg", "pbm", "pgm", "png", "pnm", "ppm", "tif", "tiff", "webp",
];

/// A picture with a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The picture.
    pub image: PathBuf,
    /// The question.
    pub prompt: String,
    /// The right answer.
    pub answer: Option<String>,
    /// Kind of question.
    pub family: Option<String>,
    /// Greedy ids of the answer, closing eos included.
    pub token_ids: Option<Vec<u32>>,
    /// Ids that end an answer.
    pub eos: Option<Vec<u32>>,
    /// Where the item comes from, for messages: file and line, or the picture.
    pub origin: String,
}

#[derive(Deserialize)]
struct Line {
    image: String,
    prompt: String,
    answer: Option<String>,
    family: Option<String>,
    token_ids: Option<Vec<u32>>,
    eos: Option<Vec<u32>>,
}

/// Reads the items that a file or folder stands for; there is at least one.
///
/// # Errors
/// [`Error::Io`] if it cannot be read; [`Error::Malformed`] naming the line if an item is none,
/// or naming the folder if it has no pictures; [`Error::TooLarge`] above the limits.
pub fn read_items(path: &Path) -> Result<Vec<Item>> {
    if !fs::metadata(path).map_err(Error::io(path))?.is_dir() {
        return read_list(path);
    }
    let list = path.join(LIST);
    if list.exists() {
        return read_list(&list);
    }
    let mut pictures = Vec::new();
    find_pictures(path, 0, &mut pictures)?;
    if pictures.is_empty() {
        let reason = format!("has no {LIST} and no pictures ({})", ENDINGS.join(", "));
        return Err(Error::malformed(path, reason));
    }
    pictures.sort_unstable();
    let questions = DEFAULT_QUESTIONS.iter().cycle();
    let item = |(image, question): (PathBuf, &&str)| Item {
        origin: image.display().to_string(),
        image,
        prompt: (*question).to_owned(),
        answer: None,
        family: None,
        token_ids: None,
        eos: None,
    };
    Ok(pictures.into_iter().zip(questions).map(item).collect())
}

/// At most `n` of the items, evenly spread over the list.
pub fn spread(items: Vec<Item>, n: usize) -> Vec<Item> {
    let total = items.len();
    if n >= total {
        return items;
    }
    // Item i is kept where the rounded-down share of n grows.
    let share = |i: usize| (i as u128 * n as u128 / total as u128) as usize;
    let kept = |(i, item)| (share(i + 1) > share(i)).then_some(item);
    items.into_iter().enumerate().filter_map(kept).collect()
}

fn read_list(path: &Path) -> Result<Vec<Item>> {
    parse(path, open_list(path)?)
}

fn open_list(path: &Path) -> Result<BufReader<File>> {
    // Opening a pipe would wait for a writer.
    if !fs::metadata(path).map_err(Error::io(path))?.is_file() {
        return Err(Error::malformed(path, "not a regular file"));
    }
    File::open(path)
        .map_err(Error::io(path))
        .map(BufReader::new)
}

/// The list that a path stands for: itself, or the `items.jsonl` of a folder.
///
/// # Errors
/// [`Error::Io`] if there is nothing.
pub fn list_path(path: &Path) -> Result<PathBuf> {
    match fs::metadata(path).map_err(Error::io(path))?.is_dir() {
        true => Ok(path.join(LIST)),
        false => Ok(path.to_owned()),
    }
}

/// Sees a line, and its number from 1; says what is wrong with it.
pub type OnLine<'a> = &'a mut dyn FnMut(usize, &[u8]) -> Result<(), String>;

/// Gives each line of a list that holds something, to `each`.
///
/// # Errors
/// [`Error::Io`] if it cannot be read; [`Error::Malformed`] naming the line that is wrong; [`Error::TooLarge`] above the
/// limits of lists of items.
pub fn read_lines(list: &Path, each: OnLine<'_>) -> Result<()> {
    lines(list, open_list(list)?, each)
}

fn lines(path: &Path, mut text: impl BufRead, each: OnLine<'_>) -> Result<()> {
    let (mut n_items, mut line) = (0, Vec::new());
    for number in 1usize.. {
        line.clear();
        let limit = limits::ITEM_LINE_BYTES;
        let n = (&mut text)
            .take(limit + 1)
            .read_until(b'\n', &mut line)
            .map_err(Error::io(path))?;
        if n == 0 {
            break;
        }
        if n as u64 > limit {
            return Err(Error::TooLarge {
                what: format!("line {number} of {} (bytes, at least)", path.display()),
                actual: n as u64,
                limit,
            });
        }
        let mut bytes = line.trim_ascii();
        if number == 1 {
            bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        }
        if bytes.is_empty() {
            continue;
        }
        if n_items == limits::ITEMS {
            return Err(Error::TooLarge {
                what: format!("number of items in {}, at least", path.display()),
                actual: limits::ITEMS as u64 + 1,
                limit: limits::ITEMS as u64,
            });
        }
        n_items += 1;
        let bad = |reason: String| Error::malformed(path, format!("line {number}: {reason}"));
        each(number, bytes).map_err(bad)?;
    }
    Ok(())
}

fn parse(path: &Path, text: impl BufRead) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    lines(path, text, &mut |number, bytes| {
        let line: Line = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        items.push(item(path, number, line)?);
        Ok(())
    })?;
    if items.is_empty() {
        return Err(Error::malformed(path, "has no items"));
    }
    Ok(items)
}

/// The picture that a list names `image`.
///
/// # Errors
/// The reason, if it is not inside the list's folder.
pub fn image_path(list: &Path, image: &str) -> Result<PathBuf, String> {
    let folder = list.parent().unwrap_or(Path::new(""));
    let inside = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
    if image.is_empty() || !Path::new(image).components().all(inside) {
        return Err(format!(
            "image `{image}` is not a path inside the file's folder"
        ));
    }
    Ok(folder.join(image))
}

fn item(path: &Path, number: usize, line: Line) -> Result<Item, String> {
    let image = image_path(path, &line.image)?;
    if line.prompt.trim().is_empty() {
        return Err("the prompt is empty".to_owned());
    }
    if line.prompt.len() > limits::PROMPT_BYTES {
        return Err(format!(
            "the prompt has {} bytes, the limit is {}",
            line.prompt.len(),
            limits::PROMPT_BYTES
        ));
    }
    Ok(Item {
        image,
        prompt: line.prompt,
        answer: line.answer,
        family: line.family,
        token_ids: line.token_ids,
        eos: line.eos,
        origin: format!("{}:{number}", path.display()),
    })
}

/// Collects pictures; hidden entries and links to folders are passed over.
fn find_pictures(folder: &Path, depth: usize, pictures: &mut Vec<PathBuf>) -> Result<()> {
    if depth > limits::ITEM_DEPTH {
        return Err(Error::TooLarge {
            what: format!("depth of folders at {}", folder.display()),
            actual: depth as u64,
            limit: limits::ITEM_DEPTH as u64,
        });
    }
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        let (name, path) = (entry.file_name(), entry.path());
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let kind = entry.file_type().map_err(Error::io(&path))?;
        if kind.is_dir() {
            find_pictures(&path, depth + 1, pictures)?;
            continue;
        }
        let ending = path.extension().and_then(|e| e.to_str());
        let ending = ending.unwrap_or("").to_ascii_lowercase();
        if !ENDINGS.contains(&ending.as_str()) || fs::metadata(&path).is_ok_and(|m| !m.is_file()) {
            continue;
        }
        if pictures.len() == limits::ITEMS {
            return Err(Error::TooLarge {
                what: format!("number of pictures in {}, at least", folder.display()),
                actual: limits::ITEMS as u64 + 1,
                limit: limits::ITEMS as u64,
            });
        }
        pictures.push(path);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &[u8]) -> Result<Vec<Item>> {
        parse(Path::new("data/items.jsonl"), text)
    }

    #[test]
    fn items_are_read_with_optional_and_unknown_keys_and_blank_lines() {
        let text = "\u{feff}{\"image\": \"a/1.png\", \"prompt\": \"what?\"}\r\n\n\
            {\"image\": \"./2.png\", \"prompt\": \"where\", \"answer\": \"here\", \"family\": \"find\", \
            \"token_ids\": [1, 2], \"eos\": [2], \"text\": 5}";
        let items = parsed(text.as_bytes()).expect("items");
        assert_eq!(items.len(), 2);
        assert_eq!(items[0].image, Path::new("data/a/1.png"));
        assert_eq!((&items[0].answer, &items[0].token_ids), (&None, &None));
        assert_eq!(items[1].origin, "data/items.jsonl:3");
        assert_eq!(items[1].token_ids.as_deref(), Some(&[1, 2][..]));
    }

    #[test]
    fn items_that_are_none_are_refused_naming_the_line() {
        let good = r#"{"image": "1.png", "prompt": "p"}"#;
        let long = format!(
            r#"{{"image": "1.png", "prompt": "{}"}}"#,
            "x".repeat(1 << 17)
        );
        for (bad, reason) in [
            ("nonsense", "line 2"),
            (r#"{"image": "1.png"}"#, "missing field `prompt`"),
            (r#"{"image": 1, "prompt": "p"}"#, "line 2"),
            (r#"{"image": "../1.png", "prompt": "p"}"#, "inside"),
            (r#"{"image": "a/../../1.png", "prompt": "p"}"#, "inside"),
            (r#"{"image": "/etc/passwd", "prompt": "p"}"#, "inside"),
            (r#"{"image": "", "prompt": "p"}"#, "inside"),
            (r#"{"image": "1.png", "prompt": " "}"#, "empty"),
            (
                r#"{"image": "1.png", "prompt": "p", "token_ids": [-1]}"#,
                "line 2",
            ),
            ("\u{1}", "line 2"),
            (&long, "prompt has"),
        ] {
            let error = parsed(format!("{good}\n{bad}\n").as_bytes()).expect_err(bad);
            let text = error.to_string();
            assert!(matches!(error, Error::Malformed { .. }), "{text}");
            assert!(text.contains("line 2") && text.contains(reason), "{text}");
        }
        let error = parsed(b"\xff\xfe").expect_err("not UTF-8");
        assert!(error.to_string().contains("line 1"), "{error}");
        let error = parsed(b"\n\n").expect_err("empty");
        assert!(error.to_string().contains("no items"), "{error}");
    }

    #[test]
    fn items_with_a_line_without_end_are_refused_before_it_is_read() {
        let endless = BufReader::new(std::io::repeat(b'x'));
        let error = parse(Path::new("items.jsonl"), endless).expect_err("endless");
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    }

    #[test]
    fn folder_without_list_gives_its_pictures_in_order_with_default_questions() {
        let dir = tempfile::tempdir().expect("temp dir");
        for name in [
            "b/2.JPG",
            "a.png",
            "b/1.png",
            ".hidden/3.png",
            "note.txt",
            "c/d/4.tif",
        ] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("parent")).expect("folder");
            fs::write(path, b"x").expect("write");
        }
        std::os::unix::fs::symlink(dir.path(), dir.path().join("loop")).expect("link");
        let items = read_items(dir.path()).expect("items");
        let names: Vec<_> = items
            .iter()
            .map(|i| {
                i.image
                    .strip_prefix(dir.path())
                    .expect("inside")
                    .display()
                    .to_string()
            })
            .collect();
        assert_eq!(names, ["a.png", "b/1.png", "b/2.JPG", "c/d/4.tif"]);
        let prompts: Vec<&str> = items.iter().map(|i| i.prompt.as_str()).collect();
        assert_eq!(prompts, DEFAULT_QUESTIONS[..4]);
        fs::write(
            dir.path().join(LIST),
            r#"{"image": "a.png", "prompt": "own"}"#,
        )
        .expect("list");
        assert_eq!(read_items(dir.path()).expect("items")[0].prompt, "own");
        let error = read_items(&dir.path().join(".hidden/none")).expect_err("missing");
        assert!(matches!(error, Error::Io { .. }), "{error}");
        fs::create_dir(dir.path().join("empty")).expect("folder");
        let error = read_items(&dir.path().join("empty")).expect_err("empty");
        assert!(error.to_string().contains("no pictures"), "{error}");
    }

    #[test]
    fn spread_takes_items_from_the_whole_list() {
        let items = |n: usize| -> Vec<Item> {
            let text: String = (0..n)
                .map(|i| format!("{{\"image\": \"{i}.png\", \"prompt\": \"p\"}}\n"))
                .collect();
            parsed(text.as_bytes()).expect("items")
        };
        for (n, wanted) in [(10, 3), (16, 16), (16, 99), (7, 1), (100, 64)] {
            let kept = spread(items(n), wanted);
            assert_eq!(kept.len(), wanted.min(n), "{n} {wanted}");
        }
        let kept = spread(items(10), 2);
        assert!(kept[0].image.ends_with("4.png") && kept[1].image.ends_with("9.png"));
    }
}
