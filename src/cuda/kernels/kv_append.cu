// Puts the new rows of every KV tensor behind those in use; one thread moves 16 bytes.

extern "C" __global__ void kv_append(Step *step, uint4 *cache, const uint4 *fresh, int heads, int capacity, int rows, int packs) {
    if (step->stop != RUNNING) return;
    const i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (i64)heads * rows * packs) return;
    const int pack = int(at % packs), row = int(at / packs % rows);
    const i64 head = at / packs / rows;
    // A pass of a bucket has rows that nobody asked for.
    if (row > step->n_draft) return;
    const int slot = step->cache_len + row;
    if (slot < capacity) cache[(head * capacity + slot) * packs + pack] = fresh[at];
}
