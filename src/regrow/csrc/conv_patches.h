// How kernels for convolutions walk over an image, included once for each instruction set.

template <int N> struct Number { static constexpr int value = N; };

// Pixels that a kernel with so many accumulators holds at a time, at least one.
template <class T, int VECTORS>
constexpr int PIXELS = VECTORS * LANES<T> / TILE > 0 ? VECTORS * LANES<T> / TILE : 1;

// Fetches a patch of one channel from memory.
template <class T, int R, int Q>
inline void fetch(const T* patch, int64_t row, int64_t pixel) {
    for (int k = 0; k < R * Q; k++) __builtin_prefetch(patch + k / Q * row + k % Q * pixel, 0, 2);
}

// Fetches from memory what the next patch will read of the channels of a block, in `shares` shares.
template <class T, int R, int Q>
class FetchNext {
public:
    FetchNext(const T* patch, const Pixels<const T>& of, const ChannelList& read, int64_t block, int64_t shares)
        : patch_(patch), channel_(of.channels), row_(of.rows), pixel_(of.pixels), next_(read.all + read.start[block]),
          rest_(read.start[block + 1] - read.start[block]), shares_(shares), due_(0) {}
    void operator()() {
        for (due_ += rest_; due_ >= shares_; due_ -= shares_) fetch<T, R, Q>(patch_ + *next_++ * channel_, row_, pixel_);
    }

private:
    const T* patch_;
    int64_t channel_, row_, pixel_;
    const int32_t* next_;
    int64_t rest_, shares_, due_;
};

template <int R, int Q, class F>
inline void patch_of_width(int64_t width, const F& f) {
    if constexpr (Q > 1) {
        if (width < Q) return patch_of_width<R, Q - 1>(width, f);
    }
    if constexpr (Q > 0) f(Number<R>{}, Number<Q>{});
}

// The first pixel of a patch, and of the next one.
struct Place { int64_t p, q, next_p, next_q; };

// Calls f(height, width, place, block) for patches of at most `PIXELS` pixels that cover the rows [begin, end) of pixels:
// one row high, or two or four where the image is narrow; each patch for one block after another.
template <class T, int VECTORS, class F>
inline void patches(int64_t begin, int64_t end, int64_t width, int64_t blocks, const F& f) {
    constexpr int MOST = PIXELS<T, VECTORS>;
    for (int64_t p = begin, high; p < end; p += high) {
        high = MOST >= 4 * width && end - p >= 4 ? 4 : MOST >= 2 * width && end - p >= 2 ? 2 : 1;
        const int64_t count = (width * high + MOST - 1) / MOST;
        for (int64_t i = 0, q = 0, stop; i < count; i++, q = stop) {
            stop = (i + 1) * width / count;
            const int64_t wide = stop - q;
            const Place place = stop < width ? Place{p, q, p, stop} : Place{p, q, p + high, 0};
            for (int64_t block = 0; block < blocks; block++) {
                const auto at = [&](auto r, auto w) { f(r, w, place, block); };
                if (high == 4) patch_of_width<4, MOST / 4>(wide, at);
                else if (high == 2) patch_of_width<2, MOST / 2>(wide, at);
                else patch_of_width<1, MOST>(wide, at);
            }
        }
    }
}
