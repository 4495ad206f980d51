// The CUDA driver, as far as src/cuda uses it.
#include "double.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

extern "C" int simt_launch(const char *name, const unsigned *grid, const unsigned *block, void **args, unsigned seed);
extern "C" int simt_n_args(const char *name);

namespace {

// Values of CUresult.
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_BINARY = 209, NOT_FOUND = 500, CAPTURE_INVALIDATED = 901 };

using Work = std::vector<std::function<void()>>;

struct Module {};
struct Function {
    std::string name;
};

struct State {
    std::recursive_mutex mutex;
    std::vector<std::string> journal;
    std::map<std::string, int> live;
    std::map<uint64_t, size_t> blocks;
    std::string failing;
    int failing_nth = 0, failing_code = 0;
    bool failed = false;
    size_t capacity = size_t(8) << 30;
    std::unique_ptr<Work> capturing;
    std::map<std::string, std::unique_ptr<Function>> functions;
    int sm = 87, cuda_version = 13000;
    unsigned seed = 1;
};

State &state() {
    static State *one = new State; // outlives whatever is freed at exit
    return *one;
}

using Lock = std::lock_guard<std::recursive_mutex>;

// Answers of a call that has to say no more.
int answer(const char *name, const std::string &about = "") { return twin::called(name, about) ? twin::code() : SUCCESS; }

bool is_elf(const void *image) { return image != nullptr && memcmp(image, "\x7f"
                                                                      "ELF",
                                                                   4) == 0; }

} // namespace

namespace twin {

bool called(const std::string &name, const std::string &about) {
    State &s = state();
    Lock lock(s.mutex);
    s.journal.push_back(about.empty() ? name : name + " " + about);
    if (s.failing != name || --s.failing_nth != 0) return false;
    s.journal.back() += " FAILS";
    s.failed = true;
    return true;
}

int code() { return state().failing_code; }

void count(const char *kind, int by) {
    Lock lock(state().mutex);
    int &n = state().live[kind];
    n += by;
    if (n < 0) fault(std::string(kind) + " freed twice");
}

void fault(const std::string &what) {
    fprintf(stderr, "double: %s\n", what.c_str());
    for (const auto &line : state().journal) fprintf(stderr, "  %s\n", line.c_str());
    abort();
}

bool is_alive(uint64_t address, size_t bytes) {
    Lock lock(state().mutex);
    auto next = state().blocks.upper_bound(address);
    if (next == state().blocks.begin()) return false;
    auto block = std::prev(next);
    return address + bytes <= block->first + block->second;
}

void enqueue(uint64_t stream, std::function<void()> work) {
    if (stream == 0) fault("work on the default stream");
    if (state().capturing)
        state().capturing->push_back(std::move(work));
    else
        work();
}

} // namespace twin

extern "C" {

// What tests call.

void double_reset() {
    State &s = state();
    Lock lock(s.mutex);
    s.journal.clear();
    s.failing.clear();
    s.failing_nth = 0;
    s.failed = false;
    s.capacity = size_t(8) << 30;
}

// The `nth` call of this name, counted from 1, fails with `code`.
void double_fail(const char *call, int nth, int code) {
    State &s = state();
    Lock lock(s.mutex);
    s.failing = call;
    s.failing_nth = nth;
    s.failing_code = code;
}

int double_has_failed() { return state().failed; }
void double_set_capacity(size_t bytes) { state().capacity = bytes; }
void double_set_device(int sm, int cuda_version) {
    state().sm = sm;
    state().cuda_version = cuda_version;
}
// In which order threads of kernels run.
void double_set_seed(unsigned seed) { state().seed = seed; }

// Objects that live.
int double_live() {
    Lock lock(state().mutex);
    int sum = 0;
    for (const auto &kind : state().live) sum += kind.second;
    return sum;
}

// The journal, a call a line, into `text` of `size` bytes; returns the bytes that it has.
size_t double_journal(char *text, size_t size) {
    Lock lock(state().mutex);
    std::string all;
    for (const auto &line : state().journal) all += line + "\n";
    if (text != nullptr && size > 0) {
        size_t n = std::min(size - 1, all.size());
        memcpy(text, all.data(), n);
        text[n] = 0;
    }
    return all.size();
}

// The driver.

int cuInit(unsigned) { return answer("cuInit"); }
int cuDriverGetVersion(int *version) {
    *version = state().cuda_version;
    return answer("cuDriverGetVersion");
}
int cuGetErrorName(int, const char **name) {
    *name = "CUDA_ERROR_OF_THE_DOUBLE";
    return SUCCESS;
}
int cuGetErrorString(int, const char **text) {
    *text = "made to fail";
    return SUCCESS;
}
int cuDeviceGetCount(int *n) {
    *n = 1;
    return answer("cuDeviceGetCount");
}
int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return answer("cuDeviceGet");
}
int cuDeviceGetName(char *name, int size, int) {
    snprintf(name, size_t(size), "double of a GPU");
    return answer("cuDeviceGetName");
}
int cuDeviceGetAttribute(int *value, int attribute, int) {
    *value = attribute == 75 ? state().sm / 10 : attribute == 76 ? state().sm % 10 : 0;
    return answer("cuDeviceGetAttribute");
}
int cuDeviceTotalMem_v2(size_t *bytes, int) {
    *bytes = state().capacity;
    return answer("cuDeviceTotalMem");
}
int cuDevicePrimaryCtxRetain(void **context, int) {
    int failed = answer("cuDevicePrimaryCtxRetain");
    *context = &state();
    if (!failed) twin::count("context", 1);
    return failed;
}
int cuDevicePrimaryCtxRelease_v2(int) {
    twin::count("context", -1);
    return answer("cuDevicePrimaryCtxRelease");
}
int cuCtxSetCurrent(void *) { return SUCCESS; }
int cuStreamCreate(void **stream, unsigned) {
    int failed = answer("cuStreamCreate");
    if (failed) return failed;
    twin::count("stream", 1);
    *stream = new char;
    return SUCCESS;
}
int cuStreamDestroy_v2(void *stream) {
    twin::count("stream", -1);
    delete static_cast<char *>(stream);
    return answer("cuStreamDestroy");
}
int cuStreamSynchronize(void *) {
    if (state().capturing) twin::fault("a wait while a graph is captured");
    return answer("cuStreamSynchronize");
}

int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    Lock lock(state().mutex);
    size_t used = 0;
    for (const auto &block : state().blocks) used += block.second;
    *total = state().capacity;
    *free_bytes = state().capacity - std::min(used, state().capacity);
    return answer("cuMemGetInfo");
}
int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    Lock lock(state().mutex);
    if (state().capturing) twin::fault("an allocation while a graph is captured");
    size_t free_bytes = 0, total = 0;
    int failed = answer("cuMemAlloc", std::to_string(bytes));
    if (failed) return failed;
    for (const auto &block : state().blocks) total += block.second;
    free_bytes = state().capacity - std::min(total, state().capacity);
    if (bytes > free_bytes) return OUT_OF_MEMORY;
    // Not zero: nobody may rely on that.
    void *memory = malloc(bytes);
    memset(memory, 0xa5, bytes);
    *address = reinterpret_cast<uint64_t>(memory);
    state().blocks[*address] = bytes;
    twin::count("memory", 1);
    return SUCCESS;
}
int cuMemFree_v2(uint64_t address) {
    Lock lock(state().mutex);
    auto block = state().blocks.find(address);
    if (block == state().blocks.end()) twin::fault("memory that is none was freed");
    state().blocks.erase(block);
    twin::count("memory", -1);
    free(reinterpret_cast<void *>(address));
    return answer("cuMemFree");
}
int cuMemsetD8Async(uint64_t address, unsigned char value, size_t bytes, void *stream) {
    if (!twin::is_alive(address, bytes)) twin::fault("memory that is none was filled");
    int failed = answer("cuMemsetD8Async");
    if (!failed) twin::enqueue(reinterpret_cast<uint64_t>(stream), [=] { memset(reinterpret_cast<void *>(address), value, bytes); });
    return failed;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *) {
    if (state().capturing) twin::fault("a copy from the host while a graph is captured");
    if (!twin::is_alive(to, bytes)) twin::fault("a copy to memory that is none");
    int failed = answer("cuMemcpyHtoDAsync", std::to_string(bytes));
    if (!failed) memcpy(reinterpret_cast<void *>(to), from, bytes);
    return failed;
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *) {
    if (state().capturing) twin::fault("a copy to the host while a graph is captured");
    if (!twin::is_alive(from, bytes)) twin::fault("a copy from memory that is none");
    int failed = answer("cuMemcpyDtoHAsync", std::to_string(bytes));
    if (!failed) memcpy(to, reinterpret_cast<void *>(from), bytes);
    return failed;
}

int cuModuleLoadData(void **module, const void *image) {
    int failed = answer("cuModuleLoadData");
    if (failed) return failed;
    if (!is_elf(image)) return NO_BINARY;
    twin::count("module", 1);
    *module = new Module;
    return SUCCESS;
}
int cuModuleUnload(void *module) {
    twin::count("module", -1);
    delete static_cast<Module *>(module);
    return answer("cuModuleUnload");
}
int cuModuleGetFunction(void **function, void *, const char *name) {
    int failed = answer("cuModuleGetFunction", name);
    if (failed) return failed;
    if (simt_n_args(name) < 0) return NOT_FOUND;
    auto &found = state().functions[name];
    if (!found) found.reset(new Function{name});
    *function = found.get();
    return SUCCESS;
}
int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz, unsigned, void *stream,
                   void **params, void **) {
    const std::string name = static_cast<Function *>(function)->name;
    int failed = answer("cuLaunchKernel", name);
    if (failed) return failed;
    std::vector<uint64_t> cells;
    for (int i = 0; i < simt_n_args(name.c_str()); i++) cells.push_back(*static_cast<uint64_t *>(params[i]));
    twin::enqueue(reinterpret_cast<uint64_t>(stream), [=]() mutable {
        std::vector<void *> args;
        for (auto &cell : cells) args.push_back(&cell);
        const unsigned grid[3] = {x, y, z}, block[3] = {bx, by, bz};
        if (simt_launch(name.c_str(), grid, block, args.data(), state().seed) != 0) twin::fault(name + " did not end");
    });
    return SUCCESS;
}

int cuStreamBeginCapture_v2(void *, int) {
    if (state().capturing) twin::fault("a capture within a capture");
    int failed = answer("cuStreamBeginCapture");
    if (!failed) state().capturing.reset(new Work);
    return failed;
}
int cuStreamEndCapture(void *, void **graph) {
    if (!state().capturing) twin::fault("the end of no capture");
    *graph = nullptr;
    int failed = answer("cuStreamEndCapture");
    auto work = std::move(state().capturing);
    if (failed) return failed;
    twin::count("graph", 1);
    *graph = work.release();
    return SUCCESS;
}
int cuGraphInstantiateWithFlags(void **exec, void *graph, unsigned long long) {
    int failed = answer("cuGraphInstantiate", std::to_string(static_cast<Work *>(graph)->size()));
    if (failed) return failed;
    twin::count("graph exec", 1);
    *exec = new Work(*static_cast<Work *>(graph));
    return SUCCESS;
}
int cuGraphDestroy(void *graph) {
    twin::count("graph", -1);
    delete static_cast<Work *>(graph);
    return answer("cuGraphDestroy");
}
int cuGraphExecDestroy(void *exec) {
    twin::count("graph exec", -1);
    delete static_cast<Work *>(exec);
    return answer("cuGraphExecDestroy");
}
int cuGraphLaunch(void *exec, void *) {
    int failed = answer("cuGraphLaunch");
    if (failed) return failed;
    for (auto &work : *static_cast<Work *>(exec)) work();
    return SUCCESS;
}

} // extern "C"
