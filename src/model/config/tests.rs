//! Configurations as published, and as broken.

use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn load(config: &Value, generation: Option<&Value>, pre: Option<&Value>) -> Result<ModelConfig> {
    let parse = |name: &str, v: &Value| Json::parse(Path::new(name), v.to_string().as_bytes());
    ModelConfig::parse(
        "m".into(),
        &parse("config.json", config)?,
        generation
            .map(|v| parse("generation_config.json", v))
            .transpose()?
            .as_ref(),
        pre.map(|v| parse("preprocessor_config.json", v))
            .transpose()?
            .as_ref(),
    )
}

/// Flat, with the key names of the first published generation.
fn flat() -> Value {
    json!({
        "model_type": "llava_qwen2", "hidden_size": 896, "num_attention_heads": 14,
        "num_key_value_heads": 2, "num_hidden_layers": 24, "vocab_size": 151_936,
        "max_position_embeddings": 32_768, "rope_theta": 1e6, "image_token_index": 151_646,
        "eos_token_id": 151_645, "mm_hidden_size": 3072, "mm_vision_tower": "mobileclip_l_1024"
    })
}

fn preprocessor() -> Value {
    json!({"crop_size": {"height": 1024, "width": 1024}, "size": {"shortest_edge": 1024}})
}

fn nested() -> Value {
    json!({
        "model_type": "smolvlm", "image_token_id": 49_190, "scale_factor": 4, "vocab_size": 49_280,
        "text_config": {
            "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
            "num_hidden_layers": 30, "vocab_size": 49_280, "max_position_embeddings": 8192,
            "eos_token_id": 49_279, "pad_token_id": 2, "rope_parameters": {"rope_theta": 1e5}
        },
        "vision_config": {"image_size": 512, "patch_size": 16}
    })
}

#[test]
fn name_of_a_folder_in_the_hubs_cache_is_the_repositorys() {
    for (path, name) in [
        ("a/models/FastVLM", "FastVLM"),
        ("hub/models--own--Some-VLM/snapshots/0123abc", "Some-VLM"),
        ("hub/models--own--Some-VLM/blobs/0123abc", "0123abc"),
        ("hub/datasets--own--x/snapshots/0123abc", "0123abc"),
        ("snapshots/0123abc", "0123abc"),
        ("/", "model"),
    ] {
        assert_eq!(folder_name(Path::new(path)), name, "{path}");
    }
}

#[test]
fn config_of_demo_model_is_read() {
    let c = ModelConfig::load(&repository("onnx/uav-tiny")).expect("demo model");
    assert_eq!((c.name.as_str(), c.family.name), ("uav-tiny", "fastvlm"));
    assert_eq!((c.image_size, c.tokens_per_tile), (256, 256));
    assert_eq!((c.image_token_id, c.pad), (1023, Some(1020)));
    assert_eq!((c.eos, c.max_new_tokens), (vec![1022], Some(48)));
    assert_eq!((c.d_model, c.n_layers, c.vocab), (256, 4, 1024));
    assert_eq!((c.n_heads, c.n_kv_heads, c.head_dim), (4, 2, 64));
    assert_eq!(c.max_positions, 1024);
}

#[test]
fn config_of_tiny_folders_is_read() {
    let c = ModelConfig::load(&repository("tests/data/tiny/fastvlm-tiny-plain")).expect("fastvlm");
    assert_eq!(c.family.name, "fastvlm");
    assert_eq!((c.image_size, c.tokens_per_tile), (256, 16));
    assert_eq!((c.eos, c.image_token_id), (vec![498, 496], 499));
    assert_eq!((c.head_dim, c.max_new_tokens), (32, None));
    let c = ModelConfig::load(&repository("tests/data/tiny/smolvlm-tiny-plain")).expect("smolvlm");
    assert_eq!(c.family.name, "smolvlm");
    assert_eq!((c.image_size, c.tokens_per_tile), (128, 4));
    assert_eq!((c.eos, c.image_token_id, c.pad), (vec![511], 510, Some(2)));
    assert_eq!((c.n_heads, c.n_kv_heads, c.head_dim), (3, 1, 32));
}

#[test]
fn config_flat_and_nested_of_full_size_give_published_token_counts() {
    let c = load(&flat(), None, Some(&preprocessor())).expect("flat");
    assert_eq!(
        (c.image_size, c.tokens_per_tile, c.head_dim),
        (1024, 256, 64)
    );
    let c = load(&nested(), None, None).expect("nested");
    assert_eq!((c.image_size, c.tokens_per_tile), (512, 64));
    assert_eq!((c.eos, c.pad), (vec![49_279], Some(2)));
}

#[test]
fn config_generation_entries_win_over_its_own() {
    let generation = json!({"eos_token_id": [7, 8], "pad_token_id": 9, "max_new_tokens": 12,
        "do_sample": true, "temperature": 0.7});
    let c = load(&nested(), Some(&generation), None).expect("both");
    assert_eq!(
        (c.eos, c.pad, c.max_new_tokens),
        (vec![7, 8], Some(9), Some(12))
    );
    let c = load(&nested(), Some(&json!({"eos_token_id": null})), None).expect("null");
    assert_eq!(c.eos, vec![49_279]);
}

#[test]
fn config_context_beyond_ours_is_cut() {
    let mut v = flat();
    v["max_position_embeddings"] = json!(1_000_000);
    let c = load(&v, None, Some(&preprocessor())).expect("long context");
    assert_eq!(c.max_positions, limits::CONTEXT_TOKENS);
}

/// `(pointer to change, new value or removal, what the message must contain)`
#[test]
fn config_broken_names_file_and_key() {
    let cases: &[(&str, Option<Value>, &str)] = &[
        ("/model_type", None, "`model_type` is missing"),
        ("/model_type", Some(json!("llama")), "known are llava_qwen2"),
        ("/model_type", Some(json!(3)), "expected a string"),
        (
            "/image_token_id",
            None,
            "`image_token_id` or `image_token_index`",
        ),
        (
            "/image_token_id",
            Some(json!(-200)),
            "`image_token_id` is -200",
        ),
        (
            "/image_token_id",
            Some(json!(49_280)),
            "outside the vocabulary",
        ),
        ("/image_token_id", Some(json!(49_279)), "ends the answer"),
        ("/image_token_id", Some(json!(1u64 << 40)), "image token is"),
        ("/scale_factor", None, "`scale_factor` or"),
        ("/scale_factor", Some(json!(0)), "at least 1"),
        ("/scale_factor", Some(json!(64)), "no visual token"),
        (
            "/text_config/hidden_size",
            None,
            "`text_config.hidden_size` or `hidden_size`",
        ),
        (
            "/text_config/hidden_size",
            Some(json!("big")),
            "whole number",
        ),
        (
            "/text_config/hidden_size",
            Some(json!(1 << 20)),
            "the limit is 65536",
        ),
        (
            "/text_config/num_hidden_layers",
            Some(json!(100_000)),
            "the limit is 256",
        ),
        (
            "/text_config/num_key_value_heads",
            Some(json!(2)),
            "not a multiple",
        ),
        (
            "/text_config/num_attention_heads",
            Some(json!(0)),
            "at least 1",
        ),
        (
            "/text_config/vocab_size",
            Some(json!(u64::MAX)),
            "the limit is",
        ),
        (
            "/text_config/vocab_size",
            Some(json!(1e300)),
            "whole number",
        ),
        (
            "/text_config/max_position_embeddings",
            None,
            "max_position_embeddings",
        ),
        (
            "/text_config/eos_token_id",
            None,
            "`eos_token_id` is missing",
        ),
        (
            "/text_config/eos_token_id",
            Some(json!([])),
            "`eos_token_id` is missing",
        ),
        (
            "/text_config/eos_token_id",
            Some(json!("x")),
            "a token id or a list",
        ),
        (
            "/text_config/eos_token_id",
            Some(json!([1, 60_000])),
            "outside the vocabulary",
        ),
        (
            "/text_config/pad_token_id",
            Some(json!(60_000)),
            "outside the vocabulary",
        ),
        ("/vision_config", None, "no side of the vision tower"),
        (
            "/vision_config/image_size",
            Some(json!(60_000)),
            "the limit is 4096",
        ),
        (
            "/vision_config/patch_size",
            None,
            "`vision_config.patch_size` is missing",
        ),
        ("/vision_config/patch_size", Some(json!(1)), "ok"),
    ];
    for (pointer, value, expected) in cases {
        let mut v = nested();
        let (parent, key) = pointer.rsplit_once('/').expect("pointer");
        let parent = v.pointer_mut(parent).and_then(Value::as_object_mut);
        let parent = parent.expect("an object");
        match value {
            Some(value) => parent.insert(key.to_string(), value.clone()),
            None => parent.remove(key),
        };
        match load(&v, None, None) {
            Ok(_) => assert_eq!(*expected, "ok", "{pointer} {value:?}"),
            Err(e) => {
                assert!(e.to_string().contains(expected), "{pointer} {value:?}: {e}");
                assert!(e.to_string().starts_with("config.json: "), "{e}");
            }
        }
    }
}

#[test]
fn config_without_head_dim_needs_a_divisible_width() {
    let mut v = flat();
    v["hidden_size"] = json!(900);
    let e = load(&v, None, Some(&preprocessor())).expect_err("900 / 14");
    assert!(e.to_string().contains("`head_dim` is missing"), "{e}");
}

#[test]
fn config_without_kv_heads_has_one_per_query_head() {
    let mut v = flat();
    v["num_key_value_heads"] = Value::Null;
    let c = load(&v, None, Some(&preprocessor())).expect("no key");
    assert_eq!(c.n_kv_heads, 14);
}

#[test]
fn config_image_size_is_read_from_old_and_new_preprocessors() {
    for pre in [
        json!({"crop_size": 256, "size": 300}),
        json!({"crop_size": {"height": 256, "width": 256}}),
        json!({"size": {"height": 256, "width": 256}}),
        json!({"size": {"shortest_edge": 256}}),
    ] {
        let c = load(&flat(), None, Some(&pre)).expect("a size");
        assert_eq!((c.image_size, c.tokens_per_tile), (256, 16), "{pre}");
    }
    let e = load(&flat(), None, Some(&json!({}))).expect_err("no size");
    assert!(e.to_string().contains("`crop_size.height`"), "{e}");
    assert!(load(&flat(), None, None).is_err());
}

#[test]
fn config_folder_truncated_anywhere_is_a_typed_error() {
    let dir = tempfile::tempdir().expect("tempdir");
    let files = [
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
    ];
    for broken in files {
        for f in files {
            std::fs::copy(repository("onnx/uav-tiny").join(f), dir.path().join(f)).expect("copy");
        }
        let path = dir.path().join(broken);
        let bytes = std::fs::read(&path).expect("read");
        for n in (0..bytes.len().min(600)).step_by(7) {
            std::fs::write(&path, &bytes[..n]).expect("write");
            match ModelConfig::load(dir.path()) {
                Err(Error::Malformed { path: named, .. }) => assert_eq!(named, path),
                // Everything but white space at the end was there.
                Ok(_) => assert!(bytes[n..].iter().all(u8::is_ascii_whitespace), "{n}"),
                Err(e) => panic!("{broken} cut at {n}: {e}"),
            }
        }
    }
}

proptest! {
    #[test]
    fn config_of_any_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(json) = Json::parse(Path::new("c"), &bytes) {
            let _ = ModelConfig::parse("m".into(), &json, Some(&json), Some(&json));
        }
    }

    #[test]
    fn config_with_any_number_anywhere_never_panics(which in 0usize..16, n in any::<i64>(), x in any::<f64>()) {
        let keys = ["/image_token_id", "/scale_factor", "/text_config/hidden_size",
            "/text_config/num_attention_heads", "/text_config/num_key_value_heads",
            "/text_config/head_dim", "/text_config/num_hidden_layers", "/text_config/vocab_size",
            "/text_config/max_position_embeddings", "/text_config/eos_token_id",
            "/text_config/pad_token_id", "/vision_config/image_size", "/vision_config/patch_size",
            "/vocab_size", "/text_config", "/vision_config"];
        for value in [json!(n), json!(x), json!([n, n]), json!({"a": n})] {
            let mut v = nested();
            *v.pointer_mut(keys[which]).expect("key") = value;
            if let Ok(c) = load(&v, Some(&v), Some(&v)) {
                prop_assert!(c.n_layers <= limits::DECODER_LAYERS && c.tokens_per_tile > 0);
            }
        }
    }
}

#[test]
fn config_whose_cache_or_table_fits_no_memory_is_refused() {
    let set = |entries: Value| {
        let mut config = flat();
        for (key, value) in entries.as_object().expect("entries") {
            config[key] = value.clone();
        }
        load(&config, None, Some(&preprocessor()))
    };
    for (entries, what) in [
        (json!({"head_dim": 65_536}), "KV cache"),
        (
            json!({"num_attention_heads": 65_536, "num_key_value_heads": 65_536, "head_dim": 65_536,
                   "num_hidden_layers": 256}),
            "KV cache",
        ),
        (
            json!({"hidden_size": 65_536, "num_attention_heads": 64, "num_key_value_heads": 1,
                   "vocab_size": 1_048_576}),
            "embedding table",
        ),
    ] {
        let e = set(entries.clone()).expect_err("too large");
        assert!(matches!(e, Error::TooLarge { .. }), "{entries}: {e}");
        let e = e.to_string();
        assert!(
            e.contains("config.json") && e.contains(what),
            "{entries}: {e}"
        );
    }
    // A 7B decoder.
    set(
        json!({"hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4,
               "num_hidden_layers": 28, "vocab_size": 152_064}),
    )
    .expect("fits");
}
