//! The linear probe of a model's visual rows.

use serde::{Deserialize, Serialize};

use super::confidence::{Calibration, score};
use super::grid::Grid;
use super::merge::{Read, merge};
use super::question::Question;
use super::say::say;
use super::scene::Looked;
use super::words::Words;
use crate::error::{Error, Result};
use crate::model::TrainedFile;
use crate::prune::Layer;

/// What a file of quick answers says beside its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuickSettings {
    /// Words and templates.
    pub words: Words,
    /// Probability of a centre from which a cell is part of an object, above 0 to 1.
    pub threshold: f64,
    /// Least confidence of an answer that is given in place of the language model's, from 0 to 1.
    pub least: f64,
    /// How often answers of a score are right, as it was measured.
    pub calibration: Calibration,
}

/// A probe with its words.
#[derive(Debug, Clone)]
pub struct Probe {
    d: usize,
    kind: Layer,
    colour: Option<Layer>,
    ground: Option<Layer>,
    settings: QuickSettings,
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    /// A sentence.
    pub text: String,
    /// How often such answers are right, 0 to 1.
    pub confidence: f64,
}

impl QuickSettings {
    /// Says what is wrong with settings that come from outside.
    ///
    /// # Errors
    /// The reason, in words.
    pub fn check(&self) -> Result<(), String> {
        self.words.check()?;
        if !(self.threshold > 0.0 && self.threshold <= 1.0) {
            return Err(format!("its threshold is {}, above 0 to 1", self.threshold));
        }
        if !(0.0..=1.0).contains(&self.least) {
            return Err(format!(
                "its least confidence is {}, from 0 to 1",
                self.least
            ));
        }
        for (form, fit) in &self.calibration {
            if !(fit.slope >= 0.0 && fit.slope.is_finite() && fit.offset.is_finite()) {
                return Err(format!(
                    "its calibration of `{form}` is {fit:?}, expected numbers, the slope not negative"
                ));
            }
        }
        Ok(())
    }
}

impl Probe {
    /// Reads the probe of a `quick.safetensors`.
    ///
    /// # Errors
    /// [`Error::Malformed`] naming file and tensor or setting.
    pub fn new(mut file: TrainedFile) -> Result<Self> {
        let settings: QuickSettings = serde_json::from_value(file.spec().settings.clone())
            .map_err(|e| Error::malformed(file.path(), format!("its settings: {e}")))?;
        settings
            .check()
            .map_err(|reason| Error::malformed(file.path(), reason))?;
        let d = file.spec().d_model;
        let words = &settings.words;
        let mut layer = |name: &str, n: usize| match n {
            0 => Ok(None),
            n => Layer::take(&mut file, name, d, Some(n)).map(Some),
        };
        let colour = layer("colour", words.colours.len())?;
        let ground = layer("ground", words.grounds.len())?;
        let kind = Layer::take(&mut file, "kind", d, Some(1 + words.kinds.len()))?;
        Ok(Self {
            d,
            kind,
            colour,
            ground,
            settings,
        })
    }

    /// The same with other settings; its words have to be as many.
    pub fn with_settings(self, settings: QuickSettings) -> Self {
        debug_assert_eq!(self.kind.n(), 1 + settings.words.kinds.len());
        Self { settings, ..self }
    }

    /// Its settings.
    pub fn settings(&self) -> &QuickSettings {
        &self.settings
    }

    /// The form of a question; `None` if no template is worded so.
    pub fn question(&self, text: &str) -> Option<Question> {
        self.settings.words.question(text)
    }

    /// Says what is in a frame with these visual rows, `[n, d]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are others than the grid has, or one has something that is no number.
    pub fn look(&self, rows: &[f32], grid: &Grid) -> Result<Looked> {
        let n = grid.first + grid.n();
        if rows.len() != n * self.d {
            return Err(Error::Shape {
                name: "image_features".to_owned(),
                expected: format!("[{n}, {}]", self.d),
                actual: format!("{} numbers", rows.len()),
            });
        }
        let rows = &rows[grid.first * self.d..];
        let mut read = Read::default();
        let mut mean = vec![0f32; self.d];
        let mut n_seen = 0;
        for (cell, row) in rows.chunks_exact(self.d).enumerate() {
            read.kinds.push(probabilities(&self.kind, row, cell)?);
            if let Some(colour) = &self.colour {
                read.colours.push(probabilities(colour, row, cell)?);
            }
            if grid.sees(cell) {
                n_seen += 1;
                mean.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
        }
        mean.iter_mut().for_each(|sum| *sum /= n_seen.max(1) as f32);
        if let Some(ground) = &self.ground {
            read.ground = probabilities(ground, &mean, 0)?;
        }
        Ok(merge(grid, &read, self.settings.threshold))
    }

    /// Answers a question about what was seen; `None` if it is about a colour that is not known.
    pub fn say(&self, question: Question, looked: &Looked) -> Option<Said> {
        let words = &self.settings.words;
        let text = say(words, question, &looked.scene)?;
        let calibration = self.settings.calibration.get(&question.form());
        let calibration = calibration.copied().unwrap_or_default();
        Some(Said {
            text,
            confidence: calibration.at(score(words, question, looked)),
        })
    }

    /// What a calibration of an answer is made from.
    pub fn score(&self, question: Question, looked: &Looked) -> f64 {
        score(&self.settings.words, question, looked)
    }
}

/// Probabilities of a layer's outputs for a row.
fn probabilities(layer: &Layer, row: &[f32], cell: usize) -> Result<Vec<f64>> {
    let logits = layer.apply(row);
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let parts: Vec<f64> = logits
        .iter()
        .map(|&logit| f64::from(logit - most).exp())
        .collect();
    let sum: f64 = parts.iter().sum();
    if !sum.is_finite() {
        return Err(Error::Shape {
            name: "image_features".to_owned(),
            expected: "finite numbers".to_owned(),
            actual: format!("others in row {cell}"),
        });
    }
    Ok(parts.into_iter().map(|part| part / sum).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use serde_json::{Value, json};

    use super::super::testing::words;
    use super::*;
    use crate::model::{TrainedKind, TrainedSpec, TrainedTensor, trained_bytes};

    fn settings() -> Value {
        json!({
            "words": words(), "threshold": 0.5, "least": 0.9,
            "calibration": {"describe": {"slope": 1.0, "offset": 5.0}},
        })
    }

    /// A probe that reads kinds, colours and grounds off the rows as they are: `d` is 4 + 2 + 2.
    fn tensors() -> BTreeMap<String, TrainedTensor> {
        let picks = |first: usize, n: usize| TrainedTensor {
            shape: vec![8, n],
            data: (0..8 * n)
                .map(|i| f32::from(u8::from(i / n == first + i % n)))
                .collect(),
        };
        let zeros = |n: usize| TrainedTensor {
            shape: vec![n],
            data: vec![0.0; n],
        };
        [
            ("kind", picks(0, 4)),
            ("kind.bias", zeros(4)),
            ("colour", picks(4, 2)),
            ("colour.bias", zeros(2)),
            ("ground", picks(6, 2)),
            ("ground.bias", zeros(2)),
        ]
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .into()
    }

    fn probe(settings: Value, tensors: &BTreeMap<String, TrainedTensor>) -> Result<Probe> {
        let path = Path::new("quick.safetensors");
        let spec = TrainedSpec {
            format: TrainedSpec::FORMAT,
            kind: TrainedKind::Quick,
            targets: Vec::new(),
            tokenizer_sha256: "0".repeat(64),
            d_model: 8,
            settings,
            training: Value::Null,
        };
        let bytes = trained_bytes(path, &spec, tensors).expect("bytes");
        Probe::new(TrainedFile::parse(path.into(), TrainedKind::Quick, &bytes)?)
    }

    const GRID: Grid = Grid {
        side: 3,
        first: 1,
        corner: [0.0, 0.0],
        cell: [1.0 / 3.0, 1.0 / 3.0],
        size: [1.0, 1.0],
    };

    #[test]
    fn rows_become_an_answer() {
        let probe = probe(settings(), &tensors()).expect("probe");
        // A row of a picture that is not read, then nine of which the sixth holds a blue boat.
        let mut rows = vec![f32::NAN; 8];
        for cell in 0..9 {
            let mut row = [20.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 30.0];
            if cell == 5 {
                (row[0], row[3], row[5]) = (0.0, 20.0, 20.0);
            }
            rows.extend(row);
        }
        let looked = probe.look(&rows, &GRID).expect("looked");
        for (text, expected) in [
            ("describe the scene", "1 blue boat on soil"),
            ("find the boat", "boat at right"),
            ("how many cars are there", "no cars"),
        ] {
            let question = probe.question(text).expect("known");
            let said = probe.say(question, &looked).expect("said");
            assert_eq!(said.text, expected);
            match text {
                "describe the scene" => assert!(said.confidence > 0.99, "{said:?}"),
                // Nobody has measured these.
                _ => assert!(said.confidence <= 0.5, "{said:?}"),
            }
        }
        let absent = probe.say(Question::Colour { kind: 0 }, &looked);
        assert_eq!(absent.expect("said").text, "no car");
        let error = probe.look(&rows[8..], &GRID).expect_err("a row is missing");
        assert!(matches!(error, Error::Shape { .. }), "{error}");
        rows[20] = f32::INFINITY;
        let error = probe.look(&rows, &GRID).expect_err("no number");
        assert!(error.to_string().contains("finite"), "{error}");
    }

    #[test]
    fn file_whose_settings_or_tensors_do_not_fit_is_refused_naming_it() {
        type Change = fn(&mut Value, &mut BTreeMap<String, TrainedTensor>);
        let cases: [(&str, Change); 9] = [
            ("threshold", |s, _| s["threshold"] = json!(0.0)),
            ("expected f64", |s, _| s["threshold"] = json!("x")),
            ("least", |s, _| s["least"] = json!(1.1)),
            ("calibration", |s, _| {
                s["calibration"]["describe"]["slope"] = json!(-1.0);
            }),
            ("surplus", |s, _| s["surplus"] = json!(1)),
            ("twice", |s, _| {
                s["words"]["colours"] = json!(["red", "red"])
            }),
            ("`kind`", |s, _| {
                let kind = json!({"one": "bus", "many": "buses"});
                s["words"]["kinds"]
                    .as_array_mut()
                    .expect("kinds")
                    .push(kind);
            }),
            ("`colour.bias`", |_, t| drop(t.remove("colour.bias"))),
            ("`ground`", |_, t| {
                t.get_mut("ground").expect("ground").shape = vec![4, 4];
            }),
        ];
        for (reason, change) in cases {
            let (mut settings, mut tensors) = (settings(), tensors());
            change(&mut settings, &mut tensors);
            let error = probe(settings, &tensors).expect_err(reason);
            assert!(matches!(error, Error::Malformed { .. }), "{error}");
            let told = error.to_string();
            assert!(
                told.starts_with("quick.safetensors: ") && told.contains(reason),
                "{reason}: {told}"
            );
        }
    }
}
