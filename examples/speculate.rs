//! Decoding with drafts of a scripted acceptance beside plain decoding, in alternating pairs.
//!
//!     cargo run --release --example speculate -- MODEL [TOKENS [ROUNDS]]
//!
//! The drafter knows the answer and tells it right with a given probability, so that what is
//! measured is what passes of several rows cost, and what `auto` loses where nothing can be gained.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use trtvlm::backend::{CpuBackend, Prefill};
use trtvlm::decode::{
    Accepted, Draft, Drafter, Generated, Limits, Outlook, Sampler, Sampling, Speculator, Strategy,
    generate,
};
use trtvlm::model::Model;

/// Rows of the prompt, as many as an image and a question have.
const N_PROMPT: usize = 300;

/// Tokens of the drafts of fixed length.
const K: usize = 4;

/// Tells an answer that it knows, right with a probability of `right` / 256 at each token.
struct Told {
    answer: Vec<u32>,
    right: u32,
    n_seen: usize,
    random: ChaCha8Rng,
}

impl Told {
    fn new(answer: &[u32], right: u32) -> Self {
        Self {
            answer: answer.to_vec(),
            right,
            n_seen: 0,
            random: ChaCha8Rng::seed_from_u64(u64::from(right)),
        }
    }
}

impl Drafter for Told {
    fn name(&self) -> &'static str {
        "told"
    }
    fn begin(&mut self, _: &Prefill<'_>) -> trtvlm::Result<()> {
        self.n_seen = 0;
        Ok(())
    }
    fn accept(&mut self, tokens: Accepted<'_>) -> trtvlm::Result<()> {
        self.n_seen += tokens.ids.len();
        Ok(())
    }
    fn outlook(&mut self) -> Option<Outlook> {
        let n = self.answer.len().saturating_sub(self.n_seen);
        (n > 0).then_some(Outlook { n, class: 0 })
    }
    fn propose(&mut self, n: usize, draft: &mut Draft) -> trtvlm::Result<()> {
        for &id in self.answer.iter().skip(self.n_seen).take(n) {
            let is_right = self.random.next_u32() % 256 < self.right;
            draft.ids.push(if is_right { id } else { id ^ 1 });
        }
        Ok(())
    }
    fn end(&mut self) {}
}

/// A backend, and how it is asked.
struct Bench {
    backend: CpuBackend,
    prompt: Vec<u32>,
    image_token: u32,
    n_tokens: usize,
}

impl Bench {
    fn answer(&mut self, speculator: &mut Speculator) -> trtvlm::Result<Generated> {
        let positions: Vec<u32> = (0..self.prompt.len() as u32).collect();
        let prompt = Prefill {
            ids: &self.prompt,
            positions: &positions,
            visual: &[],
            image_token: self.image_token,
            reserve: self.n_tokens,
        };
        // Answers of random weights end by chance: here they do not end.
        let limits = Limits {
            eos: &[],
            max_tokens: self.n_tokens,
            deadline: None,
            cancel: None,
        };
        let mut sampler = Sampler::new(Sampling::default())?;
        let mut go_on = |_| Ok(ControlFlow::Continue(()));
        let backend = &mut self.backend;
        generate(
            backend,
            &prompt,
            &mut sampler,
            &limits,
            speculator,
            &mut go_on,
        )
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let path = args.get(1).ok_or("which model folder?")?;
    let number = |at: usize, otherwise| args.get(at).map_or(Ok(otherwise), |text| text.parse());
    let (n_tokens, n_rounds) = (number(2, 65)?, number(3, 3)?);
    let model = Model::load(Path::new(path), None)?;
    let image_token = model.config.image_token_id;
    let n_vocab = model.config.vocab as u32;
    let ids = (1..).map(|n: u32| n.wrapping_mul(7919) % n_vocab);
    let mut bench = Bench {
        backend: CpuBackend::load(&model)?,
        prompt: ids.filter(|&id| id != image_token).take(N_PROMPT).collect(),
        image_token,
        n_tokens,
    };
    let mut off = Speculator::off();
    let reference = bench.answer(&mut off)?.ids;

    let fixed = Strategy::Always {
        drafter: "told",
        n: K,
    };
    let mut costs = None;
    for (name, right, strategy) in [
        ("K = 4, acceptance 0.75", 192, fixed),
        ("auto, acceptance 0.75", 192, Strategy::Auto),
        ("auto, acceptance 0", 0, Strategy::Auto),
    ] {
        let mut speculator = Speculator::new(vec![Box::new(Told::new(&reference, right))]);
        match &costs {
            Some(costs) => speculator.set_costs(Clone::clone(costs)),
            None => {
                let start = Instant::now();
                speculator.measure(&mut bench.backend, &|| false)?;
                costs = speculator.costs().cloned();
                println!(
                    "costs, measured in {:.1} s: {}",
                    start.elapsed().as_secs_f64(),
                    serde_json::to_string(&costs)?
                );
            }
        }
        speculator.set(strategy)?;
        let (mut ratios, mut plain_ms) = (Vec::new(), Vec::new());
        let mut newest = None;
        for _ in 0..n_rounds {
            let plain = bench.answer(&mut off)?;
            let drafted = bench.answer(&mut speculator)?;
            let parted = plain.ids.iter().zip(&drafted.ids).position(|(a, b)| a != b);
            let ties = &drafted.speculation.near_ties;
            if !parted.is_none_or(|at| ties.iter().any(|tie| tie.index == at)) {
                return Err(format!("answers part at {parted:?}, near ties {ties:?}").into());
            }
            let seconds = |done: &Generated| done.decode.as_secs_f64();
            ratios.push(seconds(&plain) / seconds(&drafted));
            plain_ms.push(seconds(&plain) * 1e3 / (n_tokens - 1) as f64);
            newest = Some((drafted.speculation, parted));
        }
        let (report, parted) = newest.ok_or("no round")?;
        println!(
            "{name}: {:.3} of plain decoding's speed (each: {ratios:.3?}), plain {:.1} ms a token, \
             {:.2} tokens a pass, {} of {} accepted, by position {:?}, parted {parted:?}",
            median(ratios.clone()),
            median(plain_ms),
            report.tokens_per_pass.unwrap_or(0.0),
            report.accepted,
            report.proposed,
            report
                .by_position
                .iter()
                .map(|p| p.accepted)
                .collect::<Vec<_>>(),
        );
    }
    Ok(())
}
