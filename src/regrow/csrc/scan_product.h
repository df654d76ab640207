// The product of a packed sparse matrix and a slice, included once for each instruction set.

// Adds to `sums`, or sets them in the first block.
template <class T, bool FIRST>
inline void block_product(const Part<T>& part, int64_t block, const T* x, T* sums, const uint16_t*& row, const uint16_t*& at,
                          const T*& values) {
    constexpr int L = LANES<T>, N = SLICE / L;
    constexpr int CHAINS = N > 2 ? (N > 4 ? 1 : 2) : 4;
    for (int64_t r = part.ends[block]; r < part.ends[block + 1]; r++) {
        const Run run = part.runs[r];
        for (int32_t i = 0; i < run.rows; i++) {
            T* const out = sums + *row++ * SLICE;
            Vector<T> sum[CHAINS][N] = {};
            if (!FIRST)
                for (int n = 0; n < N; n++) sum[0][n] = load(out + n * L);
            for (int32_t group = 0; group < run.groups; group++) {
#pragma GCC unroll 4
                for (int s = 0; s < SIDE; s++) {
                    const T* const in = reinterpret_cast<const T*>(reinterpret_cast<const char*>(x) + 8 * int64_t(at[s]));
                    const Vector<T> w = splat(values[s]);
                    for (int n = 0; n < N; n++) sum[s % CHAINS][n] += w * load(in + n * L);
                }
                at += SIDE;
                values += SIDE;
            }
            for (int n = 0; n < N; n++) {
                Vector<T> all = sum[0][n];
                for (int s = 1; s < CHAINS; s++) all += sum[s][n];
                store(out + n * L, all);
            }
        }
    }
}

template <class T, bool ADD>
inline void packed_product(const Packed<T>& weight, const Part<T>& part, const T* x, T* sums) {
    const uint16_t *row = part.row, *at = part.at;
    const T* values = part.values;
    const int64_t stride = (weight.blocks.size + 1) * SLICE;
    for (int64_t block = 0; block < weight.blocks.count; block++) {
        if (block == 0 && !ADD) block_product<T, true>(part, block, x, sums, row, at, values);
        else block_product<T, false>(part, block, x + block * stride, sums, row, at, values);
    }
}
