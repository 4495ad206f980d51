//! What may stand at the output, and what happens to it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use trtvlm::Error;
use trtvlm::bundle::{Bundle, BundleWriter, KernelInfo, MANIFEST, MANIFEST_DIGEST};

use super::{build, fill, manifest, names, with_bundle};

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
    let mut with_kernels = manifest();
    with_kernels.engines[0].kernels = Some(KernelInfo {
        file: "kernels/sm86.cubin".to_owned(),
        nvrtc: "13.0".to_owned(),
    });
    let error = writer
        .finish(with_kernels)
        .expect_err("no kernels were written");
    assert!(
        error
            .to_string()
            .contains("`kernels/sm86.cubin` is not listed"),
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
