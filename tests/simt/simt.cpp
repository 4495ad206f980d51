// Runs kernels on the host: every thread of a block is a fiber of one operating system thread.
//
// Blocks run one after the other, the threads of a block until each waits or ends, in an order that the seed chooses; so that
// another seed shows what lacks a barrier. A block whose threads all wait, and not for the same, is an error.
#include "simt.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <tuple>
#include <ucontext.h>
#include <utility>
#include <vector>

#include KERNELS

simt_ids *simt_now;
simt_dim3 simt_grid, simt_block;

namespace {

const size_t STACK = 64 * 1024;
enum Wait { READY, BLOCK, WARP_ALL, DONE };

struct Fiber {
    simt_ids ids;
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[STACK]};
    Wait wait = READY;
    uint64_t given = 0;
};

struct Call {
    void (*run)(void **);
    void **args;
};

ucontext_t scheduler;
std::vector<Fiber> fibers;
size_t running;
Call call;

Fiber &self() { return fibers[running]; }

void pause(Wait wait) {
    self().wait = wait;
    swapcontext(&self().context, &scheduler);
}

void enter() {
    call.run(call.args);
    self().wait = DONE;
    swapcontext(&self().context, &scheduler);
}

void resume(size_t index) {
    running = index;
    fibers[index].wait = READY;
    simt_now = &fibers[index].ids;
    swapcontext(&scheduler, &fibers[index].context);
}

// Lets go who waits for a barrier that all have reached; false if nobody could go on.
bool release() {
    bool moved = false;
    for (size_t first = 0; first < fibers.size(); first += 32) {
        size_t last = std::min(first + 32, fibers.size());
        bool all = true;
        for (size_t i = first; i < last; i++) all = all && fibers[i].wait == WARP_ALL;
        for (size_t i = first; all && i < last; i++) fibers[i].wait = READY;
        moved = moved || all;
    }
    bool all = true, any = false;
    for (auto &fiber : fibers) {
        all = all && (fiber.wait == BLOCK || fiber.wait == DONE);
        any = any || fiber.wait == BLOCK;
    }
    for (auto &fiber : fibers)
        if (all && fiber.wait == BLOCK) fiber.wait = READY;
    return moved || (all && any);
}

void prepare(Fiber &fiber, unsigned at, simt_dim3 block) {
    fiber.ids = {{at % simt_block.x, at / simt_block.x % simt_block.y, at / simt_block.x / simt_block.y}, block};
    fiber.wait = READY;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
}

// False if the threads of the block wait for different things.
bool run_block(simt_dim3 block, std::mt19937 &order) {
    std::vector<size_t> turn(fibers.size());
    for (size_t i = 0; i < fibers.size(); i++) {
        prepare(fibers[i], static_cast<unsigned>(i), block);
        turn[i] = i;
    }
    for (;;) {
        std::shuffle(turn.begin(), turn.end(), order);
        bool ran = false, alive = false;
        for (size_t index : turn) {
            alive = alive || fibers[index].wait != DONE;
            if (fibers[index].wait != READY) continue;
            resume(index);
            ran = true;
        }
        if (!alive) return true;
        if (!ran && !release()) return false;
    }
}

template <typename... A, size_t... I> void unpack(void (*kernel)(A...), void **args, std::index_sequence<I...>) {
    kernel(*static_cast<A *>(args[I])...);
}
template <typename... A> void unpack(void (*kernel)(A...), void **args) { unpack(kernel, args, std::index_sequence_for<A...>()); }

template <typename... A> constexpr int count_args(void (*)(A...)) { return sizeof...(A); }

struct Kernel {
    const char *name;
    void (*run)(void **);
    int n_args;
};
#define KERNEL(name) {#name, [](void **args) { unpack(name, args); }, count_args(name)}
const Kernel KERNELS_BY_NAME[] = {ENTRIES};

} // namespace

void simt_block_barrier() { pause(BLOCK); }

// The thread stays ready, and others have their turn.
void simt_step() { pause(READY); }

uint64_t simt_exchange(unsigned lanes, uint64_t value, int mask) {
    if (lanes != 0xffffffffu) {
        fprintf(stderr, "simt: only whole warps exchange values here\n");
        abort();
    }
    self().given = value;
    pause(WARP_ALL);
    size_t other = running / 32 * 32 + ((running % 32) ^ mask);
    uint64_t found = other < fibers.size() ? fibers[other].given : value;
    pause(WARP_ALL);
    return found;
}

// Arguments of a kernel; -1 for one that is not there.
extern "C" int simt_n_args(const char *name) {
    for (const Kernel &kernel : KERNELS_BY_NAME)
        if (strcmp(kernel.name, name) == 0) return kernel.n_args;
    return -1;
}

// 0; 1 for a kernel that is not there, 2 for threads that wait for each other.
extern "C" int simt_launch(const char *name, const unsigned *grid, const unsigned *block, void **args, unsigned seed) {
    for (const Kernel &kernel : KERNELS_BY_NAME) {
        if (strcmp(kernel.name, name) != 0) continue;
        call = {kernel.run, args};
        simt_grid = {grid[0], grid[1], grid[2]};
        simt_block = {block[0], block[1], block[2]};
        std::mt19937 order(seed);
        std::vector<simt_dim3> blocks;
        for (unsigned z = 0; z < grid[2]; z++)
            for (unsigned y = 0; y < grid[1]; y++)
                for (unsigned x = 0; x < grid[0]; x++) blocks.push_back({x, y, z});
        std::shuffle(blocks.begin(), blocks.end(), order);
        fibers = std::vector<Fiber>(block[0] * block[1] * block[2]);
        bool whole = true;
        for (size_t i = 0; whole && i < blocks.size(); i++) whole = run_block(blocks[i], order);
        fibers.clear();
        return whole ? 0 : 2;
    }
    return 1;
}
