// How kernels walk over a channel of a tile, and what they write around its pixels; included once for each instruction set.

template <class T> constexpr int LINE = TILE / LANES<T>;                    // vectors in a line
template <class T> constexpr int STEP = LINE<T> > 4 ? LINE<T> : 4;          // vectors at a time: sums of their own

// Calls step(i, u) for each vector of each row of pixels, i elements from the channel's start, u < STEP with lanes
// of the same images for the same u, and between(i, end) for what is no pixel, all in the order of memory.
template <class T, class Step, class Between>
inline void each_vector(const Geometry& g, Step step, Between between) {
    constexpr int L = LANES<T>;
    const int64_t vectors = g.width * LINE<T>;
    int64_t row = g.first() * TILE, gap = 0;
    for (int64_t h = 0; h < g.height; h++, row += g.row() * TILE) {
        between(gap, row);
        gap = row + vectors * L;
        int64_t n = 0;
        for (; n + STEP<T> <= vectors; n += STEP<T>)
#pragma GCC unroll 8
            for (int u = 0; u < STEP<T>; u++) step(row + (n + u) * L, u);
        for (; n < vectors; n += LINE<T>)
#pragma GCC unroll 8
            for (int u = 0; u < LINE<T>; u++) step(row + (n + u) * L, u);
    }
    between(gap, g.size());
}
template <class T, class Step>
inline void each_vector(const Geometry& g, Step step) {
    each_vector<T>(g, step, [](int64_t, int64_t) {});
}

template <class T>
inline void put(T* to, Vector<T> v, bool large) {
    large ? store_past_caches(to, v) : store(to, v);
}

template <class T>
inline void put_zeros(T* to, int64_t i, int64_t end, bool large) {
    for (; i < end; i += LANES<T>) put(to + i, Vector<T>{}, large);
}

// Writes value(i) to each vector of pixels and zeros around them; past the caches where they are too small to hold it.
template <class T, class Value>
inline void write_plane(T* to, bool large, const Geometry& g, Value value) {
    each_vector<T>(
        g, [&](int64_t i, int) { put(to + i, value(i), large); },
        [&](int64_t i, int64_t end) { put_zeros(to, i, end, large); });
    if (large) fence();
}

// Zeros around the pixels of some channels that follow one another.
template <class T>
void clear_borders(const Geometry& geometry, T* to, int64_t channels, bool large) {
    const Geometry g = geometry;
    for (int64_t c = 0; c < channels; c++, to += g.size())
        each_vector<T>(g, [](int64_t, int) {}, [&](int64_t i, int64_t end) { put_zeros(to, i, end, large); });
    if (large) fence();
}
