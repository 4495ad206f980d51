//! Structs and constants, as C sees them.
//!
//! Every struct begins with its size, so that programs and libraries of different age understand each
//! other: a field that a caller does not know has its default, a field that the library does not know has
//! to be zero. No field is a Rust `enum` or `bool`: any bytes of a caller's are a value.

use std::ffi::{c_char, c_void};
use std::mem::{offset_of, size_of};

/// Version of this interface: it changes where a program that was compiled before would go wrong.
pub const TRTVLM_ABI_VERSION: u32 = 1;

/// `TRTVLM_FIT_*`: how a frame becomes a square.
pub const TRTVLM_FIT_PROCESSOR: u32 = 0;
/// Padded, never cropped.
pub const TRTVLM_FIT_PAD: u32 = 1;
/// Stretched, never cropped.
pub const TRTVLM_FIT_STRETCH: u32 = 2;

/// `TRTVLM_DRAFT_*`: whether several tokens are guessed and checked in one pass, with the same answer.
pub const TRTVLM_DRAFT_OFF: u32 = 0;
/// Where it pays on this machine.
pub const TRTVLM_DRAFT_AUTO: u32 = 1;

/// `TRTVLM_MODE_*`: the language model answers.
pub const TRTVLM_MODE_FULL: u32 = 0;
/// The model's quick answers, and no question that has none.
pub const TRTVLM_MODE_QUICK: u32 = 1;
/// Quick answers where they are sure enough, else the language model.
pub const TRTVLM_MODE_AUTO: u32 = 2;

/// `TRTVLM_FORMAT_*`: one plane of three bytes a pixel, red first.
pub const TRTVLM_FORMAT_RGB8: u32 = 1;
/// One plane of three bytes a pixel, blue first.
pub const TRTVLM_FORMAT_BGR8: u32 = 2;
/// One plane of one byte a pixel.
pub const TRTVLM_FORMAT_GREY8: u32 = 3;
/// A plane of luma, and one of blue and red differences in turn for each two by two pixels.
pub const TRTVLM_FORMAT_NV12: u32 = 4;
/// An image file (JPEG, PNG, BMP, GIF, PNM, TIFF, WebP) in `planes[0]`; width and height are not read.
pub const TRTVLM_FORMAT_ENCODED: u32 = 5;

/// `TRTVLM_COLOUR_*` of NV12: ITU-R BT.601, luma 16 to 235.
pub const TRTVLM_COLOUR_BT601: u32 = 0;
/// ITU-R BT.709, luma 16 to 235.
pub const TRTVLM_COLOUR_BT709: u32 = 1;
/// ITU-R BT.601, luma 0 to 255.
pub const TRTVLM_COLOUR_FULL: u32 = 2;

/// `TRTVLM_MEMORY_*`: where a frame lies.
pub const TRTVLM_MEMORY_HOST: u32 = 0;
/// CUDA device memory, `stride` being its pitch. The CPU engine answers `TRTVLM_STATUS_UNSUPPORTED`.
pub const TRTVLM_MEMORY_CUDA: u32 = 1;

/// `TRTVLM_STOP_*`: the model closed its answer.
pub const TRTVLM_STOP_EOS: u32 = 0;
/// The answer has as many tokens as were allowed.
pub const TRTVLM_STOP_LENGTH: u32 = 1;
/// A sentence was complete and no more was asked for.
pub const TRTVLM_STOP_SENTENCE: u32 = 2;
/// The time was up, or would have been before the next pass of the model ended.
pub const TRTVLM_STOP_DEADLINE: u32 = 3;
/// `trtvlm_cancel`, or the callback, asked to stop.
pub const TRTVLM_STOP_CANCELLED: u32 = 4;

/// A model with its buffers. A handle: what it points to is nobody's business.
pub struct Session {
    _private: [u8; 0],
}

/// How a model is opened. Fill it with `trtvlm_options_init`, then change what you want.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// `sizeof(trtvlm_options)`.
    pub size: usize,
    /// Files of a model folder to use, such as "fp16"; null for the default.
    pub variant: *const c_char,
    /// Who chooses the visual tokens that stay, such as "attention"; null for the default. Where it is named, it is
    /// ready when `trtvlm_open` returns, for questions that ask for less than the session does.
    pub pruner: *const c_char,
    /// `TRTVLM_FIT_*`.
    pub fit: u32,
    /// Most pictures that a frame may be split into; 0 for what the model says.
    pub tiles: u32,
    /// Share of the visual tokens that the model reads, above 0 to 1; 0 for all.
    pub keep: f32,
    /// `TRTVLM_DRAFT_*`.
    pub draft: u32,
    /// Width of the camera's frames in pixels: buffers are made for them before the first one. 0 if not known.
    pub frame_width: u32,
    /// Height of the camera's frames in pixels.
    pub frame_height: u32,
    /// Answers that are given to a frame of noise before `trtvlm_open` returns, so that every buffer has been in use and the time of every pass is
    /// known.
    pub warm_up: u32,
    /// Most tokens of an answer; 0 for what the model says. Buffers are made for it.
    pub max_tokens: u32,
    /// `TRTVLM_MODE_*`: who answers. Others than `TRTVLM_MODE_FULL` need the model's quick.safetensors, and allocate some
    /// kilobytes for each answer.
    pub mode: u32,
    /// Least confidence of a quick answer in `TRTVLM_MODE_AUTO`, above 0 to 1; 0 for what the model's file says.
    pub confidence: f32,
}

/// A file of a model that lies in memory. It has no size of its own: it stays as it is.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct FileView {
    /// Its path below the model's folder, such as "manifest.json" or "engines/decoder.cpu.onnx"; a zero ends it.
    pub path: *const c_char,
    /// What it holds.
    pub data: *const c_void,
    /// Bytes of that.
    pub length: usize,
}

/// Rows of pixels.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PlaneView {
    /// The first row.
    pub data: *const c_void,
    /// Bytes from one row to the next, at least those of a row.
    pub stride: usize,
    /// Bytes that may be read at `data`.
    pub length: usize,
}

/// A frame in memory of the caller, which is only read, and only until the call returns.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct FrameView {
    /// `sizeof(trtvlm_frame)`.
    pub size: usize,
    /// `TRTVLM_FORMAT_*`.
    pub format: u32,
    /// `TRTVLM_MEMORY_*`.
    pub memory: u32,
    /// `TRTVLM_COLOUR_*`, of NV12 only.
    pub colour: u32,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// To be zero.
    pub reserved: u32,
    /// Planes, as many as the format has.
    pub planes: [PlaneView; 2],
    /// When it was taken, in the caller's own time; comes back in the result.
    pub timestamp_ns: u64,
}

/// Sees an answer as it grows: whole characters, `length` bytes, no zero behind them. Runs on the thread that
/// asked. Returns 0 to go on, anything else to stop. It must not throw, and whatever it asks this session is
/// answered with `TRTVLM_STATUS_BUSY`.
pub type OnText = Option<
    unsafe extern "C-unwind" fn(user: *mut c_void, text: *const c_char, length: usize) -> u32,
>;

/// A question.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct QuestionView {
    /// `sizeof(trtvlm_question)`.
    pub size: usize,
    /// The question, UTF-8; whatever it contains is text.
    pub text: *const c_char,
    /// Its bytes; `SIZE_MAX` if a zero ends it.
    pub length: usize,
    /// Time for the answer from the beginning of the call, in nanoseconds; 0 for no end. What is there of the
    /// answer by then is returned, at the latest when the pass that is running ends.
    pub deadline_ns: u64,
    /// Most tokens of the answer; 0 for what the session has.
    pub max_tokens: u32,
    /// 1 to end the answer with its first complete sentence.
    pub one_sentence: u32,
    /// Share of the visual tokens that the model reads, above 0 to 1; 0 for what the session has.
    pub keep: f32,
    /// To be zero.
    pub reserved: u32,
    /// Sees the answer as it grows; may be null.
    pub on_text: OnText,
    /// Given to `on_text`.
    pub user: *mut c_void,
}

/// What came of a question.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    /// `sizeof(trtvlm_result)`, set by the caller.
    pub size: usize,
    /// Bytes of the whole answer, without the zero behind it.
    pub needed: usize,
    /// Bytes of it in the buffer, without the zero.
    pub written: usize,
    /// `TRTVLM_STOP_*`.
    pub stop: u32,
    /// Tokens of the answer, the closing one included.
    pub tokens: u32,
    /// Tokens that the decoder read, visual ones included.
    pub prompt_tokens: u32,
    /// Visual tokens of the frame.
    pub visual_tokens: u32,
    /// Those that the decoder read.
    pub visual_tokens_kept: u32,
    /// 1 if the deadline had passed when the call returned.
    pub late: u32,
    /// Of the frame.
    pub timestamp_ns: u64,
    /// Copying or decoding the frame.
    pub frame_ns: u64,
    /// Resizing and normalizing.
    pub preprocess_ns: u64,
    /// The vision tower.
    pub vision_ns: u64,
    /// Choosing visual tokens.
    pub prune_ns: u64,
    /// The prompt, up to the first token.
    pub prefill_ns: u64,
    /// All tokens after the first.
    pub decode_ns: u64,
    /// From the call to the first token; 0 without one.
    pub first_token_ns: u64,
    /// The whole call.
    pub total_ns: u64,
    /// 1 if it is a quick answer, which has no tokens and comes in one piece.
    pub quick: u32,
    /// How often quick answers that are as sure are right, 0 to 1; that of one that was tried and not given, too. 0 without one.
    pub confidence: f32,
}

/// Memory after a model was opened.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct MemoryReport {
    /// `sizeof(trtvlm_memory)`, set by the caller.
    pub size: usize,
    /// What opening this session added to the process: weights, buffers, warm-up.
    pub session_bytes: u64,
    /// Memory of the process that no file backs, now.
    pub resident_bytes: u64,
    /// Largest resident memory of the process so far, mapped files included.
    pub peak_resident_bytes: u64,
    /// What this process could have beyond that, by the machine and its control group; 0 if not known.
    pub available_bytes: u64,
}

/// A struct that C fills or reads, with its size first.
pub(super) trait Versioned {
    /// Its name, for messages.
    const NAME: &'static str;
    /// Bytes of its first version, the least that is understood.
    const LEAST: usize;
}

impl Versioned for Options {
    const NAME: &'static str = "trtvlm_options";
    const LEAST: usize = offset_of!(Self, mode);
}

impl Versioned for FrameView {
    const NAME: &'static str = "trtvlm_frame";
    const LEAST: usize = size_of::<Self>();
}

impl Versioned for QuestionView {
    const NAME: &'static str = "trtvlm_question";
    const LEAST: usize = size_of::<Self>();
}

impl Versioned for Outcome {
    const NAME: &'static str = "trtvlm_result";
    const LEAST: usize = offset_of!(Self, quick);
}

impl Versioned for MemoryReport {
    const NAME: &'static str = "trtvlm_memory";
    const LEAST: usize = size_of::<Self>();
}
