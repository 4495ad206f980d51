// What the cxx bridge (src/trt/ffi.rs) sees of TensorRT: no TensorRT type, enum or header.
//
// `shim.cpp` implements `Builder` and `Plan` and is compiled once per ABI (TensorRT-RTX,
// TensorRT 10, TensorRT 11 ...); `loader.cpp` is compiled once and picks the copy.
#pragma once

#include "rust/cxx.h"
#include "trtvlm/cpp/shim_error.h"

#include <cstdint>
#include <memory>
#include <string>

namespace trtvlm {

// Rust's receiver of log lines and progress; declared by the bridge.
struct Events;

// Structs shared with Rust; defined by the bridge.
struct IoTensor;
struct DimRange;
struct ParserFault;
struct Knobs;

// The shared libraries of one TensorRT. They stay loaded until the process ends: TensorRT's
// libraries start threads and register exit handlers, so unloading them is not safe.
class Library {
public:
  // `infer` and `parser` are file names for dlopen; an empty `parser` loads none.
  Library(const std::string &infer, const std::string &parser);

  int32_t version() const { return version_; } // getInferLibVersion()
  rust::String path() const;                   // what the loader really opened
  rust::String parser_path() const;            // empty without a parser
  bool can_build() const;                      // has a builder and a parser

  // Address of a factory; throws `load` if the library lacks it.
  void *infer_symbol(const char *name) const;
  void *parser_symbol(const char *name) const;

private:
  void *infer_ = nullptr;
  void *parser_ = nullptr;
  int32_t version_ = 0;
};

// From an ONNX file to a plan. Calls: parse, io, add_profile (any number), build, plan.
class Builder {
public:
  Builder() = default;
  Builder(const Builder &) = delete;
  Builder &operator=(const Builder &) = delete;
  virtual ~Builder() = default;

  virtual bool parse(rust::Str onnx_path) = 0; // false: see faults()
  virtual rust::Vec<ParserFault> faults() const = 0;
  virtual rust::Vec<IoTensor> io() const = 0;
  virtual void add_profile(rust::Slice<const DimRange> ranges) = 0;
  virtual void build(const Knobs &knobs) = 0;
  virtual rust::Slice<const uint8_t> plan() const = 0; // valid while the builder lives
  virtual rust::Vec<uint8_t> timing_cache() const = 0; // empty if this TensorRT has none
};

// One way to run a plan: a profile, the shapes of its inputs, and where its tensors lie. It keeps its plan
// alive. Addresses are the device's; whoever binds one keeps the memory.
class Execution {
public:
  Execution() = default;
  Execution(const Execution &) = delete;
  Execution &operator=(const Execution &) = delete;
  virtual ~Execution() = default;

  virtual void set_shape(rust::Str input, rust::Slice<const int64_t> dims) = 0;
  virtual void bind(rust::Str tensor, uint64_t address) = 0;
  virtual void set_scratch(uint64_t address, int64_t n_bytes) = 0;
  virtual rust::Vec<int64_t> shape(rust::Str tensor) const = 0; // with all inputs set
  virtual void enqueue(uint64_t stream) = 0;
};

// A deserialised plan, to be described and run.
class Plan {
public:
  Plan() = default;
  Plan(const Plan &) = delete;
  Plan &operator=(const Plan &) = delete;
  virtual ~Plan() = default;

  virtual rust::Vec<IoTensor> io() const = 0;
  virtual int32_t n_profiles() const = 0;
  virtual rust::Vec<DimRange> profile(int32_t index) const = 0;
  virtual int64_t device_memory_bytes() const = 0;
  virtual int32_t n_layers() const = 0;
  // Scratch that an execution with this profile needs.
  virtual int64_t scratch_bytes(int32_t profile) const = 0;
  virtual std::unique_ptr<Execution> new_execution(int32_t profile,
                                                   uint64_t stream) const = 0;
};

std::shared_ptr<Library> open_library(rust::Str infer, rust::Str parser);

// `abi` is a key that build.rs gave to a copy of shim.cpp. Flavour and version of the library
// are checked against that copy's headers before the first virtual call.
std::unique_ptr<Builder> new_builder(rust::Str abi, std::shared_ptr<Library> library,
                                     rust::Box<Events> events);
std::unique_ptr<Plan> open_plan(rust::Str abi, std::shared_ptr<Library> library,
                                rust::Str plan_path, rust::Box<Events> events);

// Destroys `builder` and returns what was destroyed, in order.
rust::Vec<rust::String> teardown_order(std::unique_ptr<Builder> builder);

// Ends the process at once, without exit handlers: TensorRT's threads may be at work.
void exit_now(int32_t status);

// Where `Owned` objects report their destruction while a `teardown_order` runs.
rust::Vec<rust::String> *&teardown_trace();

// A TensorRT object with a name for `teardown_order`.
struct Destroy {
  const char *name = "";
  template <typename T> void operator()(T *object) const {
    if (teardown_trace() != nullptr) {
      teardown_trace()->push_back(rust::String(name));
    }
    delete object;
  }
};
template <typename T> using Owned = std::unique_ptr<T, Destroy>;
template <typename T> Owned<T> own(T *object, const char *name) {
  return Owned<T>(require(object, code::CREATE, name), Destroy{name});
}

} // namespace trtvlm
