// A double of the CUDA driver and of TensorRT's runtime, for tests: device memory is memory of the process, our kernels run in
// the emulation of ../simt, and a plan is a text file whose graph the test runs. Every call is written to a journal, any call
// can be made to fail, and what is used must be alive.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace twin {

// Notes a call; true if it is to fail, with `code()`.
bool called(const std::string &name, const std::string &about = "");
int code();

// An object came to be (1) or went (-1).
void count(const char *kind, int by);

// Ends the process: the test has found a use after free or a call in the wrong order.
[[noreturn]] void fault(const std::string &what);

// True if `bytes` from `address` on lie in one living block of device memory.
bool is_alive(uint64_t address, size_t bytes);

// Runs on the stream: now, or whenever the graph that is being captured is launched.
void enqueue(uint64_t stream, std::function<void()> work);

} // namespace twin
