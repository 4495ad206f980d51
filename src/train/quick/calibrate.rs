//! What the trained probe makes of held-out pictures: its threshold, how sure its answers are, and how good it is.

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::shards::Shards;
use super::collect::Seen;
use crate::error::Result;
use crate::quick::{
    Form, Looked, Probe, Question, QuickSettings, Scene, Thing, Words, fit_logistic, say,
};

/// Thresholds that are tried.
const THRESHOLDS: [f64; 9] = [0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7];

/// An object is right if one of its kind is not farther away than so many cells.
const REACH: f64 = 1.5;

/// Near questions are not asked of distances that differ by less than this share from what is near: the recipe of the
/// demo model does not ask them, because nobody could tell.
const NEAR_MARGIN: f64 = 0.1;

/// How well one class was told.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassReport {
    /// The class.
    pub name: String,
    /// Those that are there.
    pub there: usize,
    /// Those that were found.
    pub found: usize,
    /// Those of the found that are there.
    pub right: usize,
    /// `right / found`; `None` if nothing was found.
    pub precision: Option<f64>,
    /// `right / there`; `None` if none is there.
    pub recall: Option<f64>,
}

/// How answers to questions of one form fared.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FormReport {
    /// The form.
    pub form: Form,
    /// Questions that were made of the true scenes.
    pub asked: usize,
    /// Right answers.
    pub right: usize,
}

/// What came of held-out pictures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judged {
    /// Pictures.
    pub pictures: usize,
    /// Objects by kind.
    pub kinds: Vec<ClassReport>,
    /// Objects by colour, of those whose kind is right.
    pub colours: Vec<ClassReport>,
    /// Pictures by ground.
    pub grounds: Vec<ClassReport>,
    /// Questions by form.
    pub forms: Vec<FormReport>,
}

/// The held-out pictures that could be read.
pub(super) fn held_out(shards: &Shards, held: &dyn Fn(usize) -> bool) -> Result<Vec<Seen>> {
    let mut seens = Vec::new();
    for file in 0..shards.n_files() {
        for (index, record) in shards.read(file)? {
            if held(index) {
                seens.extend(Seen::of(&record)?);
            }
        }
    }
    Ok(seens)
}

/// Measures threshold and calibration, and says how good the probe is with them.
pub(super) fn calibrate(mut probe: Probe, seens: &[Seen]) -> Result<(QuickSettings, Judged)> {
    let mut settings = probe.settings().clone();
    let mut best = None;
    for threshold in THRESHOLDS {
        settings.threshold = threshold;
        probe = probe.with_settings(settings.clone());
        let looked = look(&probe, seens)?;
        let pairs = looked.iter().zip(seens);
        let told = |scene: &Scene| say(&settings.words, Question::Describe, scene);
        let is_right = |(looked, seen): &(&Looked, &Seen)| told(&looked.scene) == told(&seen.truth);
        let right = pairs.filter(is_right).count();
        if best.is_none_or(|(most, _)| right > most) {
            best = Some((right, threshold));
        }
    }
    settings.threshold = best.map_or(settings.threshold, |(_, threshold)| threshold);
    probe = probe.with_settings(settings.clone());
    let looked = look(&probe, seens)?;
    let mut samples: BTreeMap<Form, Vec<(f64, bool)>> = BTreeMap::new();
    let mut forms: BTreeMap<Form, (usize, usize)> = BTreeMap::new();
    for (looked, seen) in looked.iter().zip(seens) {
        for question in questions(&settings.words, &seen.truth) {
            let form = question.form();
            let (asked, right) = forms.entry(form).or_default();
            *asked += 1;
            let expected = say(&settings.words, question, &seen.truth);
            if let Some(said) = say(&settings.words, question, &looked.scene) {
                let is_right = Some(said) == expected;
                *right += usize::from(is_right);
                let score = probe.score(question, looked);
                samples.entry(form).or_default().push((score, is_right));
            }
        }
    }
    let fit = |(form, samples): (&Form, &Vec<(f64, bool)>)| (*form, fit_logistic(samples));
    settings.calibration = samples.iter().map(fit).collect();
    let form =
        |(&form, &(asked, right)): (&Form, &(usize, usize))| FormReport { form, asked, right };
    let mut judged = judge(&settings.words, &looked, seens);
    judged.forms = forms.iter().map(form).collect();
    Ok((settings, judged))
}

fn look(probe: &Probe, seens: &[Seen]) -> Result<Vec<Looked>> {
    let looked = seens.iter().map(|seen| probe.look(&seen.rows, &seen.grid));
    looked.collect()
}

/// What can be asked about a true scene, in the manner of the demo model's recipe: about what is there once or not at all, and about
/// what could be mistaken for something that is there.
fn questions(words: &Words, truth: &Scene) -> Vec<Question> {
    let n = |kind: usize, colour: Option<usize>| truth.such(kind, colour).count();
    let mut questions = vec![Question::Describe];
    for kind in 0..words.kinds.len() {
        let n_kind = n(kind, None);
        questions.push(Question::Count { kind });
        let colours = words.colours_of(kind);
        if n_kind == 1 || colours.is_empty() && n_kind == 0 {
            questions.push(Question::Find { kind, colour: None });
        }
        let may_ask = |&colour: &usize| match n(kind, Some(colour)) {
            0 => n_kind > 0 || colour == 0,
            n => n == 1,
        };
        let find = |colour| Question::Find {
            kind,
            colour: Some(colour),
        };
        questions.extend(colours.clone().filter(may_ask).map(find));
        if n_kind == 1 && !colours.is_empty() {
            questions.push(Question::Colour { kind });
        }
        for other in (0..words.kinds.len()).filter(|&other| other != kind && n(other, None) > 0) {
            let pair = truth.closest(kind, other);
            let is_clear = |(_, _, distance): (usize, usize, f64)| {
                (distance - words.near).abs() >= NEAR_MARGIN * words.near
            };
            if pair.is_none_or(is_clear) {
                questions.push(Question::Near { kind, other });
            }
        }
    }
    questions.retain(|&question| say(words, question, truth).is_some());
    questions
}

/// Counts of one class: there, found, right.
type Counts = [usize; 3];

fn judge(words: &Words, looked: &[Looked], seens: &[Seen]) -> Judged {
    let mut kinds = vec![Counts::default(); words.kinds.len()];
    let mut colours = vec![Counts::default(); words.colours.len()];
    let mut grounds = vec![Counts::default(); words.grounds.len()];
    for (looked, seen) in looked.iter().zip(seens) {
        let (found, truth) = (&looked.scene, &seen.truth);
        count(&mut grounds, truth.ground, found.ground);
        truth
            .things
            .iter()
            .for_each(|thing| kinds[thing.kind][0] += 1);
        found
            .things
            .iter()
            .for_each(|thing| kinds[thing.kind][1] += 1);
        let [width, height] = seen.grid.cell;
        for (found, there) in matches(&found.things, &truth.things, REACH * width.max(height)) {
            kinds[found.kind][2] += 1;
            if there.colour.is_some() && !words.colours_of(there.kind).is_empty() {
                count(&mut colours, there.colour, found.colour);
            }
        }
    }
    let names = words.kinds.iter().map(|kind| &kind.one);
    Judged {
        pictures: seens.len(),
        kinds: reports(names, kinds),
        colours: reports(words.colours.iter(), colours),
        grounds: reports(words.grounds.iter(), grounds),
        forms: Vec::new(),
    }
}

fn count(classes: &mut [Counts], there: Option<usize>, found: Option<usize>) {
    if let (Some(there), Some(found)) = (there, found) {
        classes[there][0] += 1;
        classes[found][1] += 1;
        classes[found][2] += usize::from(there == found);
    }
}

/// Objects that were found, each with the nearest of its kind that is there and that no other has, within `reach`.
fn matches<'a>(found: &'a [Thing], there: &'a [Thing], reach: f64) -> Vec<(&'a Thing, &'a Thing)> {
    let mut is_free = vec![true; there.len()];
    let mut pairs = Vec::new();
    for thing in found {
        let distance = |index: usize| {
            let [x, y] = there[index].at;
            (x - thing.at[0]).hypot(y - thing.at[1])
        };
        let such = (0..there.len()).filter(|&i| is_free[i] && there[i].kind == thing.kind);
        let near = such.filter(|&i| distance(i) <= reach);
        if let Some(nearest) = near.min_by(|&a, &b| distance(a).total_cmp(&distance(b))) {
            is_free[nearest] = false;
            pairs.push((thing, &there[nearest]));
        }
    }
    pairs
}

fn reports<'a>(names: impl Iterator<Item = &'a String>, counts: Vec<Counts>) -> Vec<ClassReport> {
    let share = |right: usize, of: usize| (of > 0).then(|| right as f64 / of as f64);
    let report = |(name, [there, found, right]): (&String, Counts)| ClassReport {
        name: name.clone(),
        there,
        found,
        right,
        precision: share(right, found),
        recall: share(right, there),
    };
    names.zip(counts).map(report).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words() -> Words {
        let text = include_str!("../../../onnx/uav-tiny/recipe/quick.json");
        serde_json::from_str(text).expect("words")
    }

    fn thing(kind: usize, colour: usize, x: f64, y: f64) -> Thing {
        Thing {
            kind,
            colour: Some(colour),
            at: [x, y],
        }
    }

    #[test]
    fn questions_are_those_that_a_true_scene_answers() {
        // A red car, two trees; a truck that is neither near nor far from the car.
        let truth = Scene {
            things: vec![
                thing(0, 0, 0.1, 0.1),
                thing(3, 1, 0.9, 0.9),
                thing(3, 1, 0.8, 0.1),
                thing(1, 2, 0.49, 0.1),
            ],
            ground: Some(0),
            size: [1.0, 1.0],
        };
        let asked = questions(&words(), &truth);
        let has = |question| asked.contains(&question);
        assert!(has(Question::Describe));
        assert!(has(Question::Colour { kind: 0 }) && !has(Question::Colour { kind: 3 }));
        let find = |kind, colour| Question::Find { kind, colour };
        assert!(has(find(0, None)) && has(find(0, Some(0))) && has(find(0, Some(5))));
        assert!(!has(find(3, None)), "which of them?");
        // Of a kind that is not there one colour is enough.
        assert!(has(find(2, Some(0))) && !has(find(2, Some(1))));
        assert!(has(Question::Near { kind: 0, other: 3 }));
        assert!(has(Question::Near { kind: 5, other: 3 }));
        assert!(!has(Question::Near { kind: 3, other: 5 }));
        assert!(
            !has(Question::Near { kind: 0, other: 1 }),
            "nobody can tell"
        );
        let n_counts = asked.iter().filter(|q| q.form() == Form::Count).count();
        assert_eq!(n_counts, 6);
    }

    #[test]
    fn objects_match_the_nearest_of_their_kind_once() {
        let there = [
            thing(0, 0, 0.1, 0.1),
            thing(0, 1, 0.2, 0.1),
            thing(1, 0, 0.5, 0.5),
        ];
        let found = [
            thing(0, 1, 0.19, 0.1),
            thing(0, 0, 0.21, 0.1),
            thing(2, 0, 0.5, 0.5),
            thing(1, 0, 0.9, 0.9),
        ];
        let pairs = matches(&found, &there, 0.2);
        let pairs: Vec<_> = pairs.iter().map(|(a, b)| (a.at[0], b.at[0])).collect();
        assert_eq!(pairs, [(0.19, 0.2), (0.21, 0.1)]);
    }
}
