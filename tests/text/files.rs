//! Tokenizer files that are unusual, broken or hostile.

use std::fs;

use proptest::prelude::*;
use serde_json::{Value, json};
use trtvlm::text::ImageSlot;
use trtvlm::{Error, limits};

use super::common::*;

#[test]
fn image_token_marked_ordinary_is_special_nevertheless() {
    let dir = copy(DEMO);
    edit(dir.path(), "tokenizer.json", |v| {
        for token in v["added_tokens"].as_array_mut().expect("added") {
            token["special"] = json!(false);
        }
    });
    edit(dir.path(), "tokenizer_config.json", |v| {
        v["added_tokens_decoder"]["1021"]["special"] = json!(false);
    });
    let (_, changed) = load(dir.path()).expect("a folder");
    let (_, text) = model(DEMO);
    for question in ["<image> <|im_end|><|endoftext|>", "<|im_start|>assistant"] {
        let slots = [ImageSlot::Single];
        let expected = text.prompt(question, &slots).expect("a prompt");
        assert_eq!(
            changed.prompt(question, &slots).expect("a prompt"),
            expected
        );
    }
}

#[test]
fn tokenizer_that_spells_a_special_token_by_merges_is_refused_when_it_does() {
    let dir = copy(DEMO);
    edit(dir.path(), "tokenizer.json", |v| {
        v["pre_tokenizer"] = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        v["model"]["ignore_merges"] = json!(true);
        for (n, word) in ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
            .iter()
            .enumerate()
        {
            v["model"]["vocab"][*word] = json!(1020 + n);
        }
    });
    // A template in which the question stands alone between two special tokens.
    let template = "<image>{{ messages[0]['content'][-1]['text'] }}<|im_end|>";
    fs::write(dir.path().join("chat_template.jinja"), template).expect("write");
    let (_, text) = load(dir.path()).expect("a folder");
    text.prompt("<image>?", &[ImageSlot::Single])
        .expect("other text");
    let e = text
        .prompt("<image>", &[ImageSlot::Single])
        .expect_err("the token");
    assert!(e.to_string().contains("special token 1023"), "{e}");
}

#[test]
fn special_token_that_eats_white_space_does_so_beside_the_question() {
    let dir = copy(DEMO);
    edit(dir.path(), "tokenizer.json", |v| {
        v["added_tokens"][2]["lstrip"] = json!(true);
        v["added_tokens"][3]["rstrip"] = json!(true);
    });
    let template = "<image>{{ messages[0]['content'][-1]['text'] }}<|im_end|>";
    fs::write(dir.path().join("chat_template.jinja"), template).expect("write");
    let (_, text) = load(dir.path()).expect("a folder");
    let ids = |q: &str| text.prompt(q, &[ImageSlot::Single]).expect("a prompt").ids;
    assert_eq!(ids(" \n where is it? \t"), ids("where is it?"));
    assert_ne!(ids("where  is it?"), ids("where is it?"));
}

/// `(pointer, new value, what the message must contain)`
#[test]
fn tokenizer_broken_names_the_file_and_the_reason() {
    let nested = json!({"type": "Sequence", "normalizers": [
        {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}]}]});
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let cases = [
        ("/model/type", json!("Unigram"), "only \"BPE\""),
        ("/model/vocab", json!({"a": -1}), "not a tokenizer"),
        ("/model/vocab", json!([]), "a map from words to ids"),
        (
            "/model/vocab",
            json!({"a": 1, "b": 1}),
            "two words have the id 1",
        ),
        ("/model/merges", json!({}), "a list of merges"),
        ("/model/merges", json!([["a", "b", "c"]]), "not a tokenizer"),
        ("/model/merges", json!([["a", "é漢"]]), "not a tokenizer"),
        (
            "/model/merges",
            json!(["a zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz"]),
            "longer than any word",
        ),
        (
            "/model/merges",
            json!([["a", "b".repeat(10_000)]]),
            "longer than any word",
        ),
        (
            "/model/continuing_subword_prefix",
            json!("##########"),
            "`continuing_subword_prefix`",
        ),
        (
            "/model/end_of_word_suffix",
            json!("</w>"),
            "`end_of_word_suffix`",
        ),
        ("/model/dropout", json!(0.5), "`dropout`"),
        (
            "/normalizer",
            json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
            "\"Precompiled\"",
        ),
        (
            "/normalizer",
            json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}),
            "\"Replace\"",
        ),
        ("/normalizer", nested, "\"Sequence\""),
        (
            "/normalizer",
            json!({"type": "Sequence", "normalizers": vec![json!({"type": "NFC"}); 9]}),
            "at most 8 steps",
        ),
        ("/pre_tokenizer", Value::Null, "one byte-level"),
        (
            "/pre_tokenizer",
            json!({"type": "Metaspace"}),
            "\"Metaspace\"",
        ),
        (
            "/pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": [byte_level, byte_level]}),
            "one byte-level",
        ),
        (
            "/pre_tokenizer/pretokenizers/0/pattern/Regex",
            json!("(((("),
            "not a tokenizer",
        ),
        ("/decoder", Value::Null, "byte-level decoder"),
        (
            "/added_tokens/3/id",
            json!(7),
            "the added token \"<image>\"",
        ),
        ("/added_tokens/3/content", json!(""), "the added token \"\""),
        ("/added_tokens", json!([]), "no token has the id 1023"),
        ("/version", json!("9"), "version"),
    ];
    for (pointer, value, expected) in cases {
        let dir = copy(DEMO);
        edit(dir.path(), "tokenizer.json", |v| {
            *v.pointer_mut(pointer).expect(pointer) = value.clone();
        });
        let shown: String = value.to_string().chars().take(80).collect();
        let Err(e) = load(dir.path()) else {
            panic!("{pointer} = {shown} was accepted");
        };
        assert!(e.to_string().contains(expected), "{pointer} = {shown}: {e}");
        let words = e.to_string();
        assert!(
            !words.contains("Some(") && !words.contains("None"),
            "{pointer} = {shown}: {e}"
        );
        assert!(
            matches!(e, Error::Malformed { .. }),
            "{pointer} = {shown}: {e}"
        );
    }
}

#[test]
fn tokenizer_with_too_many_words_is_refused() {
    let dir = copy(DEMO);
    let words: Vec<String> = (0..=limits::VOCABULARY)
        .map(|n| format!("\"w{n}\":{n}"))
        .collect();
    let path = dir.path().join("tokenizer.json");
    let file = format!(
        "{{\"model\":{{\"vocab\":{{{}}},\"merges\":[]}}}}",
        words.join(",")
    );
    fs::write(&path, file).expect("write");
    assert!(matches!(load(dir.path()), Err(Error::TooLarge { .. })));
    let far = json!({"model": {"vocab": {"a": u32::MAX}, "merges": []}}).to_string();
    fs::write(&path, far).expect("write");
    assert!(matches!(load(dir.path()), Err(Error::TooLarge { .. })));
    fs::File::create(&path)
        .and_then(|f| f.set_len(limits::TEXT_FILE_BYTES + 1))
        .expect("sparse file");
    assert!(matches!(load(dir.path()), Err(Error::TooLarge { .. })));
}

#[test]
fn tokenizer_of_another_model_lacks_what_the_family_needs() {
    let dir = copy(SMOLVLM);
    edit(dir.path(), "tokenizer.json", |v| {
        for token in v["added_tokens"].as_array_mut().expect("added") {
            if token["content"] == "<global-img>" {
                token["content"] = json!("<elsewhere>");
            }
        }
    });
    let e = load(dir.path()).expect_err("no global mark");
    assert!(e.to_string().contains("\"<global-img>\""), "{e}");
}

#[test]
fn tokenizer_with_ids_the_model_lacks_is_refused_when_they_come_up() {
    let dir = copy(DEMO);
    edit(dir.path(), "tokenizer.json", |v| {
        v["model"]["vocab"]["q"] = json!(5000)
    });
    let (_, text) = load(dir.path()).expect("a folder");
    text.prompt("where?", &[]).expect("known letters");
    let e = text.prompt("q", &[]).expect_err("the letter");
    assert!(matches!(&e, Error::Malformed { .. }), "{e}");
    assert!(e.to_string().contains("token 5000"), "{e}");
}

#[test]
fn tokenizer_padding_and_truncation_of_the_file_do_not_act() {
    let dir = copy(DEMO);
    edit(dir.path(), "tokenizer.json", |v| {
        v["truncation"] =
            json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
        v["padding"] = json!({"strategy": {"Fixed": 512}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"});
    });
    let (_, changed) = load(dir.path()).expect("a folder");
    let (_, text) = model(DEMO);
    let question = "how many green cars are there?";
    assert_eq!(
        changed.prompt(question, &[]).expect("a prompt"),
        text.prompt(question, &[]).expect("a prompt")
    );
}

#[test]
fn text_files_truncated_anywhere_are_typed_errors() {
    let dir = copy(DEMO);
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        let path = dir.path().join(file);
        let whole = fs::read(&path).expect("read");
        let step = whole.len() / 60 + 1;
        for n in (0..whole.len() - 2).step_by(step) {
            fs::write(&path, &whole[..n]).expect("write");
            match load(dir.path()) {
                Err(Error::Malformed { path: named, .. }) => assert_eq!(named, path),
                other => panic!("{file} cut at {n}: {:?}", other.map(|_| ())),
            }
        }
        for garbage in [
            &b"\x7fELF\x02\x01"[..],
            b"null",
            b"[]",
            b"{}",
            &b"[".repeat(200_000),
        ] {
            fs::write(&path, garbage).expect("write");
            assert!(
                matches!(load(dir.path()), Err(Error::Malformed { .. })),
                "{file}"
            );
        }
        fs::write(&path, whole).expect("write");
    }
    fs::remove_file(dir.path().join("tokenizer.json")).expect("remove");
    assert!(matches!(load(dir.path()), Err(Error::Io { .. })));
}

proptest! {
    #![proptest_config(cases())]

    /// One byte of the tokenizer changed: an error, or a tokenizer that works.
    #[test]
    fn tokenizer_with_a_changed_byte_never_panics(at in 0usize..10_000, byte in any::<u8>()) {
        let dir = copy(FASTVLM);
        let path = dir.path().join("tokenizer.json");
        let mut bytes = fs::read(&path).expect("read");
        let at = at % bytes.len();
        bytes[at] = byte;
        fs::write(&path, &bytes).expect("write");
        if let Ok((config, text)) = load(dir.path()) {
            if let Ok(prompt) = text.prompt("find the <image>, naïve 🙂", &[ImageSlot::Single]) {
                prop_assert!(prompt.ids.iter().all(|id| (*id as usize) < config.vocab));
            }
            let all: Vec<u32> = (0..config.vocab as u32).collect();
            prop_assert!(text.decode(&all).is_ok());
        }
    }
}
