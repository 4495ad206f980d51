// TensorRT's runtime, as far as cpp/shim.cpp uses it, over the real headers. What it does not use is made of their own text
// (`unused_*.inc`, written by the test) and ends the process.
//
// A plan is text:
//
//     double <graph>                              what the test runs
//     in|out <name> <DataType> <dim>...           a number, -1 in inputs, or `<input>:<axis>` in outputs
//     profile                                     then for each input that varies
//     range <name> <rank> <min>... <max>...
#include "double.h"

#include <NvInferRuntime.h>

#include <cstring>
#include <map>
#include <memory>
#include <sstream>
#include <vector>

using namespace nvinfer1; // for what the headers' own text names

namespace {

namespace trt = nvinfer1;
using std::string;

struct Tensor {
    string name;
    bool is_input = false;
    int dtype = 0;
    std::vector<string> dims;
};
struct Range {
    Dims min{}, max{};
};
struct Plan {
    string graph;
    std::vector<Tensor> tensors;
    std::vector<std::map<string, Range>> profiles;

    const Tensor &tensor(const char *name) const {
        for (const auto &tensor : tensors)
            if (tensor.name == name) return tensor;
        twin::fault(string("no tensor ") + name);
    }
};

// What the test does for a plan: names, addresses, types, ranks and dimensions of its `n` tensors.
using Run = void (*)(const char *graph, int n, const char *const *names, void *const *addresses, const int *dtypes, const int *ranks,
                     const int64_t *dims);
Run run_plan = nullptr;

Dims read_dims(std::istream &in, int rank) {
    Dims dims{};
    dims.nbDims = rank;
    for (int i = 0; i < rank; i++) in >> dims.d[i];
    return dims;
}

// Null for what is no plan.
std::unique_ptr<Plan> read_plan(const string &text) {
    std::istringstream lines(text);
    string line, key;
    auto plan = std::make_unique<Plan>();
    while (std::getline(lines, line)) {
        std::istringstream in(line);
        in >> key;
        if (key == "double") {
            in >> plan->graph;
        } else if (key == "in" || key == "out") {
            Tensor tensor;
            tensor.is_input = key == "in";
            in >> tensor.name >> tensor.dtype;
            for (string dim; in >> dim;) tensor.dims.push_back(dim);
            plan->tensors.push_back(tensor);
        } else if (key == "profile") {
            plan->profiles.emplace_back();
        } else if (key == "range") {
            string name;
            int rank = 0;
            in >> name >> rank;
            Range range;
            range.min = read_dims(in, rank);
            range.max = read_dims(in, rank);
            plan->profiles.back()[name] = range;
        } else {
            return nullptr;
        }
    }
    if (plan->graph.empty()) return nullptr;
    if (plan->profiles.empty()) plan->profiles.emplace_back();
    return plan;
}

string text(const Dims &dims) {
    string all;
    for (int i = 0; i < dims.nbDims; i++) all += (i ? "x" : "") + std::to_string(dims.d[i]);
    return all;
}

class Context final : public trt::IExecutionContext, trt::apiv::VExecutionContext {
public:
    explicit Context(std::shared_ptr<const Plan> plan) : plan_(std::move(plan)) {
        mImpl = this;
        twin::count("execution context", 1);
    }
    ~Context() override { twin::count("execution context", -1); }

    IExecutionContext *getPImpl() noexcept override { return this; }

    bool setOptimizationProfileAsync(int32_t index, cudaStream_t) noexcept override {
        if (index < 0 || size_t(index) >= plan_->profiles.size()) return false;
        profile_ = size_t(index);
        return !twin::called("setOptimizationProfileAsync", std::to_string(index));
    }
    bool setInputShape(char const *name, Dims const &dims) noexcept override {
        if (twin::called("setInputShape", string(name) + " " + text(dims))) return false;
        const Tensor &tensor = plan_->tensor(name);
        if (!tensor.is_input || size_t(dims.nbDims) != tensor.dims.size()) return false;
        auto range = plan_->profiles[profile_].find(name);
        for (int i = 0; i < dims.nbDims; i++) {
            const string &dim = tensor.dims[size_t(i)];
            if (dim != "-1" && std::stoll(dim) != dims.d[i]) return false;
            if (range == plan_->profiles[profile_].end()) continue;
            if (dims.d[i] < range->second.min.d[i] || dims.d[i] > range->second.max.d[i]) return false;
        }
        shapes_[name] = dims;
        return true;
    }
    Dims getTensorShape(char const *name) const noexcept override {
        const Tensor &tensor = plan_->tensor(name);
        auto set = shapes_.find(name);
        if (set != shapes_.end()) return set->second;
        Dims dims{};
        dims.nbDims = int32_t(tensor.dims.size());
        for (size_t i = 0; i < tensor.dims.size(); i++) {
            const string &dim = tensor.dims[i];
            size_t colon = dim.find(':');
            dims.d[i] = colon == string::npos ? std::stoll(dim)
                                              : getTensorShape(dim.substr(0, colon).c_str()).d[std::stoi(dim.substr(colon + 1))];
        }
        return dims;
    }
    bool setTensorAddress(char const *name, void *address) noexcept override {
        if (twin::called("setTensorAddress", name)) return false;
        plan_->tensor(name);
        addresses_[name] = address;
        return true;
    }
    void setDeviceMemoryV2(void *memory, int64_t bytes) noexcept override {
        twin::called("setDeviceMemoryV2");
        scratch_ = memory;
        scratch_bytes_ = size_t(bytes);
    }
    bool enqueueV3(cudaStream_t stream) noexcept override {
        if (twin::called("enqueueV3", plan_->graph.substr(plan_->graph.rfind('/') + 1))) return false;
        if (!twin::is_alive(uint64_t(scratch_), SCRATCH) || scratch_bytes_ < SCRATCH) twin::fault("no scratch");
        // Shapes and addresses are those of now, also in a graph.
        auto plan = plan_;
        std::vector<void *> addresses;
        std::vector<Dims> shapes;
        for (const auto &tensor : plan->tensors) {
            if (addresses_.find(tensor.name) == addresses_.end()) twin::fault(tensor.name + " is not bound");
            addresses.push_back(addresses_[tensor.name]);
            shapes.push_back(getTensorShape(tensor.name.c_str()));
        }
        void *scratch = scratch_;
        twin::enqueue(uint64_t(stream), [=] {
            std::vector<const char *> names;
            std::vector<int> dtypes, ranks;
            std::vector<int64_t> dims;
            for (size_t i = 0; i < plan->tensors.size(); i++) {
                names.push_back(plan->tensors[i].name.c_str());
                dtypes.push_back(plan->tensors[i].dtype);
                ranks.push_back(shapes[i].nbDims);
                dims.insert(dims.end(), shapes[i].d, shapes[i].d + shapes[i].nbDims);
                if (!twin::is_alive(uint64_t(addresses[i]), 1)) twin::fault(plan->tensors[i].name + " lies in no memory");
            }
            if (!twin::is_alive(uint64_t(scratch), SCRATCH)) twin::fault("scratch is gone");
            memset(scratch, 0x5a, SCRATCH);
            run_plan(plan->graph.c_str(), int(names.size()), names.data(), addresses.data(), dtypes.data(), ranks.data(), dims.data());
        });
        return true;
    }

    static constexpr size_t SCRATCH = 4096;

#include "unused_VExecutionContext.inc"

private:
    std::shared_ptr<const Plan> plan_;
    size_t profile_ = 0;
    std::map<string, Dims> shapes_;
    std::map<string, void *> addresses_;
    void *scratch_ = nullptr;
    size_t scratch_bytes_ = 0;
};

class Engine final : public trt::ICudaEngine, trt::apiv::VCudaEngine {
public:
    explicit Engine(std::unique_ptr<Plan> plan) : plan_(std::move(plan)) {
        mImpl = this;
        twin::count("engine", 1);
    }
    ~Engine() override {
        if (plan_.use_count() != 1) twin::fault("an engine goes before its execution contexts");
        twin::count("engine", -1);
    }

    ICudaEngine *getPImpl() noexcept override { return this; }
    int32_t getNbLayers() const noexcept override { return 1; }
    int32_t getNbOptimizationProfiles() const noexcept override { return int32_t(plan_->profiles.size()); }
    int32_t getNbIOTensors() const noexcept override { return int32_t(plan_->tensors.size()); }
    char const *getIOTensorName(int32_t index) const noexcept override { return plan_->tensors[size_t(index)].name.c_str(); }
    trt::TensorIOMode getTensorIOMode(char const *name) const noexcept override {
        return plan_->tensor(name).is_input ? trt::TensorIOMode::kINPUT : trt::TensorIOMode::kOUTPUT;
    }
    trt::DataType getTensorDataType(char const *name) const noexcept override {
        return static_cast<trt::DataType>(plan_->tensor(name).dtype);
    }
    bool isShapeInferenceIO(char const *) const noexcept override { return false; }
    Dims getTensorShape(char const *name) const noexcept override {
        Dims dims{};
        for (const auto &dim : plan_->tensor(name).dims) dims.d[dims.nbDims++] = dim.find(':') == string::npos ? std::stoll(dim) : -1;
        return dims;
    }
    Dims getProfileShape(char const *name, int32_t index, trt::OptProfileSelector select) const noexcept override {
        const auto &profile = plan_->profiles[size_t(index)];
        auto range = profile.find(name);
        if (range == profile.end()) return getTensorShape(name);
        return select == trt::OptProfileSelector::kMIN ? range->second.min : range->second.max;
    }
    int64_t getDeviceMemorySizeV2() const noexcept override { return Context::SCRATCH; }
    int64_t getDeviceMemorySizeForProfileV2(int32_t) const noexcept override { return Context::SCRATCH; }
    trt::IExecutionContext *createExecutionContext(trt::ExecutionContextAllocationStrategy strategy) noexcept override {
        if (strategy != trt::ExecutionContextAllocationStrategy::kUSER_MANAGED) twin::fault("memory that TensorRT manages");
        return twin::called("createExecutionContext") ? nullptr : new Context(plan_);
    }

#include "unused_VCudaEngine.inc"

private:
    std::shared_ptr<const Plan> plan_;
};

class Runtime final : public trt::IRuntime, trt::apiv::VRuntime {
public:
    Runtime() {
        mImpl = this;
        twin::count("runtime", 1);
    }
    ~Runtime() override { twin::count("runtime", -1); }

    IRuntime *getPImpl() noexcept override { return this; }
    trt::ICudaEngine *deserializeCudaEngine(void const *blob, std::size_t size) noexcept override {
        if (twin::called("deserializeCudaEngine")) return nullptr;
        auto plan = read_plan(string(static_cast<const char *>(blob), size));
        return plan ? new Engine(std::move(plan)) : nullptr;
    }

#include "unused_VRuntime.inc"
};

} // namespace

extern "C" {

void double_on_run(Run run) { run_plan = run; }

int32_t getInferLibVersion() noexcept { return NV_TENSORRT_VERSION; }

void *createInferRuntime_INTERNAL(void *, int32_t) noexcept {
    if (twin::called("createInferRuntime")) return nullptr;
    return static_cast<trt::IRuntime *>(new Runtime);
}

} // extern "C"
