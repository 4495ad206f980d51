/* trtvlm: answers about camera frames from small vision-language models.
 *
 * A frame and a question in, an answer before the deadline out. See docs/flight.md for the promises.
 * Made by cbindgen of src/capi; do not edit. */

#ifndef TRTVLM_H
#define TRTVLM_H

#include <stddef.h>
#include <stdint.h>

/*
 Version of this interface: it changes where a program that was compiled before would go wrong.
 */
#define TRTVLM_ABI_VERSION 1

/*
 `TRTVLM_FIT_*`: how a frame becomes a square.
 */
#define TRTVLM_FIT_PROCESSOR 0

/*
 Padded, never cropped.
 */
#define TRTVLM_FIT_PAD 1

/*
 Stretched, never cropped.
 */
#define TRTVLM_FIT_STRETCH 2

/*
 `TRTVLM_DRAFT_*`: whether several tokens are guessed and checked in one pass, with the same answer.
 */
#define TRTVLM_DRAFT_OFF 0

/*
 Where it pays on this machine.
 */
#define TRTVLM_DRAFT_AUTO 1

/*
 `TRTVLM_MODE_*`: the language model answers.
 */
#define TRTVLM_MODE_FULL 0

/*
 The model's quick answers, and no question that has none.
 */
#define TRTVLM_MODE_QUICK 1

/*
 Quick answers where they are sure enough, else the language model.
 */
#define TRTVLM_MODE_AUTO 2

/*
 `TRTVLM_FORMAT_*`: one plane of three bytes a pixel, red first.
 */
#define TRTVLM_FORMAT_RGB8 1

/*
 One plane of three bytes a pixel, blue first.
 */
#define TRTVLM_FORMAT_BGR8 2

/*
 One plane of one byte a pixel.
 */
#define TRTVLM_FORMAT_GREY8 3

/*
 A plane of luma, and one of blue and red differences in turn for each two by two pixels.
 */
#define TRTVLM_FORMAT_NV12 4

/*
 An image file (JPEG, PNG, BMP, GIF, PNM, TIFF, WebP) in `planes[0]`; width and height are not read.
 */
#define TRTVLM_FORMAT_ENCODED 5

/*
 `TRTVLM_COLOUR_*` of NV12: ITU-R BT.601, luma 16 to 235.
 */
#define TRTVLM_COLOUR_BT601 0

/*
 ITU-R BT.709, luma 16 to 235.
 */
#define TRTVLM_COLOUR_BT709 1

/*
 ITU-R BT.601, luma 0 to 255.
 */
#define TRTVLM_COLOUR_FULL 2

/*
 `TRTVLM_MEMORY_*`: where a frame lies.
 */
#define TRTVLM_MEMORY_HOST 0

/*
 CUDA device memory, `stride` being its pitch. The CPU engine answers `TRTVLM_STATUS_UNSUPPORTED`.
 */
#define TRTVLM_MEMORY_CUDA 1

/*
 `TRTVLM_STOP_*`: the model closed its answer.
 */
#define TRTVLM_STOP_EOS 0

/*
 The answer has as many tokens as were allowed.
 */
#define TRTVLM_STOP_LENGTH 1

/*
 A sentence was complete and no more was asked for.
 */
#define TRTVLM_STOP_SENTENCE 2

/*
 The time was up, or would have been before the next pass of the model ended.
 */
#define TRTVLM_STOP_DEADLINE 3

/*
 `trtvlm_cancel`, or the callback, asked to stop.
 */
#define TRTVLM_STOP_CANCELLED 4

/*
 What became of a call. Everything but `TRTVLM_STATUS_OK` leaves a message in the session.
 */
enum trtvlm_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /*
     Done. An answer that a deadline or a limit cut short is one, too.
     */
    TRTVLM_STATUS_OK = 0,
    /*
     An argument is null, out of range, of an unknown size or kind, or not UTF-8.
     */
    TRTVLM_STATUS_ARGUMENT = 1,
    /*
     A kind of frame or engine that this build cannot take (CUDA memory on the CPU engine).
     */
    TRTVLM_STATUS_UNSUPPORTED = 2,
    /*
     The handle belongs to no open session: it was closed, or never was one.
     */
    TRTVLM_STATUS_CLOSED = 3,
    /*
     The session is answering: another thread asked, or a callback of its own did.
     */
    TRTVLM_STATUS_BUSY = 4,
    /*
     The answer is longer than the buffer; its beginning was written, `needed` has its length.
     */
    TRTVLM_STATUS_BUFFER_TOO_SMALL = 5,
    /*
     The frame cannot be used: cut short, damaged, or larger than the limits.
     */
    TRTVLM_STATUS_FRAME = 6,
    /*
     The question cannot be asked: empty, or too long for the model.
     */
    TRTVLM_STATUS_QUESTION = 7,
    /*
     A file cannot be read.
     */
    TRTVLM_STATUS_IO = 8,
    /*
     A model or bundle is not what it has to be.
     */
    TRTVLM_STATUS_MODEL = 9,
    /*
     Something that was asked for is not on this machine, or not in this model.
     */
    TRTVLM_STATUS_UNAVAILABLE = 10,
    /*
     Memory that is needed is not there.
     */
    TRTVLM_STATUS_MEMORY = 11,
    /*
     The engine failed on this frame; the session can be asked again.
     */
    TRTVLM_STATUS_ENGINE = 12,
    /*
     A defect of this library. The session answers no more: close it, and open another.
     */
    TRTVLM_STATUS_INTERNAL = 13,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum trtvlm_status trtvlm_status;
#else
typedef int32_t trtvlm_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/*
 A model with its buffers. A handle: what it points to is nobody's business.
 */
typedef struct trtvlm_session trtvlm_session;

/*
 How a model is opened. Fill it with `trtvlm_options_init`, then change what you want.
 */
typedef struct trtvlm_options {
    /*
     `sizeof(trtvlm_options)`.
     */
    size_t size;
    /*
     Files of a model folder to use, such as "fp16"; null for the default.
     */
    const char *variant;
    /*
     Who chooses the visual tokens that stay, such as "attention"; null for the default. Where it is named, it is
     ready when `trtvlm_open` returns, for questions that ask for less than the session does.
     */
    const char *pruner;
    /*
     `TRTVLM_FIT_*`.
     */
    uint32_t fit;
    /*
     Most pictures that a frame may be split into; 0 for what the model says.
     */
    uint32_t tiles;
    /*
     Share of the visual tokens that the model reads, above 0 to 1; 0 for all.
     */
    float keep;
    /*
     `TRTVLM_DRAFT_*`.
     */
    uint32_t draft;
    /*
     Width of the camera's frames in pixels: buffers are made for them before the first one. 0 if not known.
     */
    uint32_t frame_width;
    /*
     Height of the camera's frames in pixels.
     */
    uint32_t frame_height;
    /*
     Answers that are given to a frame of noise before `trtvlm_open` returns, so that every buffer has been in use and the time of every pass is
     known.
     */
    uint32_t warm_up;
    /*
     Most tokens of an answer; 0 for what the model says. Buffers are made for it.
     */
    uint32_t max_tokens;
    /*
     `TRTVLM_MODE_*`: who answers. Others than `TRTVLM_MODE_FULL` need the model's quick.safetensors, and allocate some
     kilobytes for each answer.
     */
    uint32_t mode;
    /*
     Least confidence of a quick answer in `TRTVLM_MODE_AUTO`, above 0 to 1; 0 for what the model's file says.
     */
    float confidence;
} trtvlm_options;

/*
 A file of a model that lies in memory. It has no size of its own: it stays as it is.
 */
typedef struct trtvlm_file {
    /*
     Its path below the model's folder, such as "manifest.json" or "engines/decoder.cpu.onnx"; a zero ends it.
     */
    const char *path;
    /*
     What it holds.
     */
    const void *data;
    /*
     Bytes of that.
     */
    size_t length;
} trtvlm_file;

/*
 Rows of pixels.
 */
typedef struct trtvlm_plane {
    /*
     The first row.
     */
    const void *data;
    /*
     Bytes from one row to the next, at least those of a row.
     */
    size_t stride;
    /*
     Bytes that may be read at `data`.
     */
    size_t length;
} trtvlm_plane;

/*
 A frame in memory of the caller, which is only read, and only until the call returns.
 */
typedef struct trtvlm_frame {
    /*
     `sizeof(trtvlm_frame)`.
     */
    size_t size;
    /*
     `TRTVLM_FORMAT_*`.
     */
    uint32_t format;
    /*
     `TRTVLM_MEMORY_*`.
     */
    uint32_t memory;
    /*
     `TRTVLM_COLOUR_*`, of NV12 only.
     */
    uint32_t colour;
    /*
     Width in pixels.
     */
    uint32_t width;
    /*
     Height in pixels.
     */
    uint32_t height;
    /*
     To be zero.
     */
    uint32_t reserved;
    /*
     Planes, as many as the format has.
     */
    struct trtvlm_plane planes[2];
    /*
     When it was taken, in the caller's own time; comes back in the result.
     */
    uint64_t timestamp_ns;
} trtvlm_frame;

/*
 Sees an answer as it grows: whole characters, `length` bytes, no zero behind them. Runs on the thread that
 asked. Returns 0 to go on, anything else to stop. It must not throw, and whatever it asks this session is
 answered with `TRTVLM_STATUS_BUSY`.
 */
typedef uint32_t (*trtvlm_on_text)(void *user, const char *text, size_t length);

/*
 A question.
 */
typedef struct trtvlm_question {
    /*
     `sizeof(trtvlm_question)`.
     */
    size_t size;
    /*
     The question, UTF-8; whatever it contains is text.
     */
    const char *text;
    /*
     Its bytes; `SIZE_MAX` if a zero ends it.
     */
    size_t length;
    /*
     Time for the answer from the beginning of the call, in nanoseconds; 0 for no end. What is there of the
     answer by then is returned, at the latest when the pass that is running ends.
     */
    uint64_t deadline_ns;
    /*
     Most tokens of the answer; 0 for what the session has.
     */
    uint32_t max_tokens;
    /*
     1 to end the answer with its first complete sentence.
     */
    uint32_t one_sentence;
    /*
     Share of the visual tokens that the model reads, above 0 to 1; 0 for what the session has.
     */
    float keep;
    /*
     To be zero.
     */
    uint32_t reserved;
    /*
     Sees the answer as it grows; may be null.
     */
    trtvlm_on_text on_text;
    /*
     Given to `on_text`.
     */
    void *user;
} trtvlm_question;

/*
 What came of a question.
 */
typedef struct trtvlm_result {
    /*
     `sizeof(trtvlm_result)`, set by the caller.
     */
    size_t size;
    /*
     Bytes of the whole answer, without the zero behind it.
     */
    size_t needed;
    /*
     Bytes of it in the buffer, without the zero.
     */
    size_t written;
    /*
     `TRTVLM_STOP_*`.
     */
    uint32_t stop;
    /*
     Tokens of the answer, the closing one included.
     */
    uint32_t tokens;
    /*
     Tokens that the decoder read, visual ones included.
     */
    uint32_t prompt_tokens;
    /*
     Visual tokens of the frame.
     */
    uint32_t visual_tokens;
    /*
     Those that the decoder read.
     */
    uint32_t visual_tokens_kept;
    /*
     1 if the deadline had passed when the call returned.
     */
    uint32_t late;
    /*
     Of the frame.
     */
    uint64_t timestamp_ns;
    /*
     Copying or decoding the frame.
     */
    uint64_t frame_ns;
    /*
     Resizing and normalizing.
     */
    uint64_t preprocess_ns;
    /*
     The vision tower.
     */
    uint64_t vision_ns;
    /*
     Choosing visual tokens.
     */
    uint64_t prune_ns;
    /*
     The prompt, up to the first token.
     */
    uint64_t prefill_ns;
    /*
     All tokens after the first.
     */
    uint64_t decode_ns;
    /*
     From the call to the first token; 0 without one.
     */
    uint64_t first_token_ns;
    /*
     The whole call.
     */
    uint64_t total_ns;
    /*
     1 if it is a quick answer, which has no tokens and comes in one piece.
     */
    uint32_t quick;
    /*
     How often quick answers that are as sure are right, 0 to 1; that of one that was tried and not given, too. 0 without one.
     */
    float confidence;
} trtvlm_result;

/*
 Memory after a model was opened.
 */
typedef struct trtvlm_memory {
    /*
     `sizeof(trtvlm_memory)`, set by the caller.
     */
    size_t size;
    /*
     What opening this session added to the process: weights, buffers, warm-up.
     */
    uint64_t session_bytes;
    /*
     Memory of the process that no file backs, now.
     */
    uint64_t resident_bytes;
    /*
     Largest resident memory of the process so far, mapped files included.
     */
    uint64_t peak_resident_bytes;
    /*
     What this process could have beyond that, by the machine and its control group; 0 if not known.
     */
    uint64_t available_bytes;
} trtvlm_memory;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/*
 Version of the interface that the library has; `TRTVLM_ABI_VERSION` is that of the header. A program goes on
 if they are equal.
 */
uint32_t trtvlm_abi_version(void);

/*
 Version of the library, such as "0.1.0". Never null, lives for ever.
 */
const char *trtvlm_version(void);

/*
 What a status means, in a few words. Never null, lives for ever.
 */
const char *trtvlm_status_text(int32_t status);

/*
 The word for why an answer ended: "eos", "length", "sentence", "deadline" or "cancelled". Never null, lives
 for ever.
 */
const char *trtvlm_stop_text(uint32_t stop);

/*
 Fills `options`, whose size is `size` bytes, with what `trtvlm_open` takes by default.

 # Safety
 `options` is null or leads to `size` bytes that may be written.
 */
trtvlm_status trtvlm_options_init(struct trtvlm_options *options, size_t size);

/*
 Opens a bundle or a model folder: reads, verifies, loads, warms up. `options` may be null. Takes as long as the
 model is large; everything a frame needs is there when it returns.

 `*session` is the new session, or null if the status is not `TRTVLM_STATUS_OK`; then `message` (of
 `message_size` bytes, may be null if that is 0) says why. Close it with `trtvlm_close`. Sessions are
 independent of each other; each may be used from any thread, and answers one question at a time.

 # Safety
 Addresses lead to what they say; `path` ends with a zero.
 */
trtvlm_status trtvlm_open(const char *path,
                          const struct trtvlm_options *options,
                          struct trtvlm_session **session,
                          char *message,
                          size_t message_size);

/*
 Opens a bundle or a model folder whose `n_files` files lie in memory, such as in the program itself. They are
 copied into a folder in shared memory (/dev/shm; the system's temporary folder where there is none), which goes when the session
 is closed; the caller's memory is of no use from the return on. All else is as with `trtvlm_open`.

 # Safety
 As `trtvlm_open`; `files` leads to `n_files` structs, and these to what they say.
 */
trtvlm_status trtvlm_open_files(const struct trtvlm_file *files,
                                size_t n_files,
                                const struct trtvlm_options *options,
                                struct trtvlm_session **session,
                                char *message,
                                size_t message_size);

/*
 Closes a session; its handle is of no use from then on. An answer that another thread waits for is given
 first, by that thread; `trtvlm_cancel` shortens it. Null is closed already.
 */
trtvlm_status trtvlm_close(struct trtvlm_session *session);

/*
 Asks a question about a frame and waits for the answer.

 `answer` takes the text and a zero, as many whole characters as fit into `answer_size` bytes; it may be null if
 that is 0. If not all of it fits the status is `TRTVLM_STATUS_BUFFER_TOO_SMALL` and everything else is as if it
 had. `result` may be null; it is all zeros if the status is neither `TRTVLM_STATUS_OK` nor that.

 # Safety
 Addresses lead to what they say, and nobody changes what they lead to before the call returns.
 */
trtvlm_status trtvlm_ask(struct trtvlm_session *session,
                         const struct trtvlm_frame *frame,
                         const struct trtvlm_question *question,
                         char *answer,
                         size_t answer_size,
                         struct trtvlm_result *result);

/*
 Stops the answer at hand, from any thread, before its next pass: `trtvlm_ask` returns what there is with
 `TRTVLM_STOP_CANCELLED`. Where no question is being answered it does nothing.
 */
trtvlm_status trtvlm_cancel(struct trtvlm_session *session);

/*
 What memory the session and the process have.

 # Safety
 `memory` is null or leads to a struct with its size set.
 */
trtvlm_status trtvlm_memory_report(struct trtvlm_session *session, struct trtvlm_memory *memory);

/*
 Why the newest call on the session that failed did: whole characters and a zero in `message`, which may be null
 if `message_size` is 0. Returns the bytes of the whole text without the zero; 0 if no call has failed, or there is no
 such session.

 # Safety
 `message` is null or leads to `message_size` bytes that may be written.
 */
size_t trtvlm_last_error(struct trtvlm_session *session,
                         char *message,
                         size_t message_size);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* TRTVLM_H */
