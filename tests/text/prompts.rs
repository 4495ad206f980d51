//! Questions to ids and ids to text.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use trtvlm::text::{ImageSlot, Prompt};
use trtvlm::{Error, limits};

use super::common::*;

#[test]
fn prompt_ids_equal_those_of_transformers() {
    for (name, folder) in FOLDERS {
        let (config, text) = model(folder);
        let golden = golden(name);
        let rows = golden["prompts"].as_array().expect("prompts");
        let mut wrong = Vec::new();
        for row in rows {
            let question = row["question"].as_str().expect("question");
            let got = text
                .prompt(question, &slots(&row["slots"]))
                .expect("a prompt");
            let expected = ids(&row["ids"], config.image_token_id);
            if got.ids != expected {
                wrong.push(format!(
                    "{question:?} {}:\n  {:?}\n  {expected:?}",
                    row["slots"], got.ids
                ));
            }
        }
        assert!(rows.len() > 400, "{name}: {} prompts", rows.len());
        assert!(
            wrong.is_empty(),
            "{name}: {} differ\n{}",
            wrong.len(),
            wrong.join("\n")
        );
    }
}

#[test]
fn prompt_near_the_limit_equals_that_of_transformers_in_time() {
    for (name, folder) in FOLDERS {
        let (_, text) = model(folder);
        for row in golden(name)["long"].as_array().expect("long") {
            let unit = row["unit"].as_str().expect("unit");
            let times = row["times"].as_u64().expect("times") as usize;
            let start = Instant::now();
            let question = unit.repeat(times) + "?";
            let ids = text
                .prompt(&question, &[ImageSlot::Single])
                .expect("a prompt")
                .ids;
            assert!(
                start.elapsed() < Duration::from_secs(5),
                "{name} {unit:?}: {:?}",
                start.elapsed()
            );
            assert_eq!(row["n_ids"], ids.len(), "{name} {unit:?}");
            let hash = ids.iter().fold(0u64, |h, id| {
                h.wrapping_mul(31).wrapping_add(u64::from(*id))
            });
            assert_eq!(row["hash"], hash.to_string(), "{name} {unit:?}");
        }
    }
}

#[test]
fn decoding_equals_that_of_transformers_at_once_and_as_a_stream() {
    for (name, folder) in FOLDERS {
        let (_, text) = model(folder);
        let golden = golden(name);
        for row in golden["decode"].as_array().expect("decode") {
            let ids = ids(&row["ids"], 0);
            let expected = row["text"].as_str().expect("text");
            assert_eq!(text.decode(&ids).expect("ids"), expected, "{name} {ids:?}");

            let mut stream = text.stream();
            let mut joined = String::new();
            for id in &ids {
                joined += &stream.push(*id).expect("id").unwrap_or_default();
                assert!(expected.starts_with(&joined), "{name} {ids:?}: {joined:?}");
            }
            joined += &stream.finish().unwrap_or_default();
            assert_eq!(joined, expected, "{name} {ids:?}");
            assert_eq!(stream.finish(), None);
        }
    }
}

#[test]
fn stream_of_multibyte_text_never_shows_a_replacement() {
    for (name, folder) in FOLDERS {
        let (config, text) = model(folder);
        let written = "naïve 漢字 🙂👩‍👩‍👧‍👦 ру́сский \u{10ffff}";
        // The answer's ids, taken from a prompt's: all between two fences of the template.
        let all = text.prompt(written, &[]).expect("a prompt").ids;
        let empty = text.prompt("x", &[]).expect("a prompt").ids;
        let head = all.iter().zip(&empty).take_while(|(a, b)| a == b).count();
        let (mut stream, mut joined, mut waits) = (text.stream(), String::new(), 0);
        for id in &all[head..] {
            match stream.push(*id).expect("id") {
                Some(piece) => joined += &piece,
                None if !config.eos.contains(id) => waits += 1,
                None => {}
            }
            assert!(!joined.contains('\u{fffd}'), "{name}: {joined:?}");
        }
        assert!(
            joined.trim_start().starts_with(written),
            "{name}: {joined:?}"
        );
        assert!(waits > 10, "{name}: characters were not split");
    }
}

#[test]
fn stream_that_ends_inside_a_character_flushes_one_replacement() {
    let (_, text) = model(DEMO);
    let ids = text.prompt("🙂", &[]).expect("a prompt").ids;
    let text_of = |ids: &[u32]| text.decode(ids).expect("ids");
    let at = (0..ids.len())
        .find(|n| text_of(&ids[..*n]).ends_with('\u{fffd}'))
        .expect("the first byte of the emoji");
    let mut stream = text.stream();
    for id in &ids[..at] {
        assert!(
            !stream
                .push(*id)
                .expect("id")
                .unwrap_or_default()
                .contains('\u{fffd}')
        );
    }
    assert_eq!(stream.finish().as_deref(), Some("\u{fffd}"));
    assert_eq!(stream.finish(), None);
}

#[test]
fn token_id_outside_the_vocabulary_is_refused() {
    for (_, folder) in FOLDERS {
        let (config, text) = model(folder);
        for id in [config.vocab as u32, u32::MAX] {
            assert!(matches!(text.decode(&[1, id]), Err(Error::Argument { .. })));
            assert!(matches!(
                text.stream().push(id),
                Err(Error::Argument { .. })
            ));
        }
    }
}

#[test]
fn prompt_text_is_what_the_ids_say() {
    let (config, text) = model(SMOLVLM);
    let tiles = ImageSlot::Tiled { rows: 2, cols: 1 };
    let Prompt { ids, text } = text.prompt("Where?", &[tiles]).expect("a prompt");
    let image = "<image>".repeat(config.tokens_per_tile);
    let fence = "<fake_token_around_image>";
    assert_eq!(
        text,
        format!(
            "<|im_start|>User:{fence}<row_1_col_1>{image}\n{fence}<row_2_col_1>{image}\n\n\
             {fence}<global-img>{image}{fence}Where?<end_of_utterance>\nAssistant:"
        )
    );
    let n = ids
        .iter()
        .filter(|id| **id == config.image_token_id)
        .count();
    assert_eq!(n, 3 * config.tokens_per_tile);
}

#[test]
fn image_slot_none_adds_nothing() {
    let (_, text) = model(DEMO);
    let prompt = |slots: &[ImageSlot]| text.prompt("where?", slots).expect("a prompt");
    assert_eq!(prompt(&[ImageSlot::None]), prompt(&[]));
    assert_eq!(
        prompt(&[ImageSlot::None, ImageSlot::Single]),
        prompt(&[ImageSlot::Single])
    );
}

#[test]
fn image_slots_beyond_family_or_limits_are_refused() {
    let (_, fastvlm) = model(FASTVLM);
    let (_, smolvlm) = model(SMOLVLM);
    let tiles = |rows, cols| [ImageSlot::Tiled { rows, cols }];
    let e = fastvlm.prompt("x", &tiles(2, 2)).expect_err("no tiles");
    assert!(matches!(e, Error::Argument { .. }), "{e}");
    for (rows, cols) in [(8, 8), (usize::MAX, 2), (usize::MAX, usize::MAX)] {
        let e = smolvlm.prompt("x", &tiles(rows, cols)).expect_err("tiles");
        assert!(matches!(e, Error::TooLarge { .. }), "{e}");
    }
    let e = smolvlm.prompt("x", &tiles(0, 3)).expect_err("no rows");
    assert!(matches!(e, Error::Argument { .. }), "{e}");
    let many = vec![ImageSlot::Single; limits::CONTEXT_TOKENS];
    let e = fastvlm.prompt("x", &many).expect_err("too many");
    assert!(matches!(e, Error::TooLarge { .. }), "{e}");
}

#[test]
fn prompt_empty_or_too_long_is_refused() {
    let (_, text) = model(DEMO);
    for question in ["", " ", "\n\t ", "\u{a0}\u{3000}"] {
        let e = text.prompt(question, &[]).expect_err("empty");
        assert!(matches!(e, Error::Prompt { .. }), "{e}");
    }
    let e = text
        .prompt(&"x".repeat(limits::PROMPT_BYTES + 1), &[])
        .expect_err("too long");
    assert!(matches!(e, Error::TooLarge { .. }), "{e}");
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn question_of_any_text_gives_no_special_token(question in "(\\PC|[<>|_ \\n]|<image>|<\\|im_end\\|>){1,40}") {
        let (config, text) = model(DEMO);
        prop_assume!(!question.trim().is_empty());
        let special = |ids: &[u32]| ids.iter().filter(|id| **id >= 1020).copied().collect::<Vec<_>>();
        let prompt = text.prompt(&question, &[ImageSlot::Single]).expect("a prompt");
        let plain = text.prompt("x", &[ImageSlot::Single]).expect("a prompt");
        prop_assert_eq!(special(&prompt.ids), special(&plain.ids));
        prop_assert!(prompt.ids.iter().all(|id| (*id as usize) < config.vocab));
    }
}
