// Scores visual rows, keeps the best and moves them together, in one launch: a warp a row, blocks of PRUNE_THREADS. The block
// that is done last chooses and moves; nothing spins.

const int PRUNE_THREADS = 512;
const int PRUNE_WARPS = PRUNE_THREADS / WARP;
// Most rows: each thread of the last block owns as many neighbours.
const int PRUNE_OWN = 4;
const int PRUNE_ROWS = PRUNE_THREADS * PRUNE_OWN;

// Minus the length of a row, which a warp reads.
template <typename T> __device__ float shortness(const T *row, int d) {
    const int PACK = 16 / sizeof(T);
    float sum = 0.0f;
    for (int pack = threadIdx.x % WARP; pack < d / PACK; pack += WARP) {
        union {
            uint4 whole;
            T part[PACK];
        } in;
        in.whole = ((const uint4 *)row)[pack];
#pragma unroll
        for (int i = 0; i < PACK; i++) {
            float x = to_float(in.part[i]);
            sum += x * x;
        }
    }
    for (int lane = WARP / 2; lane > 0; lane /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, lane);
    return -sqrtf(sum);
}

// Sum of a number over the block, in every thread; `partial` has one for each warp.
__device__ int block_sum(int value, int *partial) {
    for (int lane = WARP / 2; lane > 0; lane /= 2) value += __shfl_xor_sync(ALL_LANES, value, lane);
    __syncthreads(); // whoever still read the last sum
    if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = value;
    __syncthreads();
    int sum = 0;
    for (int warp = 0; warp < PRUNE_WARPS; warp++) sum += partial[warp];
    return sum;
}

// Sum of a number over the threads before this one; `sums` has one for each thread.
__device__ u32 sum_before(u32 value, u32 *sums) {
    const int thread = threadIdx.x;
    sums[thread] = value;
    __syncthreads();
    for (int step = 1; step < PRUNE_THREADS; step *= 2) {
        u32 other = thread >= step ? sums[thread - step] : 0;
        __syncthreads();
        sums[thread] += other;
        __syncthreads();
    }
    return sums[thread] - value;
}

// Writes the `k` rows of the largest scores to `chosen`, ascending, of equals those that come first. False, and none is
// written, if a score is no number; then `chosen[0]` is -1 - the first such row.
__device__ bool choose(const volatile float *scores, int n, int k, int *chosen) {
    __shared__ int partial[PRUNE_WARPS];
    __shared__ u32 sums[PRUNE_THREADS];
    __shared__ int broken;
    const int first = threadIdx.x * PRUNE_OWN;
    u32 key[PRUNE_OWN];
    if (threadIdx.x == 0) broken = 0;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < PRUNE_OWN; i++) {
        float score = first + i < n ? scores[first + i] : 0.0f;
        key[i] = ordered(score);
        if ((__float_as_uint(score) & 0x7f800000u) == 0x7f800000u) atomicMax(&broken, n - (first + i));
    }
    __syncthreads();
    if (broken > 0) {
        if (threadIdx.x == 0) chosen[0] = -1 - (n - broken);
        return false;
    }
    // The k-th largest key, bit by bit: the largest that k keys reach.
    u32 least = 0;
    for (int bit = 31; bit >= 0; bit--) {
        u32 tried = least | 1u << bit;
        int reach = 0;
#pragma unroll
        for (int i = 0; i < PRUNE_OWN; i++) reach += first + i < n && key[i] >= tried;
        if (block_sum(reach, partial) >= k) least = tried;
    }
    int greater = 0, equal = 0;
#pragma unroll
    for (int i = 0; i < PRUNE_OWN; i++) {
        greater += first + i < n && key[i] > least;
        equal += first + i < n && key[i] == least;
    }
    const int wanted = k - block_sum(greater, partial);
    const u32 before = sum_before(u32(greater) << 16 | u32(equal), sums);
    greater = int(before >> 16);
    equal = int(before & 0xffff);
#pragma unroll
    for (int i = 0; i < PRUNE_OWN; i++) {
        if (first + i >= n) break;
        bool is_greater = key[i] > least, is_equal = key[i] == least;
        if (is_greater || (is_equal && equal < wanted)) chosen[greater + min(equal, wanted)] = first + i;
        greater += is_greater;
        equal += is_equal;
    }
    return true;
}

template <typename T>
__device__ void prune(const T *features, const float *given, float *scores, u32 *ticket, int *kept, T *rows, int n, int d, int k) {
    __shared__ int chosen[PRUNE_ROWS];
    __shared__ bool is_last;
    const int row = blockIdx.x * PRUNE_WARPS + threadIdx.x / WARP;
    if (given == 0 && row < n) {
        float score = shortness(features + (i64)row * d, d);
        if (threadIdx.x % WARP == 0) scores[row] = score;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        is_last = atomicAdd(ticket, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    bool is_chosen = choose(given ? given : scores, n, k, chosen);
    __syncthreads();
    // Left as it was found, for the next replay.
    if (threadIdx.x == 0) {
        *ticket = 0;
        if (!is_chosen) kept[0] = chosen[0];
    }
    if (!is_chosen) return;
    for (int at = threadIdx.x; at < k; at += PRUNE_THREADS) kept[at] = chosen[at];
    if (rows == 0) return;
    const int packs = int(d * sizeof(T) / 16);
    for (int at = threadIdx.x; at < k * packs; at += PRUNE_THREADS) {
        int slot = at / packs, pack = at % packs;
        ((uint4 *)rows)[(i64)slot * packs + pack] = ((const uint4 *)features)[(i64)chosen[slot] * packs + pack];
    }
}

#define PRUNE(name, T)                                                                                                            \
    extern "C" __global__ void __launch_bounds__(PRUNE_THREADS)                                                                    \
        name(const T *features, const float *given, float *scores, u32 *ticket, int *kept, T *rows, int n, int d, int k) {          \
        prune(features, given, scores, ticket, kept, rows, n, d, k);                                                               \
    }

PRUNE(prune_f16, f16)
PRUNE(prune_f32, float)
