//! Bundles: written whole or not at all, opened verified or not at all.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proptest::prelude::*;
use trtvlm::Error;
use trtvlm::bundle::{
    Buckets, Bundle, BundleWriter, Component, Engine, EngineSet, Extent, Flavour, MANIFEST,
    MANIFEST_DIGEST, Manifest, ModelInfo, Part, Precision, Profile, ProfileInput, SCHEMA_VERSION,
    Target, TensorInfo, sha256_file,
};

/// Tells a copy of this test program to be a build that dies or fails.
const CHILD: &str = "TRTVLM_TEST_BUNDLE_CHILD";

fn manifest() -> Manifest {
    let info = |name: &str, shape: &[Extent]| TensorInfo {
        name: name.to_owned(),
        dtype: "f32".to_owned(),
        shape: shape.to_vec(),
    };
    let vision = Component {
        name: "vision".to_owned(),
        file: "engines/vision.plan".to_owned(),
        inputs: vec![info(
            "pixel_values",
            &[Extent::Fixed(1), Extent::Named("tiles".into())],
        )],
        outputs: vec![info("image_features", &[Extent::Fixed(256)])],
        profiles: vec![Profile {
            name: "tiles 1".to_owned(),
            inputs: vec![ProfileInput {
                name: "pixel_values".to_owned(),
                min: vec![1, 1],
                opt: vec![1, 1],
                max: vec![1, 4],
            }],
        }],
    };
    Manifest {
        schema_version: SCHEMA_VERSION,
        created_by: "trtvlm 0.1.0".to_owned(),
        command_line: vec!["trtvlm".to_owned(), "build".to_owned(), "a b".to_owned()],
        model: ModelInfo {
            family: "fastvlm".to_owned(),
            name: "uav-tiny".to_owned(),
            variant: "fp32".to_owned(),
            sources: vec![],
        },
        precision: Precision::Fp16,
        kv_capacity: 512,
        max_context: 512,
        draft_tokens: 4,
        vocabulary: 1024,
        buckets: Buckets {
            prefill: vec![64, 320],
            step: vec![1, 5],
            visual_tokens: vec![],
        },
        engines: vec![EngineSet {
            target: Target::Sm(86),
            engine: Engine {
                flavour: Flavour::TensorRtRtx,
                version: "1.7.1".to_owned(),
            },
            components: vec![vision],
            memory: vec![Part {
                name: "kv cache".to_owned(),
                bytes: 1 << 20,
            }],
        }],
        files: vec![],
    }
}

fn fill(writer: &BundleWriter, plan: &[u8]) {
    writer.write("config.json", b"{}").expect("write");
    writer.write("engines/vision.plan", plan).expect("write");
}

fn build(out: &Path, force: bool, plan: &[u8]) -> trtvlm::Result<Bundle> {
    let writer = BundleWriter::create(out, force)?;
    fill(&writer, plan);
    writer.finish(manifest())
}

/// Names in `dir`, hidden ones too.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .expect("read dir")
        .map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

/// A directory with a bundle `b` in it.
fn with_bundle() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("temp dir");
    let out = dir.path().join("b");
    build(&out, false, b"plan").expect("build");
    (dir, out)
}

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
fn bundle_written_and_opened_is_the_same() {
    let dir = tempfile::tempdir().expect("temp dir");
    let out = dir.path().join("deep/er/b");
    let written = build(&out, false, b"plan").expect("build");
    let read_bytes = AtomicU64::new(0);
    let opened = Bundle::open_with(&out, |bytes, total| {
        read_bytes.fetch_add(bytes, Ordering::Relaxed);
        assert_eq!(total, 6);
    })
    .expect("open");
    assert_eq!(read_bytes.into_inner(), 6);
    assert_eq!(opened.manifest(), written.manifest());
    assert_eq!(opened.digest(), written.digest());
    assert_eq!(opened.manifest().engines, manifest().engines);
    let listed: Vec<(&str, u64)> = opened
        .manifest()
        .files
        .iter()
        .map(|f| (f.path.as_str(), f.bytes))
        .collect();
    assert_eq!(listed, [("config.json", 2), ("engines/vision.plan", 4)]);
    let plan = opened.file("engines/vision.plan").expect("listed");
    assert_eq!(fs::read(plan).expect("read"), b"plan");
    assert_eq!(opened.file("../b/config.json"), None);
    assert!(Bundle::is_bundle(&out) && !Bundle::is_bundle(dir.path()));
    assert_eq!(names(out.parent().expect("parent")), ["b"]);
}

#[test]
fn bundle_digest_file_satisfies_sha256sum() {
    let (_dir, out) = with_bundle();
    let status = Command::new("sha256sum")
        .args(["--check", "--strict", MANIFEST_DIGEST])
        .current_dir(&out)
        .stdout(Stdio::null())
        .status()
        .expect("sha256sum");
    assert!(status.success());
}

#[test]
fn open_of_a_damaged_bundle_names_file_and_reason() {
    let flip = |path: PathBuf| {
        let mut bytes = fs::read(&path).expect("read");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&path, bytes).expect("write");
    };
    let cases: [(&str, &dyn Fn(&Path), &str, &str); 13] = [
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
    let cases: [(&str, &dyn Fn(&mut serde_json::Value), &str); 12] = [
        (
            "other version",
            &|v| v["schema_version"] = 2.into(),
            "schema version is 2, expected 1",
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

#[test]
fn create_over_something_replaces_bundles_only() {
    let dir = tempfile::tempdir().expect("temp dir");
    let out = dir.path().join("b");
    fs::create_dir(&out).expect("mkdir");
    build(&out, false, b"one").expect("into an empty directory");
    assert!(matches!(
        build(&out, false, b"two"),
        Err(Error::Exists { .. })
    ));
    build(&out, true, b"two").expect("replace");
    let plan = out.join("engines/vision.plan");
    assert_eq!(fs::read(&plan).expect("read"), b"two");
    Bundle::open(&out).expect("open");

    fs::write(&plan, "damaged").expect("write");
    fs::write(out.join(MANIFEST), "{").expect("write");
    build(&out, true, b"three").expect("replace a damaged bundle");

    fs::write(out.join("notes.txt"), "mine").expect("write");
    let error = build(&out, true, b"four").expect_err("a foreign file");
    assert!(error.to_string().contains("`notes.txt`"), "{error}");
    assert_eq!(fs::read(&plan).expect("read"), b"three");

    for (name, make) in [
        (
            "folder",
            (|p| fs::create_dir_all(p.join("work"))) as fn(&Path) -> std::io::Result<()>,
        ),
        ("file", |p| fs::write(p, "text")),
        ("link", |p| symlink("b", p)),
    ] {
        let out = dir.path().join(name);
        make(&out).expect(name);
        assert!(
            matches!(build(&out, false, b""), Err(Error::Exists { .. })),
            "{name}"
        );
        let error = build(&out, true, b"").expect_err(name);
        assert!(
            matches!(error, Error::Malformed { .. }),
            "{name}: {error:?}"
        );
        assert!(fs::symlink_metadata(&out).is_ok(), "{name}");
    }
    assert_eq!(names(dir.path()), ["b", "file", "folder", "link"]);
    for bad in ["", "/", ".."] {
        assert!(
            BundleWriter::create(&dir.path().join(bad), false).is_err(),
            "{bad}"
        );
    }
}

#[test]
fn writer_dropped_or_inconsistent_leaves_nothing() {
    let dir = tempfile::tempdir().expect("temp dir");
    let out = dir.path().join("b");
    let writer = BundleWriter::create(&out, false).expect("create");
    fill(&writer, b"x");
    for bad in ["../x", "/x", "a//b"] {
        assert!(writer.file(bad).is_err(), "{bad}");
    }
    drop(writer);
    let writer = BundleWriter::create(&out, false).expect("create");
    writer.write("config.json", b"{}").expect("write");
    let error = writer.finish(manifest()).expect_err("no plan was written");
    assert!(
        error
            .to_string()
            .contains("`engines/vision.plan` is not listed"),
        "{error}"
    );
    let writer = BundleWriter::create(&out, false).expect("create");
    fill(&writer, b"x");
    symlink("/etc/passwd", writer.path().join("link")).expect("link");
    assert!(matches!(
        writer.finish(manifest()),
        Err(Error::Malformed { .. })
    ));
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn finish_where_something_came_to_stand_leaves_it_alone() {
    let dir = tempfile::tempdir().expect("temp dir");
    let out = dir.path().join("b");
    let slow = BundleWriter::create(&out, false).expect("create");
    fill(&slow, b"slow");
    build(&out, false, b"fast").expect("another build, meanwhile");
    assert!(matches!(slow.finish(manifest()), Err(Error::Exists { .. })));
    assert_eq!(
        fs::read(out.join("engines/vision.plan")).expect("read"),
        b"fast"
    );
    assert_eq!(names(dir.path()), ["b"]);
}

#[test]
fn replacing_a_bundle_never_shows_half_of_one() {
    let (_dir, out) = with_bundle();
    let done = AtomicBool::new(false);
    let watched = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut looks = 0u32;
            while !done.load(Ordering::Relaxed) || looks == 0 {
                // One open directory is one bundle, whichever of them it is.
                for name in [
                    MANIFEST,
                    MANIFEST_DIGEST,
                    "config.json",
                    "engines/vision.plan",
                ] {
                    assert!(
                        out.join(name).exists(),
                        "{name} is gone after {looks} looks"
                    );
                }
                looks += 1;
            }
            looks
        });
        for n in 0..40u8 {
            build(&out, true, &[n; 100]).expect("build");
        }
        done.store(true, Ordering::Relaxed);
        watcher.join().expect("watcher")
    });
    assert!(watched > 0);
    Bundle::open(&out).expect("open");
}

/// Not a test by itself: what the tests below run in a process of its own.
#[test]
fn child_process() {
    let Ok(task) = std::env::var(CHILD) else {
        return;
    };
    let (task, out) = task.split_once(':').expect("task");
    let out = Path::new(out);
    let writer = BundleWriter::create(out, true).expect("create");
    let big = vec![7u8; 1 << 20];
    let error = match task {
        "sleep" => {
            fill(&writer, &big);
            println!("\nready");
            std::thread::sleep(std::time::Duration::from_secs(600));
            return;
        }
        "write" => writer
            .write("engines/vision.plan", &big)
            .expect_err("no space"),
        "copy" => {
            let from = std::env::current_exe().expect("exe");
            writer
                .copy(&from, "engines/vision.plan")
                .expect_err("no space")
        }
        "manifest" => {
            fill(&writer, b"small");
            let mut manifest = manifest();
            manifest.command_line = vec!["x".repeat(1 << 20)];
            let error = writer.finish(manifest).expect_err("no space");
            println!("\n{error:?}");
            return;
        }
        other => panic!("{other}"),
    };
    println!("\n{error:?}");
}

fn child(task: &str, out: &Path, program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(args)
        .args(["child_process", "--exact", "--nocapture"])
        .env(CHILD, format!("{task}:{}", out.display()))
        .stdout(Stdio::piped());
    command
}

#[test]
fn build_killed_midway_leaves_the_old_bundle_and_is_cleaned_up() {
    let (dir, out) = with_bundle();
    let exe = std::env::current_exe().expect("exe");
    let mut killed = child("sleep", &out, &exe.to_string_lossy(), &[])
        .spawn()
        .expect("spawn");
    let lines = BufReader::new(killed.stdout.take().expect("stdout")).lines();
    let ready = lines.map_while(Result::ok).any(|line| line == "ready");
    assert!(ready);
    // While it lives, its directory is left alone.
    assert_eq!(names(dir.path()).len(), 2);
    drop(BundleWriter::create(&out, true).expect("create"));
    assert_eq!(names(dir.path()).len(), 2);
    killed.kill().expect("kill");
    killed.wait().expect("wait");
    let left = names(dir.path());
    assert!(left[0].starts_with(".b.tmp-") && left[1] == "b", "{left:?}");
    Bundle::open(&out).expect("the old bundle is whole");
    fs::create_dir(dir.path().join(".b.tmp-x")).expect("not of a build");
    fs::create_dir(dir.path().join(".c.tmp-4194303-a")).expect("of another output");
    drop(BundleWriter::create(&out, true).expect("create"));
    assert_eq!(names(dir.path()), [".b.tmp-x", ".c.tmp-4194303-a", "b"]);
}

#[test]
fn bundle_set_aside_by_a_killed_build_is_given_back() {
    let (dir, out) = with_bundle();
    // Above any process number that Linux gives.
    let aside = dir.path().join(".b.old-4194305-abc");
    fs::rename(&out, &aside).expect("mv");
    assert!(matches!(
        BundleWriter::create(&out, false),
        Err(Error::Exists { .. })
    ));
    Bundle::open(&out).expect("restored");
    fs::create_dir(&aside).expect("mkdir");
    drop(BundleWriter::create(&out, true).expect("create"));
    assert_eq!(names(dir.path()), ["b"]);
}

#[test]
fn full_disk_at_any_write_is_an_io_error_and_leaves_the_old_bundle() {
    let exe = std::env::current_exe().expect("exe");
    for (task, file) in [
        ("write", "vision.plan"),
        ("copy", "vision.plan"),
        ("manifest", MANIFEST),
    ] {
        let (dir, out) = with_bundle();
        // A limit on file sizes makes writes fail as a full disk does, anywhere and for anyone.
        let limited = r#"trap "" XFSZ; ulimit -f 16; exec "$0" "$@""#;
        let output = child(task, &out, "sh", &["-c", limited, &exe.to_string_lossy()])
            .output()
            .expect("run");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{task}: {text}");
        let error = text.lines().find(|line| line.starts_with("Io {"));
        assert!(error.is_some_and(|e| e.contains(file)), "{task}: {text}");
        assert_eq!(names(dir.path()), ["b"], "{task}");
        Bundle::open(&out).expect("the old bundle is whole");
    }
}

fn manifest_bytes() -> Vec<u8> {
    let mut manifest = manifest();
    manifest.files = vec![trtvlm::bundle::FileDigest {
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
