//! Answers: callbacks, threads, deadlines, buffers.

use super::*;

#[test]
fn answer_longer_than_its_buffer_is_cut_and_its_length_told() {
    let (session, frame) = (open(), picture());
    let whole = expected(QUESTION);
    for size in [1, 2, whole.len(), whole.len() + 1] {
        let (status, text, outcome) = ask(session, &view(&frame), &question(QUESTION), size);
        let n = (size - 1).min(whole.len());
        assert_eq!(text, whole[..n]);
        assert_eq!((outcome.written, outcome.needed), (n, whole.len()));
        let fits = n == whole.len();
        assert_eq!(status == Status::Ok, fits);
        assert_eq!(status == Status::BufferTooSmall, !fits);
    }
    assert_eq!(trtvlm_close(session), Status::Ok);
}

/// What a callback of these tests does.
struct Seen {
    session: *mut Session,
    text: String,
    /// Stop after so many pieces.
    most: usize,
    pieces: usize,
    inner: Option<Status>,
}

unsafe extern "C-unwind" fn see(user: *mut c_void, text: *const c_char, length: usize) -> u32 {
    // SAFETY: `user` is the `Seen` of the test, which waits for the answer.
    let seen = unsafe { &mut *user.cast::<Seen>() };
    // SAFETY: as the header says.
    let piece = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), length) };
    seen.text += std::str::from_utf8(piece).expect("whole characters");
    seen.pieces += 1;
    if !seen.session.is_null() {
        let frame = picture();
        seen.inner = Some(ask(seen.session, &view(&frame), &question(QUESTION), 64).0);
    }
    u32::from(seen.pieces >= seen.most)
}

fn with_callback(
    session: *mut Session,
    again: *mut Session,
    most: usize,
) -> (Seen, String, Outcome) {
    let frame = picture();
    let mut seen = Seen {
        session: again,
        text: String::new(),
        most,
        pieces: 0,
        inner: None,
    };
    let mut asked = question(QUESTION);
    asked.on_text = Some(see);
    asked.user = (&raw mut seen).cast();
    let (status, text, outcome) = ask(session, &view(&frame), &asked, 256);
    assert_eq!(status, Status::Ok);
    (seen, text, outcome)
}

#[test]
fn callback_sees_the_answer_and_can_stop_it() {
    let session = open();
    let (seen, text, outcome) = with_callback(session, null_mut(), usize::MAX);
    assert_eq!((seen.text, outcome.stop), (text, TRTVLM_STOP_EOS));
    let (seen, text, outcome) = with_callback(session, null_mut(), 2);
    assert_eq!((seen.pieces, outcome.stop), (2, TRTVLM_STOP_CANCELLED));
    assert_eq!(seen.text, text);
    // The next one is not cancelled any more.
    let (_, text, outcome) = with_callback(session, null_mut(), usize::MAX);
    assert_eq!((text, outcome.stop), (expected(QUESTION), TRTVLM_STOP_EOS));
    assert_eq!(trtvlm_close(session), Status::Ok);
}

#[test]
fn callback_that_asks_its_own_session_is_told_that_it_is_busy() {
    let (session, other) = (open(), open());
    let (seen, text, _) = with_callback(session, session, usize::MAX);
    assert_eq!((seen.inner, text), (Some(Status::Busy), expected(QUESTION)));
    let (seen, ..) = with_callback(session, other, 1);
    assert_eq!(seen.inner, Some(Status::Ok), "another session answers");
    assert_eq!(trtvlm_close(session), Status::Ok);
    assert_eq!(trtvlm_close(other), Status::Ok);
}

#[test]
fn deadline_that_has_passed_gives_an_empty_answer_in_time() {
    let (session, frame) = (open(), picture());
    let mut asked = question(QUESTION);
    asked.deadline_ns = 1;
    let (status, text, outcome) = ask(session, &view(&frame), &asked, 64);
    assert_eq!((status, text.as_str()), (Status::Ok, ""));
    assert_eq!(
        (outcome.stop, outcome.tokens, outcome.vision_ns),
        (TRTVLM_STOP_DEADLINE, 0, 0)
    );
    asked.deadline_ns = u64::MAX;
    let (status, _, outcome) = ask(session, &view(&frame), &asked, 256);
    assert_eq!(
        (status, outcome.stop, outcome.late),
        (Status::Ok, TRTVLM_STOP_EOS, 0)
    );
    assert_eq!(trtvlm_close(session), Status::Ok);
}

#[test]
fn sessions_answer_in_their_own_threads_and_are_cancelled_from_others() {
    let whole = expected(QUESTION);
    let cancelled = open();
    let handle = cancelled.addr();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let (session, frame) = (open(), picture());
                for _ in 0..3 {
                    let (status, text, _) = ask(session, &view(&frame), &question(QUESTION), 256);
                    assert_eq!((status, &text), (Status::Ok, &whole));
                }
                assert_eq!(trtvlm_close(session), Status::Ok);
            });
        }
        let (asking, wait) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            wait.recv().expect("a question was asked");
            assert_eq!(
                trtvlm_cancel(std::ptr::without_provenance_mut(handle)),
                Status::Ok
            );
        });
        /// Tells the other thread that an answer has begun, and waits until it was cancelled.
        unsafe extern "C-unwind" fn hold(user: *mut c_void, _: *const c_char, _: usize) -> u32 {
            // SAFETY: the sender of the test, which waits for the answer.
            let asking = unsafe { &*user.cast::<std::sync::mpsc::Sender<()>>() };
            // The receiver is gone once it has cancelled.
            while asking.send(()).is_ok() {
                std::thread::yield_now();
            }
            0
        }
        let frame = picture();
        let mut asked = question(QUESTION);
        asked.on_text = Some(hold);
        asked.user = (&raw const asking).cast_mut().cast();
        let (status, text, outcome) = ask(cancelled, &view(&frame), &asked, 256);
        assert_eq!((status, outcome.stop), (Status::Ok, TRTVLM_STOP_CANCELLED));
        assert!(whole.starts_with(&text) && text.len() < whole.len());
    });
    // Where nothing is being answered, there is nothing to cancel.
    assert_eq!(trtvlm_cancel(cancelled), Status::Ok);
    let (status, text, _) = ask(cancelled, &view(&picture()), &question(QUESTION), 256);
    assert_eq!((status, text), (Status::Ok, whole));
    assert_eq!(trtvlm_close(cancelled), Status::Ok);
}

#[test]
fn texts_and_versions_are_told() {
    assert_eq!(trtvlm_abi_version(), TRTVLM_ABI_VERSION);
    // SAFETY: texts of the library, which end with a zero.
    let text = |text: *const c_char| unsafe { CStr::from_ptr(text) };
    assert_eq!(
        text(trtvlm_version()).to_str(),
        Ok(env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(text(trtvlm_status_text(4)), c"the session is answering");
    assert_eq!(text(trtvlm_stop_text(TRTVLM_STOP_DEADLINE)), c"deadline");
    assert_eq!(text(trtvlm_stop_text(99)), c"unknown");
}

#[test]
fn memory_is_told_after_opening() {
    let mut warm = options();
    (warm.warm_up, warm.frame_width, warm.frame_height) = (1, 64, 48);
    let path = root().join("onnx/uav-tiny");
    let session = open_path(path.to_str().expect("UTF-8"), &warm).expect("session");
    let mut memory = MemoryReport {
        size: size_of::<MemoryReport>(),
        ..MemoryReport::default()
    };
    // SAFETY: a struct of this function.
    let status = unsafe { trtvlm_memory_report(session, &mut memory) };
    assert_eq!(status, Status::Ok);
    assert!(memory.resident_bytes > 1 << 20 && memory.available_bytes > 1 << 20);
    assert!(memory.peak_resident_bytes >= memory.resident_bytes);
    assert_eq!(trtvlm_close(session), Status::Ok);
}

#[test]
fn quick_session_answers_without_tokens_and_says_how_sure_it_is() {
    let path = root().join("onnx/uav-tiny");
    let path = path.to_str().expect("UTF-8");
    let mut asked = options();
    asked.mode = TRTVLM_MODE_QUICK;
    let session = open_path(path, &asked).expect("session");
    let frame = picture();
    let (status, text, outcome) = ask(session, &view(&frame), &question(QUESTION), 256);
    assert_eq!(status, Status::Ok);
    assert!(!text.is_empty());
    assert_eq!(
        (outcome.quick, outcome.tokens, outcome.prefill_ns),
        (1, 0, 0)
    );
    assert!(outcome.confidence > 0.0 && outcome.confidence <= 1.0);
    let strange = question("which way is north");
    let (status, text, _) = ask(session, &view(&frame), &strange, 256);
    assert_eq!((status, text.as_str()), (Status::Question, ""));
    assert!(last_error(session).contains("quick mode"));
    assert_eq!(trtvlm_close(session), Status::Ok);

    asked.mode = TRTVLM_MODE_AUTO;
    asked.confidence = 1.0;
    let session = open_path(path, &asked).expect("session");
    let (status, text, outcome) = ask(session, &view(&frame), &question(QUESTION), 256);
    assert_eq!((status, text), (Status::Ok, expected(QUESTION)));
    assert_eq!(outcome.quick, 0);
    assert!(outcome.tokens > 0 && outcome.confidence > 0.0);
    assert_eq!(trtvlm_close(session), Status::Ok);

    let none = root().join("tests/data/tiny/fastvlm-tiny-plain");
    let (status, message) = open_path(none.to_str().expect("UTF-8"), &asked).expect_err("none");
    assert_eq!(status, Status::Unavailable);
    assert!(message.contains("train quick"), "{message}");
}
