//! Models fetched from a hub, whole or not at all.
#![cfg(feature = "cli")]

mod cli;
mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use server::{COMMIT, Fault, Server};
use trtvlm::hub::{HubOptions, Progress, RepoId, fetch};
use trtvlm::{Error, limits};

const VISION: &str = "onnx/vision_encoder.onnx";
const DECODER: &str = "onnx/decoder_model_merged.onnx";

/// A file of `n` bytes that are not all alike.
fn bytes(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 7 + i / 251) as u8).collect()
}

fn model() -> Server {
    let decoder = bytes(300_000);
    Server::start(&[
        ("README.md", b"not fetched"),
        ("model.safetensors", b"not fetched"),
        ("config.json", b"{\"model_type\": \"fast_vlm\"}"),
        ("tokenizer.json", b"{\"t\": 1}"),
        ("chat_template.jinja", b"{{ messages }}"),
        (VISION, b"vision"),
        ("onnx/embed_tokens.onnx", b"embed"),
        (DECODER, &decoder),
        ("onnx/decoder_model_merged.onnx_data", b"external"),
        ("onnx/vision_encoder_q4.onnx", b"q4"),
        ("onnx/embed_tokens_q4.onnx", b"q4 embed"),
        ("onnx/decoder_model_merged_q4.onnx", b"q4 decoder"),
    ])
}

fn options(server: &Server, cache: &Path) -> HubOptions {
    HubOptions {
        cache: cache.to_path_buf(),
        endpoint: server.endpoint.clone(),
        token: None,
        stall: Duration::from_secs(20),
        retries: 2,
        retry_wait: Duration::from_millis(1),
    }
}

fn get(options: &HubOptions, variant: Option<&str>) -> trtvlm::Result<PathBuf> {
    let id: RepoId = "own/model".parse().expect("id");
    fetch(options, &id, variant, &AtomicBool::new(false), |_| {})
}

/// Files under `dir`, relative, sorted.
fn files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_path_buf()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).expect("read dir") {
            let path = entry.expect("entry").path();
            match path.is_dir() {
                true => pending.push(path),
                false => {
                    let name = path.strip_prefix(dir).expect("inside");
                    found.push(name.display().to_string());
                }
            }
        }
    }
    found.sort();
    found
}

fn download_reason(error: &Error) -> &str {
    match error {
        Error::Download { repo, reason } if repo == "own/model" => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn fetch_takes_the_chosen_files_and_works_offline_afterwards() {
    let (server, cache) = (model(), tempfile::tempdir().expect("temp dir"));
    let mut options = options(&server, cache.path());
    options.token = Some("secret".to_owned());
    let id = RepoId::from_spec("hf:own/model")
        .expect("spec")
        .expect("hf:");
    let mut seen: Vec<Progress> = Vec::new();
    let folder = fetch(&options, &id, None, &AtomicBool::new(false), |p| {
        seen.push(p.clone())
    })
    .expect("fetch");
    assert_eq!(
        files(&folder),
        [
            "chat_template.jinja",
            "config.json",
            "onnx/decoder_model_merged.onnx",
            "onnx/decoder_model_merged.onnx_data",
            "onnx/embed_tokens.onnx",
            "onnx/vision_encoder.onnx",
            "tokenizer.json",
        ]
    );
    assert_eq!(
        fs::read(folder.join(DECODER)).expect("read"),
        bytes(300_000)
    );
    assert!(
        folder.starts_with(
            cache
                .path()
                .join("models--own--model/snapshots")
                .join(COMMIT)
        )
    );
    let last = seen.iter().rfind(|p| p.file == DECODER).expect("progress");
    assert_eq!(
        (last.bytes, last.total_bytes, last.n_files),
        (300_000, 300_000, 7)
    );
    let requests = server.requests();
    assert!(
        requests
            .iter()
            .all(|r| !r.path.contains("README") && !r.path.contains("safetensors"))
    );
    assert!(
        requests
            .iter()
            .all(|r| r.authorization.as_deref() == Some("Bearer secret"))
    );
    // Nothing listens on this port: whatever asks the hub fails.
    options.endpoint = "http://127.0.0.1:9".to_owned();
    assert_eq!(get(&options, None).expect("offline"), folder);
    assert_eq!(server.requests().len(), requests.len());
    // A variant that was not fetched is not taken for there.
    let error = get(&options, Some("q4")).expect_err("offline");
    assert!(download_reason(&error).contains("127.0.0.1:9"), "{error}");
    // Nor is one of which a file has gone.
    fs::remove_file(folder.join("config.json")).expect("rm");
    assert!(get(&options, None).is_err());
    options.endpoint = server.endpoint.clone();
    assert_eq!(get(&options, None).expect("again"), folder);
    assert_eq!(get(&options, Some("q4")).expect("q4"), folder);
    assert!(folder.join("onnx/decoder_model_merged_q4.onnx").is_file());
}

#[test]
fn transfer_that_breaks_off_is_resumed_where_it_stopped() {
    let (server, cache) = (model(), tempfile::tempdir().expect("temp dir"));
    server.fail(DECODER, &[Fault::Cut(100_000), Fault::Kill]);
    let folder = get(&options(&server, cache.path()), None).expect("fetch");
    assert_eq!(
        fs::read(folder.join(DECODER)).expect("read"),
        bytes(300_000)
    );
    let store = format!("/store/{DECODER}");
    let ranges: Vec<_> = server
        .requests()
        .into_iter()
        .filter(|r| r.path == store)
        .filter_map(|r| r.range)
        .filter(|r| r != "bytes=0-0")
        .collect();
    assert_eq!(ranges, ["bytes=0-", "bytes=100000-", "bytes=100000-"]);
}

#[test]
fn transfer_that_keeps_breaking_is_an_error_and_resumed_by_the_next_call() {
    for fault in [
        Fault::Cut(50_000),
        Fault::CutUnsized(50_000),
        Fault::Kill,
        Fault::Status(503),
    ] {
        let (server, cache) = (model(), tempfile::tempdir().expect("temp dir"));
        let options = options(&server, cache.path());
        server.fail(DECODER, &[fault; 3]);
        let error = get(&options, None).expect_err("broken");
        assert!(
            download_reason(&error).starts_with(DECODER),
            "{fault:?}: {error}"
        );
        let snapshot = cache
            .path()
            .join("models--own--model/snapshots")
            .join(COMMIT);
        assert!(!snapshot.join(DECODER).exists(), "{fault:?}");
        let folder = get(&options, None).expect("healed");
        assert_eq!(
            fs::read(folder.join(DECODER)).expect("read"),
            bytes(300_000),
            "{fault:?}"
        );
    }
}

#[test]
fn bytes_that_are_not_the_hubs_are_never_taken() {
    for (file, faults) in [
        (DECODER, &[Fault::Flip; 3][..]),
        (DECODER, &[Fault::Cut(9), Fault::IgnoreRange, Fault::Flip]),
        (
            VISION,
            &[Fault::CutUnsized(2), Fault::CutUnsized(3), Fault::Flip],
        ),
    ] {
        let (server, cache) = (model(), tempfile::tempdir().expect("temp dir"));
        let options = options(&server, cache.path());
        server.fail(file, faults);
        let error = get(&options, None).expect_err("wrong bytes");
        let reason = download_reason(&error);
        assert!(
            reason.starts_with(file) && reason.contains("SHA-256 is"),
            "{faults:?}: {reason}"
        );
        let folder = get(&options, None).expect("healed");
        assert_eq!(
            fs::read(folder.join(DECODER)).expect("read"),
            bytes(300_000)
        );
    }
    // A server that sends all of a file when asked for the rest of it.
    let (server, cache) = (model(), tempfile::tempdir().expect("temp dir"));
    server.fail(DECODER, &[Fault::Cut(9), Fault::IgnoreRange]);
    let folder = get(&options(&server, cache.path()), None).expect("fetch");
    assert_eq!(
        fs::read(folder.join(DECODER)).expect("read"),
        bytes(300_000)
    );
}

#[test]
fn refusals_name_repository_file_and_what_to_do() {
    for (status, text) in [
        (401, "HF_TOKEN"),
        (403, "HF_TOKEN"),
        (404, "not found"),
        (500, "500"),
    ] {
        let (server, cache) = (model(), tempfile::tempdir().expect("temp dir"));
        let mut options = options(&server, cache.path());
        options.token = Some("secret".to_owned());
        server.refuse_list(status);
        let error = get(&options, None).expect_err("refused");
        assert!(download_reason(&error).contains(text), "{error}");
        assert!(!format!("{error:?} {options:?}").contains("secret"));
    }
    for status in [401, 404] {
        let (server, cache) = (model(), tempfile::tempdir().expect("temp dir"));
        server.fail(DECODER, &[Fault::Status(status)]);
        let error = get(&options(&server, cache.path()), None).expect_err("refused");
        let reason = download_reason(&error);
        assert!(
            reason.starts_with(DECODER) && reason.contains(&status.to_string()),
            "{reason}"
        );
    }
    let (server, cache) = (model(), tempfile::tempdir().expect("temp dir"));
    let error = get(&options(&server, cache.path()), Some("int8")).expect_err("no such variant");
    let reason = download_reason(&error);
    assert!(
        reason.contains("`int8`") && reason.contains("vision_encoder: fp32, q4"),
        "{reason}"
    );
    let mut nowhere = options(&server, cache.path());
    nowhere.endpoint = "http://127.0.0.1:9".to_owned();
    assert!(download_reason(&get(&nowhere, None).expect_err("refused")).contains("127.0.0.1:9"));
    nowhere.endpoint = "no address".to_owned();
    assert!(!download_reason(&get(&nowhere, None).expect_err("refused")).is_empty());
}

#[test]
fn hostile_answers_are_errors_and_write_nothing_elsewhere() {
    for fault in [Fault::EvilTag, Fault::NoLocation, Fault::OtherCommit] {
        let (server, dir) = (model(), tempfile::tempdir().expect("temp dir"));
        let cache = dir.path().join("a/b/c/hub");
        server.fail(VISION, &[fault]);
        let error = get(&options(&server, &cache), None).expect_err("hostile");
        assert!(!download_reason(&error).is_empty(), "{fault:?}");
        let outside: Vec<_> = files(dir.path())
            .into_iter()
            .filter(|f| !f.starts_with("a/b/c/hub/models--own--model/"))
            .collect();
        assert_eq!(outside, [""; 0], "{fault:?}");
    }
    let (server, cache) = (model(), tempfile::tempdir().expect("temp dir"));
    server.list_also(&[
        "drafts/../../../x",
        "drafts//x",
        "onnx/decoder_model_merged.onnx_data/../x",
        "/etc/drafts/x",
    ]);
    assert_eq!(
        files(&get(&options(&server, cache.path()), None).expect("fetch")).len(),
        7
    );
}

#[test]
fn silence_ends_with_an_error_and_cancel_at_once() {
    let (server, cache) = (model(), tempfile::tempdir().expect("temp dir"));
    let mut options = options(&server, cache.path());
    options.stall = Duration::from_millis(300);
    server.fail(DECODER, &[Fault::Stall; 8]);
    let start = Instant::now();
    let error = get(&options, None).expect_err("silence");
    assert!(download_reason(&error).contains("nothing came"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));
    let cancel = AtomicBool::new(false);
    let id: RepoId = "own/model".parse().expect("id");
    options.stall = Duration::from_secs(20);
    let cache = tempfile::tempdir().expect("temp dir");
    options.cache = cache.path().to_path_buf();
    let start = Instant::now();
    let result = fetch(&options, &id, None, &cancel, |_| {
        cancel.store(true, Ordering::Relaxed)
    });
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn cache_that_cannot_be_written_is_an_io_error() {
    let (server, dir) = (model(), tempfile::tempdir().expect("temp dir"));
    let cache = dir.path().join("file");
    fs::write(&cache, "not a folder").expect("write");
    let error = get(&options(&server, &cache), None).expect_err("no folder");
    assert!(
        matches!(&error, Error::Io { path, .. } if *path == cache),
        "{error:?}"
    );
}

#[test]
fn files_larger_than_their_limit_are_refused_unwritten() {
    for (file, size) in [
        ("config.json", limits::TEXT_FILE_BYTES + 1),
        ("chat_template.jinja", 1 << 40),
        (VISION, limits::ONNX_FILE_BYTES + 1),
        ("onnx/decoder_model_merged.onnx_data", 1 << 60),
    ] {
        let (server, cache) = (model(), tempfile::tempdir().expect("temp dir"));
        server.fail(file, &[Fault::Announce(size)]);
        let error = get(&options(&server, cache.path()), None).expect_err("too large");
        assert!(
            matches!(&error, Error::TooLarge { what, actual, .. }
                if what.contains(file) && what.contains("own/model") && *actual == size),
            "{file}: {error}"
        );
        let asked =
            |r: &server::Request| r.path.ends_with(file) && r.range.as_deref() != Some("bytes=0-0");
        assert!(!server.requests().iter().any(asked), "{file} was asked for");
    }
}

#[test]
fn file_that_does_not_end_is_left_at_its_limit() {
    let (server, cache) = (model(), tempfile::tempdir().expect("temp dir"));
    server.fail("config.json", &[Fault::Endless]);
    let error = get(&options(&server, cache.path()), None).expect_err("endless");
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    for file in files(cache.path()) {
        let bytes = fs::metadata(cache.path().join(&file)).expect("file").len();
        assert!(
            bytes <= limits::TEXT_FILE_BYTES + (1 << 20),
            "{file}: {bytes}"
        );
    }
}
