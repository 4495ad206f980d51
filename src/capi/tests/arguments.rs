//! Arguments that cannot be.

use super::super::types::Versioned;
use super::*;

#[test]
fn null_and_misaligned_addresses_are_refused() {
    let (session, frame) = (open(), picture());
    let (view, asked) = (view(&frame), question(QUESTION));
    let mut buffer = [0 as c_char; 64];
    let room = buffer.as_mut_ptr();
    // SAFETY: addresses are null, misaligned, or of this function.
    unsafe {
        let refused = |name: &str, status: Status| {
            assert_eq!(status, Status::Argument, "{name}");
            let message = last_error(session);
            assert!(message.contains(name), "{message}");
        };
        let ask =
            |view, asked, room, size| trtvlm_ask(session, view, asked, room, size, null_mut());
        let odd = (&raw const view).cast::<u8>().wrapping_add(1).cast();
        refused("trtvlm_frame", ask(null(), &asked, room, 64));
        refused("trtvlm_frame", ask(odd, &asked, room, 64));
        refused("trtvlm_question", ask(&view, null(), room, 64));
        refused("answer", ask(&view, &asked, null_mut(), 64));
        refused("answer", ask(&view, &asked, room, usize::MAX));
        refused("trtvlm_memory", trtvlm_memory_report(session, null_mut()));
        assert_eq!(trtvlm_options_init(null_mut(), 64), Status::Argument);
        let path = CString::new("/nowhere").expect("path");
        let mut opened = null_mut();
        for status in [
            trtvlm_open(null(), null(), &mut opened, null_mut(), 0),
            trtvlm_open(path.as_ptr(), null(), null_mut(), null_mut(), 0),
        ] {
            assert_eq!(status, Status::Argument);
        }
        // Without room for the message, it is not written.
        let status = trtvlm_open(path.as_ptr(), null(), &mut opened, null_mut(), 99);
        assert_eq!((status, opened.is_null()), (Status::Io, true));
        // No answer is wanted, no result either.
        let status = trtvlm_ask(session, &view, &asked, null_mut(), 0, null_mut());
        assert_eq!(status, Status::BufferTooSmall);
        assert_eq!(trtvlm_last_error(null_mut(), room, 64), 0);
        assert_eq!(buffer[0], 0);
    }
    assert_eq!(trtvlm_close(session), Status::Ok);
    assert_eq!(trtvlm_close(null_mut()), Status::Ok);
}

#[test]
fn structs_of_other_sizes_are_refused_or_understood() {
    let (session, frame) = (open(), picture());
    let good = (view(&frame), question(QUESTION));
    for wrong in [-1, -8, i64::MIN, 1 << 20, i64::MAX] {
        let off = |size: usize| (size as i64).wrapping_add(wrong).max(0) as usize;
        let (mut view, mut asked) = good;
        view.size = off(view.size);
        assert_eq!(
            ask(session, &view, &good.1, 64).0,
            Status::Argument,
            "{wrong}"
        );
        assert!(last_error(session).contains("trtvlm_frame: its size"));
        asked.size = off(asked.size);
        assert_eq!(
            ask(session, &good.0, &asked, 64).0,
            Status::Argument,
            "{wrong}"
        );
        assert!(last_error(session).contains("trtvlm_question: its size"));
        let mut outcome = result();
        outcome.size = off(Outcome::LEAST);
        // SAFETY: addresses of this function.
        let status = unsafe { trtvlm_ask(session, &good.0, &good.1, null_mut(), 0, &mut outcome) };
        assert_eq!((status, outcome.tokens), (Status::Argument, 0), "{wrong}");
        assert!(last_error(session).contains("trtvlm_result: its size"));
    }

    /// What a caller of the future has.
    #[repr(C)]
    struct Newer<T>(T, u64);
    let mut newer = Newer(good.0, 0);
    newer.0.size = size_of::<Newer<FrameView>>();
    let mut outcome = Newer(result(), 0x55);
    outcome.0.size = size_of::<Newer<Outcome>>();
    for (unknown, expected) in [(0, Status::Ok), (1, Status::Argument)] {
        newer.1 = unknown;
        let mut answer = [0 as c_char; 256];
        // SAFETY: the structs have the sizes that they say.
        let status = unsafe {
            trtvlm_ask(
                session,
                (&raw const newer).cast(),
                &good.1,
                answer.as_mut_ptr(),
                256,
                (&raw mut outcome).cast(),
            )
        };
        assert_eq!(status, expected);
        assert_eq!(outcome.1, 0x55, "what the library does not know stays");
    }
    assert!(last_error(session).contains("does not know"));
    assert_eq!(trtvlm_close(session), Status::Ok);
}

#[test]
fn frames_that_cannot_be_are_refused() {
    let (session, frame) = (open(), picture());
    let good = view(&frame);
    let plane = |stride: usize, length: usize| {
        let mut planes = good.planes;
        (planes[0].stride, planes[0].length) = (stride, length);
        planes
    };
    let nv12 = |second: PlaneView| FrameView {
        format: TRTVLM_FORMAT_NV12,
        planes: [good.planes[0], second],
        ..good
    };
    let no_plane = PlaneView {
        data: null(),
        ..good.planes[0]
    };
    let short = PlaneView {
        length: 3,
        ..good.planes[0]
    };
    let (row, all) = (good.planes[0].stride, good.planes[0].length);
    let cases = [
        (FrameView { format: 0, ..good }, Status::Argument),
        (FrameView { format: 99, ..good }, Status::Argument),
        (FrameView { memory: 2, ..good }, Status::Argument),
        (
            FrameView {
                memory: TRTVLM_MEMORY_CUDA,
                ..good
            },
            Status::Unsupported,
        ),
        (FrameView { colour: 3, ..good }, Status::Argument),
        (
            FrameView {
                reserved: 1,
                ..good
            },
            Status::Argument,
        ),
        (FrameView { width: 0, ..good }, Status::Frame),
        (FrameView { height: 0, ..good }, Status::Frame),
        (
            FrameView {
                width: u32::MAX,
                height: u32::MAX,
                ..good
            },
            Status::Frame,
        ),
        (
            FrameView {
                height: good.height + 1,
                ..good
            },
            Status::Frame,
        ),
        (
            FrameView {
                planes: plane(row - 1, all),
                ..good
            },
            Status::Frame,
        ),
        (
            FrameView {
                planes: plane(0, all),
                ..good
            },
            Status::Frame,
        ),
        (
            FrameView {
                planes: plane(usize::MAX, all),
                ..good
            },
            Status::Frame,
        ),
        (
            FrameView {
                planes: plane(row, all - 1),
                ..good
            },
            Status::Frame,
        ),
        (
            FrameView {
                planes: plane(row, 0),
                ..good
            },
            Status::Frame,
        ),
        (
            FrameView {
                planes: plane(row, usize::MAX),
                ..good
            },
            Status::Argument,
        ),
        (
            FrameView {
                planes: [no_plane; 2],
                ..good
            },
            Status::Argument,
        ),
        (nv12(no_plane), Status::Argument),
        (nv12(short), Status::Frame),
        (
            FrameView {
                format: TRTVLM_FORMAT_ENCODED,
                ..good
            },
            Status::Frame,
        ),
    ];
    for (number, (view, expected)) in cases.iter().enumerate() {
        let (status, ..) = ask(session, view, &question(QUESTION), 64);
        assert_eq!(status, *expected, "case {number}: {}", last_error(session));
        assert!(
            last_error(session).contains("frame"),
            "{}",
            last_error(session)
        );
    }
    assert_eq!(ask(session, &good, &question(QUESTION), 256).0, Status::Ok);
    assert_eq!(trtvlm_close(session), Status::Ok);
}

#[test]
fn questions_that_cannot_be_asked_are_refused() {
    let (session, frame) = (open(), picture());
    let good = question(QUESTION);
    let bytes = b"what is \xff there\0";
    let not_utf8 = QuestionView {
        text: bytes.as_ptr().cast(),
        length: usize::MAX,
        ..good
    };
    let long = "a".repeat(raw::TEXT_BYTES + 1);
    let words = "tree ".repeat(4000);
    let cases = [
        (not_utf8, Status::Argument),
        (
            QuestionView {
                text: null(),
                ..good
            },
            Status::Argument,
        ),
        (
            QuestionView {
                text: null(),
                length: usize::MAX,
                ..good
            },
            Status::Argument,
        ),
        (
            QuestionView {
                length: usize::MAX - 1,
                ..good
            },
            Status::Argument,
        ),
        (
            QuestionView {
                one_sentence: 2,
                ..good
            },
            Status::Argument,
        ),
        (
            QuestionView {
                reserved: 1,
                ..good
            },
            Status::Argument,
        ),
        (QuestionView { keep: -0.5, ..good }, Status::Argument),
        (QuestionView { keep: 1.5, ..good }, Status::Argument),
        (
            QuestionView {
                keep: f32::NAN,
                ..good
            },
            Status::Argument,
        ),
        (QuestionView { length: 0, ..good }, Status::Question),
        (question("  \n"), Status::Question),
        (question(&long), Status::Argument),
        (question(&words), Status::Question),
    ];
    for (number, (asked, expected)) in cases.iter().enumerate() {
        let (status, ..) = ask(session, &view(&frame), asked, 64);
        assert_eq!(status, *expected, "case {number}: {}", last_error(session));
    }
    let zero = CString::new(QUESTION).expect("question");
    let ended = QuestionView {
        text: zero.as_ptr(),
        length: usize::MAX,
        ..good
    };
    let (status, text, _) = ask(session, &view(&frame), &ended, 256);
    assert_eq!((status, text), (Status::Ok, expected(QUESTION)));
    assert_eq!(trtvlm_close(session), Status::Ok);
}

#[test]
fn options_outside_their_range_are_refused_before_anything_is_read() {
    let good = options();
    let name = c"nobody".as_ptr();
    for bad in [
        Options { size: 1, ..good },
        Options { fit: 9, ..good },
        Options {
            tiles: 1000,
            ..good
        },
        Options { draft: 7, ..good },
        Options { mode: 3, ..good },
        Options {
            confidence: 1.5,
            ..good
        },
        Options {
            confidence: f32::NAN,
            ..good
        },
        Options { keep: 2.0, ..good },
        Options {
            pruner: name,
            ..good
        },
        Options {
            warm_up: u32::MAX,
            ..good
        },
    ] {
        let (status, message) = open_path("/nowhere", &bad).expect_err("refused");
        assert_eq!(status, Status::Argument, "{message}");
        assert!(!message.is_empty());
    }
    let (status, message) = open_path("/nowhere", &good).expect_err("no model");
    assert_eq!(status, Status::Io);
    assert!(message.contains("/nowhere"), "{message}");
    let model = root().join("onnx/uav-tiny");
    let model = model.to_str().expect("UTF-8");
    let no_variant = Options {
        variant: name,
        ..good
    };
    assert!(open_path(model, &no_variant).is_err());
    let no_pixels = Options {
        frame_width: 640,
        ..good
    };
    let (status, message) = open_path(model, &no_pixels).expect_err("refused");
    assert_eq!(status, Status::Frame, "{message}");
}

unsafe extern "C-unwind" fn close_it(user: *mut c_void, _: *const c_char, _: usize) -> u32 {
    assert_eq!(trtvlm_close(user.cast()), Status::Ok);
    0
}

#[test]
fn handle_that_was_closed_or_made_up_is_found_out() {
    let (session, frame) = (open(), picture());
    let mut asked = question(QUESTION);
    asked.on_text = Some(close_it);
    asked.user = session.cast();
    asked.max_tokens = 1;
    // Closed while it answers: the answer is given.
    let (status, text, _) = ask(session, &view(&frame), &asked, 256);
    assert_eq!(status, Status::Ok);
    assert!(!text.is_empty());
    let local = 0u64;
    for handle in [session, null_mut(), (&raw const local).cast_mut().cast()] {
        let mut memory = MemoryReport {
            size: size_of::<MemoryReport>(),
            ..MemoryReport::default()
        };
        assert_eq!(ask(handle, &view(&frame), &asked, 64).0, Status::Closed);
        assert_eq!(trtvlm_cancel(handle), Status::Closed);
        // SAFETY: a struct of this function.
        let status = unsafe { trtvlm_memory_report(handle, &mut memory) };
        assert_eq!(status, Status::Closed);
        assert_eq!(last_error(handle), "");
        let closed = trtvlm_close(handle);
        assert_eq!(closed == Status::Closed, !handle.is_null());
    }
}
