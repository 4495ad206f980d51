// CUDA's device language for the host: what the kernels under src/cuda/kernels use, and no more.
// Compile with `-DTRTVLM_SIMT -include simt.h`; simt.cpp runs the threads.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __forceinline__ inline
#define __align__(n) alignas(n)
#define __launch_bounds__(n)
// Blocks run one after the other, so that what is shared in a block may be shared by all.
#define __shared__ static

using std::max;
using std::min;

struct simt_dim3 {
    unsigned x, y, z;
};

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

// The running thread.
struct simt_ids {
    simt_dim3 thread, block;
};
extern simt_ids *simt_now;
extern simt_dim3 simt_grid, simt_block;
#define threadIdx (simt_now->thread)
#define blockIdx (simt_now->block)
#define gridDim simt_grid
#define blockDim simt_block

void simt_block_barrier();
// The value that `lane ^ mask` of this thread's warp gave.
uint64_t simt_exchange(unsigned lanes, uint64_t value, int mask);
void simt_step();

inline void __syncthreads() { simt_block_barrier(); }
inline void __threadfence() {}

template <typename T> T __shfl_xor_sync(unsigned lanes, T value, int mask) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "wider than a register pair");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = simt_exchange(lanes, bits, mask);
    memcpy(&value, &bits, sizeof value);
    return value;
}

// Another thread may run before each of these, as on a GPU.
template <typename T> T atomicAdd(T *at, T value) {
    simt_step();
    T old = *at;
    *at += value;
    return old;
}
template <typename T> T atomicMax(T *at, T value) {
    simt_step();
    T old = *at;
    *at = std::max(old, value);
    return old;
}
template <typename T> T atomicExch(T *at, T value) {
    simt_step();
    T old = *at;
    *at = value;
    return old;
}

template <typename To, typename From> To simt_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "another size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline unsigned __float_as_uint(float f) { return simt_bits<unsigned>(f); }
inline float __int_as_float(unsigned bits) { return simt_bits<float>(bits); }

struct alignas(2) f16 {
    unsigned short bits;
};

// Every half is a float.
inline float to_float(f16 h) {
    unsigned sign = (h.bits & 0x8000u) << 16, exponent = h.bits >> 10 & 31, fraction = h.bits & 0x3ff;
    if (exponent == 31) return simt_bits<float>(sign | 0x7f800000u | fraction << 13);
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * std::ldexp(float(fraction), -24);
    return simt_bits<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

// To the nearest, ties to even.
inline f16 to_half(float f) {
    unsigned bits = __float_as_uint(f);
    unsigned short sign = bits >> 16 & 0x8000;
    float size = std::fabs(f);
    if (f != f) return {static_cast<unsigned short>(sign | 0x7fff)};
    if (size >= 65520.0f) return {static_cast<unsigned short>(sign | 0x7c00)};
    int exponent = size < 0x1p-14f ? -14 : std::ilogb(size);
    // A unit in the last place is 2^(exponent - 10).
    unsigned units = static_cast<unsigned>(std::nearbyint(std::ldexp(size, 10 - exponent)));
    // A fraction that rounds up to 2048 is the next exponent's 1024: the sum carries.
    unsigned half = units < 1024 ? units : (exponent + 14) * 1024 + units;
    return {static_cast<unsigned short>(sign | half)};
}
