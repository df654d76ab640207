// Gradients of a convolution's input and values in one sweep, included once for each instruction set.
//
// A patch of pixels of one input channel and of its gradient stay in registers while the channel's connections in a
// block of output channels pass: each loads one run of the output gradient, which serves both products.

// Adds the sums of the products of `count` connections to their place.
template <class T>
inline void add_sums(Vector<T>* products, int count, T* sums_) {
    constexpr int L = LANES<T>;
    for (int i = count; i < L; i++) products[i] = Vector<T>{};
    const Vector<T> sum = sums<T>(products);
    if (count == L) return store_unaligned(sums_, load_unaligned(sums_) + sum);
    for (int i = 0; i < count; i++) sums_[i] += sum[i];
}

constexpr int64_t AHEAD = 16; // channels from the fetch of an input to its use

template <class T, bool INPUT, int VALUES, int R, int Q>
inline void conv_backward_patch(const ConvBackward<T>& args, const T* g, const T* x, T* dx, const T* passed,
                                int64_t next_row, int64_t next_pixel, int64_t block) {
    constexpr int L = LANES<T>, V = TILE / L;
    const ConvBackward<T> a = args; // a copy, which no store can change
    const bool first = block == 0, stream = a.large && a.blocks == 1;
    const int32_t* const start = a.start + block * (a.inputs + 1);
    const int64_t gr = a.gradient.rows, xr = a.x.rows, xp = a.x.pixels, dr = a.dx.rows, dp = a.dx.pixels;
    const int64_t ahead = a.inputs < AHEAD ? a.inputs : AHEAD, to_next = next_row * xr + next_pixel * xp;
    FetchNext<T, R, Q> fetch_next(g + next_row * gr + next_pixel * TILE + a.below, a.gradient, a.read, block, a.inputs);
    Vector<T> product[L]; // of connections that wait to be summed a vector full at a time
    int waiting = 0;
    int32_t j = start[0];
    for (int64_t c = 0; c < a.inputs; c++, x += a.x.channels, dx += a.dx.channels) {
        const int32_t end = start[c + 1];
        if (a.large) {
            fetch_next();
            const bool wraps = c + ahead >= a.inputs; // to the next patch
            const int64_t far = wraps ? ahead - a.inputs : ahead, soon = far * a.x.channels + (wraps ? to_next : 0);
            if (VALUES && first && start[c + far] < start[c + far + 1]) fetch<T, R, Q>(x + soon, xr, xp);
            if (INPUT && passed) fetch<T, R, Q>(passed + c * a.dx.channels + soon, dr, dp);
            if (INPUT && first && !stream) fetch<T, R, Q>(dx + soon, dr, dp);
        }
        if (j == end && !(INPUT && first)) continue;
        Vector<T> in[R][Q * V], sum[R][Q * V];
        for (int r = 0; r < R; r++)
            for (int n = 0; n < Q * V; n++) {
                if (VALUES && j < end) in[r][n] = load(x + r * xr + n / V * xp + n % V * L);
                if (INPUT) sum[r][n] = first ? Vector<T>{} : load(dx + r * dr + n / V * dp + n % V * L);
            }
        for (; j < end; j++) {
            const T* const out = g + a.offset[j];
            const Vector<T> w = splat(a.values[j]);
            Vector<T> p[2] = {};
            for (int r = 0; r < R; r++)
                for (int n = 0; n < Q * V; n++) {
                    const Vector<T> o = hold(load(out + r * gr + n * L));
                    if (INPUT) sum[r][n] += w * o;
                    if (VALUES) p[n % 2] += in[r][n] * o;
                }
            if (VALUES == 2) {
                T* const at = a.products + int64_t(j) * L;
                store(at, load(at) + (p[0] + p[1]));
            } else if (VALUES == 1) {
                product[waiting] = p[0] + p[1];
                if (++waiting == L) {
                    add_sums<T>(product, L, a.sums + j + 1 - L);
                    waiting = 0;
                }
            }
        }
        if (INPUT && passed) // at the end, when it has come
            for (int r = 0; r < R; r++)
                for (int n = 0; n < Q * V; n++)
                    sum[r][n] += load(passed + c * a.dx.channels + r * dr + n / V * dp + n % V * L);
        for (int r = 0; INPUT && r < R; r++)
            for (int n = 0; n < Q * V; n++) {
                T* const to = dx + r * dr + n / V * dp + n % V * L;
                stream ? store_past_caches(to, sum[r][n]) : store(to, sum[r][n]);
            }
    }
    if (VALUES == 1) add_sums<T>(product, waiting, a.sums + j - waiting);
}

template <class T, bool INPUT, int VALUES>
inline void conv_backward_tile(const ConvBackward<T>& a, int64_t tile) {
    const T* const g = a.gradient.data + tile * a.gradient.tiles;
    const T* const x = a.x.data + tile * a.x.tiles;
    T* const dx = INPUT ? a.dx.data + tile * a.dx.tiles : nullptr;
    const T* const passed = a.passed ? a.passed + tile * a.dx.tiles : nullptr;
    const auto patch = [&](auto r, auto w, const Place& place, int64_t block) {
        const int64_t at = place.p * a.dx.rows + place.q * a.dx.pixels;
        conv_backward_patch<T, INPUT, VALUES, r.value, w.value>(
            a, g + place.p * a.gradient.rows + place.q * TILE, x + place.p * a.x.rows + place.q * a.x.pixels, dx + at,
            passed && block == 0 ? passed + at : nullptr, place.next_p - place.p, place.next_q - place.q, block);
    };
    patches<T, CONV_BACKWARD_VECTORS>(0, a.height, a.width, a.blocks, patch);
}

template <class T>
void conv_backward(const ConvBackward<T>& a, int64_t tile) {
    if (!a.sums) conv_backward_tile<T, true, 0>(a, tile);
    else if (a.dx.data) a.products ? conv_backward_tile<T, true, 2>(a, tile) : conv_backward_tile<T, true, 1>(a, tile);
    else a.products ? conv_backward_tile<T, false, 2>(a, tile) : conv_backward_tile<T, false, 1>(a, tile);
    if (a.large) fence();
}

template <class T>
void conv_reduce(const T* products, T* sums_, int64_t connections) {
    constexpr int L = LANES<T>;
    Vector<T> product[L];
    for (int64_t j = 0; j < connections; j += L) {
        const int count = connections - j < L ? int(connections - j) : L;
        for (int i = 0; i < count; i++) product[i] = load(products + (j + i) * L);
        add_sums<T>(product, count, sums_ + j);
    }
}
