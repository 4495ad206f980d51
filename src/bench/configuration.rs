//! What is compared.

use crate::decode::Strategy;
use crate::error::Result;
use crate::pipeline::{Ask, Pruning};
use crate::prune::{Keep, Pruner};

/// Shares of the visual tokens that the sweep looks at; all of them is the baseline.
pub const SHARES: [f64; 6] = [0.7, 0.5, 0.3, 0.2, 0.1, 0.05];

/// One way to ask.
#[derive(Debug, Clone)]
pub struct Configuration<'a> {
    /// Its name in tables.
    pub name: String,
    /// Whether it is a row of the ablation, and not only of the sweep.
    pub ablation: bool,
    /// The policy and the share that it is a point of the sweep for.
    pub sweep: Option<(Pruner, f64)>,
    /// The drafter and the length of its drafts that it is a point of the sweep over drafts for.
    pub drafts: Option<(&'static str, usize)>,
    /// Whether the quantized model is asked.
    pub quantized: bool,
    /// How to ask.
    pub ask: Ask<'a>,
}

/// What the configurations are made of.
#[derive(Debug, Clone)]
pub struct Plan<'a> {
    /// How to ask where nothing else is said; its `pruning` is that of the ablation.
    pub ask: Ask<'a>,
    /// How drafts are made in the ablation.
    pub draft: Strategy,
    /// Policies of the sweep; none for no sweep.
    pub pruners: Vec<Pruner>,
    /// Shares of the sweep.
    pub shares: Vec<f64>,
    /// Drafters of the sweep over lengths of drafts; none for no sweep.
    pub drafters: Vec<&'static str>,
    /// Longest drafts of that sweep; it begins with 1.
    pub most_draft_tokens: usize,
    /// Whether there is a second, quantized model.
    pub quantized: bool,
}

impl<'a> Plan<'a> {
    /// The configurations, the baseline first.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for a share outside its range.
    pub fn configurations(&self) -> Result<Vec<Configuration<'a>>> {
        let plain = Ask {
            pruning: Pruning {
                keep: Keep::ALL,
                ..self.ask.pruning
            },
            draft: Strategy::Off,
            ..self.ask
        };
        let row = |name: &str, prunes: bool, drafts: bool, quantized: bool| Configuration {
            name: name.to_owned(),
            ablation: true,
            sweep: None,
            drafts: None,
            quantized,
            ask: Ask {
                pruning: match prunes {
                    true => self.ask.pruning,
                    false => plain.pruning,
                },
                draft: match drafts {
                    true => self.draft,
                    false => Strategy::Off,
                },
                ..plain
            },
        };
        let mut all = vec![
            row("baseline", false, false, false),
            row("pruning", true, false, false),
            row("speculation", false, true, false),
        ];
        if self.quantized {
            all.push(row("quantized", false, false, true));
        }
        all.push(row("pruning + speculation", true, true, false));
        if self.quantized {
            all.push(row("full", true, true, true));
        }
        for &pruner in &self.pruners {
            for &share in &self.shares {
                all.push(Configuration {
                    name: format!("{pruner} {share}"),
                    ablation: false,
                    sweep: Some((pruner, share)),
                    drafts: None,
                    quantized: false,
                    ask: Ask {
                        pruning: Pruning {
                            keep: Keep::new(share)?,
                            pruner: Some(pruner),
                            ..self.ask.pruning
                        },
                        ..plain
                    },
                });
            }
        }
        for &drafter in &self.drafters {
            for n in 1..=self.most_draft_tokens {
                all.push(Configuration {
                    name: format!("{drafter}, drafts of {n}"),
                    ablation: false,
                    sweep: None,
                    drafts: Some((drafter, n)),
                    quantized: false,
                    ask: Ask {
                        draft: Strategy::Always { drafter, n },
                        ..plain
                    },
                });
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_begins_with_the_baseline_and_has_each_row_once() {
        let mut plan = Plan {
            ask: Ask {
                pruning: Pruning {
                    keep: Keep::new(0.1).expect("share"),
                    ..Pruning::default()
                },
                ..Ask::default()
            },
            draft: Strategy::Auto,
            pruners: Pruner::ALL.to_vec(),
            shares: SHARES.to_vec(),
            drafters: vec!["ngram", "head"],
            most_draft_tokens: 8,
            quantized: true,
        };
        let all = plan.configurations().expect("plan");
        let names: std::collections::BTreeSet<&str> =
            all.iter().map(|row| row.name.as_str()).collect();
        assert_eq!((names.len(), all.len()), (64, 64));
        assert_eq!(all[0].name, "baseline");
        assert_eq!(all[0].ask.pruning.keep, Keep::ALL);
        assert_eq!(all[0].ask.draft, Strategy::Off);
        let full = all.iter().find(|row| row.name == "full").expect("full");
        assert!(full.quantized && full.ask.draft == Strategy::Auto);
        assert_eq!(full.ask.pruning.keep.share(), 0.1);
        plan.quantized = false;
        plan.pruners.clear();
        plan.drafters.clear();
        assert_eq!(plan.configurations().expect("plan").len(), 4);
        plan.pruners.push(Pruner::Norm);
        plan.shares = vec![f64::NAN];
        assert!(plan.configurations().is_err());
    }
}
