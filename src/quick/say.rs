//! From a scene and a question to a sentence.

use super::grid::Grid;
use super::question::Question;
use super::scene::Scene;
use super::words::{Words, fill};

/// The answer; `None` if the scene has none, because the colour that the question is about is not known.
///
/// Of several objects that could be meant the first is. Scenes that were found and true ones are told in the same words.
pub fn say(words: &Words, question: Question, scene: &Scene) -> Option<String> {
    let answers = &words.answers;
    Some(match question {
        Question::Describe => describe(words, scene),
        Question::Count { kind } => count(words, kind, scene.such(kind, None).count()),
        Question::Find { kind, colour } => {
            let object = words.object(kind, colour);
            match scene.such(kind, colour).next() {
                Some(found) => {
                    let (row, column) = Grid::ninth_of(scene.things[found].at, scene.size);
                    let place = &words.places[row][column];
                    fill(&answers.found, &[("object", &object), ("place", place)])
                }
                None => fill(&answers.absent, &[("object", &object)]),
            }
        }
        Question::Near { kind, other } => match scene.closest(kind, other) {
            Some((_, _, distance)) if distance <= words.near => answers.yes.clone(),
            _ => answers.no.clone(),
        },
        Question::Colour { kind } => {
            let Some(found) = scene.such(kind, None).next() else {
                let object = words.object(kind, None);
                return Some(fill(&answers.absent, &[("object", &object)]));
            };
            words.colours.get(scene.things[found].colour?)?.clone()
        }
    })
}

fn count(words: &Words, kind: usize, n: usize) -> String {
    let object = words.objects(n, kind, None);
    match n {
        0 => fill(&words.answers.none, &[("object", &object)]),
        n => fill(
            &words.answers.several,
            &[("n", &n.to_string()), ("object", &object)],
        ),
    }
}

/// Kinds in their order, then colours in theirs, those without one last.
fn describe(words: &Words, scene: &Scene) -> String {
    let answers = &words.answers;
    let mut parts = Vec::new();
    let mut add = |n: usize, kind: usize, colour: Option<usize>| {
        if n > 0 {
            let object = words.objects(n, kind, colour);
            let slots = [("n", n.to_string()), ("object", object)];
            let slots = slots.each_ref().map(|(slot, word)| (*slot, word.as_str()));
            parts.push(fill(&answers.several, &slots));
        }
    };
    for kind in 0..words.kinds.len() {
        let mut rest = scene.such(kind, None).count();
        for colour in words.colours_of(kind) {
            let n = scene.such(kind, Some(colour)).count();
            rest -= n;
            add(n, kind, Some(colour));
        }
        add(rest, kind, None);
    }
    let objects = match parts.split_last() {
        None => answers.nothing.clone(),
        Some((last, [])) => last.clone(),
        Some((last, others)) => {
            let listed = others.join(&answers.comma);
            format!("{listed}{}{last}", answers.and)
        }
    };
    let ground = scene.ground.and_then(|ground| words.grounds.get(ground));
    let ground = ground.map_or("", String::as_str);
    fill(&answers.scene, &[("objects", &objects), ("ground", ground)])
}

#[cfg(test)]
mod tests {
    use super::super::scene::Thing;
    use super::super::testing::words;
    use super::*;

    fn scene(things: &[(usize, Option<usize>, f64, f64)]) -> Scene {
        let thing = |&(kind, colour, x, y): &(usize, Option<usize>, f64, f64)| Thing {
            kind,
            colour,
            at: [x, y],
        };
        Scene {
            things: things.iter().map(thing).collect(),
            ground: Some(1),
            size: [1.0, 0.6],
        }
    }

    #[test]
    fn answers_are_worded_as_templates_say() {
        let words = words();
        let busy = scene(&[
            (2, Some(1), 0.9, 0.1),
            (0, Some(1), 0.1, 0.5),
            (1, Some(0), 0.5, 0.3),
            (0, Some(0), 0.2, 0.1),
            (0, Some(0), 0.6, 0.5),
        ]);
        let (car, tree, boat) = (0, 1, 2);
        for (question, expected) in [
            (
                Question::Describe,
                Some("2 red cars, 1 blue car, 1 tree and 1 blue boat on soil"),
            ),
            (Question::Count { kind: car }, Some("3 cars")),
            (Question::Count { kind: tree }, Some("1 tree")),
            (
                Question::Find {
                    kind: car,
                    colour: Some(1),
                },
                Some("blue car at bottom left"),
            ),
            (
                Question::Find {
                    kind: boat,
                    colour: None,
                },
                Some("boat at top right"),
            ),
            (
                Question::Find {
                    kind: tree,
                    colour: None,
                },
                Some("tree at center"),
            ),
            (
                Question::Find {
                    kind: boat,
                    colour: Some(0),
                },
                Some("no red boat"),
            ),
            (
                Question::Near {
                    kind: car,
                    other: tree,
                },
                Some("yes"),
            ),
            (
                Question::Near {
                    kind: boat,
                    other: car,
                },
                Some("no"),
            ),
            (Question::Colour { kind: boat }, Some("blue")),
        ] {
            let said = say(&words, question, &busy);
            assert_eq!(said.as_deref(), expected, "{question:?}");
        }
    }

    #[test]
    fn empty_scene_has_answers_to_all_questions() {
        let (words, empty) = (words(), scene(&[]));
        let said = |question| say(&words, question, &empty);
        assert_eq!(said(Question::Describe).as_deref(), Some("nothing on soil"));
        assert_eq!(
            said(Question::Count { kind: 2 }).as_deref(),
            Some("no boats")
        );
        let near = Question::Near { kind: 0, other: 1 };
        assert_eq!(said(near).as_deref(), Some("no"));
        let colour = Question::Colour { kind: 0 };
        assert_eq!(said(colour).as_deref(), Some("no car"));
    }

    #[test]
    fn object_of_an_unknown_colour_is_told_without_one() {
        let scene = scene(&[(0, None, 0.1, 0.1), (0, Some(0), 0.1, 0.1)]);
        let said = say(&words(), Question::Describe, &scene);
        assert_eq!(said.as_deref(), Some("1 red car and 1 car on soil"));
        assert_eq!(say(&words(), Question::Colour { kind: 0 }, &scene), None);
    }
}
