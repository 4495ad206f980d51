//! How likely the tokens of a drafter are to be accepted.

use serde::{Deserialize, Serialize};

use super::draft::{MAX_DRAFT, Outlook};

/// What is believed of a drafter that nobody has tried.
const PRIOR: f64 = 0.5;

/// How many trials that belief is worth.
const PRIOR_TRIALS: f64 = 2.0;

/// How much a trial counts after the next one of its kind.
const KEPT: f64 = 0.97;

/// How much a trial counts after a chance that was not taken: what failed is tried again one day.
const KEPT_UNTRIED: f64 = 0.995;

/// Most that trials can count in all: what fades by [`KEPT`] stays below.
const MOST_TRIALS: f64 = 1.0 / (1.0 - KEPT) + 1.0;

/// Trials, the newer the more they count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Trials {
    n: f64,
    hits: f64,
}

impl Trials {
    fn fade(&mut self, kept: f64) {
        self.n *= kept;
        self.hits *= kept;
    }

    fn add(&mut self, hit: bool) {
        self.n += 1.0;
        self.hits += f64::from(u8::from(hit));
    }

    fn rate(&self, prior: f64) -> f64 {
        (self.hits + PRIOR_TRIALS * prior) / (self.n + PRIOR_TRIALS)
    }

    fn is_valid(&self) -> bool {
        (0.0..=MOST_TRIALS).contains(&self.n) && (0.0..=self.n).contains(&self.hits)
    }
}

/// What one drafter's drafts have come to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Acceptance {
    /// By class and place in the draft: tokens that were reached because all before them were
    /// accepted.
    kinds: [[Trials; MAX_DRAFT]; Outlook::CLASSES],
    /// First tokens of all classes.
    all: Trials,
    /// What was known before anybody tried.
    #[serde(skip)]
    known: Option<f64>,
}

impl Acceptance {
    /// Of a drafter of which this share of tokens is known to be accepted, if it is known.
    pub(super) fn knowing(known: Option<f64>) -> Self {
        Self {
            known,
            ..Self::default()
        }
    }

    /// False for what nobody can have seen.
    pub(super) fn is_valid(&self) -> bool {
        let mut trials = self.kinds.iter().flatten();
        self.all.is_valid() && trials.all(Trials::is_valid)
    }

    /// Takes over what was seen elsewhere.
    pub(super) fn go_on_from(&mut self, seen: Self) {
        let known = self.known;
        *self = Self { known, ..seen };
    }

    /// Expected tokens of a pass with a draft of 1, 2, ... [`MAX_DRAFT`] tokens, the target's own
    /// one included.
    ///
    /// A place that was seldom reached is taken to be like the one before it, a class that was seldom tried
    /// like the others.
    pub(super) fn expected_tokens(&self, class: usize) -> [f64; MAX_DRAFT] {
        let mut rate = self.all.rate(self.known.unwrap_or(PRIOR));
        let (mut tokens, mut reached) = (1.0, 1.0);
        let mut expected = [0.0; MAX_DRAFT];
        for (trials, expected) in self.kind(class).iter().zip(&mut expected) {
            rate = trials.rate(rate);
            reached *= rate;
            tokens += reached;
            *expected = tokens;
        }
        expected
    }

    /// Takes note of a draft: `n_accepted` of its first `n_tested` tokens, which are those up to
    /// the first that was refused.
    pub(super) fn saw(&mut self, class: usize, n_tested: usize, n_accepted: usize) {
        let class = class.min(Outlook::CLASSES - 1);
        for (at, trials) in self.kinds[class].iter_mut().take(n_tested).enumerate() {
            trials.fade(KEPT);
            trials.add(at < n_accepted);
        }
        if n_tested > 0 {
            self.all.fade(KEPT);
            self.all.add(n_accepted > 0);
        }
    }

    /// Takes note of a draft that could have been asked for, and was not.
    pub(super) fn passed_over(&mut self, class: usize) {
        for trials in &mut self.kinds[class.min(Outlook::CLASSES - 1)] {
            trials.fade(KEPT_UNTRIED);
        }
        self.all.fade(KEPT_UNTRIED);
    }

    fn kind(&self, class: usize) -> &[Trials; MAX_DRAFT] {
        &self.kinds[class.min(Outlook::CLASSES - 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 0.05
    }

    #[test]
    fn expected_tokens_of_a_stranger_are_those_of_one_half() {
        let expected = Acceptance::default().expected_tokens(3);
        assert_eq!(expected[..3], [1.5, 1.75, 1.875]);
    }

    #[test]
    fn expected_tokens_of_a_trained_drafter_are_known_until_it_fails() {
        let mut acceptance = Acceptance::knowing(Some(0.8));
        assert!(close(acceptance.expected_tokens(0)[3], 3.36));
        for _ in 0..3 {
            acceptance.saw(0, 1, 0);
        }
        assert!(acceptance.expected_tokens(0)[0] < 1.2);
    }

    #[test]
    fn expected_tokens_follow_what_was_accepted() {
        let mut acceptance = Acceptance::default();
        for n in 0..400 {
            // The first token is always right, the second in three of four drafts, the third never.
            let n_accepted = if n % 4 == 0 { 1 } else { 2 };
            acceptance.saw(2, n_accepted + 1, n_accepted);
            acceptance.saw(0, 1, 0);
        }
        let expected = acceptance.expected_tokens(2);
        assert!(
            close(expected[0], 1.98) && close(expected[1], 2.7),
            "{expected:?}"
        );
        assert!(expected[7] - expected[1] < 0.15, "{expected:?}");
        assert!(acceptance.expected_tokens(0)[7] < 1.1);
        // Half of all first tokens were right: so are those of another class.
        assert!(close(acceptance.expected_tokens(5)[0], 1.5));
    }

    #[test]
    fn acceptance_that_changed_is_noticed_and_what_failed_is_forgiven() {
        let mut acceptance = Acceptance::default();
        for _ in 0..200 {
            acceptance.saw(0, 4, 4);
        }
        for _ in 0..60 {
            acceptance.saw(0, 1, 0);
        }
        assert!(acceptance.expected_tokens(0)[0] < 1.2);
        for _ in 0..2000 {
            acceptance.passed_over(0);
        }
        assert!(close(acceptance.expected_tokens(0)[0], 1.5));
    }
}
