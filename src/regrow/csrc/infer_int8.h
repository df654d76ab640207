// Convolutions of single images in int8, included once for each instruction set.
//
// The input is rounded to bytes while it is laid out. A run of an output channel's pixels stays in registers while its
// connections pass, two at a time: their runs are interleaved, so that one instruction makes both products and their sum, in
// 16 bits. A few pairs, a bundle, stay there (`regrow.inference.bundles` chooses them such that nothing overflows); then the
// sums are widened to 32 bits, without a multiplication or a shuffle: two neighbouring sums, which an offset keeps from
// being negative, are one number of 32 bits, first + 65536 * second; these are added up, the second ones too, and the
// first ones are their difference, all of it exactly, modulo 2^32.

constexpr int BYTES = VECTOR_BYTES; // pixels of a vector of bytes
constexpr int GRANULES = 2; // such vectors in registers

typedef uint8_t ByteVector __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef uint16_t WordVector __attribute__((vector_size(VECTOR_BYTES)));
typedef int16_t SignedWords __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t SumVector __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t SignedSums __attribute__((vector_size(VECTOR_BYTES)));

// The halves of a and b that lie in the first or in the second part (HIGH) of each 16 bytes, alternately.
template <bool HIGH, class V, int... I>
inline V interleaved(V a, V b, std::integer_sequence<int, I...>) {
    constexpr int N = sizeof...(I), LANE = 16 * N / BYTES;
    return __builtin_shufflevector(a, b, (I % 2 * N + I / LANE * LANE + I % LANE / 2 + HIGH * LANE / 2)...);
}
template <bool HIGH, class V>
inline V interleaved(V a, V b) {
    return interleaved<HIGH>(a, b, std::make_integer_sequence<int, BYTES / int(sizeof(a[0]))>{});
}

// Of each two neighbouring bytes their sum of products with the first and the second value of a pair.
#if defined(__x86_64__) && VECTOR_BYTES > 16
typedef SumVector PairValues;
inline PairValues values_of(const BytePair& p) {
    uint32_t four;
    __builtin_memcpy(&four, p.value, 4);
    return four - SumVector{};
}
inline WordVector products(ByteVector pixels, PairValues values) {
    WordVector out;
    asm("vpmaddubsw %2, %1, %0" : "=v"(out) : "v"(pixels), "v"(values));
    return out;
}
#else
struct PairValues { WordVector first, second; };
inline PairValues values_of(const BytePair& p) {
    return {uint16_t(p.value[0]) - WordVector{}, uint16_t(p.value[1]) - WordVector{}};
}
inline WordVector products(ByteVector pixels, PairValues values) {
    const WordVector both = (WordVector)pixels; // little endian
    return (both & 255) * values.first + (both >> 8) * values.second;
}
#endif

inline ByteVector load_bytes(const uint8_t* p) {
    ByteVector v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}

// N granules of the sums of one output; of each two vectors of 16-bit sums, whose order is that of `interleaved`.
template <int N>
struct Sums {
    SumVector all[2 * N], second[2 * N];
};

template <int N, int K>
inline void add_bundles(Sums<N>& sums, const uint8_t* x, const BytePair* pair, const BytePair* stop) {
    for (; pair < stop; pair += K) {
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) {
            WordVector low = BUNDLE_OFFSET - WordVector{}, high = low;
#pragma GCC unroll 4
            for (int k = 0; k < K; k++) {
                const PairValues values = values_of(pair[k]);
                const ByteVector a = load_bytes(x + pair[k].first + n * BYTES),
                                 b = load_bytes(x + pair[k].second + n * BYTES);
                low = hold(low + products(interleaved<false>(a, b), values));
                high = hold(high + products(interleaved<true>(a, b), values));
            }
            sums.all[2 * n] += (SumVector)low;
            sums.all[2 * n + 1] += (SumVector)high;
            sums.second[2 * n] += (SumVector)low >> 16;
            sums.second[2 * n + 1] += (SumVector)high >> 16;
        }
    }
}

// Four vectors of sums, in the order of the pixels, from those of a granule.
inline void in_order(const SumVector* all, const SumVector* second, uint32_t correction, SumVector* out) {
    SumVector part[4];
    for (int half = 0; half < 2; half++) {
        const SumVector odd = second[half], even = all[half] - (odd << 16);
        part[2 * half] = interleaved<false>(even, odd) + correction;
        part[2 * half + 1] = interleaved<true>(even, odd) + correction;
    }
    // parts hold four pixels in each 16 bytes, the lanes; lane l of part p is to be the (4 l + p)-th
#if VECTOR_BYTES == 16
    for (int p = 0; p < 4; p++) out[p] = part[p];
#elif VECTOR_BYTES == 32
    out[0] = __builtin_shufflevector(part[0], part[1], 0, 1, 2, 3, 8, 9, 10, 11);
    out[1] = __builtin_shufflevector(part[2], part[3], 0, 1, 2, 3, 8, 9, 10, 11);
    out[2] = __builtin_shufflevector(part[0], part[1], 4, 5, 6, 7, 12, 13, 14, 15);
    out[3] = __builtin_shufflevector(part[2], part[3], 4, 5, 6, 7, 12, 13, 14, 15);
#else
    SumVector low[2], high[2]; // lanes 0 and 1, lanes 2 and 3 of two parts
    for (int p = 0; p < 2; p++) {
        low[p] =
            __builtin_shufflevector(part[2 * p], part[2 * p + 1], 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
        high[p] = __builtin_shufflevector(part[2 * p], part[2 * p + 1], 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29,
                                          30, 31);
    }
    out[0] = __builtin_shufflevector(low[0], low[1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    out[1] = __builtin_shufflevector(low[0], low[1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    out[2] = __builtin_shufflevector(high[0], high[1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    out[3] = __builtin_shufflevector(high[0], high[1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
#endif
}

template <int N>
void int8_run(const Int8Conv& q, const Run& run, int64_t pixels, const uint8_t* x, int64_t group, int64_t begin,
              int64_t end) {
    const Conv& c = q.conv;
    const int32_t* const bundle = q.bundle + group * c.outputs;
    for (int64_t i = begin; i < end; i++) {
        const int64_t o = run.order[i], channel = group * c.outputs + o;
        const BytePair *const pair = q.pairs + run.start[i], *const stop = q.pairs + run.start[i + 1];
        Sums<N> sums{};
        switch (bundle[i]) {
            case 1: add_bundles<N, 1>(sums, x, pair, stop); break;
            case 2: add_bundles<N, 2>(sums, x, pair, stop); break;
            case 3: add_bundles<N, 3>(sums, x, pair, stop); break;
            default: add_bundles<N, 4>(sums, x, pair, stop); break;
        }
        const float scale = q.scale[channel], bias = run.bias ? run.bias[o] : 0.0f;
        float* const y = run.y + o * c.y_plane;
        const float* const residual = run.residual ? run.residual + o * c.residual_plane : nullptr;
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) {
            SumVector sum[4];
            in_order(sums.all + 2 * n, sums.second + 2 * n, q.correction[channel], sum);
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) {
                const int64_t at = n * BYTES + v * L;
                if (at >= pixels) break;
                Lanes value = __builtin_convertvector((SignedSums)sum[v], Lanes) * scale + bias;
                if (residual) value += load_unaligned(residual + at);
                if (c.activation == Activation::relu) value = rectify(value);
                store_unaligned(y + at, value);
            }
        }
        if (c.activation > Activation::relu) activate_all(y, (least(pixels, N * BYTES) + L - 1) / L, c.activation);
    }
}

// Every second element of a and b.
template <class V, int... I>
inline V halves(V a, V b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, (2 * I)...);
}
template <class V>
inline V halves(V a, V b) {
    return halves(a, b, std::make_integer_sequence<int, BYTES / int(sizeof(a[0]))>{});
}

// A granule as bytes: rounded to the nearest multiple of the scale, which `q.zero` is added to.
inline ByteVector rounded(const Int8Conv& q, const float* x) {
    WordVector word[4];
    for (int n = 0; n < 4; n++) {
        Lanes v = load_unaligned(x + n * L) * q.inverse;
        v = v > q.lowest ? v : splat(q.lowest); // nan too
        v = v < 127.0f ? v : splat(127.0f);
        word[n] = (WordVector)(v + (12582912.0f + q.zero)); // 1.5 * 2^23: the last bit is worth one, and 16 bits are zero
    }
    return halves((ByteVector)halves(word[0], word[1]), (ByteVector)halves(word[2], word[3]));
}
// Whole granules: what lies behind the last number may be read, and written.
inline void round_all(const Int8Conv& q, const float* x, uint8_t* to, int64_t count) {
    for (int64_t i = 0; i < count; i += BYTES) {
        const ByteVector found = rounded(q, x + i);
        __builtin_memcpy(to + i, &found, sizeof found);
    }
}

// What the pixels of a band read, in bytes; `room`: for the pixels of one channel.
inline void lay_int8(const Int8Conv& q, const float* x, uint8_t* to, uint8_t* room, int64_t first, int64_t last) {
    const Window& w = q.conv.window;
    const int64_t taps = (w.kernel_height - 1) * w.dilation_y;
    int64_t top = first * w.stride_y - w.padding_y;
    const int64_t bottom = least((last - 1) * w.stride_y + taps - w.padding_y + 1, w.height);
    const bool all = taps || w.stride_y == 1; // otherwise one tap, which reads each stride-th row
    if (top < 0) top = all ? 0 : (w.stride_y + top % w.stride_y) % w.stride_y;
    const int64_t rows = all ? bottom - top : 1;
    for (int64_t c = 0; c < q.conv.channels; c++, x += q.conv.x_plane, to += w.channel) {
        if (q.direct) {
            round_all(q, x + top * w.width, to, rows * w.width);
            continue;
        }
        for (int64_t row = top; row < bottom; row += all ? rows : w.stride_y)
            round_all(q, x + row * w.width, room + row * w.width, rows * w.width);
        lay_channels<uint8_t>(w, room, 0, 1, to, first, last, q.zero);
    }
}

void int8_conv(const Int8Conv& q, int64_t image, int64_t group, int64_t band, int64_t first, int64_t last, float* scratch) {
    const Conv& c = q.conv;
    const Window& w = c.window;
    const int64_t row = band * w.band, until = least(row + w.band, w.out_height), at = row * w.out_width;
    uint8_t* const bytes = reinterpret_cast<uint8_t*>(scratch);
    lay_int8(q, c.x + image * c.x_image + group * c.channels * c.x_plane, bytes, bytes + c.channels * w.channel + INT8_SLACK,
             row, until);
    const int64_t output = group * c.outputs, pixels = (until - row) * w.out_width;
    float* const y = c.y + image * c.y_image + output * c.y_plane + at;
    const float* const residual =
        c.residual ? c.residual + image * c.residual_image + output * c.residual_plane + at : nullptr;
    const int64_t granules = (pixels + BYTES - 1) / BYTES, parts = (granules + GRANULES - 1) / GRANULES;
    for (int64_t part = 0; part < parts; part++) {
        const int64_t begin = granules * part / parts, pixel = begin * BYTES;
        with_vectors<GRANULES>(granules * (part + 1) / parts - begin, [&](auto n) {
            const Run run{nullptr,
                          c.bias ? c.bias + output : nullptr,
                          residual ? residual + pixel : nullptr,
                          y + pixel,
                          c.start + group * (c.outputs + 1),
                          c.order + output,
                          true,
                          true};
            int8_run<n.value>(q, run, pixels - pixel, bytes + pixel, group, first, last);
        });
    }
}
