//! The functions as C calls them: bad arguments, panics, threads (an unsafe fence: see
//! `tests/house.rs`).
#![allow(unsafe_code)]

mod answers;
mod arguments;
mod in_memory;

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};

use super::entry::NAMES;
use super::*;
use crate::pipeline::{Ask, Pipeline};
use crate::preprocess::Frame;

thread_local! {
    /// Where the next panic of this thread is to happen.
    static FAULT: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Panics if a test wants it here.
pub(super) fn fault(place: &'static str) {
    if FAULT.get() == Some(place) {
        FAULT.set(None);
        panic!("{place}: injected");
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn picture() -> Frame {
    Frame::load(&root().join("calibration/images/0024.png")).expect("frame")
}

fn options() -> Options {
    let mut options = Options::new();
    options.warm_up = 0;
    options
}

fn open_path(path: &str, options: &Options) -> Result<*mut Session, (Status, String)> {
    let path = CString::new(path).expect("path");
    let (mut session, mut message) = (null_mut(), [0 as c_char; 512]);
    // SAFETY: addresses of this function.
    let status = unsafe {
        trtvlm_open(
            path.as_ptr(),
            options,
            &mut session,
            message.as_mut_ptr(),
            message.len(),
        )
    };
    if status == Status::Ok {
        return Ok(session);
    }
    assert!(session.is_null());
    // SAFETY: the library has put a zero into it.
    let message = unsafe { CStr::from_ptr(message.as_ptr()) };
    Err((status, message.to_str().expect("UTF-8").to_owned()))
}

fn open() -> *mut Session {
    let path = root().join("onnx/uav-tiny");
    open_path(path.to_str().expect("UTF-8"), &options()).expect("session")
}

fn view(frame: &Frame) -> FrameView {
    let plane = PlaneView {
        data: frame.rgb().as_ptr().cast(),
        stride: 3 * frame.width(),
        length: frame.rgb().len(),
    };
    FrameView {
        size: size_of::<FrameView>(),
        format: TRTVLM_FORMAT_RGB8,
        memory: TRTVLM_MEMORY_HOST,
        colour: 0,
        width: frame.width() as u32,
        height: frame.height() as u32,
        reserved: 0,
        planes: [plane; 2],
        timestamp_ns: 77,
    }
}

fn question(text: &str) -> QuestionView {
    QuestionView {
        size: size_of::<QuestionView>(),
        text: text.as_ptr().cast(),
        length: text.len(),
        deadline_ns: 0,
        max_tokens: 0,
        one_sentence: 0,
        keep: 0.0,
        reserved: 0,
        on_text: None,
        user: null_mut(),
    }
}

fn result() -> Outcome {
    Outcome {
        size: size_of::<Outcome>(),
        ..Outcome::default()
    }
}

fn ask(
    session: *mut Session,
    frame: &FrameView,
    question: &QuestionView,
    size: usize,
) -> (Status, String, Outcome) {
    let mut answer = vec![0x7f as c_char; size];
    let mut outcome = result();
    // SAFETY: addresses of this function and its callers.
    let status = unsafe {
        trtvlm_ask(
            session,
            frame,
            question,
            answer.as_mut_ptr(),
            size,
            &mut outcome,
        )
    };
    let bytes: Vec<u8> = answer.iter().map(|&c| c as u8).collect();
    let text = match bytes.iter().position(|&c| c == 0) {
        Some(end) => String::from_utf8(bytes[..end].to_vec()).expect("UTF-8"),
        None => String::new(),
    };
    (status, text, outcome)
}

fn last_error(session: *mut Session) -> String {
    let mut text = [0 as c_char; 1000];
    // SAFETY: an array of this function.
    let n = unsafe { trtvlm_last_error(session, text.as_mut_ptr(), text.len()) };
    // SAFETY: the library has put a zero into it.
    let text = unsafe { CStr::from_ptr(text.as_ptr()) };
    let text = text.to_str().expect("UTF-8").to_owned();
    assert_eq!(n, text.len());
    text
}

/// The answer of the crate itself.
fn expected(text: &str) -> String {
    let mut pipeline = Pipeline::open(&root().join("onnx/uav-tiny"), None).expect("model");
    let answer = pipeline.ask(&picture(), text, &Ask::default(), &mut |_| {});
    answer.expect("answer").text
}

const QUESTION: &str = "describe the scene";

#[test]
fn answer_is_that_of_the_crate_from_pixels_and_from_a_file() {
    let (session, frame) = (open(), picture());
    let expected = expected(QUESTION);
    let (status, text, outcome) = ask(session, &view(&frame), &question(QUESTION), 256);
    assert_eq!((status, text.as_str()), (Status::Ok, expected.as_str()));
    assert_eq!(
        (outcome.needed, outcome.written),
        (expected.len(), expected.len())
    );
    assert_eq!(
        (outcome.stop, outcome.late, outcome.timestamp_ns),
        (TRTVLM_STOP_EOS, 0, 77)
    );
    assert!(outcome.tokens > 3 && outcome.prompt_tokens > outcome.visual_tokens);
    assert_eq!(outcome.visual_tokens, outcome.visual_tokens_kept);
    let stages = outcome.vision_ns + outcome.prefill_ns + outcome.decode_ns;
    assert!(outcome.vision_ns > 0 && stages < outcome.total_ns);
    assert!(
        outcome.first_token_ns > outcome.vision_ns && outcome.first_token_ns < outcome.total_ns
    );

    let file = std::fs::read(root().join("calibration/images/0024.png")).expect("file");
    let mut encoded = view(&frame);
    encoded.format = TRTVLM_FORMAT_ENCODED;
    encoded.planes[0].data = file.as_ptr().cast();
    encoded.planes[0].length = file.len();
    let (status, text, _) = ask(session, &encoded, &question(QUESTION), 256);
    assert_eq!((status, text.as_str()), (Status::Ok, expected.as_str()));

    let blue_first: Vec<u8> = frame
        .rgb()
        .chunks_exact(3)
        .flat_map(|p| [p[2], p[1], p[0]])
        .collect();
    let mut bgr = view(&frame);
    bgr.format = TRTVLM_FORMAT_BGR8;
    bgr.planes[0].data = blue_first.as_ptr().cast();
    let (status, text, _) = ask(session, &bgr, &question(QUESTION), 256);
    assert_eq!((status, text.as_str()), (Status::Ok, expected.as_str()));
    assert_eq!(last_error(session), "");
    assert_eq!(trtvlm_close(session), Status::Ok);
}

#[test]
fn functions_of_the_header_are_those_that_are_tested() {
    let header = std::fs::read_to_string(root().join("include/trtvlm.h")).expect("header");
    let declared = header
        .lines()
        .filter(|line| !line.starts_with(' ') && !line.starts_with('*'));
    let mut found: Vec<&str> = declared
        .filter_map(|line| {
            let (before, _) = line.split_once('(')?;
            before.rsplit([' ', '*']).next()
        })
        .filter(|name| name.starts_with("trtvlm_"))
        .collect();
    let mut names = NAMES.to_vec();
    found.sort_unstable();
    names.sort_unstable();
    assert_eq!(found, names);
}

/// Calls an entry with good arguments; true if it says that it failed inside.
fn fails(name: &str, session: *mut Session) -> bool {
    let frame = picture();
    let (view, asked) = (view(&frame), question(QUESTION));
    // SAFETY: addresses of this function.
    unsafe {
        match name {
            "trtvlm_abi_version" => trtvlm_abi_version() == 0,
            "trtvlm_version" => CStr::from_ptr(trtvlm_version()).is_empty(),
            "trtvlm_status_text" => CStr::from_ptr(trtvlm_status_text(0)).is_empty(),
            "trtvlm_stop_text" => CStr::from_ptr(trtvlm_stop_text(0)).is_empty(),
            "trtvlm_options_init" => {
                trtvlm_options_init(&mut options(), size_of::<Options>()) == Status::Internal
            }
            "trtvlm_open" => {
                let path = CString::new("/nowhere").expect("path");
                let mut session = null_mut();
                trtvlm_open(path.as_ptr(), null(), &mut session, null_mut(), 0) == Status::Internal
            }
            "trtvlm_open_files" => {
                let mut session = null_mut();
                trtvlm_open_files(null(), 0, null(), &mut session, null_mut(), 0)
                    == Status::Internal
            }
            "trtvlm_close" => trtvlm_close(session) == Status::Internal,
            "trtvlm_ask" => ask(session, &view, &asked, 64).0 == Status::Internal,
            "trtvlm_cancel" => trtvlm_cancel(session) == Status::Internal,
            "trtvlm_memory_report" => {
                let mut memory = MemoryReport {
                    size: size_of::<MemoryReport>(),
                    ..MemoryReport::default()
                };
                trtvlm_memory_report(session, &mut memory) == Status::Internal
            }
            // Says how long a text is: nothing to say, and nothing to say when it failed.
            "trtvlm_last_error" => trtvlm_last_error(session, null_mut(), 0) == 0,
            _ => panic!("{name} is not called here"),
        }
    }
}

#[test]
fn panic_in_any_entry_ends_there_and_leaves_the_session_usable() {
    let session = open();
    // So that the last error has a length.
    assert_eq!(
        ask(session, &view(&picture()), &question(" "), 64).0,
        Status::Question
    );
    for name in NAMES {
        FAULT.set(Some(name));
        assert!(fails(name, session), "{name} went on");
        assert_eq!(FAULT.get(), None, "{name} has no guard");
        if name != "trtvlm_open" {
            assert!(
                !fails(name, open_or(session, name)),
                "{name} fails for ever"
            );
        }
    }
    assert_eq!(trtvlm_close(session), Status::Ok);
}

/// A session that may be closed, for the entry that closes.
fn open_or(session: *mut Session, name: &str) -> *mut Session {
    match name {
        "trtvlm_close" => null_mut(),
        _ => session,
    }
}

#[test]
fn session_that_failed_inside_says_that_it_must_be_reopened() {
    let (broken, other, frame) = (open(), open(), picture());
    let asked = question(QUESTION);
    FAULT.set(Some("answer"));
    assert_eq!(ask(broken, &view(&frame), &asked, 64).0, Status::Internal);
    for _ in 0..2 {
        assert_eq!(ask(broken, &view(&frame), &asked, 64).0, Status::Internal);
        assert!(last_error(broken).contains("close it and open another"));
    }
    assert_eq!(ask(other, &view(&frame), &asked, 64).0, Status::Ok);
    assert_eq!(trtvlm_cancel(broken), Status::Ok);
    assert_eq!(trtvlm_close(broken), Status::Ok);
    assert_eq!(trtvlm_close(other), Status::Ok);
}
