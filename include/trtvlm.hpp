// trtvlm for C++17: a thin layer over trtvlm.h.
//
// No exceptions: what can fail returns a Result. With TRTVLM_EXCEPTIONS defined Result::value() throws
// trtvlm::Failure instead of ending the program. After Session::open nothing here allocates, errors aside.
#ifndef TRTVLM_HPP
#define TRTVLM_HPP

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>

#ifdef TRTVLM_EXCEPTIONS
#include <stdexcept>
#endif

#include "trtvlm.h"

namespace trtvlm {

// What a status means, in a few words.
inline std::string_view text(trtvlm_status status) noexcept { return trtvlm_status_text(status); }

// The version of the library; the header is made for TRTVLM_ABI_VERSION of its interface.
inline std::string_view version() noexcept { return trtvlm_version(); }
inline bool abi_matches() noexcept { return trtvlm_abi_version() == TRTVLM_ABI_VERSION; }

// A call that failed.
struct Error {
  trtvlm_status status = TRTVLM_STATUS_INTERNAL;
  std::string message;
};

#ifdef TRTVLM_EXCEPTIONS
class Failure : public std::runtime_error {
public:
  explicit Failure(const Error &error)
      : std::runtime_error(error.message.empty() ? std::string(text(error.status)) : error.message),
        status(error.status) {}
  trtvlm_status status;
};
#endif

// A value, or why there is none: std::expected of C++23 in small.
template <class T> class [[nodiscard]] Result {
public:
  Result(T value) : is_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : is_(std::in_place_index<1>, std::move(error)) {}

  bool has_value() const noexcept { return is_.index() == 0; }
  explicit operator bool() const noexcept { return has_value(); }

  // The value. Without one the program ends, or Failure is thrown with TRTVLM_EXCEPTIONS.
  T &value() & { return *checked(); }
  const T &value() const & { return *const_cast<Result *>(this)->checked(); }
  T &&value() && { return std::move(*checked()); }
  T &operator*() & { return value(); }
  const T &operator*() const & { return value(); }
  T *operator->() { return checked(); }
  const T *operator->() const { return const_cast<Result *>(this)->checked(); }

  // Why there is no value; a default one if there is.
  const Error &error() const noexcept {
    static const Error none{TRTVLM_STATUS_OK, {}};
    const Error *found = std::get_if<1>(&is_);
    return found != nullptr ? *found : none;
  }

private:
  T *checked() {
    T *found = std::get_if<0>(&is_);
    if (found == nullptr) {
#ifdef TRTVLM_EXCEPTIONS
      throw Failure(error());
#else
      std::abort();
#endif
    }
    return found;
  }
  std::variant<T, Error> is_;
};

// How a model is opened: the fields of trtvlm_options, with its defaults.
struct Options {
  Options() noexcept { trtvlm_options_init(&raw, sizeof raw); }
  Options &variant(const char *name) noexcept { raw.variant = name; return *this; }
  Options &pruner(const char *name) noexcept { raw.pruner = name; return *this; }
  Options &fit(std::uint32_t fit) noexcept { raw.fit = fit; return *this; }
  Options &tiles(std::uint32_t most) noexcept { raw.tiles = most; return *this; }
  Options &keep(float share) noexcept { raw.keep = share; return *this; }
  Options &draft(std::uint32_t draft) noexcept { raw.draft = draft; return *this; }
  Options &camera(std::uint32_t width, std::uint32_t height) noexcept {
    raw.frame_width = width;
    raw.frame_height = height;
    return *this;
  }
  Options &warm_up(std::uint32_t answers) noexcept { raw.warm_up = answers; return *this; }
  Options &max_tokens(std::uint32_t most) noexcept { raw.max_tokens = most; return *this; }
  // Who answers, TRTVLM_MODE_*, and the least confidence of a quick answer; 0 for what the model's file says.
  Options &mode(std::uint32_t mode, float confidence = 0) noexcept {
    raw.mode = mode;
    raw.confidence = confidence;
    return *this;
  }
  // Bytes that an answer is kept in; a longer one is cut.
  Options &answer_bytes(std::size_t bytes) noexcept { room = bytes; return *this; }

  trtvlm_options raw{};
  std::size_t room = 4096;
};

// A frame in the caller's memory.
struct Frame {
  static Frame rgb(const void *data, std::uint32_t width, std::uint32_t height, std::size_t stride = 0) noexcept {
    return packed(TRTVLM_FORMAT_RGB8, data, width, height, stride, 3);
  }
  static Frame bgr(const void *data, std::uint32_t width, std::uint32_t height, std::size_t stride = 0) noexcept {
    return packed(TRTVLM_FORMAT_BGR8, data, width, height, stride, 3);
  }
  static Frame grey(const void *data, std::uint32_t width, std::uint32_t height, std::size_t stride = 0) noexcept {
    return packed(TRTVLM_FORMAT_GREY8, data, width, height, stride, 1);
  }
  // Strides of 0 are those of rows without gaps.
  static Frame nv12(const void *luma, const void *chroma, std::uint32_t width, std::uint32_t height,
                    std::size_t luma_stride = 0, std::size_t chroma_stride = 0,
                    std::uint32_t colour = TRTVLM_COLOUR_BT601) noexcept {
    Frame frame = packed(TRTVLM_FORMAT_NV12, luma, width, height, luma_stride, 1);
    const std::size_t row = (static_cast<std::size_t>(width) + 1) / 2 * 2;
    const std::size_t rows = (static_cast<std::size_t>(height) + 1) / 2;
    frame.raw.planes[1] = plane(chroma, chroma_stride, row, rows);
    frame.raw.colour = colour;
    return frame;
  }
  // The bytes of an image file.
  static Frame encoded(const void *data, std::size_t length) noexcept {
    Frame frame;
    frame.raw.format = TRTVLM_FORMAT_ENCODED;
    frame.raw.planes[0] = {data, 0, length};
    return frame;
  }
  // The same in CUDA memory.
  Frame &on_cuda() noexcept { raw.memory = TRTVLM_MEMORY_CUDA; return *this; }
  Frame &at(std::uint64_t timestamp_ns) noexcept { raw.timestamp_ns = timestamp_ns; return *this; }

  Frame() noexcept { raw.size = sizeof raw; }
  trtvlm_frame raw{};

private:
  static trtvlm_plane plane(const void *data, std::size_t stride, std::size_t row, std::size_t rows) noexcept {
    if (stride == 0) stride = row;
    return {data, stride, rows == 0 ? 0 : stride * (rows - 1) + row};
  }
  static Frame packed(std::uint32_t format, const void *data, std::uint32_t width, std::uint32_t height,
                      std::size_t stride, std::size_t pixel) noexcept {
    Frame frame;
    frame.raw.format = format;
    frame.raw.width = width;
    frame.raw.height = height;
    frame.raw.planes[0] = plane(data, stride, pixel * width, height);
    return frame;
  }
};

// A question; its text has to live until the answer is there.
struct Question {
  Question(std::string_view text) noexcept {
    raw.size = sizeof raw;
    raw.text = text.data();
    raw.length = text.size();
  }
  Question(const char *text) noexcept : Question(std::string_view(text)) {}
  Question &deadline(std::chrono::nanoseconds time) noexcept {
    // No time at all is less than a nanosecond, not for ever.
    raw.deadline_ns = time.count() > 0 ? static_cast<std::uint64_t>(time.count()) : 1;
    return *this;
  }
  Question &max_tokens(std::uint32_t most) noexcept { raw.max_tokens = most; return *this; }
  Question &keep(float share) noexcept { raw.keep = share; return *this; }
  Question &one_sentence() noexcept { raw.one_sentence = 1; return *this; }
  trtvlm_question raw{};
};

// What a question gave.
struct Answer {
  std::string_view text; // of the session, until its next question
  trtvlm_result result{};

  bool is_whole() const noexcept { return result.written == result.needed; }
  bool in_time() const noexcept { return result.late == 0; }
  std::string_view stop() const noexcept { return trtvlm_stop_text(result.stop); }
};

// A model with its buffers, which answers one question at a time. Moves, does not copy.
class Session {
public:
  // Opens a bundle or a model folder.
  static Result<Session> open(std::string_view path, const Options &options = {}) {
    const std::string ended(path);
    return opened(options, [&](trtvlm_session **handle, char *message, std::size_t size) {
      return trtvlm_open(ended.c_str(), &options.raw, handle, message, size);
    });
  }

  // Opens one whose files lie in memory, which may go when this returns.
  static Result<Session> open_files(const trtvlm_file *files, std::size_t n_files, const Options &options = {}) {
    return opened(options, [&](trtvlm_session **handle, char *message, std::size_t size) {
      return trtvlm_open_files(files, n_files, &options.raw, handle, message, size);
    });
  }

  Session(Session &&other) noexcept
      : handle_(std::exchange(other.handle_, nullptr)), room_(std::move(other.room_)) {}
  Session &operator=(Session &&other) noexcept {
    std::swap(handle_, other.handle_);
    std::swap(room_, other.room_);
    return *this;
  }
  Session(const Session &) = delete;
  Session &operator=(const Session &) = delete;
  ~Session() { trtvlm_close(handle_); }

  // Answers. An answer that is longer than Options::answer_bytes is cut: Answer::is_whole.
  Result<Answer> ask(const Frame &frame, const Question &question) {
    return ask_raw(frame, question.raw);
  }

  // Answers; `on_text(std::string_view)` sees the answer as it grows, and returns true to go on. What it throws ends
  // the answer, and is an error with TRTVLM_STATUS_ARGUMENT.
  template <class OnText> Result<Answer> ask(const Frame &frame, const Question &question, OnText &&on_text) {
    using Function = std::remove_reference_t<OnText>;
    static_assert(std::is_invocable_r_v<bool, Function &, std::string_view>,
                  "on_text takes a std::string_view and returns whether to go on");
    struct Seen {
      Function *function;
      bool threw;
    } seen{&on_text, false};
    trtvlm_question raw = question.raw;
    raw.user = &seen;
    raw.on_text = [](void *user, const char *piece, std::size_t length) -> std::uint32_t {
      auto *state = static_cast<Seen *>(user);
#if defined(__cpp_exceptions)
      try {
        return (*state->function)(std::string_view(piece, length)) ? 0 : 1;
      } catch (...) {
        state->threw = true;
        return 1;
      }
#else
      return (*state->function)(std::string_view(piece, length)) ? 0 : 1;
#endif
    };
    Result<Answer> answer = ask_raw(frame, raw);
    if (seen.threw) return Error{TRTVLM_STATUS_ARGUMENT, "on_text has thrown an exception"};
    return answer;
  }

  // Stops the answer at hand before its next pass; from any thread.
  void cancel() const noexcept { trtvlm_cancel(handle_); }

  trtvlm_memory memory() const noexcept {
    trtvlm_memory report{};
    report.size = sizeof report;
    trtvlm_memory_report(handle_, &report);
    return report;
  }

  // For what this header does not have.
  trtvlm_session *handle() const noexcept { return handle_; }

private:
  Session() = default;

  template <class Open> static Result<Session> opened(const Options &options, Open &&open) {
    if (!abi_matches()) {
      return Error{TRTVLM_STATUS_UNAVAILABLE, "the library has another ABI version than trtvlm.h"};
    }
    Session session;
    session.room_.resize(options.room + 1);
    char message[1024];
    const trtvlm_status status = open(&session.handle_, message, sizeof message);
    if (status != TRTVLM_STATUS_OK) return Error{status, message};
    return session;
  }

  Result<Answer> ask_raw(const Frame &frame, const trtvlm_question &question) {
    Answer answer;
    answer.result.size = sizeof answer.result;
    const trtvlm_status status =
        trtvlm_ask(handle_, &frame.raw, &question, room_.data(), room_.size(), &answer.result);
    if (status != TRTVLM_STATUS_OK && status != TRTVLM_STATUS_BUFFER_TOO_SMALL) {
      return Error{status, last_error(status)};
    }
    answer.text = std::string_view(room_.data(), answer.result.written);
    return answer;
  }

  std::string last_error(trtvlm_status status) const {
    char message[1024];
    message[0] = '\0';
    const std::size_t length = trtvlm_last_error(handle_, message, sizeof message);
    return length > 0 ? std::string(message) : std::string(text(status));
  }

  trtvlm_session *handle_ = nullptr;
  std::string room_;
};

} // namespace trtvlm

#endif // TRTVLM_HPP
