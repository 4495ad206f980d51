//! The model's chat template, a Jinja program that comes with the model.
//!
//! It is rendered as the hub's Python libraries render it (`trim_blocks`, `lstrip_blocks`, Python
//! string methods, `raise_exception`, `strftime_now`), within limits on its length, instructions,
//! recursion, output, and the values that it computes (see `sandbox`). It sees a mark instead of
//! the question, so no question can steer it.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use minijinja::value::Value;
use minijinja::{ErrorKind, context};

use super::clock;
use super::sandbox::Sandbox;
use super::vocabulary::special_name;
use crate::model::{Json, read_text};
use crate::{Error, Result, limits};

/// Stands where the question will. Private-use characters, which no template has; one that has
/// them is refused, because the mark must appear exactly once.
const MARK: &str = "\u{f8ff}question\u{f8fe}";

/// What stands before and after the question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub before: String,
    pub after: String,
}

/// How a template wants a message's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    /// A list of `{"type": "image"}` and `{"type": "text", "text": ..}`.
    Parts,
    /// A string that begins with the image words, one a line.
    Words,
}

/// A chat template that is known to work.
#[derive(Debug)]
pub(super) struct Template {
    path: PathBuf,
    program: Sandbox,
    /// `bos_token`, `eos_token`, … as the template may ask for them.
    names: BTreeMap<&'static str, Value>,
    image: String,
    content: Content,
    trims_start: bool,
    trims_end: bool,
}

impl Template {
    /// Finds a folder's template: `chat_template.jinja`, `chat_template.json`, then the
    /// `tokenizer_config.json` that is given. `image` is the image word.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::TooLarge`]; [`Error::Malformed`] naming the file if there is no
    /// template or it does not render.
    pub fn load(dir: &Path, names: Option<&Json>, image: &str) -> Result<Self> {
        let (path, source) = find(dir, names)?;
        Self::parse(path, source, names, image)
    }

    /// Compiles a template and finds out how it wants its messages.
    ///
    /// # Errors
    /// Those of [`Template::load`], less reading.
    pub fn parse(path: PathBuf, source: String, names: Option<&Json>, image: &str) -> Result<Self> {
        if source.len() > limits::TEMPLATE_BYTES {
            return Err(Error::TooLarge {
                what: format!("size in bytes of the chat template in {}", path.display()),
                actual: source.len() as u64,
                limit: limits::TEMPLATE_BYTES as u64,
            });
        }
        let program = Sandbox::new(&source).map_err(|e| broken(&path, e))?;
        // A name that is not given is undefined, as in Python.
        let names = ["bos_token", "eos_token", "pad_token", "unk_token"]
            .into_iter()
            .filter_map(|key| {
                let word = special_name(names?, &format!("/{key}"))?;
                Some((key, Value::from(word)))
            })
            .collect();
        let mut this = Self {
            path,
            program,
            names,
            image: image.to_string(),
            content: Content::Parts,
            trims_start: false,
            trims_end: false,
        };
        this.probe()?;
        Ok(this)
    }

    /// The template's text around the question in a message with `n_images` images.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it cannot be rendered, or does not show every image and the
    /// question once.
    pub fn frame(&self, n_images: usize) -> Result<Frame> {
        self.render(self.content, n_images, MARK, clock::now())
            .and_then(|text| self.cut(&text, n_images))
            .map_err(|reason| self.malformed(reason))
    }

    /// The question as the template would show it: some trim it.
    pub fn shown<'a>(&self, mut question: &'a str) -> &'a str {
        if self.trims_start {
            question = question.trim_start();
        }
        if self.trims_end {
            question = question.trim_end();
        }
        question
    }

    /// Settles the form of the content, and what happens to white space around the question.
    fn probe(&mut self) -> Result<()> {
        let now = clock::now();
        let shown = |content| {
            let text = self.render(content, 1, MARK, now)?;
            self.cut(&text, 1).map(|_| (content, text))
        };
        let (content, plain) = shown(Content::Parts).or_else(|parts| {
            shown(Content::Words).map_err(|words| {
                self.malformed(format!(
                    "with a list as content: {parts}; with a string: {words}"
                ))
            })
        })?;
        self.content = content;
        let padded = self
            .render(content, 1, &format!(" {MARK} "), now)
            .map_err(|reason| self.malformed(reason))?;
        for (start, end) in [(" ", " "), ("", " "), (" ", ""), ("", "")] {
            if padded == plain.replace(MARK, &format!("{start}{MARK}{end}")) {
                self.trims_start = start.is_empty();
                self.trims_end = end.is_empty();
                return Ok(());
            }
        }
        Err(self.malformed("it rewrites the question"))
    }

    /// The text on both sides of the mark, or what is wrong with it.
    fn cut(&self, text: &str, n_images: usize) -> Result<Frame, String> {
        let mut parts = text.split(MARK);
        let (Some(before), Some(after), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err("it does not show the question once".into());
        };
        let shown = before.matches(&self.image).count() + after.matches(&self.image).count();
        if shown != n_images {
            return Err(format!("it shows {shown} images of {n_images}"));
        }
        Ok(Frame {
            before: before.to_string(),
            after: after.to_string(),
        })
    }

    /// What the template writes, or why it does not.
    fn render(
        &self,
        content: Content,
        n_images: usize,
        question: &str,
        now: Duration,
    ) -> Result<String, String> {
        let content = match content {
            Content::Parts => {
                let image = || context! { type => "image" };
                let text = context! { type => "text", text => question };
                let images = std::iter::repeat_with(image).take(n_images);
                Value::from_iter(images.chain([text]))
            }
            Content::Words => {
                let images = format!("{}\n", self.image).repeat(n_images);
                Value::from(images + question)
            }
        };
        let message = context! { role => "user", content => content };
        let strftime_now = Value::from_function(move |pattern: String| {
            clock::format(now, &pattern).ok_or_else(|| {
                let reason = format!("date format {pattern:?} is not supported");
                minijinja::Error::new(ErrorKind::InvalidOperation, reason)
            })
        });
        let context = context! {
            messages => Value::from_iter([message]),
            add_generation_prompt => true,
            strftime_now => strftime_now,
            tools => (),
            documents => (),
            ..Value::from(self.names.clone())
        };
        self.program.render(context)
    }

    fn malformed(&self, reason: impl fmt::Display) -> Error {
        broken(&self.path, reason)
    }
}

/// The file that holds the template, and its text.
fn find(dir: &Path, names: Option<&Json>) -> Result<(PathBuf, String)> {
    let path = dir.join("chat_template.jinja");
    match read_text(&path) {
        Ok(source) => return Ok((path, source)),
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let json = Json::load_optional(&dir.join("chat_template.json"))?;
    for json in json.iter().chain(names) {
        if let Some(source) = from_json(json)? {
            return Ok((json.path().to_path_buf(), source));
        }
    }
    let last = dir.join("tokenizer_config.json");
    Err(Error::malformed(
        last,
        "no `chat_template`, here or in chat_template.jinja or chat_template.json",
    ))
}

/// A template, or the one named `default` of several.
fn from_json(json: &Json) -> Result<Option<String>> {
    let pointer = "/chat_template";
    let Some(value) = json.at(pointer) else {
        return Ok(None);
    };
    let list = value.as_array().map_or(&[][..], Vec::as_slice);
    let default = list.iter().find(|t| t["name"] == "default");
    value
        .as_str()
        .or_else(|| default.and_then(|t| t["template"].as_str()))
        .map(|source| Some(source.to_string()))
        .ok_or_else(|| json.wrong(pointer, "a template, or a list with a `default` one", value))
}

fn broken(path: &Path, reason: impl fmt::Display) -> Error {
    Error::malformed(path, format!("chat template: {reason}"))
}
