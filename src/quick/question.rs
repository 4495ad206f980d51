//! From the words of a question to its form.

use super::words::{Form, Words, normal};

/// A question of a form that a scene answers; kinds and colours are indices into the words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// What is there.
    Describe,
    /// How many of a kind.
    Count {
        /// The kind.
        kind: usize,
    },
    /// Where an object is.
    Find {
        /// Its kind.
        kind: usize,
        /// Its colour, if that was said.
        colour: Option<usize>,
    },
    /// Whether one of a kind is near one of another.
    Near {
        /// The one.
        kind: usize,
        /// The other.
        other: usize,
    },
    /// Which colour the object of a kind has.
    Colour {
        /// The kind.
        kind: usize,
    },
}

impl Question {
    /// Its form.
    pub fn form(self) -> Form {
        match self {
            Self::Describe => Form::Describe,
            Self::Count { .. } => Form::Count,
            Self::Find { .. } => Form::Find,
            Self::Near { .. } => Form::Near,
            Self::Colour { .. } => Form::Colour,
        }
    }

    fn new(form: Form, bound: Bound) -> Option<Self> {
        let kind = bound.kind;
        Some(match form {
            Form::Describe => Self::Describe,
            Form::Count => Self::Count { kind: kind? },
            Form::Find => Self::Find {
                kind: kind?,
                colour: bound.colour,
            },
            Form::Near => Self::Near {
                kind: kind?,
                other: bound.other?,
            },
            Form::Colour => Self::Colour { kind: kind? },
        })
    }
}

/// What slots of a template stand for in a text.
#[derive(Debug, Clone, Copy, Default)]
struct Bound {
    kind: Option<usize>,
    colour: Option<usize>,
    other: Option<usize>,
}

impl Words {
    /// The form of a question; `None` if it is worded as no template. Case, spaces and marks at its end are of no consequence.
    pub fn question(&self, text: &str) -> Option<Question> {
        let text = normal(text);
        self.questions.iter().find_map(|(&form, templates)| {
            let mut templates = templates.iter();
            let bound = templates.find_map(|t| self.bind(t, &text, Bound::default()))?;
            Question::new(form, bound)
        })
    }

    /// Finds what the slots of `template` stand for, if `text` is made from it.
    fn bind(&self, template: &str, text: &str, bound: Bound) -> Option<Bound> {
        let Some((literal, rest)) = template.split_once('{') else {
            return (template == text).then_some(bound);
        };
        let text = text.strip_prefix(literal)?;
        let (slot, rest) = rest.split_once('}')?;
        let mut kinds = self.kinds.iter().enumerate();
        kinds.find_map(|(kind, words)| match slot {
            "many" => {
                let bound = Bound {
                    kind: Some(kind),
                    ..bound
                };
                self.bind(rest, text.strip_prefix(words.many.as_str())?, bound)
            }
            "one" => {
                let bound = Bound {
                    kind: Some(kind),
                    ..bound
                };
                self.bind(rest, text.strip_prefix(words.one.as_str())?, bound)
            }
            "other" => {
                let bound = Bound {
                    other: Some(kind),
                    ..bound
                };
                self.bind(rest, text.strip_prefix(words.one.as_str())?, bound)
            }
            _ => {
                let colours = self.colours_of(kind).map(Some);
                let mut colours = std::iter::once(None).chain(colours);
                colours.find_map(|colour| {
                    let bound = Bound {
                        kind: Some(kind),
                        colour,
                        ..bound
                    };
                    let object = self.object(kind, colour);
                    self.bind(rest, text.strip_prefix(object.as_str())?, bound)
                })
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::words;
    use super::*;

    #[test]
    fn questions_are_known_by_their_words() {
        let words = words();
        let (car, tree, boat) = (0, 1, 2);
        for (text, expected) in [
            ("describe the scene", Some(Question::Describe)),
            ("  Describe   the scene?!", Some(Question::Describe)),
            (
                "how many cars are there?",
                Some(Question::Count { kind: car }),
            ),
            (
                "Find the blue boat.",
                Some(Question::Find {
                    kind: boat,
                    colour: Some(1),
                }),
            ),
            (
                "find the boat",
                Some(Question::Find {
                    kind: boat,
                    colour: None,
                }),
            ),
            (
                "find the tree",
                Some(Question::Find {
                    kind: tree,
                    colour: None,
                }),
            ),
            (
                "is there a car near the tree",
                Some(Question::Near {
                    kind: car,
                    other: tree,
                }),
            ),
            (
                "what colour is the boat",
                Some(Question::Colour { kind: boat }),
            ),
            // Its colour is never said.
            ("find the blue tree", None),
            ("find the green boat", None),
            ("how many car are there", None),
            ("how many cars are there now", None),
            ("is there a car near the", None),
            ("describe", None),
            ("", None),
            ("{one}", None),
        ] {
            assert_eq!(words.question(text), expected, "{text}");
        }
    }

    #[test]
    fn kind_whose_name_begins_another_is_told_from_it() {
        let mut words = words();
        words.kinds[2].one = "carrier".to_owned();
        let find = |text| words.question(text);
        assert_eq!(
            find("find the carrier"),
            Some(Question::Find {
                kind: 2,
                colour: None
            })
        );
        assert_eq!(
            find("is there a carrier near the car"),
            Some(Question::Near { kind: 2, other: 0 })
        );
    }
}
