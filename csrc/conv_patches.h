// How kernels for convolutions walk over an image, included once for each instruction set.

template <int N> struct Number { static constexpr int value = N; };

// Pixels that a kernel with so many accumulators holds at a time, at least one.
template <class T, int VECTORS>
constexpr int PIXELS = VECTORS * LANES<T> / TILE > 0 ? VECTORS * LANES<T> / TILE : 1;

// Fetches from memory what the next patch, beside this one or below, will read of some channels: the i-th of n shares of
// a block of `size` from `first` on, of `all` there are.
struct Channels {
    int64_t first, size, all;
};
template <class T, int R, int Q>
inline void fetch_next(const T* at, int64_t channel, int64_t row, int64_t pixel, Channels block, int64_t i, int64_t n) {
    const T* const next = at + (R > 1 ? R * row : Q * pixel);
    const int64_t count = block.all - block.first < block.size ? block.all - block.first : block.size;
    for (int64_t c = block.first + i * count / n; c < block.first + (i + 1) * count / n; c++)
        for (int k = 0; k < R * Q; k++) __builtin_prefetch(next + c * channel + k / Q * row + k % Q * pixel, 0, 2);
}

template <int R, int Q, class F>
inline void patch_of_width(int64_t width, const F& f) {
    if constexpr (Q > 1) {
        if (width < Q) return patch_of_width<R, Q - 1>(width, f);
    }
    if constexpr (Q > 0) f(Number<R>{}, Number<Q>{});
}

// Calls f(height, width, p, q, block) for patches of at most `PIXELS` pixels that cover the rows [begin, end) of pixels:
// one row high, or two or four where the image is narrow; each patch for one block after another.
template <class T, int VECTORS, class F>
inline void patches(int64_t begin, int64_t end, int64_t width, int64_t blocks, const F& f) {
    constexpr int MOST = PIXELS<T, VECTORS>;
    for (int64_t p = begin, high; p < end; p += high) {
        high = MOST >= 4 * width && end - p >= 4 ? 4 : MOST >= 2 * width && end - p >= 2 ? 2 : 1;
        const int64_t count = (width * high + MOST - 1) / MOST;
        for (int64_t i = 0; i < count; i++)
            for (int64_t block = 0; block < blocks; block++) {
                const int64_t q = i * width / count, wide = (i + 1) * width / count - q;
                const auto at = [&](auto r, auto w) { f(r, w, p, q, block); };
                if (high == 4) patch_of_width<4, MOST / 4>(wide, at);
                else if (high == 2) patch_of_width<2, MOST / 2>(wide, at);
                else patch_of_width<1, MOST>(wide, at);
            }
    }
}
