// The one exception type of the shim, and how any exception reaches Rust.
#pragma once

#include <exception>
#include <string>
#include <utility>

namespace trtvlm {

// Codes are the contract, the text behind them is for people. Rust passes them on in
// `Error::Engine`; those that it acts on stand in `src/trt/error.rs` too, and a test compares.
namespace code {
constexpr const char *CANCELLED = "cancelled";
constexpr const char *LOAD = "load";       // a library or one of its symbols is missing
constexpr const char *FLAVOUR = "flavour"; // the library is of another flavour or major version
constexpr const char *VERSION = "version"; // the library is older than the headers
constexpr const char *CREATE = "create";   // a factory returned null
constexpr const char *PROFILE = "profile"; // an optimization profile was refused
constexpr const char *TARGET = "target";   // a compute capability was refused
constexpr const char *CONFIG = "config";   // another setting was refused
constexpr const char *BUILD = "build";     // the builder returned no plan
constexpr const char *PLAN = "plan";       // a plan file cannot be read or deserialised
constexpr const char *BIND = "bind";       // a shape or an address was refused
constexpr const char *ENQUEUE = "enqueue"; // a run was not enqueued
constexpr const char *STATE = "state";     // a call in the wrong order
constexpr const char *INTERNAL = "internal";
} // namespace code

// `what()` is "code|message".
class ShimError : public std::exception {
public:
  ShimError(const char *error_code, const std::string &message)
      : text_(std::string(error_code) + "|" + message) {}
  const char *what() const noexcept override { return text_.c_str(); }

private:
  std::string text_;
};

// Refuses a null pointer with `error_code`.
template <typename T>
T *require(T *pointer, const char *error_code, const char *what) {
  if (pointer == nullptr) {
    throw ShimError(error_code, std::string(what) + " returned null");
  }
  return pointer;
}

// Refuses `false` with `error_code`.
inline void require(bool accepted, const char *error_code,
                    const std::string &what) {
  if (!accepted) {
    throw ShimError(error_code, what);
  }
}

} // namespace trtvlm

// cxx calls this around every function of the bridge that returns a `Result`.
namespace rust {
namespace behavior {
template <typename Try, typename Fail>
static void trycatch(Try &&func, Fail &&fail) noexcept try {
  func();
} catch (const trtvlm::ShimError &e) {
  fail(e.what());
} catch (const std::exception &e) {
  fail((std::string(trtvlm::code::INTERNAL) + "|" + e.what()).c_str());
} catch (...) {
  fail("internal|an exception that is no std::exception");
}
} // namespace behavior
} // namespace rust
