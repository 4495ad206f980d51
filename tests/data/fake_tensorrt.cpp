// A made-up TensorRT for the tests of the shim, compiled against one flavour's own headers.
//
// Its objects have tables of their own making: every slot says through the caller's logger which
// function of these headers stands there, so that a call through another flavour's table shows.
//
// -DFAKE_LABEL="..." names it in every line, -DFAKE_VERSION=N is what it says of itself.
#include <NvInfer.h>
#include <NvOnnxParser.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace {

namespace trt = nvinfer1;
namespace api = nvinfer1::apiv;

trt::ILogger *logger = nullptr;
trt::IProgressMonitor *monitor = nullptr;
#ifdef TRT_MAJOR_RTX
std::uintptr_t capability = 0;
#endif

void say(const std::string &what) {
  const std::string line = std::string(FAKE_LABEL) + " " + what;
  logger->log(trt::ILogger::Severity::kINFO, line.c_str());
}

// Where a virtual function stands in the table of its class (Itanium C++ ABI).
template <typename Function> std::size_t slot_of(Function function) {
  struct {
    std::uintptr_t pointer;
    std::ptrdiff_t adjustment;
  } raw;
  static_assert(sizeof raw == sizeof function, "not the Itanium C++ ABI");
  std::memcpy(&raw, &function, sizeof raw);
#ifdef __aarch64__
  return raw.pointer / sizeof(void *);
#else
  return (raw.pointer - 1) / sizeof(void *);
#endif
}

struct Call {
  const char *name;
  std::size_t slot;
  std::uintptr_t (*answer)(std::uintptr_t argument);
};

template <typename Class> std::uintptr_t called(std::size_t slot, std::uintptr_t argument) {
  for (const Call &call : Class::calls()) {
    if (call.slot == slot) {
      say(call.name);
      return call.answer(argument);
    }
  }
  say(std::string("an unexpected call: ") + Class::name() + " slot " + std::to_string(slot));
  return 0;
}

template <typename Class, std::size_t Slot>
std::uintptr_t at_slot(void *, std::uintptr_t argument) {
  return called<Class>(Slot, argument);
}

template <typename Class, std::size_t... Slots>
std::uintptr_t (**slots(std::index_sequence<Slots...>))(void *, std::uintptr_t) {
  static std::uintptr_t (*all[])(void *, std::uintptr_t) = {&at_slot<Class, Slots>...};
  return all;
}

// An object of which only the table is real.
template <typename Class> void *made_up() {
  static struct {
    void *table;
  } object = {slots<Class>(std::make_index_sequence<200>())};
  return &object;
}

std::uintptr_t yes(std::uintptr_t) { return 1; }
std::uintptr_t no(std::uintptr_t) { return 0; }
template <typename T> std::uintptr_t address(T *object) {
  return reinterpret_cast<std::uintptr_t>(object);
}

struct Plan {
  static const char *name() { return "IHostMemory"; }
  static const std::vector<Call> &calls() {
    static const std::vector<Call> all = {
        {"data", slot_of(&api::VHostMemory::data),
         [](std::uintptr_t) { return address(FAKE_LABEL); }},
        {"size", slot_of(&api::VHostMemory::size),
         [](std::uintptr_t) -> std::uintptr_t { return std::strlen(FAKE_LABEL); }},
    };
    return all;
  }
};
struct HostMemory final : trt::IHostMemory {
  HostMemory() { mImpl = static_cast<api::VHostMemory *>(made_up<Plan>()); }
};

struct Network {
  static const char *name() { return "INetworkDefinition"; }
  static const std::vector<Call> &calls() {
    static const std::vector<Call> all = {
        {"getNbInputs", slot_of(&api::VNetworkDefinition::getNbInputs), no},
        {"getNbOutputs", slot_of(&api::VNetworkDefinition::getNbOutputs), no},
    };
    return all;
  }
};
struct NetworkDefinition final : trt::INetworkDefinition {
  NetworkDefinition() { mImpl = static_cast<api::VNetworkDefinition *>(made_up<Network>()); }
};

struct Config {
  static const char *name() { return "IBuilderConfig"; }
  static const std::vector<Call> &calls() {
    static const std::vector<Call> all = {
        {"getFlags", slot_of(&api::VBuilderConfig::getFlags), no},
        {"setFlags", slot_of(&api::VBuilderConfig::setFlags), no},
        {"setProgressMonitor", slot_of(&api::VBuilderConfig::setProgressMonitor),
         [](std::uintptr_t argument) -> std::uintptr_t {
           monitor = reinterpret_cast<trt::IProgressMonitor *>(argument);
           return 0;
         }},
#ifdef TRT_MAJOR_RTX
        {"setNbComputeCapabilities", slot_of(&api::VBuilderConfig::setNbComputeCapabilities), yes},
        {"setComputeCapability", slot_of(&api::VBuilderConfig::setComputeCapability),
         [](std::uintptr_t argument) -> std::uintptr_t {
           capability = argument;
           return 1;
         }},
        {"getComputeCapability", slot_of(&api::VBuilderConfig::getComputeCapability),
         [](std::uintptr_t) { return capability; }},
#else
        {"getTimingCache", slot_of(&api::VBuilderConfig::getTimingCache), no},
#endif
    };
    return all;
  }
};
struct BuilderConfig final : trt::IBuilderConfig {
  BuilderConfig() { mImpl = static_cast<api::VBuilderConfig *>(made_up<Config>()); }
};

struct BuilderCalls {
  static const char *name() { return "IBuilder"; }
  static const std::vector<Call> &calls() {
    static const std::vector<Call> all = {
        {"createNetworkV2", slot_of(&api::VBuilder::createNetworkV2),
         [](std::uintptr_t) { return address(new NetworkDefinition); }},
        {"createBuilderConfig", slot_of(&api::VBuilder::createBuilderConfig),
         [](std::uintptr_t) { return address(new BuilderConfig); }},
        {"buildSerializedNetwork", slot_of(&api::VBuilder::buildSerializedNetwork),
         [](std::uintptr_t) {
           monitor->phaseStart(FAKE_LABEL, nullptr, 1);
           return address(new HostMemory);
         }},
    };
    return all;
  }
};
struct Builder final : trt::IBuilder {
  Builder() { mImpl = static_cast<api::VBuilder *>(made_up<BuilderCalls>()); }
};

// The parser's interface is abstract itself: destroying one is a call of its table, too.
struct Parser {
  static const char *name() { return "IParser"; }
  static const std::vector<Call> &calls() {
    static const std::vector<Call> all = {
        {"parseFromFile", slot_of(&nvonnxparser::IParser::parseFromFile), yes},
    };
    return all;
  }
};

struct Engine {
  static const char *name() { return "ICudaEngine"; }
  static const std::vector<Call> &calls() {
    static const std::vector<Call> all = {
        {"getNbIOTensors", slot_of(&api::VCudaEngine::getNbIOTensors), no},
        {"getNbOptimizationProfiles", slot_of(&api::VCudaEngine::getNbOptimizationProfiles), no},
        {"getDeviceMemorySizeV2", slot_of(&api::VCudaEngine::getDeviceMemorySizeV2),
         [](std::uintptr_t) -> std::uintptr_t { return FAKE_VERSION; }},
        {"getNbLayers", slot_of(&api::VCudaEngine::getNbLayers),
         [](std::uintptr_t) -> std::uintptr_t { return FAKE_VERSION; }},
    };
    return all;
  }
};
struct CudaEngine final : trt::ICudaEngine {
  CudaEngine() { mImpl = static_cast<api::VCudaEngine *>(made_up<Engine>()); }
};

struct RuntimeCalls {
  static const char *name() { return "IRuntime"; }
  static const std::vector<Call> &calls() {
    using FromMemory = trt::ICudaEngine *(api::VRuntime::*)(void const *, std::size_t) noexcept;
    static const std::vector<Call> all = {
        {"deserializeCudaEngine",
         slot_of(static_cast<FromMemory>(&api::VRuntime::deserializeCudaEngine)),
         [](std::uintptr_t) { return address(new CudaEngine); }},
    };
    return all;
  }
};
struct Runtime final : trt::IRuntime {
  Runtime() { mImpl = static_cast<api::VRuntime *>(made_up<RuntimeCalls>()); }
};

// What a factory of any flavour does first; the headers' version comes with the call.
void begin(void *its_logger, int version, const char *factory) {
  logger = static_cast<trt::ILogger *>(its_logger);
  say(std::string(factory) + " " + std::to_string(version));
}

} // namespace

extern "C" {
int32_t getInferLibVersion() noexcept { return FAKE_VERSION; }

void *createInferBuilder_INTERNAL(void *its_logger, int32_t version) noexcept {
  begin(its_logger, version, "createInferBuilder");
  return static_cast<trt::IBuilder *>(new Builder);
}

void *createInferRuntime_INTERNAL(void *its_logger, int32_t version) noexcept {
  begin(its_logger, version, "createInferRuntime");
  return static_cast<trt::IRuntime *>(new Runtime);
}

void *createNvOnnxParser_INTERNAL(void *, void *its_logger, int) noexcept {
  logger = static_cast<trt::ILogger *>(its_logger);
  say("createNvOnnxParser");
  return made_up<Parser>();
}
}
