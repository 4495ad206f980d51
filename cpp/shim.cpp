// TensorRT behind the abstract interface of shim.h.
//
// Compiled once per ABI with -DTRTVLM_ABI=<key> -Dnvinfer1=nvinfer1_<key>
// -Dnvonnxparser=nvonnxparser_<key>, so that the headers' inline functions of two flavours do
// not merge. Nothing of TensorRT is linked: factories come from dlsym, the rest are virtual calls.
#include "trtvlm/cpp/shim.h"
#include "trtvlm/src/trt/ffi.rs.h"

#include <NvInfer.h>
#include <NvOnnxParser.h>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <vector>

#define TRTVLM_JOIN_(a, b) a##b
#define TRTVLM_JOIN(a, b) TRTVLM_JOIN_(a, b)

namespace trtvlm::TRTVLM_JOIN(abi_, TRTVLM_ABI) {
namespace {

namespace trt = nvinfer1;
namespace onnx = nvonnxparser;

rust::String text(const char *s) {
  return s != nullptr ? rust::String::lossy(s) : rust::String();
}

// TensorRT keeps pointers to both for as long as its objects live. The callbacks are noexcept
// and run on any thread; the Rust side neither panics nor returns errors.
class Receiver final : public trt::ILogger, public trt::IProgressMonitor {
public:
  explicit Receiver(rust::Box<Events> events) : events_(std::move(events)) {}

  void log(Severity severity, const char *message) noexcept override {
    const auto level = static_cast<int32_t>(severity);
    if (events_->wants(level)) {
      events_->log(level, text(message));
    }
  }
  void phaseStart(const char *phase, const char *parent,
                  int32_t n_steps) noexcept override {
    events_->phase_start(text(phase), text(parent), n_steps);
  }
  bool stepComplete(const char *phase, int32_t step) noexcept override {
    return events_->step(text(phase), step);
  }
  void phaseFinish(const char *phase) noexcept override {
    events_->phase_finish(text(phase));
  }
  bool cancelled() const { return events_->cancelled(); }

private:
  rust::Box<Events> events_;
};

std::string version_text(int32_t version) {
  return std::to_string(version / 10000) + "." +
         std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

// RTX counts its major versions from 1, TensorRT itself from 10, so the major version decides
// about the flavour too. To be called before any factory.
void require_compatible(const Library &library) {
  constexpr auto headers = static_cast<int32_t>(NV_TENSORRT_VERSION);
  const int32_t version = library.version();
  const std::string both = "the library has version " + version_text(version) +
                           ", the headers have " + version_text(headers);
  require(version / 10000 == NV_TENSORRT_MAJOR, code::FLAVOUR, both);
  require(version >= headers, code::VERSION, both);
}

rust::Vec<int64_t> shape_of(const trt::Dims &dims) {
  rust::Vec<int64_t> shape;
  for (int32_t i = 0; i < dims.nbDims; ++i) {
    shape.push_back(dims.d[i]);
  }
  return shape;
}

template <typename Shape>
trt::Dims dims_of(const std::string &input, const Shape &shape,
                  const char *error_code) {
  require(shape.size() <= static_cast<size_t>(trt::Dims::MAX_DIMS), error_code,
          input + ": too many dimensions");
  trt::Dims dims{};
  dims.nbDims = static_cast<int32_t>(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) {
    dims.d[i] = shape[i];
  }
  return dims;
}

IoTensor describe(const trt::ITensor &tensor, bool is_input) {
  IoTensor io;
  io.name = text(tensor.getName());
  io.is_input = is_input;
  io.is_shape = tensor.isShapeTensor();
  io.dtype = static_cast<int32_t>(tensor.getType());
  io.shape = shape_of(tensor.getDimensions());
  return io;
}

class BuilderImpl final : public Builder {
public:
  BuilderImpl(std::shared_ptr<Library> library, rust::Box<Events> events)
      : library_(std::move(library)), receiver_(std::move(events)) {
    using NewBuilder = void *(*)(void *, int32_t);
    using NewParser = void *(*)(void *, void *, int);
    require_compatible(*library_);
    const auto new_builder = reinterpret_cast<NewBuilder>(
        library_->infer_symbol("createInferBuilder_INTERNAL"));
    const auto new_parser = reinterpret_cast<NewParser>(
        library_->parser_symbol("createNvOnnxParser_INTERNAL"));
    trt::ILogger *logger = &receiver_;

    builder_ = own(static_cast<trt::IBuilder *>(
                       new_builder(logger, NV_TENSORRT_VERSION)),
                   "builder");
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations" // 11.x: always strongly typed
    const auto strongly_typed = static_cast<uint32_t>(
        trt::NetworkDefinitionCreationFlag::kSTRONGLY_TYPED);
#pragma GCC diagnostic pop
    network_ = own(builder_->createNetworkV2(1U << strongly_typed), "network");
    parser_ = own(static_cast<onnx::IParser *>(new_parser(
                      network_.get(), logger, NV_ONNX_PARSER_VERSION)),
                  "parser");
    config_ = own(builder_->createBuilderConfig(), "config");
    config_->setProgressMonitor(&receiver_);
  }

  bool parse(rust::Str onnx_path) override {
    const auto verbosity = static_cast<int>(trt::ILogger::Severity::kWARNING);
    return parser_->parseFromFile(std::string(onnx_path).c_str(), verbosity);
  }

  rust::Vec<ParserFault> faults() const override {
    rust::Vec<ParserFault> faults;
    for (int32_t i = 0; i < parser_->getNbErrors(); ++i) {
      const onnx::IParserError *error = parser_->getError(i);
      if (error == nullptr) {
        continue;
      }
      ParserFault fault;
      fault.code = static_cast<int32_t>(error->code());
      fault.node = error->node();
      fault.node_name = text(error->nodeName());
      fault.op = text(error->nodeOperator());
      fault.message = text(error->desc());
      faults.push_back(std::move(fault));
    }
    return faults;
  }

  rust::Vec<IoTensor> io() const override {
    rust::Vec<IoTensor> tensors;
    for (int32_t i = 0; i < network_->getNbInputs(); ++i) {
      tensors.push_back(describe(
          *require(network_->getInput(i), code::INTERNAL, "getInput"), true));
    }
    for (int32_t i = 0; i < network_->getNbOutputs(); ++i) {
      tensors.push_back(describe(
          *require(network_->getOutput(i), code::INTERNAL, "getOutput"), false));
    }
    return tensors;
  }

  void add_profile(rust::Slice<const DimRange> ranges) override {
    // The builder owns its profiles.
    trt::IOptimizationProfile *profile =
        require(builder_->createOptimizationProfile(), code::CREATE,
                "createOptimizationProfile");
    using Select = trt::OptProfileSelector;
    for (const DimRange &range : ranges) {
      const std::string name(range.input);
      const auto set = [&](Select select, const rust::Vec<int64_t> &shape) {
        require(profile->setDimensions(name.c_str(), select, dims_of(name, shape, code::PROFILE)),
                code::PROFILE, name + ": these dimensions were refused");
      };
      set(Select::kMIN, range.min);
      set(Select::kOPT, range.opt);
      set(Select::kMAX, range.max);
    }
    require(profile->isValid(), code::PROFILE, "the profile is not valid");
    require(config_->addOptimizationProfile(profile) >= 0, code::PROFILE,
            "addOptimizationProfile refused the profile");
  }

  void build(const Knobs &knobs) override {
    set_target(knobs.target);
    if (knobs.workspace_bytes > 0) {
      config_->setMemoryPoolLimit(trt::MemoryPoolType::kWORKSPACE,
                                  knobs.workspace_bytes);
    }
    if (knobs.optimization_level >= 0) {
      config_->setBuilderOptimizationLevel(knobs.optimization_level);
    }
    config_->setFlags((config_->getFlags() | knobs.set_flags) &
                      ~knobs.clear_flags);
    set_timing_cache(knobs);
    trt::IHostMemory *plan =
        builder_->buildSerializedNetwork(*network_, *config_);
    if (plan == nullptr) {
      throw receiver_.cancelled()
          ? ShimError(code::CANCELLED, "the build was cancelled")
          : ShimError(code::BUILD, "buildSerializedNetwork returned no plan");
    }
    plan_ = own(plan, "plan");
  }

  rust::Slice<const uint8_t> plan() const override {
    require(plan_ != nullptr, code::STATE, "no plan was built");
    return {static_cast<const uint8_t *>(plan_->data()), plan_->size()};
  }

  rust::Vec<uint8_t> timing_cache() const override {
    rust::Vec<uint8_t> bytes;
#ifndef TRT_MAJOR_RTX
    const trt::ITimingCache *cache = config_->getTimingCache();
    if (cache != nullptr) {
      const auto blob = own(cache->serialize(), "timing cache bytes");
      const auto *data = static_cast<const uint8_t *>(blob->data());
      bytes.reserve(blob->size());
      for (size_t i = 0; i < blob->size(); ++i) {
        bytes.push_back(data[i]);
      }
    }
#endif
    return bytes;
  }

private:
  void set_target(int32_t target) {
#ifdef TRT_MAJOR_RTX
    const auto capability = static_cast<trt::ComputeCapability>(target);
    require(config_->setNbComputeCapabilities(1), code::TARGET,
            "setNbComputeCapabilities(1) was refused");
    require(config_->setComputeCapability(capability, 0) &&
                config_->getComputeCapability(0) == capability,
            code::TARGET,
            "compute capability " + std::to_string(target) + " was refused");
#else
    require(target < 0, code::TARGET,
            "this TensorRT builds for the GPU of its own machine only");
#endif
  }

  void set_timing_cache(const Knobs &knobs) {
#ifndef TRT_MAJOR_RTX // RTX ignores timing caches
    if (knobs.use_timing_cache) {
      timing_cache_ = own(config_->createTimingCache(knobs.timing_cache.data(),
                                                     knobs.timing_cache.size()),
                          "timing cache");
      require(config_->setTimingCache(*timing_cache_, false), code::CONFIG,
              "the timing cache is of another TensorRT or GPU");
    }
#else
    static_cast<void>(knobs);
#endif
  }

  // Destroyed from the last to the first: TensorRT's objects before what they point to.
  std::shared_ptr<Library> library_;
  Receiver receiver_;
  Owned<trt::IBuilder> builder_;
  Owned<trt::INetworkDefinition> network_;
  Owned<onnx::IParser> parser_; // owns converted weights, which the network points to
  Owned<trt::IBuilderConfig> config_;
#ifndef TRT_MAJOR_RTX
  Owned<trt::ITimingCache> timing_cache_;
#endif
  Owned<trt::IHostMemory> plan_;
};

// A file mapped for reading, while TensorRT copies what it needs of it.
class Mapping {
public:
  explicit Mapping(const std::string &path) {
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat status {};
    if (file >= 0 && ::fstat(file, &status) == 0 && status.st_size > 0) {
      size_ = static_cast<size_t>(status.st_size);
      void *address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
      data_ = address != MAP_FAILED ? address : nullptr;
    }
    const int reason = errno;
    if (file >= 0) {
      ::close(file);
    }
    require(data_ != nullptr, code::PLAN, path + ": " + std::strerror(reason));
  }
  Mapping(const Mapping &) = delete;
  Mapping &operator=(const Mapping &) = delete;
  ~Mapping() { ::munmap(data_, size_); }

  const void *data() const { return data_; }
  size_t size() const { return size_; }

private:
  void *data_ = nullptr;
  size_t size_ = 0;
};

// A plan as TensorRT holds it; destroyed from the last to the first.
struct Deserialised {
  Deserialised(std::shared_ptr<Library> from, const std::string &path,
               rust::Box<Events> events)
      : library(std::move(from)), receiver(std::move(events)) {
    using NewRuntime = void *(*)(void *, int32_t);
    require_compatible(*library);
    const auto new_runtime = reinterpret_cast<NewRuntime>(
        library->infer_symbol("createInferRuntime_INTERNAL"));
    trt::ILogger *logger = &receiver;
    const Mapping file(path);
    runtime = own(static_cast<trt::IRuntime *>(
                      new_runtime(logger, NV_TENSORRT_VERSION)),
                  "runtime");
    trt::ICudaEngine *deserialised =
        runtime->deserializeCudaEngine(file.data(), file.size());
    require(deserialised != nullptr, code::PLAN,
            path + ": deserializeCudaEngine returned no engine");
    engine = own(deserialised, "engine");
  }

  std::shared_ptr<Library> library;
  Receiver receiver;
  Owned<trt::IRuntime> runtime;
  Owned<trt::ICudaEngine> engine;
};

class ExecutionImpl final : public Execution {
public:
  ExecutionImpl(std::shared_ptr<const Deserialised> plan, int32_t profile,
                uint64_t stream)
      : plan_(std::move(plan)) {
    context_ = own(plan_->engine->createExecutionContext(
                       trt::ExecutionContextAllocationStrategy::kUSER_MANAGED),
                   "execution context");
    require(context_->setOptimizationProfileAsync(profile, stream_of(stream)),
            code::BIND, "profile " + std::to_string(profile) + " was refused");
  }

  void set_shape(rust::Str input, rust::Slice<const int64_t> dims) override {
    const std::string name(input);
    require(context_->setInputShape(name.c_str(), dims_of(name, dims, code::BIND)),
            code::BIND, name + ": this shape was refused");
  }

  void bind(rust::Str tensor, uint64_t address) override {
    const std::string name(tensor);
    require(context_->setTensorAddress(name.c_str(),
                                       reinterpret_cast<void *>(address)),
            code::BIND, name + ": this address was refused");
  }

  void set_scratch(uint64_t address, int64_t n_bytes) override {
    context_->setDeviceMemoryV2(reinterpret_cast<void *>(address), n_bytes);
  }

  rust::Vec<int64_t> shape(rust::Str tensor) const override {
    return shape_of(context_->getTensorShape(std::string(tensor).c_str()));
  }

  void enqueue(uint64_t stream) override {
    require(context_->enqueueV3(stream_of(stream)), code::ENQUEUE,
            "enqueueV3 returned false");
  }

private:
  static cudaStream_t stream_of(uint64_t stream) {
    return reinterpret_cast<cudaStream_t>(stream);
  }

  std::shared_ptr<const Deserialised> plan_;
  Owned<trt::IExecutionContext> context_;
};

class PlanImpl final : public Plan {
public:
  PlanImpl(std::shared_ptr<Library> library, const std::string &path,
           rust::Box<Events> events)
      : plan_(std::make_shared<Deserialised>(std::move(library), path,
                                             std::move(events))) {}

  rust::Vec<IoTensor> io() const override {
    rust::Vec<IoTensor> tensors;
    for (int32_t i = 0; i < engine().getNbIOTensors(); ++i) {
      const char *name = engine().getIOTensorName(i);
      IoTensor io;
      io.name = text(name);
      io.is_input =
          engine().getTensorIOMode(name) == trt::TensorIOMode::kINPUT;
      io.is_shape = engine().isShapeInferenceIO(name);
      io.dtype = static_cast<int32_t>(engine().getTensorDataType(name));
      io.shape = shape_of(engine().getTensorShape(name));
      tensors.push_back(std::move(io));
    }
    return tensors;
  }

  int32_t n_profiles() const override {
    return engine().getNbOptimizationProfiles();
  }

  rust::Vec<DimRange> profile(int32_t index) const override {
    require(index >= 0 && index < n_profiles(), code::STATE,
            "no profile " + std::to_string(index));
    using Select = trt::OptProfileSelector;
    rust::Vec<DimRange> ranges;
    for (const IoTensor &tensor : io()) {
      if (!tensor.is_input || tensor.is_shape) {
        continue;
      }
      const std::string name(tensor.name);
      const auto at = [&](Select select) {
        return shape_of(engine().getProfileShape(name.c_str(), index, select));
      };
      DimRange range;
      range.input = tensor.name;
      range.min = at(Select::kMIN);
      range.opt = at(Select::kOPT);
      range.max = at(Select::kMAX);
      ranges.push_back(std::move(range));
    }
    return ranges;
  }

  int64_t device_memory_bytes() const override {
    return engine().getDeviceMemorySizeV2();
  }

  int32_t n_layers() const override { return engine().getNbLayers(); }

  int64_t scratch_bytes(int32_t profile) const override {
    return engine().getDeviceMemorySizeForProfileV2(profile);
  }

  std::unique_ptr<Execution> new_execution(int32_t profile,
                                           uint64_t stream) const override {
    require(profile >= 0 && profile < n_profiles(), code::STATE,
            "no profile " + std::to_string(profile));
    return std::make_unique<ExecutionImpl>(plan_, profile, stream);
  }

private:
  const trt::ICudaEngine &engine() const { return *plan_->engine; }

  std::shared_ptr<const Deserialised> plan_;
};

} // namespace

std::unique_ptr<Builder> new_builder(std::shared_ptr<Library> library,
                                     rust::Box<Events> events) {
  return std::make_unique<BuilderImpl>(std::move(library), std::move(events));
}

std::unique_ptr<Plan> open_plan(std::shared_ptr<Library> library,
                                const std::string &path,
                                rust::Box<Events> events) {
  return std::make_unique<PlanImpl>(std::move(library), path,
                                    std::move(events));
}

} // namespace trtvlm::TRTVLM_JOIN(abi_, TRTVLM_ABI)
