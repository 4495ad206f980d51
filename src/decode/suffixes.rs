//! Where the end of a text has occurred before.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Longest end of a text that is looked for, in tokens: what follows a longer one is no surer.
pub(super) const LONGEST: usize = 8;

/// Stands in a text where no match goes across; no model has an id like it.
pub(super) const BREAK: u32 = u32::MAX;

/// An earlier occurrence of the end of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Match {
    /// Its length in tokens, 1 to [`LONGEST`].
    pub len: usize,
    /// Index of the token after it.
    pub end: usize,
}

/// A text, and where each run of up to [`LONGEST`] tokens occurred in it last.
///
/// Every operation takes a number of steps that depends on [`LONGEST`] only.
#[derive(Debug, Default)]
pub(super) struct Suffixes {
    text: Vec<u32>,
    /// Index of the token after the newest occurrence, by [`hashes`] of the run.
    newest: HashMap<u64, u32, BuildHasherDefault<Mixed>>,
}

impl Suffixes {
    pub(super) fn text(&self) -> &[u32] {
        &self.text
    }

    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.newest.clear();
    }

    /// Appends a token; returns the newest earlier occurrence of the longest end of the text that
    /// has one.
    pub(super) fn push(&mut self, token: u32) -> Option<Match> {
        self.text.push(token);
        let found = self.find(&self.text);
        let end = self.text.len() as u32;
        for (_, hash) in hashes(&self.text) {
            self.newest.insert(hash, end);
        }
        found
    }

    /// The newest occurrence in this text of the longest end of `other` that has one.
    pub(super) fn find(&self, other: &[u32]) -> Option<Match> {
        // Where a run occurs, what it ends in occurs, too: the first miss ends the search.
        hashes(other)
            .map_while(|(len, hash)| {
                let end = *self.newest.get(&hash)? as usize;
                let run = self.text.get(end.checked_sub(len)?..end)?;
                (run == &other[other.len() - len..]).then_some(Match { len, end })
            })
            .last()
    }
}

/// Lengths and hashes of the runs at the end of a text, shortest first, up to a break.
fn hashes(text: &[u32]) -> impl Iterator<Item = (usize, u64)> {
    let back = text.iter().rev().take(LONGEST);
    let tokens = back.take_while(|&&token| token != BREAK);
    (1..).zip(tokens.scan(0, |hash, &token| {
        *hash = mix(*hash ^ u64::from(token));
        Some(*hash)
    }))
}

/// A bijection with good bits everywhere (SplitMix64's).
pub(super) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Takes keys as they are: they are mixed already.
#[derive(Debug, Default)]
struct Mixed(u64);

impl Hasher for Mixed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = mix(self.0 ^ u64::from(byte));
        }
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, by trying everything: the longest end of `other` that occurs in `text` and
    /// ends before `before`, at its newest place.
    pub(in crate::decode) fn naive(text: &[u32], other: &[u32], before: usize) -> Option<Match> {
        let most = other.iter().rev().take_while(|&&t| t != BREAK).count();
        (1..=most.min(LONGEST)).rev().find_map(|len| {
            let wanted = &other[other.len() - len..];
            let mut ends = (len..before).rev();
            let end = ends.find(|&end| &text[end - len..end] == wanted)?;
            Some(Match { len, end })
        })
    }

    fn token() -> impl Strategy<Value = u32> {
        // Few tokens, so that everything recurs.
        prop_oneof![8 => 0..3u32, 1 => 3..50u32, 1 => Just(BREAK)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn push_finds_what_a_naive_search_finds(text in prop::collection::vec(token(), 0..80)) {
            let mut suffixes = Suffixes::default();
            for (n, &token) in text.iter().enumerate() {
                let found = suffixes.push(token);
                prop_assert_eq!(found, naive(&text, &text[..=n], n + 1));
            }
        }

        #[test]
        fn find_finds_what_a_naive_search_finds(
            text in prop::collection::vec(token(), 0..80),
            other in prop::collection::vec(token(), 0..12),
        ) {
            let mut suffixes = Suffixes::default();
            for &token in &text {
                suffixes.push(token);
            }
            prop_assert_eq!(suffixes.find(&other), naive(&text, &other, text.len() + 1));
        }
    }

    #[test]
    fn search_of_a_periodic_text_is_bounded() {
        let mut suffixes = Suffixes::default();
        for n in 0..1000 {
            let found = suffixes.push(7);
            let len = LONGEST.min(n);
            assert_eq!(found, (n > 0).then_some(Match { len, end: n }));
            assert!(suffixes.newest.len() <= LONGEST);
        }
    }
}
