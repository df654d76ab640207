// y = activation(W x + bias), included once for each instruction set.
//
// One row's batch elements stay in registers while the row's connections in a block of columns pass; the block is
// chosen such that its activations stay in the nearest cache. A connection is then one load for each FMA.

template <class T, int N>
inline void forward_tile(const Forward<T>& args, int64_t begin, int64_t end, int64_t tile, int32_t* cursor) {
    constexpr int L = LANES<T>;
    constexpr int SIDE = N > 2 ? 1 : 4 / N; // connections side by side, where one alone would wait for its sum
    const Forward<T> a = args; // a copy, which no store can change
    const T* const x = a.x.data + tile * a.x.tile_stride;
    T* const y = a.y.data + tile * a.y.tile_stride;
    T* const before = a.sum.data + tile * a.sum.tile_stride;
    // lines of the index that a row has in a block, on average
    const int64_t lines = a.block < a.columns && begin < end
                              ? 1 + (a.crow[end] - a.crow[begin]) / (end - begin) * a.block / a.columns / 16
                              : 0;
    const int64_t xs = a.x.row_stride, ys = a.y.row_stride;
    for (int64_t start = 0; start == 0 || start < a.columns; start += a.block) {
        const bool first = start == 0, last = start + a.block >= a.columns;
        const int32_t stop = int32_t(last ? a.columns : start + a.block);
        for (int64_t r = begin; r < end; r++) {
            int32_t j = first ? a.crow[r] : cursor[r - begin];
            const int32_t row_end = a.crow[r + 1];
            const bool some = j < row_end && a.col[j] < stop;
            if (!some && !first && !(last && a.activation != Activation::none)) continue;
            T* const out = y + r * ys;
            Vector<T> sum[N];
            if (first) {
                const Vector<T> bias = splat(a.bias ? a.bias[r] : T(0));
                for (int n = 0; n < N; n++) sum[n] = bias;
            } else {
                for (int n = 0; n < N; n++) sum[n] = load(out + n * L);
            }
            const int32_t soon = first ? a.crow[r + 1] : cursor[r + 1 - begin];
            for (int i = 0; i < lines; i++) {
                __builtin_prefetch(a.col + soon + 16 * i);
                __builtin_prefetch(a.values + soon + L * i);
            }
            const auto add = [&](int32_t at, Vector<T>* to) {
                const T* const in = x + a.col[at] * xs;
                const Vector<T> w = splat(a.values[a.order ? a.order[at] : at]);
                for (int n = 0; n < N; n++) to[n] += w * load(in + n * L);
            };
            if constexpr (SIDE > 1) {
                Vector<T> side[SIDE - 1][N] = {};
                for (; j + SIDE <= row_end && a.col[j + SIDE - 1] < stop; j += SIDE) {
                    add(j, sum);
                    for (int i = 1; i < SIDE; i++) add(j + i, side[i - 1]);
                }
                for (int i = 1; i < SIDE; i++)
                    for (int n = 0; n < N; n++) sum[n] += side[i - 1][n];
            }
            for (; j < row_end && a.col[j] < stop; j++) add(j, sum);
            if (!last) cursor[r - begin] = j;
            if (last && a.activation != Activation::none) {
                if (a.sum.data)
                    for (int n = 0; n < N; n++) store(before + r * a.sum.row_stride + n * L, sum[n]);
                for (int n = 0; n < N; n++) sum[n] = activate(sum[n], a.activation);
            }
            for (int n = 0; n < N; n++) store(out + n * L, sum[n]);
        }
    }
}

template <class T, int N = FORWARD_VECTORS>
inline void forward(const Forward<T>& a, int64_t begin, int64_t end, int64_t tile, int32_t* cursor) {
    // the fewest vectors that hold the tile
    constexpr int64_t width = FORWARD_VECTORS * LANES<T>;
    if constexpr (N > 1) {
        if (a.batch - tile * width <= (N - 1) * LANES<T>) return forward<T, N - 1>(a, begin, end, tile, cursor);
    }
    for (int64_t row = begin; row < end; row += a.chunk)
        forward_tile<T, N>(a, row, row + a.chunk < end ? row + a.chunk : end, tile, cursor);
}
