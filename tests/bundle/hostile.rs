//! Bundles that are damaged, made up, or for another machine.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use trtvlm::Error;
use trtvlm::bundle::{
    Bundle, Engine, FileDigest, Flavour, MANIFEST, MANIFEST_DIGEST, Manifest, Target, sha256_file,
};

use super::{manifest, with_bundle};

/// What it is, how it is done, which file the error names, what it says.
type Damage<'a> = (&'a str, &'a dyn Fn(&Path), &'a str, &'a str);

/// What it is, how the manifest is changed, what the error says.
type Edit<'a> = (&'a str, &'a dyn Fn(&mut serde_json::Value), &'a str);

/// Writes a manifest's bytes with the digest that belongs to them.
fn put_manifest(bundle: &Path, json: &[u8]) {
    let path = bundle.join(MANIFEST);
    fs::write(&path, json).expect("write");
    let digest = sha256_file(&path, |_| {}).expect("digest").sha256;
    fs::write(
        bundle.join(MANIFEST_DIGEST),
        format!("{digest}  {MANIFEST}\n"),
    )
    .expect("write");
}

fn edit_manifest(bundle: &Path, edit: impl FnOnce(&mut serde_json::Value)) {
    let json = fs::read(bundle.join(MANIFEST)).expect("read");
    let mut value = serde_json::from_slice(&json).expect("json");
    edit(&mut value);
    put_manifest(bundle, &serde_json::to_vec(&value).expect("json"));
}

#[test]
fn open_of_a_damaged_bundle_names_file_and_reason() {
    let flip = |path: PathBuf| {
        let mut bytes = fs::read(&path).expect("read");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&path, bytes).expect("write");
    };
    let cases: [Damage; 13] = [
        (
            "bit in a plan",
            &|b| flip(b.join("engines/vision.plan")),
            "vision.plan",
            "SHA-256 is",
        ),
        (
            "bit in the manifest",
            &|b| flip(b.join(MANIFEST)),
            MANIFEST,
            "SHA-256 is",
        ),
        (
            "bit in the digest",
            &|b| flip(b.join(MANIFEST_DIGEST)),
            MANIFEST_DIGEST,
            "one line",
        ),
        (
            "longer file",
            &|b| fs::write(b.join("config.json"), "{ }").expect("write"),
            "config.json",
            "size in bytes is 3, expected 2",
        ),
        (
            "file gone",
            &|b| fs::remove_file(b.join("config.json")).expect("rm"),
            "config.json",
            "not there",
        ),
        (
            "manifest gone",
            &|b| fs::remove_file(b.join(MANIFEST)).expect("rm"),
            MANIFEST,
            "",
        ),
        (
            "digest gone",
            &|b| fs::remove_file(b.join(MANIFEST_DIGEST)).expect("rm"),
            MANIFEST_DIGEST,
            "",
        ),
        (
            "unlisted file",
            &|b| fs::write(b.join("engines/x"), "").expect("write"),
            "engines/x",
            "not listed",
        ),
        (
            "link to the same bytes",
            &|b| {
                let file = b.join("config.json");
                fs::rename(&file, b.with_extension("moved")).expect("mv");
                symlink(b.with_extension("moved"), &file).expect("link");
            },
            "config.json",
            "neither a file nor a directory",
        ),
        (
            "linked folder",
            &|b| {
                fs::rename(b.join("engines"), b.with_extension("moved")).expect("mv");
                symlink(b.with_extension("moved"), b.join("engines")).expect("link");
            },
            "engines",
            "neither a file nor a directory",
        ),
        (
            "linked manifest",
            &|b| {
                fs::rename(b.join(MANIFEST), b.with_extension("moved")).expect("mv");
                symlink(b.with_extension("moved"), b.join(MANIFEST)).expect("link");
            },
            MANIFEST,
            "not a regular file",
        ),
        (
            "huge digest file",
            &|b| fs::write(b.join(MANIFEST_DIGEST), vec![b'0'; 1 << 20]).expect("write"),
            MANIFEST_DIGEST,
            "the limit is 256",
        ),
        (
            "huge manifest",
            &|b| {
                let file = fs::File::create(b.join(MANIFEST)).expect("create");
                file.set_len(1 << 40).expect("sparse");
            },
            MANIFEST,
            "the limit is",
        ),
    ];
    for (what, damage, file, reason) in cases {
        let (_dir, out) = with_bundle();
        damage(&out);
        let error = Bundle::open(&out).expect_err(what).to_string();
        assert!(
            error.contains(file) && error.contains(reason),
            "{what}: {error}"
        );
        assert!(Bundle::is_bundle(&out), "{what}");
    }
}

#[test]
fn open_of_a_hostile_manifest_is_a_typed_error() {
    let twice = |v: &mut serde_json::Value, list: &str| {
        let list = v
            .pointer_mut(list)
            .and_then(|l| l.as_array_mut())
            .expect("list");
        list.push(list[0].clone());
    };
    let cases: [Edit; 12] = [
        (
            "other version",
            &|v| v["schema_version"] = 1.into(),
            "schema version is 1, expected 2",
        ),
        (
            "no version",
            &|v| v["schema_version"] = "x".into(),
            "not a manifest",
        ),
        (
            "unknown field",
            &|v| v["more"] = 1.into(),
            "unknown field `more`",
        ),
        (
            "negative size",
            &|v| v["files"][0]["bytes"] = (-1).into(),
            "not a manifest",
        ),
        (
            "digest of another kind",
            &|v| v["files"][0]["sha256"] = "AB".into(),
            "not a SHA-256",
        ),
        (
            "leaving name",
            &|v| v["files"][0]["path"] = "../config.json".into(),
            "leaves",
        ),
        (
            "absolute name",
            &|v| v["files"][0]["path"] = "/etc/passwd".into(),
            "absolute",
        ),
        (
            "file twice",
            &|v| twice(v, "/files"),
            "file `config.json` stands twice",
        ),
        (
            "target twice",
            &|v| twice(v, "/engines"),
            "target `sm86` stands twice",
        ),
        (
            "component twice",
            &|v| twice(v, "/engines/0/components"),
            "`vision` stands twice",
        ),
        (
            "component elsewhere",
            &|v| v["engines"][0]["components"][0]["file"] = "/bin/sh".into(),
            "not listed",
        ),
        (
            "absurd context",
            &|v| v["max_context"] = u32::MAX.into(),
            "above the limits",
        ),
    ];
    for (what, edit, reason) in cases {
        let (_dir, out) = with_bundle();
        edit_manifest(&out, edit);
        let error = Bundle::open(&out).expect_err(what);
        assert!(
            matches!(error, Error::Malformed { .. } | Error::Mismatch { .. }),
            "{what}: {error:?}"
        );
        assert!(error.to_string().contains(reason), "{what}: {error}");
    }
    for json in [
        "",
        "null",
        "[]",
        "{}",
        "\u{feff}{}",
        &"[".repeat(100_000),
        &"{\"a\":".repeat(100_000),
    ] {
        let (_dir, out) = with_bundle();
        put_manifest(&out, json.as_bytes());
        let error = Bundle::open(&out).expect_err("not a manifest");
        assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
    }
}

#[test]
fn check_target_for_another_machine_names_both_sides() {
    let (_dir, out) = with_bundle();
    let bundle = Bundle::open(&out).expect("open");
    let engine = |version: &str| Engine {
        flavour: Flavour::TensorRtRtx,
        version: version.to_owned(),
    };
    let set = bundle
        .check_target(Target::Sm(86), &engine("1.7.1"))
        .expect("the same");
    assert_eq!(
        set.component("vision").expect("vision").file,
        "engines/vision.plan"
    );
    let sm = bundle
        .check_target(Target::Sm(87), &engine("1.7.1"))
        .expect_err("sm");
    assert!(
        sm.to_string().ends_with("target is sm86, expected sm87"),
        "{sm}"
    );
    let version = bundle
        .check_target(Target::Sm(86), &engine("1.6.0"))
        .expect_err("version");
    assert!(
        version
            .to_string()
            .ends_with("engine is TensorRT-RTX 1.7.1, expected TensorRT-RTX 1.6.0"),
        "{version}"
    );
}

fn manifest_bytes() -> Vec<u8> {
    let mut manifest = manifest();
    manifest.files = vec![FileDigest {
        path: "engines/vision.plan".to_owned(),
        bytes: 4,
        sha256: "0".repeat(64),
    }];
    serde_json::to_vec_pretty(&manifest).expect("json")
}

proptest! {
    #[test]
    fn manifest_with_mutated_bytes_never_panics(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = manifest_bytes();
        prop_assert!(Manifest::parse(Path::new("m"), &bytes).is_ok());
        for (index, byte) in edits {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        for bytes in [&bytes[..], &bytes[..cut.index(bytes.len())]] {
            match Manifest::parse(Path::new("m"), bytes) {
                Ok(manifest) => {
                    let json = serde_json::to_vec(&manifest).expect("json");
                    prop_assert!(Manifest::parse(Path::new("m"), &json).is_ok());
                }
                Err(error) => {
                    let typed = matches!(
                        error,
                        Error::Malformed { .. } | Error::Mismatch { .. } | Error::TooLarge { .. }
                    );
                    prop_assert!(typed, "{:?}", error);
                }
            }
        }
    }

    #[test]
    fn manifest_of_any_bytes_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        prop_assert!(Manifest::parse(Path::new("m"), &bytes).is_err());
    }
}
