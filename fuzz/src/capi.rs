//! Calls of the C interface, as bytes say.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::mem::MaybeUninit;
use std::ptr::{null, null_mut};

use trtvlm::capi::*;

use super::model;

/// Reads numbers off the front of the input; zeros when it is used up.
struct Dice<'a>(&'a [u8]);

impl Dice<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn number(&mut self) -> u32 {
        u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }

    /// A size that is often right.
    fn near(&mut self, right: usize) -> usize {
        match self.byte() {
            0..=199 => right,
            200..=219 => self.byte().into(),
            220..=239 => right.wrapping_add(usize::from(self.byte())),
            240..=249 => right.saturating_sub(self.byte().into()),
            _ => usize::MAX - usize::from(self.byte()),
        }
    }

    /// Up to 255 bytes.
    fn bytes(&mut self) -> Vec<u8> {
        let n = usize::from(self.byte()).min(self.0.len());
        let (head, rest) = self.0.split_at(n);
        self.0 = rest;
        head.to_vec()
    }
}

/// The session that calls are made on, closed with the thread.
struct Open(*mut Session);

impl Drop for Open {
    fn drop(&mut self) {
        trtvlm_close(self.0);
    }
}

thread_local! {
    static SESSION: RefCell<Option<Open>> = const { RefCell::new(None) };
}

fn session() -> *mut Session {
    SESSION.with_borrow_mut(|open| open.get_or_insert_with(|| Open(open_with(|_| {}).1)).0)
}

fn defaults() -> Options {
    let mut options = MaybeUninit::<Options>::zeroed();
    // SAFETY: the address and size of `options`.
    let status = unsafe { trtvlm_options_init(options.as_mut_ptr(), size_of::<Options>()) };
    assert_eq!(status, Status::Ok);
    // SAFETY: zeros are a value of every field, and the call has filled them.
    unsafe { options.assume_init() }
}

/// Opens the tiny model with options that `change` has changed.
fn open_with(change: impl FnOnce(&mut Options)) -> (Status, *mut Session) {
    let folder = model("fastvlm-tiny-plain");
    let path = CString::new(folder.to_str().expect("UTF-8")).expect("a path");
    let mut options = defaults();
    options.warm_up = 0;
    options.max_tokens = 2;
    change(&mut options);
    let (mut session, mut message) = (null_mut(), [1 as c_char; 256]);
    // SAFETY: addresses of this function, with their sizes.
    let status = unsafe {
        trtvlm_open(
            path.as_ptr(),
            &options,
            &mut session,
            message.as_mut_ptr(),
            message.len(),
        )
    };
    assert_eq!(status == Status::Ok, !session.is_null());
    if status != Status::Ok {
        text(message.as_ptr());
    }
    sound(status);
    (status, session)
}

/// Opens a model whose files are all here, of names and contents that the input has.
fn open_files(dice: &mut Dice) {
    let held: Vec<(CString, Vec<u8>)> = (0..dice.byte() % 4)
        .map(|_| (string(dice), dice.bytes()))
        .collect();
    let files: Vec<FileView> = held
        .iter()
        .map(|(path, bytes)| FileView {
            path: if dice.byte() > 250 {
                null()
            } else {
                path.as_ptr()
            },
            data: bytes.as_ptr().cast(),
            length: bytes.len(),
        })
        .collect();
    let (mut session, mut message) = (null_mut(), [1 as c_char; 256]);
    // SAFETY: addresses of this function, with their sizes.
    let status = unsafe {
        trtvlm_open_files(
            files.as_ptr(),
            files.len(),
            &defaults(),
            &mut session,
            message.as_mut_ptr(),
            message.len(),
        )
    };
    sound(status);
    match status {
        Status::Ok => sound(trtvlm_close(session)),
        _ => assert!(session.is_null() && !text(message.as_ptr()).is_empty()),
    }
}

/// Bytes up to the first zero.
fn string(dice: &mut Dice) -> CString {
    let bytes = dice.bytes();
    let text = bytes.split(|b| *b == 0).next().unwrap_or(&[]);
    CString::new(text).expect("no zero")
}

/// A text of the library's ends with a zero and is UTF-8.
fn text(text: *const c_char) -> String {
    assert!(!text.is_null());
    // SAFETY: the library promises a zero behind its texts.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().expect("UTF-8").to_owned()
}

/// No call on good memory may fail inside.
fn sound(status: Status) {
    assert_ne!(status, Status::Internal);
    assert!(!text(trtvlm_status_text(status as i32)).is_empty());
}

fn open(dice: &mut Dice) {
    let strings = [string(dice), string(dice)];
    let named = dice.byte();
    let (_, session) = open_with(|options| {
        options.variant = if named & 1 > 0 {
            strings[0].as_ptr()
        } else {
            null()
        };
        options.pruner = if named & 2 > 0 {
            strings[1].as_ptr()
        } else {
            null()
        };
        options.fit = dice.byte().into();
        options.tiles = dice.byte().into();
        options.keep = f32::from_bits(dice.number());
        options.draft = dice.byte().into();
        options.frame_width = dice.byte().into();
        options.frame_height = dice.byte().into();
        options.size = dice.near(size_of::<Options>()).min(size_of::<Options>());
    });
    sound(trtvlm_close(session));
}

fn options_init(dice: &mut Dice) {
    let mut options = defaults();
    let size = dice.near(size_of::<Options>()).min(size_of::<Options>());
    let place = if dice.byte() > 250 {
        null_mut()
    } else {
        &raw mut options
    };
    // SAFETY: null, or as many bytes of `options` as are said.
    sound(unsafe { trtvlm_options_init(place, size) });
}

unsafe extern "C-unwind" fn on_text(user: *mut c_void, piece: *const c_char, length: usize) -> u32 {
    // SAFETY: `length` bytes, as the header promises; `user` is the number that `ask` gave.
    let bytes = unsafe { std::slice::from_raw_parts(piece.cast::<u8>(), length) };
    assert!(std::str::from_utf8(bytes).is_ok());
    u32::from(user.addr() == 1)
}

fn ask(dice: &mut Dice) -> bool {
    let mut planes = [dice.bytes(), dice.bytes()];
    if dice.byte().is_multiple_of(4) {
        // As many pixels as a small frame has.
        planes = [vec![dice.byte(); 64 * 48 * 3], vec![dice.byte(); 64 * 48]];
    }
    let plane = |dice: &mut Dice, bytes: &[u8]| PlaneView {
        data: if dice.byte() > 250 {
            null()
        } else {
            bytes.as_ptr().cast()
        },
        stride: dice.near(64 * 3),
        length: bytes.len(),
    };
    let frame = FrameView {
        size: dice
            .near(size_of::<FrameView>())
            .min(size_of::<FrameView>()),
        format: (dice.byte() % 8).into(),
        memory: (dice.byte() % 8 / 6).into(),
        colour: (dice.byte() % 8).into(),
        width: dice.near(64) as u32,
        height: dice.near(48) as u32,
        reserved: (dice.byte() / 250).into(),
        planes: [plane(dice, &planes[0]), plane(dice, &planes[1])],
        timestamp_ns: dice.number().into(),
    };
    let words = dice.bytes();
    let question = QuestionView {
        size: dice
            .near(size_of::<QuestionView>())
            .min(size_of::<QuestionView>()),
        text: if dice.byte() > 250 {
            null()
        } else {
            words.as_ptr().cast()
        },
        length: words.len(),
        deadline_ns: (dice.byte() % 2).into(),
        max_tokens: (dice.byte() % 3).into(),
        one_sentence: (dice.byte() % 3).into(),
        keep: f32::from_bits(dice.number()),
        reserved: (dice.byte() / 250).into(),
        on_text: dice.byte().is_multiple_of(2).then_some(on_text),
        user: std::ptr::without_provenance_mut((dice.byte() % 3).into()),
    };
    let mut answer = vec![0x7f as c_char; usize::from(dice.byte() % 32)];
    let mut outcome = Outcome {
        size: dice.near(size_of::<Outcome>()).min(size_of::<Outcome>()),
        ..Outcome::default()
    };
    let (room, size) = (answer.as_mut_ptr(), answer.len());
    let place = if dice.byte() > 250 {
        null_mut()
    } else {
        &raw mut outcome
    };
    // SAFETY: addresses of this function; lengths and sizes are not above what is there.
    let status = unsafe { trtvlm_ask(session(), &frame, &question, room, size, place) };
    sound(status);
    if status == Status::Ok && size > 0 {
        text(answer.as_ptr());
        text(trtvlm_stop_text(outcome.stop));
    }
    status == Status::Ok
}

fn last_error(dice: &mut Dice) {
    let mut message = vec![0x7f as c_char; usize::from(dice.byte())];
    // SAFETY: the address and size of `message`.
    let length = unsafe { trtvlm_last_error(session(), message.as_mut_ptr(), message.len()) };
    if !message.is_empty() {
        assert!(text(message.as_ptr()).len() <= length);
    }
}

fn memory(dice: &mut Dice) {
    let mut report = MemoryReport {
        size: dice
            .near(size_of::<MemoryReport>())
            .min(size_of::<MemoryReport>()),
        ..MemoryReport::default()
    };
    let place = if dice.byte() > 250 {
        null_mut()
    } else {
        &raw mut report
    };
    // SAFETY: null or an address of this function, with a size not above what is there.
    sound(unsafe { trtvlm_memory_report(session(), place) });
}

/// Calls, one after another; handles are also ones that never were.
///
/// True if one of them was an answer.
pub fn capi(data: &[u8]) -> bool {
    let mut dice = Dice(data);
    let mut answered = false;
    for _ in 0..8 {
        match dice.byte() % 11 {
            0 => open(&mut dice),
            1 => options_init(&mut dice),
            10 => open_files(&mut dice),
            2..=4 => answered |= ask(&mut dice),
            5 => sound(trtvlm_cancel(session())),
            6 => last_error(&mut dice),
            7 => memory(&mut dice),
            8 => {
                let stranger = std::ptr::without_provenance_mut(dice.number() as usize);
                assert_ne!(trtvlm_cancel(stranger), Status::Ok);
                sound(trtvlm_close(stranger));
            }
            _ => {
                text(trtvlm_stop_text(dice.number()));
                text(trtvlm_status_text(dice.number() as i32));
                text(trtvlm_version());
                assert_eq!(trtvlm_abi_version(), TRTVLM_ABI_VERSION);
            }
        }
        if dice.0.is_empty() {
            break;
        }
    }
    answered
}
