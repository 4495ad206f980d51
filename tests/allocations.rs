//! After a session is open, a frame allocates nothing in our code; what the engine and the tokenizer allocate is
//! counted.
//!
//! An allocation belongs to whoever stands nearest above it on the stack, the standard library aside. What a room of ours
//! hands to the engine as its tensors (`cpu`) is the engine's.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use trtvlm::capi::*;
use trtvlm::preprocess::Frame;

/// What pools of the engine may keep of forty frames.
const SLACK_BYTES: isize = 64 << 10;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Set while allocations are counted, and while their stacks are kept.
static COUNTS: AtomicBool = AtomicBool::new(false);
static TRACES: AtomicBool = AtomicBool::new(false);
static N: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);
/// Bytes that are held.
static LIVE: AtomicIsize = AtomicIsize::new(0);
static STACKS: Mutex<Vec<(usize, Backtrace)>> = Mutex::new(Vec::new());

thread_local! {
    /// Keeping a stack allocates, too.
    static IS_KEEPING: Cell<bool> = const { Cell::new(false) };
}

fn count(size: usize) {
    if !COUNTS.load(Ordering::Relaxed) || IS_KEEPING.get() {
        return;
    }
    N.fetch_add(1, Ordering::Relaxed);
    BYTES.fetch_add(size, Ordering::Relaxed);
    if TRACES.load(Ordering::Relaxed) {
        IS_KEEPING.set(true);
        let mut stacks = STACKS.lock().unwrap_or_else(PoisonError::into_inner);
        stacks.push((size, Backtrace::force_capture()));
        drop(stacks);
        IS_KEEPING.set(false);
    }
}

// SAFETY: everything is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        LIVE.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        LIVE.fetch_add(size as isize - layout.size() as isize, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(block, layout, size) }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// Who a stack belongs to: what a library of others needs belongs to who called it.
fn owner(stack: &str) -> &'static str {
    let mut lines = stack.lines().map(str::trim_start).peekable();
    while let Some(line) = lines.next() {
        let Some((_, name)) = line.split_once(": ") else {
            continue;
        };
        // Where the function stands: of dependencies that is not known, their names have a path instead.
        let place = lines.next_if(|next| next.starts_with("at "));
        let place = place.map_or("", |place| place.trim_start_matches("at ./"));
        if place.starts_with("src/cpu/") {
            return "engine";
        }
        if place.starts_with("src/") {
            return "ours";
        }
        let is_of = |crates: &[&str]| crates.iter().any(|part| name.contains(part));
        if is_of(&["rten", "rayon"]) {
            return "engine";
        }
        if is_of(&["tokenizers"]) {
            return "tokenizer";
        }
    }
    "nobody"
}

struct Camera {
    session: *mut Session,
    frame: Frame,
}

impl Camera {
    fn open(pruner: Option<&str>) -> Self {
        let path =
            CString::new(root().join("onnx/uav-tiny").to_str().expect("UTF-8")).expect("path");
        let frame = Frame::load(&root().join("calibration/images/0024.png")).expect("frame");
        let pruner = pruner.map(|name| CString::new(name).expect("name"));
        let mut session = null_mut();
        // SAFETY: addresses of this function, which outlive the calls.
        let status = unsafe {
            let mut options = std::mem::zeroed::<Options>();
            assert_eq!(
                trtvlm_options_init(&mut options, size_of::<Options>()),
                Status::Ok
            );
            options.frame_width = frame.width() as u32;
            options.frame_height = frame.height() as u32;
            options.max_tokens = 32;
            if let Some(name) = &pruner {
                options.pruner = name.as_ptr();
            }
            trtvlm_open(path.as_ptr(), &options, &mut session, null_mut(), 0)
        };
        assert_eq!(status, Status::Ok);
        Self { session, frame }
    }

    /// One frame; returns its answer's length.
    fn shoot(&self, question: &str, keep: f32, deadline_ns: u64) -> usize {
        let plane = PlaneView {
            data: self.frame.rgb().as_ptr().cast(),
            stride: 3 * self.frame.width(),
            length: self.frame.rgb().len(),
        };
        let view = FrameView {
            size: size_of::<FrameView>(),
            format: TRTVLM_FORMAT_RGB8,
            memory: TRTVLM_MEMORY_HOST,
            colour: 0,
            width: self.frame.width() as u32,
            height: self.frame.height() as u32,
            reserved: 0,
            planes: [plane; 2],
            timestamp_ns: 0,
        };
        let asked = QuestionView {
            size: size_of::<QuestionView>(),
            text: question.as_ptr().cast(),
            length: question.len(),
            deadline_ns,
            max_tokens: 0,
            one_sentence: 0,
            keep,
            reserved: 0,
            on_text: None,
            user: null_mut(),
        };
        let mut answer = [0; 512];
        let mut outcome = Outcome {
            size: size_of::<Outcome>(),
            ..Outcome::default()
        };
        // SAFETY: addresses of this function.
        let status = unsafe {
            trtvlm_ask(
                self.session,
                &view,
                &asked,
                answer.as_mut_ptr(),
                512,
                &mut outcome,
            )
        };
        assert_eq!(status, Status::Ok);
        outcome.needed
    }
}

impl Drop for Camera {
    fn drop(&mut self) {
        trtvlm_close(self.session);
    }
}

/// Questions that were not asked before: the longest has some two hundred words.
fn questions() -> [String; 5] {
    [
        "describe the scene".into(),
        "how many trees are there".into(),
        "is there a red car".into(),
        "find the blue boat".into(),
        "where is the white car ".repeat(24),
    ]
}

/// Allocations of some frames: number and bytes, by owner, with the stacks of ours.
fn traced(frames: impl Fn()) -> (BTreeMap<&'static str, (usize, usize)>, Vec<String>) {
    TRACES.store(true, Ordering::Relaxed);
    COUNTS.store(true, Ordering::Relaxed);
    frames();
    COUNTS.store(false, Ordering::Relaxed);
    TRACES.store(false, Ordering::Relaxed);
    let stacks = std::mem::take(&mut *STACKS.lock().unwrap_or_else(PoisonError::into_inner));
    let (mut owners, mut ours) = (BTreeMap::new(), Vec::new());
    for (size, stack) in stacks {
        let stack = stack.to_string();
        let owner = owner(&stack);
        let sum: &mut (usize, usize) = owners.entry(owner).or_default();
        *sum = (sum.0 + 1, sum.1 + size);
        if ["ours", "nobody"].contains(&owner) && ours.len() < 5 {
            ours.push(stack);
        }
    }
    (owners, ours)
}

/// One test: the counters are of the whole process.
#[test]
fn frames_allocate_nothing_outside_the_engine_and_the_tokenizer() {
    let camera = Camera::open(None);
    let questions = questions();
    let (owners, ours) = traced(|| {
        for question in &questions {
            assert!(camera.shoot(question, 0.0, 0) > 0);
        }
        assert_eq!(camera.shoot("describe the scene", 0.0, 1), 0, "too late");
    });
    eprintln!("five answers: {owners:?}");
    assert!(ours.is_empty(), "{}", ours.join("\n\n"));
    assert!(
        owners["engine"].0 > 0 && owners["tokenizer"].0 > 0,
        "{owners:?}"
    );

    // The same frame takes as much each time, of the engine, too, and leaves nothing behind.
    let counted = |n: usize| {
        N.store(0, Ordering::Relaxed);
        BYTES.store(0, Ordering::Relaxed);
        COUNTS.store(true, Ordering::Relaxed);
        for _ in 0..n {
            camera.shoot("describe the scene", 0.0, 0);
        }
        COUNTS.store(false, Ordering::Relaxed);
        let live = LIVE.load(Ordering::Relaxed);
        (
            N.load(Ordering::Relaxed),
            BYTES.load(Ordering::Relaxed),
            live,
        )
    };
    counted(3);
    let (one, forty) = (counted(1), counted(40));
    eprintln!("allocations, bytes, held: {one:?} for an answer, {forty:?} for forty");
    assert!(
        forty.0 <= 41 * one.0 && forty.1 <= 41 * one.1,
        "{one:?} {forty:?}"
    );
    let grown = forty.2 - one.2;
    assert!(
        grown <= SLACK_BYTES,
        "{grown} bytes more are held after forty frames"
    );
}
