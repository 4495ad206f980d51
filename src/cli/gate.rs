//! `build`'s proof that integers do no harm: its options and its bar.

use indicatif::ProgressBar;

use super::interrupt;
use super::main::say;
use super::progress::{spinner, style};
use crate::accuracy::{GateOptions, GateStep, Subject, default_items, prove};
use crate::build::Quantization;
use crate::bundle::Precision;
use crate::error::Result;
use crate::items::Item;
use crate::model::Model;

/// Percent at which nothing has to be measured: every answer may differ.
const ALL: f64 = 100.0;

/// How well a quantized model has to agree with the model itself.
#[derive(clap::Args)]
pub struct GateArgs {
    /// Answers, in percent, that may differ from the model's own on the calibration pictures, or are
    /// expected to on others: while more do, the worst layers go to FP16; 100 = do not measure
    /// [default: 1]
    #[arg(long, value_name = "POINTS", value_parser = parse_percent)]
    max_drop: Option<f64>,
    /// Pictures on which the error of each layer is measured for the bundle's reports; 0 = none
    /// [default: 8, for large models 2]
    #[arg(long, value_name = "N")]
    sensitivity: Option<usize>,
}

fn parse_percent(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(percent) if (0.0..=ALL).contains(&percent) => Ok(percent),
        _ => Err("expected a number from 0 to 100".to_owned()),
    }
}

impl GateArgs {
    /// True if any of it was asked for.
    pub fn is_given(&self) -> bool {
        self.max_drop.is_some() || self.sensitivity.is_some()
    }

    /// True if pictures are asked about.
    pub fn needs_items(&self) -> bool {
        self.max_drop() < ALL || self.sensitivity.is_some_and(|n| n > 0)
    }

    fn max_drop(&self) -> f64 {
        self.max_drop.unwrap_or(1.0)
    }

    /// Measures the quantized model on `items`, and leaves in FP16 what does harm.
    ///
    /// # Errors
    /// Those of [`prove`].
    pub fn prove(
        &self,
        model: &Model,
        precision: Precision,
        quantization: &mut Quantization,
        items: &[Item],
    ) -> Result<()> {
        let options = GateOptions {
            max_drop: self.max_drop(),
            max_tokens: None,
            sensitivity_items: match self.sensitivity {
                Some(n) => n,
                None => default_items(model)?,
            },
        };
        let subject = Subject {
            model,
            precision,
            quantization,
            cancel: interrupt::shared(),
        };
        let mut bar = Bar::new();
        let proof = prove(&subject, items, &options, &mut |step| bar.on(step));
        bar.finish();
        let proof = proof?;
        let gate = &proof.gate;
        let (n_kept, n_half) = (gate.kept.len(), gate.weights_only.len());
        let answers = |share: crate::eval::Share| format!("{} of {}", share.hits, share.of);
        match n_kept + n_half {
            0 => say(format_args!(
                "{precision}: {} answers are the model's own",
                answers(gate.after)
            )),
            _ => say(format_args!(
                "{precision}: {} answers are the model's own, {} with {n_kept} layers left in FP16, {n_half} in INT8 weights",
                answers(gate.before),
                answers(gate.after)
            )),
        }
        say(format_args!(
            "on other pictures {:.1} % are expected to be",
            100.0 * gate.expected_after
        ));
        let left_out = gate.left_out();
        let proven = proof.into_reports(&model.config.name)?;
        quantization.left_out = left_out;
        quantization.proven = Some(proven);
        Ok(())
    }
}

/// The bar: what is done, and the time that remains, on a terminal only.
struct Bar {
    bar: ProgressBar,
    label: String,
}

impl Bar {
    fn new() -> Self {
        let bar = spinner("reading the model");
        Self {
            bar,
            label: String::new(),
        }
    }

    fn on(&mut self, step: GateStep) {
        let (label, done, total) = match step {
            GateStep::Reference(p) => ("answers of the model".to_owned(), p.done, p.total),
            GateStep::Layers(steps) => ("layers, one by one".to_owned(), steps.done, steps.total),
            GateStep::Trial { left_out, progress } => {
                let label = match left_out {
                    0 => "answers with integers".to_owned(),
                    n => format!("answers with {n} layers left out"),
                };
                (label, progress.done, progress.total)
            }
        };
        if label != self.label {
            self.bar.set_style(style(
                "{spinner} {bar:24} {pos}/{len} {msg} [{elapsed}, {eta} left]",
            ));
            self.bar.set_length(total as u64);
            self.bar.set_message(label.clone());
            self.bar.reset_eta();
            self.label = label;
        }
        self.bar.set_position(done as u64);
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
