// What the decoder reads for a prompt: embeddings of its ids and rows of the frame. Row i is the embedding of id source[i], or,
// where that is negative, visual row -1 - source[i]; rows of source THERE stay as they are. Grid: a block a row; any number of
// threads.

const int THERE = -2147483647 - 1;

template <typename T, typename V, typename Out>
__device__ void prompt_rows(Out *rows, const int *source, const T *table, const float *scales, const V *visual, int vocab, int d) {
    const i64 row = blockIdx.x;
    const int from = source[row];
    if (from == THERE) return;
    const bool is_visual = from < 0, is_known = is_visual || from < vocab;
    for (int at = threadIdx.x; at < d; at += blockDim.x) {
        float value = 0.0f;
        if (is_visual) value = to_float(visual[(i64)(-1 - from) * d + at]);
        else if (is_known) value = element(table, scales, from, d, at);
        rows[row * d + at] = from_float<Out>(value);
    }
}

#define PROMPT_ROWS(name, T, V)                                                                                                     \
    extern "C" __global__ void name(V *rows, const int *source, const T *table, const float *scales, const V *visual, int vocab, int d) { \
        prompt_rows(rows, source, table, scales, visual, vocab, d);                                                                  \
    }

PROMPT_ROWS(prompt_rows_f32_f32, float, float)
PROMPT_ROWS(prompt_rows_f16_f32, f16, float)
PROMPT_ROWS(prompt_rows_i8_f32, signed char, float)
PROMPT_ROWS(prompt_rows_f16_f16, f16, f16)
PROMPT_ROWS(prompt_rows_i8_f16, signed char, f16)
