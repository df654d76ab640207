// y = W x + bias over batch tiles, included once for each instruction set.
//
// A patch of pixels stays in registers while the connections of one output channel, in a block of input channels, pass;
// the block is chosen such that what the patch reads of it stays in the nearest cache.

// STRIDE: that of the input's pixels, 0: any.
template <class T, int STRIDE, int R, int Q>
inline void conv_forward_patch(const ConvForward<T>& args, const T* x, T* y, const T* residual, int64_t next_row,
                               int64_t next_pixel, int64_t block) {
    constexpr int L = LANES<T>, V = TILE / L;
    const ConvForward<T> a = args; // a copy, which no store can change
    const bool first = block == 0, stream = a.large && a.blocks == 1;
    const int32_t* const start = a.start + block * a.outputs;
    const int64_t step = STRIDE ? STRIDE * TILE : a.x.pixels, xr = a.x.rows, yr = a.y.rows;
    FetchNext<T, R, Q> fetch_next(x + next_row * xr + next_pixel * step + a.below, a.x, a.read, block, a.outputs);
    for (int64_t o = 0; o < a.outputs; o++, y += a.y.channels) {
        int32_t j = start[o];
        const int32_t end = start[o + a.outputs];
        if (a.large) {
            fetch_next();
            if (residual) fetch<T, R, Q>(residual + o * a.y.channels + next_row * yr + next_pixel * TILE, yr, TILE);
        }
        if (j == end && !first) continue;
        const Vector<T> bias = splat(first && a.bias ? a.bias[o] : T(0));
        Vector<T> sum[R][Q * V];
        for (int r = 0; r < R; r++)
            for (int n = 0; n < Q * V; n++) sum[r][n] = first ? bias : load(y + r * yr + n * L);
        for (; j < end; j++) {
            const T* const in = x + a.offset[j];
            const Vector<T> w = splat(a.values[j]);
            for (int r = 0; r < R; r++)
                for (int n = 0; n < Q * V; n++) sum[r][n] += w * load(in + r * xr + n / V * step + n % V * L);
        }
        if (residual) // at the end, when it has come
            for (int r = 0; r < R; r++)
                for (int n = 0; n < Q * V; n++) sum[r][n] += load(residual + o * a.y.channels + r * yr + n * L);
        for (int r = 0; r < R; r++)
            for (int n = 0; n < Q * V; n++)
                stream ? store_past_caches(y + r * yr + n * L, sum[r][n]) : store(y + r * yr + n * L, sum[r][n]);
    }
}

template <class T, int STRIDE>
inline void conv_forward_rows(const ConvForward<T>& a, int64_t tile, int64_t begin, int64_t end) {
    const T* const x = a.x.data + tile * a.x.tiles;
    T* const y = a.y.data + tile * a.y.tiles;
    const T* const residual = a.residual ? a.residual + tile * a.y.tiles : nullptr;
    const auto patch = [&](auto r, auto w, const Place& place, int64_t block) {
        const int64_t at = place.p * a.y.rows + place.q * TILE;
        conv_forward_patch<T, STRIDE, r.value, w.value>(a, x + place.p * a.x.rows + place.q * a.x.pixels, y + at,
                                                        residual && block == 0 ? residual + at : nullptr,
                                                        place.next_p - place.p, place.next_q - place.q, block);
    };
    patches<T, CONV_FORWARD_VECTORS>(begin, end, a.width, a.blocks, patch);
}

template <class T>
void conv_forward(const ConvForward<T>& a, int64_t tile, int64_t begin, int64_t end) {
    if (a.x.pixels == TILE) conv_forward_rows<T, 1>(a, tile, begin, end);
    else if (a.x.pixels == 2 * TILE) conv_forward_rows<T, 2>(a, tile, begin, end);
    else conv_forward_rows<T, 0>(a, tile, begin, end);
    if (a.large) fence();
}
