//! How long passes take, so that none begins that would end too late.

use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::clock::{Clock, WallClock};
use crate::sync::lock;

/// Measurements of a kind of pass that are kept: enough that one of a hundred can be slow without being the 99th
/// percentile.
const WINDOW: usize = 128;

/// Kinds of passes that are kept apart; beyond them the one that was not seen for longest makes room.
const KINDS: usize = 24;

/// Rows of a prompt that count as equally many.
const ROWS: usize = 32;

/// Measurements that one refusal takes away, the oldest first.
const FORGOTTEN: usize = 4;

/// Refusals in a row after which the last measurements are forgotten.
const PATIENCE: usize = 16;

/// A pass of a model. Those of a kind take about as long as each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// The vision tower over so many pictures.
    Vision(usize),
    /// Choosing visual tokens.
    Prune,
    /// The decoder over a prompt of so many rows.
    Prefill(usize),
    /// The decoder over so many new rows.
    Step(usize),
}

impl Pass {
    /// The same for passes that take about as long.
    fn kind(self) -> Self {
        match self {
            Self::Prefill(rows) => Self::Prefill(rows.div_ceil(ROWS)),
            other => other,
        }
    }
}

/// Times of passes, measured on this machine while it works.
///
/// Of each kind the newest hundred or so are kept, and their 99th percentile says whether a pass fits into the time
/// that is left. A machine that was slow for a while may be fast again: every refusal takes the oldest
/// measurements away, so that after some dozens a pass is tried.
pub struct Pace {
    clock: Box<dyn Clock + Sync>,
    kinds: Mutex<Vec<Kind>>,
}

/// Measurements of one kind of pass.
#[derive(Debug, Clone)]
struct Kind {
    pass: Pass,
    /// In the order in which they came, from `first` on, around the end.
    times: [Duration; WINDOW],
    first: usize,
    n: usize,
    /// Refusals since the newest measurement.
    n_refused: usize,
    /// When it was last asked for or measured.
    seen: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self::new(Box::new(WallClock::default()))
    }
}

impl fmt::Debug for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pace({} kinds of passes)", lock(&self.kinds).len())
    }
}

impl Pace {
    /// Nothing is known yet; time is that of `clock`.
    pub fn new(clock: Box<dyn Clock + Sync>) -> Self {
        Self {
            clock,
            kinds: Mutex::new(Vec::with_capacity(KINDS)),
        }
    }

    /// Runs a pass and notes its time. A pass that failed says nothing of others.
    pub fn measure<T, E>(&self, pass: Pass, run: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let start = self.clock.now();
        let done = run()?;
        let now = self.clock.now();
        let mut kinds = lock(&self.kinds);
        find_or_add(&mut kinds, pass.kind(), now).add(now.saturating_sub(start));
        Ok(done)
    }

    /// 99th percentile of the times of such a pass, nearest rank; `None` if none is known.
    pub fn p99(&self, pass: Pass) -> Option<Duration> {
        let kind = pass.kind();
        let kinds = lock(&self.kinds);
        kinds.iter().find(|known| known.pass == kind)?.p99()
    }

    /// A deadline at an instant.
    pub fn deadline(&self, at: Instant) -> Deadline<'_> {
        let left = at.saturating_duration_since(Instant::now());
        self.deadline_after(left)
    }

    /// A deadline after some time of the clock.
    pub fn deadline_after(&self, left: Duration) -> Deadline<'_> {
        Deadline {
            pace: self,
            at: self.clock.now().saturating_add(left),
        }
    }
}

/// When an answer has to be there.
#[derive(Debug, Clone, Copy)]
pub struct Deadline<'a> {
    pace: &'a Pace,
    at: Duration,
}

impl Deadline<'_> {
    /// True if it has passed.
    pub fn is_over(&self) -> bool {
        self.pace.clock.now() >= self.at
    }

    /// True if a pass may begin: there is time left, and not less than 99 of 100 such passes take.
    pub fn allows(&self, pass: Pass) -> bool {
        let now = self.pace.clock.now();
        if now >= self.at {
            return false;
        }
        let kind = pass.kind();
        let mut kinds = lock(&self.pace.kinds);
        let Some(known) = kinds.iter_mut().find(|known| known.pass == kind) else {
            return true;
        };
        known.seen = now;
        let fits = known.p99().is_none_or(|p99| p99 <= self.at - now);
        if !fits {
            known.refuse();
        }
        fits
    }
}

/// The measurements of a kind; a new one takes the place of that which was not seen for longest.
fn find_or_add(kinds: &mut Vec<Kind>, pass: Pass, now: Duration) -> &mut Kind {
    let at = match kinds.iter().position(|known| known.pass == pass) {
        Some(at) => at,
        None if kinds.len() < KINDS => {
            kinds.push(Kind::new(pass));
            kinds.len() - 1
        }
        None => {
            let ages = kinds.iter().enumerate().map(|(at, known)| (known.seen, at));
            let oldest = ages.min().map_or(0, |(_, at)| at);
            kinds[oldest] = Kind::new(pass);
            oldest
        }
    };
    kinds[at].seen = now;
    &mut kinds[at]
}

impl Kind {
    fn new(pass: Pass) -> Self {
        Self {
            pass,
            times: [Duration::ZERO; WINDOW],
            first: 0,
            n: 0,
            n_refused: 0,
            seen: Duration::ZERO,
        }
    }

    fn add(&mut self, time: Duration) {
        if self.n == WINDOW {
            self.forget(1);
        }
        self.times[(self.first + self.n) % WINDOW] = time;
        self.n += 1;
        self.n_refused = 0;
    }

    fn forget(&mut self, n: usize) {
        self.first = (self.first + n) % WINDOW;
        self.n -= n;
    }

    fn refuse(&mut self) {
        self.n_refused += 1;
        if self.n > FORGOTTEN {
            self.forget(FORGOTTEN);
        } else if self.n_refused >= PATIENCE {
            self.forget(self.n);
            self.n_refused = 0;
        }
    }

    fn p99(&self) -> Option<Duration> {
        let mut sorted = [Duration::ZERO; WINDOW];
        let sorted = &mut sorted[..self.n];
        for (at, time) in sorted.iter_mut().enumerate() {
            *time = self.times[(self.first + at) % WINDOW];
        }
        // The nearest rank is at or near the end.
        let rank = (99 * self.n).div_ceil(100).checked_sub(1)?;
        Some(*sorted.select_nth_unstable(rank).1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::scripted::MadeUpClock;
    use super::*;

    fn pace() -> (Pace, MadeUpClock) {
        let clock = MadeUpClock::default();
        (Pace::new(Box::new(clock.clone())), clock)
    }

    fn run(pace: &Pace, clock: &MadeUpClock, pass: Pass, ms: u64) {
        let done = pace.measure(pass, || {
            clock.advance(1000 * ms);
            Ok::<(), ()>(())
        });
        done.expect("done");
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn p99_is_the_nearest_rank_of_the_newest() {
        let (pace, clock) = pace();
        assert_eq!(pace.p99(Pass::Step(1)), None);
        for (n, time, expected) in [(1, 7, 7), (98, 5, 7), (1, 5, 5), (1, 9, 7), (1, 8, 8)] {
            for _ in 0..n {
                run(&pace, &clock, Pass::Step(1), time);
            }
            assert_eq!(pace.p99(Pass::Step(1)), Some(ms(expected)), "{n} of {time}");
        }
        for _ in 0..WINDOW {
            run(&pace, &clock, Pass::Step(1), 3);
        }
        assert_eq!(pace.p99(Pass::Step(1)), Some(ms(3)));
    }

    #[test]
    fn pass_begins_only_if_its_p99_fits_into_the_time_left() {
        let (pace, clock) = pace();
        run(&pace, &clock, Pass::Step(1), 10);
        let deadline = pace.deadline_after(ms(20));
        assert!(deadline.allows(Pass::Step(1)));
        // Of these nothing is known.
        assert!(deadline.allows(Pass::Step(5)) && deadline.allows(Pass::Vision(1)));
        clock.advance(10_000);
        assert!(deadline.allows(Pass::Step(1)), "just in time");
        clock.advance(1000);
        assert!(!deadline.allows(Pass::Step(1)) && !deadline.is_over());
        assert!(deadline.allows(Pass::Step(5)));
        clock.advance(9000);
        assert!(deadline.is_over() && !deadline.allows(Pass::Step(5)));
    }

    #[test]
    fn failed_passes_are_not_measured() {
        let (pace, clock) = pace();
        let failed = pace.measure(Pass::Vision(1), || {
            clock.advance(5000);
            Err::<(), _>("failed")
        });
        assert_eq!((failed, pace.p99(Pass::Vision(1))), (Err("failed"), None));
    }

    #[test]
    fn prompts_of_about_the_same_length_are_one_kind() {
        let (pace, clock) = pace();
        run(&pace, &clock, Pass::Prefill(270), 40);
        for (rows, known) in [(257, true), (288, true), (256, false), (289, false)] {
            assert_eq!(pace.p99(Pass::Prefill(rows)).is_some(), known, "{rows}");
        }
    }

    /// A machine that was slow once must not be taken for slow for ever, nor tried at every frame.
    #[test]
    fn refusals_age_what_was_measured_until_a_pass_is_tried() {
        for n_slow in [1, 3, FORGOTTEN, FORGOTTEN + 1, WINDOW] {
            let (pace, clock) = pace();
            for _ in 0..n_slow {
                run(&pace, &clock, Pass::Vision(1), 100);
            }
            let tries = |limit: usize| {
                let refused =
                    (0..limit).take_while(|_| !pace.deadline_after(ms(50)).allows(Pass::Vision(1)));
                refused.count()
            };
            let refused = tries(1000);
            assert!(
                (PATIENCE..=PATIENCE + WINDOW / FORGOTTEN).contains(&refused),
                "{n_slow}: {refused}"
            );
            // Still as slow: tried once, then left alone for a while.
            run(&pace, &clock, Pass::Vision(1), 100);
            assert_eq!(tries(1000), PATIENCE, "{n_slow}");
            // Fast again.
            run(&pace, &clock, Pass::Vision(1), 40);
            assert_eq!(tries(1000), 0, "{n_slow}");
        }
    }

    #[test]
    fn one_slow_pass_of_a_hundred_refuses_none() {
        let (pace, clock) = pace();
        for number in 0..WINDOW {
            run(
                &pace,
                &clock,
                Pass::Step(1),
                if number == 60 { 500 } else { 4 },
            );
        }
        assert!(pace.deadline_after(ms(5)).allows(Pass::Step(1)));
    }

    #[test]
    fn kinds_beyond_the_bound_take_the_place_of_the_oldest() {
        let (pace, clock) = pace();
        for rows in 0..KINDS + 5 {
            run(&pace, &clock, Pass::Step(rows), 1);
        }
        assert_eq!(lock(&pace.kinds).len(), KINDS);
        let known = |rows: usize| pace.p99(Pass::Step(rows)).is_some();
        assert!((0..5).all(|rows| !known(rows)) && (5..KINDS + 5).all(known));
    }
}
