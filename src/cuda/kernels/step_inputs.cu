// What the decoder reads for a step: embeddings of the newest token and of its drafts (zeros for an id that is none: it is
// never accepted), their positions, and which slots
// of the cache count. Grid: blocks in turn take rows of embeddings, and all take the mask; any number of threads.

template <typename T, typename S> __device__ __forceinline__ float element(const T *table, const S *, i64 row, int d, int at) {
    return to_float(table[row * d + at]);
}

__device__ __forceinline__ float element(const signed char *table, const float *scales, i64 row, int d, int at) {
    return table[row * d + at] * scales[row];
}

template <typename T, typename Out>
__device__ void step_inputs(Step *step, Out *embeds, i64 *positions, i64 *mask, const T *table, const float *scales, int vocab, int d,
                            int rows, int capacity) {
    if (step->stop != RUNNING) return;
    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        const bool is_fed = row <= step->n_draft;
        // Rows of the bucket that nobody asked for repeat the newest token.
        int id = row > 0 && is_fed ? step->draft[row - 1] : step->newest;
        const bool is_known = id >= 0 && id < vocab;
        for (int at = threadIdx.x; at < d; at += blockDim.x)
            embeds[(i64)row * d + at] = from_float<Out>(is_known ? element(table, scales, id, d, at) : 0.0f);
        if (threadIdx.x == 0) {
            positions[row] = step->position + row;
            mask[capacity + row] = is_fed;
        }
    }
    const i64 stride = (i64)gridDim.x * blockDim.x;
    for (i64 slot = (i64)blockIdx.x * blockDim.x + threadIdx.x; slot < capacity; slot += stride) mask[slot] = slot < step->cache_len;
}

#define STEP_INPUTS(name, T, Out)                                                                                                   \
    extern "C" __global__ void name(Step *step, Out *embeds, i64 *positions, i64 *mask, const T *table, const float *scales, int vocab, \
                                    int d, int rows, int capacity) {                                                                 \
        step_inputs(step, embeds, positions, mask, table, scales, vocab, d, rows, capacity);                                         \
    }

STEP_INPUTS(step_inputs_f32_f32, float, float)
STEP_INPUTS(step_inputs_f16_f32, f16, float)
STEP_INPUTS(step_inputs_i8_f32, signed char, float)
STEP_INPUTS(step_inputs_f16_f16, f16, f16)
STEP_INPUTS(step_inputs_i8_f16, signed char, f16)
