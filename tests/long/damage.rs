//! Ways to damage a valid file, and the loop that feeds them to a parser.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde_json::Value;

use super::{from_env, memory_mib};

/// Longest time that a parser may take for one small file: beyond it, it hangs.
const HANG: Duration = Duration::from_secs(60);

/// Most memory that a case may need, far above any small file's needs.
const MOST_MIB: u64 = 2048;

/// Random numbers of one case.
pub struct Dice(ChaCha8Rng);

impl Dice {
    fn of(case: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(case))
    }

    /// Any number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.0.next_u64() % n as u64) as usize
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// Parsers that run now. One at a time, so that memory belongs to one of them.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs cases: each makes its input and feeds it; `true` says that the parser took it.
///
/// # Panics
/// If a case panics, hangs or needs absurd memory, with its number; or if no case is taken or
/// none refused, since then the damage is not what it should be.
pub fn cases(what: &str, default: u64, mut case: impl FnMut(&mut Dice) -> bool) {
    // A test that failed before this one says so itself.
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let first = from_env("TRTVLM_LONG_SEED", 0);
    let n = from_env("TRTVLM_LONG_CASES", default);
    let (begin, mut taken) = (Instant::now(), 0);
    // The process's highest so far, which is not of this test's making.
    let before = memory_mib("VmHWM");
    for number in first..first + n {
        let start = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| case(&mut Dice::of(number))));
        match outcome {
            Ok(took) => taken += u64::from(took),
            Err(_) => panic!("{what}: case {number} panicked"),
        }
        let took = start.elapsed();
        assert!(took < HANG, "{what}: case {number} took {took:?}");
        let peak = memory_mib("VmHWM");
        assert!(
            peak < MOST_MIB.max(before + 1),
            "{what}: case {number} took {peak} MiB"
        );
    }
    let seconds = begin.elapsed().as_secs();
    let refused = n - taken;
    eprintln!("{what}: {n} cases in {seconds} s, {taken} taken, {refused} refused");
    assert!(
        n < 500 || (taken > 0 && taken < n),
        "{what}: {taken} of {n}"
    );
}

/// Damages bytes in one to four places, or leaves them whole once in a while.
pub fn bytes(dice: &mut Dice, good: &[u8]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..dice.below(5) {
        if bytes.is_empty() {
            break;
        }
        let at = dice.below(bytes.len());
        match dice.below(8) {
            0 => bytes.truncate(at),
            1 => bytes[at] ^= 1 << dice.below(8),
            2 => bytes[at] = *dice.pick(&[0, 1, 0x7f, 0x80, 0xff]),
            3 => {
                // The largest numbers, as a varint and as a word.
                let word = *dice.pick(&[[0xff; 8], [0x7f; 8], [0x80; 8], [0; 8]]);
                let n = (bytes.len() - at).min(1 + dice.below(8));
                bytes[at..at + n].copy_from_slice(&word[..n]);
            }
            4 => {
                let n = (bytes.len() - at).min(1 + dice.below(64));
                bytes.drain(at..at + n);
            }
            5 => {
                let n = (bytes.len() - at).min(1 + dice.below(64));
                let part = bytes[at..at + n].to_vec();
                let to = dice.below(bytes.len());
                bytes.splice(to..to, part);
            }
            6 => {
                let filler = dice.below(256) as u8;
                let n = dice.below(64);
                bytes.splice(at..at, std::iter::repeat_n(filler, n));
            }
            _ => {
                let other = dice.below(bytes.len());
                bytes.swap(at, other);
            }
        }
    }
    bytes
}

/// Damages the values of a JSON text, so that it is still JSON; or its bytes.
pub fn json(dice: &mut Dice, good: &Value) -> Vec<u8> {
    let mut value = good.clone();
    for _ in 0..dice.below(4) {
        damage_value(dice, &mut value);
    }
    let text = value.to_string().into_bytes();
    match dice.below(4) {
        0 => bytes(dice, &text),
        _ => text,
    }
}

fn damage_value(dice: &mut Dice, value: &mut Value) {
    // Down to a random place; large lists (a vocabulary) are entered like any other.
    let deeper = dice.below(8) > 0;
    match value {
        Value::Object(entries) if deeper && !entries.is_empty() => {
            let at = dice.below(entries.len());
            let key = entries.keys().nth(at).cloned().unwrap_or_default();
            match dice.below(12) {
                0 => drop(entries.remove(&key)),
                1 => drop(entries.insert(format!("{key}_"), hostile(dice))),
                _ => damage_value(dice, &mut entries[&key]),
            }
        }
        Value::Array(items) if deeper && !items.is_empty() => {
            let at = dice.below(items.len());
            match dice.below(12) {
                0 => drop(items.remove(at)),
                1 => items.insert(at, hostile(dice)),
                2 => items.truncate(at),
                _ => damage_value(dice, &mut items[at]),
            }
        }
        other => *other = hostile(dice),
    }
}

fn hostile(dice: &mut Dice) -> Value {
    let nested = |open: &str, close: &str| {
        let text = open.repeat(100) + "1" + &close.repeat(100);
        serde_json::from_str(&text).unwrap_or(Value::Null)
    };
    match dice.below(16) {
        0 => Value::Null,
        1 => true.into(),
        2 => 0.into(),
        3 => (-1).into(),
        4 => u64::MAX.into(),
        5 => i64::MIN.into(),
        6 => 1e300.into(),
        7 => 0.5.into(),
        8 => "".into(),
        9 => "\u{0}\u{feff}\u{10ffff}".into(),
        10 => "../../../etc/passwd".into(),
        11 => "a".repeat(10_000).into(),
        12 => nested("[", "]"),
        13 => nested("{\"a\":", "}"),
        14 => (1u64 << dice.below(40)).into(),
        _ => Value::Array(vec![Value::Null; dice.below(1000)]),
    }
}

/// Words of the template language, to be thrown into a template.
pub const TEMPLATE_WORDS: [&str; 24] = [
    "{% for i in range(99999999) %}x{% endfor %}",
    "{% for message in messages %}",
    "{% endfor %}",
    "{% if messages %}",
    "{% endif %}",
    "{{ messages }}",
    "{{ messages[0].content }}",
    "{{ messages[99]['content'][0].text * 99999999 }}",
    "{{ 'a' * 99999999999 }}",
    "{{ 1 // 0 }}",
    "{{ 9223372036854775807 + 1 }}",
    "{{ 2 ** 9999 }}",
    "{{ range(0, 9999999999999) | list }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% set x = namespace(y=0) %}",
    "{{ raise_exception('no') }}",
    "{{ 'x'.split('')[0].strip().upper() }}",
    "{{ messages | tojson(indent=99999999) }}",
    "{{ '%99999999d' | format(1) }}",
    "{{ 'x' | center(99999999) }}",
    "{{ messages | map(attribute='a.b.c') | join('x') }}",
    "{{- undefined.a.b -}}",
    "{#",
    "{% raw %}",
];
