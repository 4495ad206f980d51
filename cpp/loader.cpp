// Opens TensorRT's shared libraries and picks the copy of the shim that speaks their ABI.
#include "trtvlm/cpp/shim.h"
#include "trtvlm/src/trt/ffi.rs.h"

#include <dlfcn.h>
#include <link.h>

#include <cstdlib>

// build.rs defines TRTVLM_ABIS as one TRTVLM_ABI(key) per copy of shim.cpp.
#define TRTVLM_ABI(key)                                                        \
  namespace trtvlm::abi_##key {                                                \
    std::unique_ptr<Builder> new_builder(std::shared_ptr<Library>,             \
                                         rust::Box<Events>);                   \
    std::unique_ptr<Plan> open_plan(std::shared_ptr<Library>,                  \
                                    const std::string &, rust::Box<Events>);   \
  }
TRTVLM_ABIS
#undef TRTVLM_ABI

namespace trtvlm {
namespace {

void *open(const std::string &file) {
  // RTLD_LOCAL: two flavours export the same symbol names.
  void *handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char *reason = dlerror();
    throw ShimError(code::LOAD, reason != nullptr ? reason : file.c_str());
  }
  return handle;
}

void *find(void *handle, const char *name) {
  void *address = handle != nullptr ? dlsym(handle, name) : nullptr;
  if (address == nullptr) {
    throw ShimError(code::LOAD, std::string("no symbol ") + name);
  }
  return address;
}

rust::String file_of(void *handle) {
  link_map *map = nullptr;
  if (handle == nullptr || dlinfo(handle, RTLD_DI_LINKMAP, &map) != 0 ||
      map == nullptr || map->l_name == nullptr) {
    return rust::String();
  }
  return rust::String::lossy(map->l_name);
}

} // namespace

Library::Library(const std::string &infer, const std::string &parser)
    : infer_(open(infer)) {
  // The parser names the inference library by its SONAME, which is loaded by now.
  if (!parser.empty()) {
    parser_ = open(parser);
  }
  version_ =
      reinterpret_cast<int32_t (*)()>(find(infer_, "getInferLibVersion"))();
}

rust::String Library::path() const { return file_of(infer_); }

rust::String Library::parser_path() const { return file_of(parser_); }

bool Library::can_build() const {
  return dlsym(infer_, "createInferBuilder_INTERNAL") != nullptr &&
         parser_ != nullptr &&
         dlsym(parser_, "createNvOnnxParser_INTERNAL") != nullptr;
}

void *Library::infer_symbol(const char *name) const { return find(infer_, name); }

void *Library::parser_symbol(const char *name) const {
  return find(parser_, name);
}

std::shared_ptr<Library> open_library(rust::Str infer, rust::Str parser) {
  return std::make_shared<Library>(std::string(infer), std::string(parser));
}

std::unique_ptr<Builder> new_builder(rust::Str abi,
                                     std::shared_ptr<Library> library,
                                     rust::Box<Events> events) {
  require(library.get(), code::STATE, "open_library");
#define TRTVLM_ABI(key)                                                        \
  if (abi == #key) {                                                           \
    return abi_##key::new_builder(std::move(library), std::move(events));      \
  }
  TRTVLM_ABIS
#undef TRTVLM_ABI
  throw ShimError(code::FLAVOUR, "this program has no shim " + std::string(abi));
}

std::unique_ptr<Plan> open_plan(rust::Str abi, std::shared_ptr<Library> library,
                                rust::Str plan_path, rust::Box<Events> events) {
  require(library.get(), code::STATE, "open_library");
#define TRTVLM_ABI(key)                                                        \
  if (abi == #key) {                                                           \
    return abi_##key::open_plan(std::move(library), std::string(plan_path),    \
                                std::move(events));                            \
  }
  TRTVLM_ABIS
#undef TRTVLM_ABI
  throw ShimError(code::FLAVOUR, "this program has no shim " + std::string(abi));
}

rust::Vec<rust::String> *&teardown_trace() {
  thread_local rust::Vec<rust::String> *trace = nullptr;
  return trace;
}

rust::Vec<rust::String> teardown_order(std::unique_ptr<Builder> builder) {
  rust::Vec<rust::String> order;
  teardown_trace() = &order;
  builder.reset();
  teardown_trace() = nullptr;
  return order;
}

void exit_now(int32_t status) { std::_Exit(status); }

} // namespace trtvlm
