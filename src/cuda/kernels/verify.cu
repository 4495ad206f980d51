// Argmax of each row of logits, the longest accepted prefix of the drafts, the next token and the end of the answer, in one
// launch: grid (n, rows), blocks of VERIFY_THREADS. The block that is done last decides; nothing spins.

const int VERIFY_THREADS = 256;

// Orders floats as unsigned integers do; both zeros are one.
__device__ __forceinline__ u32 ordered(float f) {
    u32 bits = __float_as_uint(f + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The larger of two keys is the larger logit, among equals that of the lower id; NaN is above all.
__device__ __forceinline__ u64 logit_key(float logit, u32 id) {
    u64 value = logit != logit ? 0xffffffffu : ordered(logit);
    return value << 32 | (0xffffffffu - id);
}

__device__ __forceinline__ u64 warp_max(u64 key) {
    for (int lane = WARP / 2; lane > 0; lane /= 2) {
        u64 other = __shfl_xor_sync(ALL_LANES, key, lane);
        key = other > key ? other : key;
    }
    return key;
}

// Best key of `row[begin..end]` that this thread sees.
template <typename T> __device__ u64 best_logit(const T *row, int begin, int end) {
    const int PACK = 16 / sizeof(T);
    float best = __int_as_float(0xff800000); // minus infinity
    int id = -1;
    bool is_nan = false;
    // Whole packs of 16 bytes between two ends.
    int head = int(((16 - ((u64)(row + begin) & 15)) & 15) / sizeof(T));
    int body = begin + min(head, end - begin);
    int packs = (end - body) / PACK;
    auto see = [&](float logit, int at) {
        is_nan |= logit != logit;
        if (logit > best) {
            best = logit;
            id = at;
        }
    };
    for (int at = begin + (int)threadIdx.x; at < body; at += VERIFY_THREADS) see(to_float(row[at]), at);
    for (int pack = threadIdx.x; pack < packs; pack += VERIFY_THREADS) {
        union {
            uint4 whole;
            T part[PACK];
        } in;
        in.whole = ((const uint4 *)(row + body))[pack];
#pragma unroll
        for (int i = 0; i < PACK; i++) see(to_float(in.part[i]), body + pack * PACK + i);
    }
    for (int at = body + packs * PACK + (int)threadIdx.x; at < end; at += VERIFY_THREADS) see(to_float(row[at]), at);
    if (is_nan) return ~0ull;
    return id < 0 ? 0 : logit_key(best, id);
}

// Takes the tokens that a pass gave: the accepted drafts and the target's own next one, fewer if one ends the answer.
__device__ void take(Step *step, int *out, const u64 *keys) {
    int taken = 0, stop = RUNNING, newest = step->newest;
    for (int row = 0; row <= step->n_draft && stop == RUNNING; row++) {
        u32 value = u32(keys[row] >> 32);
        // Minus infinity is the smallest of keys, but for no logit at all.
        if (value == 0xffffffffu || value == 0) {
            stop = value ? NAN_LOGITS : NO_LOGITS;
            break;
        }
        newest = int(0xffffffffu - u32(keys[row]));
        out[step->n_out + taken] = newest;
        taken++;
        for (int i = 0; i < step->n_eos; i++)
            if (newest == step->eos[i]) stop = EOS;
        if (stop == RUNNING && step->n_out + taken >= step->max_out) stop = LENGTH;
        if (row < step->n_draft && newest != step->draft[row]) break;
    }
    step->n_out += taken;
    step->cache_len += taken;
    step->position += taken;
    step->newest = newest;
    step->n_draft = 0;
    step->taken = taken;
    step->stop = stop;
}

template <typename T> __device__ void verify(Step *step, u64 *best, int *out, const T *logits, int vocab) {
    __shared__ u64 partial[VERIFY_THREADS / WARP];
    __shared__ u64 keys[MAX_DRAFT + 1];
    __shared__ bool is_last;
    const int row = blockIdx.y;
    const int rows = step->n_draft + 1;
    // Replays that were queued before the answer ended.
    if (step->stop != RUNNING) return;
    u64 key = 0;
    if (row < rows) {
        int share = (vocab + gridDim.x - 1) / gridDim.x;
        int begin = min(int(blockIdx.x) * share, vocab), end = min(begin + share, vocab);
        key = best_logit(logits + (i64)row * vocab, begin, end);
    }
    key = warp_max(key);
    if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = key;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < VERIFY_THREADS / WARP; i++) key = partial[i] > key ? partial[i] : key;
        if (row < rows) atomicMax(&best[row], key);
        __threadfence();
        is_last = atomicAdd(&step->ticket, 1u) == gridDim.x * gridDim.y - 1;
    }
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    // Left as it was found, for the next replay.
    if (int(threadIdx.x) < rows) keys[threadIdx.x] = atomicExch(&best[threadIdx.x], 0ull);
    __syncthreads();
    if (threadIdx.x == 0) {
        step->ticket = 0;
        take(step, out, keys);
    }
}

extern "C" __global__ void __launch_bounds__(VERIFY_THREADS) verify_f16(Step *step, u64 *best, int *out, const f16 *logits, int vocab) {
    verify(step, best, out, logits, vocab);
}

extern "C" __global__ void __launch_bounds__(VERIFY_THREADS) verify_f32(Step *step, u64 *best, int *out, const float *logits, int vocab) {
    verify(step, best, out, logits, vocab);
}
