//! The words of quick answers, as data.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Most kinds, colours or grounds, and most templates of a form.
const MOST: usize = 256;

/// Longest word or template, in bytes.
const LONGEST: usize = 256;

/// A form of question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// What is there.
    Describe,
    /// How many of a kind.
    Count,
    /// Where an object is.
    Find,
    /// Whether one kind is near another.
    Near,
    /// Which colour the object of a kind has.
    Colour,
}

impl Form {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Describe,
        Self::Count,
        Self::Find,
        Self::Near,
        Self::Colour,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Describe => "describe",
            Self::Count => "count",
            Self::Find => "find",
            Self::Near => "near",
            Self::Colour => "colour",
        }
    }

    /// What stands in braces in each of its templates, once.
    fn slots(self) -> &'static [&'static str] {
        match self {
            Self::Describe => &[],
            Self::Count => &["many"],
            Self::Find => &["object"],
            Self::Near => &["one", "other"],
            Self::Colour => &["one"],
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What objects are called, how they are asked for, and how answers are worded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Words {
    /// Kinds of objects, in the order in which a description names them.
    pub kinds: Vec<KindWords>,
    /// Colours, in the same way; none if objects have no colours.
    #[serde(default)]
    pub colours: Vec<String>,
    /// What objects stand on; none if it is not told.
    #[serde(default)]
    pub grounds: Vec<String>,
    /// Names of the nine parts of a frame, row by row.
    pub places: [[String; 3]; 3],
    /// Centres that are closer than this are near, as a share of the frame's longer side.
    pub near: f64,
    /// Questions of each form, in lower case and without a mark at the end. In braces: `{many}` (a kind's plural) of a
    /// count, `{object}` (a kind with or without a colour) to be found, `{one}` and `{other}` (kinds) that may be
    /// near, `{one}` of a colour.
    pub questions: BTreeMap<Form, Vec<String>>,
    /// Answers.
    pub answers: Answers,
}

/// What objects of a kind are called.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KindWords {
    /// One of them.
    pub one: String,
    /// Several.
    pub many: String,
    /// Its colour is never said.
    #[serde(default)]
    pub plain: bool,
}

/// Templates of answers; what may stand in braces is said of each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answers {
    /// An object with its colour: `{colour}`, `{kind}`.
    pub coloured: String,
    /// Objects of a description, and the answer to a count: `{n}`, `{object}`.
    pub several: String,
    /// Between the objects of a description.
    pub comma: String,
    /// Before the last of them.
    pub and: String,
    /// A description without objects.
    pub nothing: String,
    /// A description: `{objects}`, and `{ground}` if there are grounds.
    pub scene: String,
    /// The answer to a count of none: `{object}`, a plural.
    pub none: String,
    /// An object that was found: `{object}`, `{place}`.
    pub found: String,
    /// One that was not: `{object}`.
    pub absent: String,
    /// One is near the other.
    pub yes: String,
    /// None is.
    pub no: String,
}

impl Words {
    /// Says what is wrong with words that come from outside.
    ///
    /// # Errors
    /// The reason, in words.
    pub fn check(&self) -> Result<(), String> {
        if self.kinds.is_empty() {
            return Err("they name no kind of object".to_owned());
        }
        let ones = self.kinds.iter().map(|kind| &kind.one);
        let manies = self.kinds.iter().map(|kind| &kind.many);
        let places = self.places.iter().flatten();
        check_list("kinds", ones, true)?;
        check_list("kinds", manies, true)?;
        check_list("colours", self.colours.iter(), true)?;
        check_list("grounds", self.grounds.iter(), true)?;
        check_list("places", places, false)?;
        if !(self.near > 0.0 && self.near <= 2.0) {
            return Err(format!("`near` is {}, above 0 to 2", self.near));
        }
        let has_templates = |templates: &Vec<String>| !templates.is_empty();
        let asks_colours = self.questions.get(&Form::Colour).is_some_and(has_templates);
        if asks_colours && self.colours.is_empty() {
            return Err("they have questions about colours, and no colours".to_owned());
        }
        for (form, templates) in &self.questions {
            if templates.len() > MOST {
                let n = templates.len();
                return Err(format!("{n} questions `{form}`, the limit is {MOST}"));
            }
            for template in templates {
                check_template(template, form.slots())?;
                if *template != normal(template) {
                    return Err(format!(
                        "question `{template}`: expected in lower case, with single spaces and no mark at its end"
                    ));
                }
            }
        }
        self.answers.check(!self.grounds.is_empty())
    }

    /// What an object is called.
    pub fn object(&self, kind: usize, colour: Option<usize>) -> String {
        self.coloured(kind, colour, &self.kinds[kind].one)
    }

    /// What so many objects are called.
    pub(super) fn objects(&self, n: usize, kind: usize, colour: Option<usize>) -> String {
        let words = &self.kinds[kind];
        let noun = if n == 1 { &words.one } else { &words.many };
        self.coloured(kind, colour, noun)
    }

    fn coloured(&self, kind: usize, colour: Option<usize>, noun: &str) -> String {
        match colour.filter(|_| !self.kinds[kind].plain) {
            Some(colour) => fill(
                &self.answers.coloured,
                &[("colour", &self.colours[colour]), ("kind", noun)],
            ),
            None => noun.to_owned(),
        }
    }

    /// The colours that objects of a kind are told apart by.
    pub fn colours_of(&self, kind: usize) -> std::ops::Range<usize> {
        match self.kinds[kind].plain {
            true => 0..0,
            false => 0..self.colours.len(),
        }
    }
}

impl Answers {
    fn check(&self, has_grounds: bool) -> Result<(), String> {
        let scene: &[&str] = match has_grounds {
            true => &["objects", "ground"],
            false => &["objects"],
        };
        let templates: [(&str, &[&str]); 11] = [
            (&self.coloured, &["colour", "kind"]),
            (&self.several, &["n", "object"]),
            (&self.comma, &[]),
            (&self.and, &[]),
            (&self.nothing, &[]),
            (&self.scene, scene),
            (&self.none, &["object"]),
            (&self.found, &["object", "place"]),
            (&self.absent, &["object"]),
            (&self.yes, &[]),
            (&self.no, &[]),
        ];
        let mut templates = templates.into_iter();
        templates.try_for_each(|(template, slots)| check_template(template, slots))
    }
}

/// A template with its slots filled. Words have no braces, so that none is filled twice.
pub(super) fn fill(template: &str, slots: &[(&str, &str)]) -> String {
    let mut text = template.to_owned();
    for (slot, word) in slots {
        text = text.replace(&format!("{{{slot}}}"), word);
    }
    text
}

/// A question as templates are compared with it: lower case, single spaces, no marks at its end.
pub(super) fn normal(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let text = words.join(" ").to_lowercase();
    text.trim_end_matches(['.', '?', '!', ' ']).to_owned()
}

fn check_list<'a>(
    what: &str,
    words: impl Iterator<Item = &'a String>,
    distinct: bool,
) -> Result<(), String> {
    let words: Vec<&String> = words.collect();
    if words.len() > MOST {
        return Err(format!("{} {what}, the limit is {MOST}", words.len()));
    }
    for (index, word) in words.iter().enumerate() {
        check_template(word, &[])?;
        if word.trim().is_empty() {
            return Err(format!("one of the {what} is empty"));
        }
        if **word != normal(word) {
            return Err(format!(
                "`{word}` of the {what}: expected in lower case, with single spaces and no mark at its end"
            ));
        }
        if distinct && words[..index].contains(word) {
            return Err(format!("`{word}` stands twice in the {what}"));
        }
    }
    Ok(())
}

/// Refuses a template that has not each slot once, or others.
fn check_template(template: &str, slots: &[&str]) -> Result<(), String> {
    if template.len() > LONGEST {
        let n = template.len();
        return Err(format!("a text of {n} bytes, the limit is {LONGEST}"));
    }
    let mut rest = template.to_owned();
    for slot in slots {
        let slot = format!("{{{slot}}}");
        if rest.matches(&slot).count() != 1 {
            return Err(format!("`{template}`: expected {slot} once"));
        }
        rest = rest.replace(&slot, "");
    }
    match rest.contains(['{', '}']) {
        true => Err(format!("`{template}`: braces that stand for nothing here")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::words;
    use super::*;

    #[test]
    fn words_of_the_demo_model_are_in_order() {
        let text = include_str!("../../onnx/uav-tiny/recipe/quick.json");
        let words: Words = serde_json::from_str(text).expect("words");
        words.check().expect("in order");
        assert_eq!(words.questions.len(), Form::ALL.len());
    }

    #[test]
    fn words_that_no_answer_can_be_made_of_are_refused_with_the_reason() {
        type Change = fn(&mut Words);
        let cases: [(&str, Change); 17] = [
            ("no kind", |w| w.kinds.clear()),
            ("twice", |w| w.kinds[1].one = w.kinds[0].one.clone()),
            ("twice", |w| w.colours[1] = w.colours[0].clone()),
            ("no colours", |w| w.colours.clear()),
            ("empty", |w| w.grounds[0] = " ".to_owned()),
            ("empty", |w| w.places[2][1].clear()),
            ("lower case", |w| w.colours[0] = "Red".to_owned()),
            ("braces", |w| w.kinds[0].many = "{n}".to_owned()),
            ("near", |w| w.near = f64::NAN),
            ("near", |w| w.near = 0.0),
            ("limit", |w| w.colours = vec!["x".to_owned(); 257]),
            ("limit", |w| w.answers.yes = "y".repeat(257)),
            ("{object} once", |w| w.answers.absent = "no".to_owned()),
            ("{n} once", |w| {
                w.answers.several = "{n} {n} {object}".to_owned()
            }),
            ("{ground} once", |w| {
                w.answers.scene = "{objects}".to_owned()
            }),
            ("{many} once", |w| {
                w.questions.insert(Form::Count, vec!["how many".to_owned()]);
            }),
            ("mark at its end", |w| {
                let question = "what do you see?".to_owned();
                w.questions.insert(Form::Describe, vec![question]);
            }),
        ];
        for (reason, change) in cases {
            let mut words = words();
            change(&mut words);
            let told = words.check().expect_err(reason);
            assert!(told.contains(reason), "{reason}: {told}");
        }
        words().check().expect("unchanged");
    }
}
