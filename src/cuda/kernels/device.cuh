// What every kernel starts with: types, halves, the state of a step. No header is included, so that
// NVRTC needs none; with TRTVLM_SIMT the same text compiles for the host (tests/simt).

typedef unsigned long long u64;
typedef unsigned int u32;
typedef long long i64;

#ifndef TRTVLM_SIMT
// Bits of a half.
struct __align__(2) f16 {
    unsigned short bits;
};

__device__ __forceinline__ float to_float(f16 h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h.bits));
    return f;
}

__device__ __forceinline__ f16 to_half(float f) {
    f16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(f));
    return h;
}
#endif

__device__ __forceinline__ float to_float(float f) { return f; }

template <typename T> __device__ T from_float(float f);
template <> __device__ __forceinline__ float from_float<float>(float f) { return f; }
template <> __device__ __forceinline__ f16 from_float<f16>(float f) { return to_half(f); }

const int WARP = 32;
const u32 ALL_LANES = 0xffffffffu;
const int MAX_DRAFT = 8;
const int MAX_EOS = 8;

// Why an answer ended; `Stop` in step.rs.
enum { RUNNING = 0, EOS = 1, LENGTH = 2, NAN_LOGITS = 3, NO_LOGITS = 4 };

// An answer as it grows; `Step` in step.rs.
struct Step {
    int cache_len; // rows of the KV cache in use
    int position;  // of the newest token
    int newest;    // id of the newest token, which the next pass is fed
    int n_draft;   // drafts that the next pass is fed behind it
    int draft[MAX_DRAFT];
    int n_out;   // tokens of the answer
    int max_out; // most
    int stop;
    int taken; // tokens that the last pass gave
    int n_eos;
    int eos[MAX_EOS];
    u32 ticket;  // blocks of the running launch that are done
};
static_assert(sizeof(Step) == 4 * (10 + MAX_DRAFT + MAX_EOS), "Step::WORDS in step.rs");
