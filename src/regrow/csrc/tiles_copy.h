// Images to batch tiles and back, by transposing squares in registers; included once for each instruction set.

// `count` elements that follow one another in each of `present` images, and the line of each in the tile: line(k)
// elements from `lines`. The last square overlaps the one before it.
template <class T, bool TO_TILES, class Line>
inline void copy_run(T* images, int64_t batch_stride, int64_t present, int64_t count, T* lines, Line line) {
    constexpr int L = LANES<T>;
    if (count < L) {
        for (int64_t k = 0; k < count; k++)
            for (int64_t n = 0; n < TILE; n++) {
                T* const tiled = lines + line(k) + n;
                if (TO_TILES) *tiled = n < present ? images[n * batch_stride + k] : T(0);
                else if (n < present) images[n * batch_stride + k] = *tiled;
            }
        return;
    }
    for (int64_t start = 0; start < count; start += L) {
        const int64_t k = start < count - L ? start : count - L;
        T* at[L];
        for (int i = 0; i < L; i++) at[i] = lines + line(k + i);
        for (int64_t n = 0; n < TILE; n += L) { // L images
            T* const from = images + n * batch_stride + k;
            Vector<T> v[L];
            if (TO_TILES) {
#pragma GCC unroll 16
                for (int i = 0; i < L; i++) v[i] = n + i < present ? load_unaligned(from + i * batch_stride) : Vector<T>{};
                transpose<T>(v);
#pragma GCC unroll 16
                for (int i = 0; i < L; i++) store(at[i] + n, v[i]);
            } else {
#pragma GCC unroll 16
                for (int i = 0; i < L; i++) v[i] = load(at[i] + n);
                transpose<T>(v);
#pragma GCC unroll 16
                for (int i = 0; i < L; i++)
                    if (n + i < present) store_unaligned(from + i * batch_stride, v[i]);
            }
        }
    }
}

// Channels [begin, end) of tile t.
template <class T, bool TO_TILES>
inline void copy_tiles(const Tiling<T>& args, int64_t t, int64_t begin, int64_t end) {
    const Tiling<T> a = args;
    const Geometry g = a.geometry;
    const int64_t size = g.size(), present = g.present(t);
    T* const images = a.images + t * TILE * a.batch_stride + begin * a.channel_stride;
    T* const tile = a.buffer + (t * a.channels + begin) * size;
    if (a.by_channel) {
        for (int64_t h = 0; h < g.height; h++)
            for (int64_t w = 0; w < g.width; w++)
                copy_run<T, TO_TILES>(images + h * a.row_stride + w * a.pixel_stride, a.batch_stride, present, end - begin,
                                      tile + (g.first() + h * g.row() + w) * TILE,
                                      [&](int64_t channel) { return channel * size; });
    } else {
        for (int64_t c = 0; c < end - begin; c++)
            copy_run<T, TO_TILES>(images + c * a.channel_stride, a.batch_stride, present, g.pixels(), tile + c * size,
                                  [&](int64_t pixel) { return g.line(pixel) * TILE; });
    }
}
