//! Which files of a repository are fetched.

use std::collections::BTreeSet;

use crate::error::{Error, Result};

/// Files that no model folder goes without.
const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];

/// Files that are fetched if they are there.
const OPTIONAL: [&str; 8] = [
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "pruner.safetensors",
    "router.safetensors",
];

/// Folder of what was trained to draft for a model.
const DRAFTS: &str = "drafts/";

/// Stems of the three ONNX files.
const STEMS: [&str; 3] = [
    "onnx/vision_encoder",
    "onnx/embed_tokens",
    "onnx/decoder_model_merged",
];

/// Name of the variant without suffix.
const UNSUFFIXED: &str = "fp32";

/// What is taken when no variant is asked for.
const PREFERRED: [&str; 2] = [UNSUFFIXED, "fp16"];

/// Chooses from the names of a repository's files those to fetch, small ones first.
///
/// # Errors
/// The reason, for people: no such variant, or a file is missing.
pub(super) fn choose(listed: &[String], variant: Option<&str>) -> Result<Vec<String>, String> {
    let listed: BTreeSet<&str> = listed
        .iter()
        .map(String::as_str)
        .filter(|n| is_safe(n))
        .collect();
    if let Some(missing) = REQUIRED.iter().find(|name| !listed.contains(*name)) {
        return Err(format!(
            "it has no {missing}: not a model in the hub's ONNX layout"
        ));
    }
    let variant = choose_variant(&listed, variant)?;
    let onnx = STEMS.map(|stem| file_name(stem, &variant));
    let wanted = |name: &&&str| {
        REQUIRED.contains(name)
            || OPTIONAL.contains(name)
            || name.starts_with(DRAFTS)
            || onnx.iter().any(|file| is_file_or_data(name, file))
    };
    let mut files: Vec<String> = listed
        .iter()
        .filter(wanted)
        .map(|&n| n.to_owned())
        .collect();
    files.sort_by_key(|name| name.starts_with("onnx/"));
    Ok(files)
}

fn choose_variant(listed: &BTreeSet<&str>, asked: Option<&str>) -> Result<String, String> {
    let whole = |variant: &str| {
        STEMS
            .iter()
            .all(|stem| listed.contains(file_name(stem, variant).as_str()))
    };
    let variants: Vec<String> = listed
        .iter()
        .filter_map(|name| name.strip_prefix(STEMS[0])?.strip_suffix(".onnx"))
        .filter_map(|suffix| match suffix {
            "" => Some(UNSUFFIXED.to_owned()),
            suffix => suffix.strip_prefix('_').map(str::to_owned),
        })
        .filter(|variant| whole(variant))
        .collect();
    let has = |variant: &str| variants.iter().any(|v| v == variant);
    let there = || match variants.as_slice() {
        [] => "it has none".to_owned(),
        some => format!("it has {}", some.join(", ")),
    };
    if let Some(asked) = asked {
        return match has(asked) {
            true => Ok(asked.to_owned()),
            false => Err(format!("no whole set of ONNX files `{asked}`: {}", there())),
        };
    }
    match (PREFERRED.into_iter().find(|v| has(v)), variants.as_slice()) {
        (Some(preferred), _) => Ok(preferred.to_owned()),
        (None, [only]) => Ok(only.clone()),
        (None, []) => {
            Err("no vision_encoder, embed_tokens and decoder_model_merged in `onnx/`".to_owned())
        }
        (None, _) => Err(format!("choose a variant: {}", there())),
    }
}

fn file_name(stem: &str, variant: &str) -> String {
    match variant {
        UNSUFFIXED => format!("{stem}.onnx"),
        variant => format!("{stem}_{variant}.onnx"),
    }
}

/// True for an ONNX file and for the data beside it: `x.onnx_data`, `x.onnx_data_1`,
/// `x.onnx.data`.
fn is_file_or_data(name: &str, onnx: &str) -> bool {
    name.strip_prefix(onnx).is_some_and(|rest| {
        rest.is_empty() || rest.starts_with("_data") || rest.starts_with(".data")
    })
}

/// True for names that need no care in a path or an address.
pub(super) fn is_safe(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    name.len() <= 256
        && name.split('/').count() <= 2
        && name
            .split('/')
            .all(|part| !part.is_empty() && !part.starts_with('.') && part.chars().all(plain))
}

/// The error for a repository that cannot be used.
pub(super) fn refused(repo: &super::RepoId, reason: impl Into<String>) -> Error {
    Error::Download {
        repo: repo.to_string(),
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(suffixes: &[&str]) -> Vec<String> {
        let mut files: Vec<String> = [
            "README.md",
            "config.json",
            "tokenizer.json",
            "onnx/other.onnx",
            "model.safetensors",
        ]
        .map(str::to_owned)
        .to_vec();
        for suffix in suffixes {
            files.extend(STEMS.map(|stem| format!("{stem}{suffix}.onnx")));
        }
        files
    }

    #[test]
    fn choice_takes_one_variant_with_its_data_and_nothing_else() {
        let mut files = listing(&["", "_fp16", "_q4"]);
        files.extend(
            [
                "onnx/decoder_model_merged_fp16.onnx_data",
                "onnx/decoder_model_merged_fp16.onnx_data_1",
                "onnx/decoder_model_merged.onnx_data",
                "onnx/vision_encoder_fp16.onnx.data",
                "onnx/vision_encoder_fp16.onnxruntime",
                "drafts/head.safetensors",
                "../../drafts/evil",
                "drafts/../../evil",
            ]
            .map(str::to_owned),
        );
        let chosen = choose(&files, Some("fp16")).expect("fp16");
        assert_eq!(
            chosen,
            [
                "config.json",
                "drafts/head.safetensors",
                "tokenizer.json",
                "onnx/decoder_model_merged_fp16.onnx",
                "onnx/decoder_model_merged_fp16.onnx_data",
                "onnx/decoder_model_merged_fp16.onnx_data_1",
                "onnx/embed_tokens_fp16.onnx",
                "onnx/vision_encoder_fp16.onnx",
                "onnx/vision_encoder_fp16.onnx.data",
            ]
        );
        let plain = choose(&files, None).expect("fp32");
        assert!(plain.contains(&"onnx/decoder_model_merged.onnx_data".to_owned()));
        assert_eq!(plain.len(), 7);
    }

    #[test]
    fn choice_without_a_variant_prefers_fp32_then_fp16_then_the_only_one() {
        for (suffixes, expected) in [
            (&["_q4", "", "_fp16"][..], Ok("onnx/embed_tokens.onnx")),
            (&["_q4", "_fp16"], Ok("onnx/embed_tokens_fp16.onnx")),
            (&["_q4"], Ok("onnx/embed_tokens_q4.onnx")),
            (&["_q4", "_int8"], Err("choose a variant: it has int8, q4")),
            (&[], Err("no vision_encoder")),
        ] {
            match (choose(&listing(suffixes), None), expected) {
                (Ok(files), Ok(file)) => assert!(files.iter().any(|f| f == file), "{suffixes:?}"),
                (Err(reason), Err(start)) => assert!(reason.starts_with(start), "{reason}"),
                (got, _) => panic!("{suffixes:?}: {got:?}"),
            }
        }
        let reason = choose(&listing(&["_q4"]), Some("int8")).expect_err("not there");
        assert!(reason.contains("`int8`: it has q4"), "{reason}");
        let reason = choose(&["onnx/x.onnx".to_owned()], None).expect_err("no config");
        assert!(reason.contains("config.json"), "{reason}");
    }
}
