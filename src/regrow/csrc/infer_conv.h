// Convolutions of single images, included once for each instruction set.
//
// A run of an output channel's pixels stays in registers while the channel's connections, in a block of input channels,
// pass: each is one number times a run of the input. The block is chosen such that what its channels hold for these pixels
// stays in the nearest cache.

constexpr int VECTORS = INFER_VECTORS;

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// to[i] = from[i * stride] for i in [begin, end), `outside` in the rest of [0, width).
template <int STRIDE, class T>
inline void lay_row(const T* from, T* to, int64_t stride, int64_t begin, int64_t end, int64_t width, T outside) {
    for (int64_t i = 0; i < begin; i++) to[i] = outside;
    for (int64_t i = begin; i < end; i++) to[i] = from[i * (STRIDE ? STRIDE : stride)];
    for (int64_t i = end; i < width; i++) to[i] = outside;
}

// The same for all rows of a channel that the output rows [first, last + most) read, where output and input are equally wide
// and the stride is 1: one long run, whose columns that come from the neighbouring rows are then cleared.
template <class T>
inline void lay_run(const Window& w, const T* x, T* to, int64_t shift, int64_t top, int64_t rows, T outside) {
    const int64_t width = w.width, above = least(top < 0 ? -top : 0, rows), left = w.height - (top + above);
    const int64_t inside = left < 0 ? 0 : least(left, rows - above), all = inside * width;
    const T* const from = x + (inside ? (top + above) * width : 0) + shift;
    for (int64_t i = 0; i < above * width; i++) to[i] = outside;
    T* const run = to + above * width;
    const int64_t begin = shift < 0 ? -shift : 0, end = shift > 0 ? all - shift : all;
    for (int64_t i = begin; i < end; i++) run[i] = from[i];
    for (int64_t i = 0; i < begin; i++)
        for (int64_t row = 0; row < inside; row++) run[row * width + i] = outside;
    for (int64_t i = shift > 0 ? width - shift : width; i < width; i++)
        for (int64_t row = 0; row < inside; row++) run[row * width + i] = outside;
    for (int64_t i = (above + inside) * width; i < rows * width; i++) to[i] = outside;
}

// The copies of one channel for the output rows [first, last).
template <int STRIDE, class T>
inline void lay_channel(const Window& w, const T* x, T* to, int64_t first, int64_t last, T outside) {
    const int64_t most = (w.kernel_height - 1) * w.dilation_y / w.stride_y; // rows past the last
    for (int64_t kx = 0; kx < w.kernel_width; kx++) {
        const int64_t shift = kx * w.dilation_x - w.padding_x;
        int64_t begin = shift < 0 ? (-shift + w.stride_x - 1) / w.stride_x : 0;
        int64_t end = shift < w.width ? (w.width - shift + w.stride_x - 1) / w.stride_x : 0;
        begin = least(begin, w.out_width);
        end = least(end, w.out_width);
        if (end < begin) end = begin;
        if (STRIDE == 1 && w.stride_y == 1 && w.out_width == w.width && shift < w.width && -shift < w.width) {
            lay_run(w, x, to, shift, first - w.padding_y, last - first + most, outside);
            to += w.copy;
            continue;
        }
        for (int64_t phase = 0; phase < w.phases; phase++, to += w.copy) {
            for (int64_t row = first; row < last + most; row++) {
                const int64_t y = row * w.stride_y + phase - w.padding_y;
                const bool inside = y >= 0 && y < w.height;
                lay_row<STRIDE>(x + (inside ? y * w.width : 0) + shift, to + (row - first) * w.out_width, w.stride_x,
                                inside ? begin : 0, inside ? end : 0, w.out_width, outside);
            }
        }
    }
}

// `outside`: what surrounds the image.
template <class T>
inline void lay_channels(const Window& w, const T* x, int64_t plane, int64_t channels, T* to, int64_t first, int64_t last,
                         T outside) {
    for (int64_t c = 0; c < channels; c++, x += plane, to += w.channel) {
        if (w.stride_x == 1) lay_channel<1>(w, x, to, first, last, outside);
        else if (w.stride_x == 2) lay_channel<2>(w, x, to, first, last, outside);
        else lay_channel<0>(w, x, to, first, last, outside);
    }
}

// Apart from the sums, which would not stay in registers beside it.
__attribute__((noinline)) void activate_all(float* y, int64_t vectors, Activation activation) {
    for (int64_t n = 0; n < vectors; n++) store_unaligned(y + n * L, activate(load_unaligned(y + n * L), activation));
}

template <int N>
inline void finish(Lanes* sum, float* y, const float* residual, Activation activation) {
    if (residual)
        for (int n = 0; n < N; n++) sum[n] += load_unaligned(residual + n * L);
    if (activation == Activation::relu)
        for (int n = 0; n < N; n++) sum[n] = rectify(sum[n]);
    for (int n = 0; n < N; n++) store_unaligned(y + n * L, sum[n]);
    if (activation > Activation::relu) activate_all(y, N, activation);
}

struct Run {
    const float *x, *bias, *residual; // of the pixels' first, of the group's first output
    float* y;
    const int32_t *start, *order;
    bool first, last; // of the blocks
};

template <int N>
void conv_run(const Conv& c, const Run& run, int64_t begin, int64_t end) {
    constexpr int SIDE = N > 4 ? 1 : N > 2 ? 2 : 4; // connections side by side, where one alone would wait for its sum
    const Connection* const connections = c.connections;
    const int64_t y_plane = c.y_plane;
    for (int64_t i = begin; i < end; i++) {
        const int64_t o = run.order[i];
        float* const y = run.y + o * y_plane;
        Lanes sum[N];
        if (run.first) {
            const Lanes bias = splat(run.bias ? run.bias[o] : 0.0f);
            for (int n = 0; n < N; n++) sum[n] = bias;
        } else {
            for (int n = 0; n < N; n++) sum[n] = load_unaligned(y + n * L);
        }
        const Connection *j = connections + run.start[i], *const stop = connections + run.start[i + 1];
        const auto add = [&](const Connection& one, Lanes* to) {
            const float* const in = run.x + one.offset;
            const Lanes value = splat(one.value);
            for (int n = 0; n < N; n++) to[n] += value * load_unaligned(in + n * L);
        };
        if constexpr (SIDE > 1) {
            Lanes side[SIDE - 1][N] = {};
            for (; j + SIDE <= stop; j += SIDE) {
                add(j[0], sum);
                for (int s = 1; s < SIDE; s++) add(j[s], side[s - 1]);
            }
            for (int s = 1; s < SIDE; s++)
                for (int n = 0; n < N; n++) sum[n] += side[s - 1][n];
        }
        for (; j < stop; j++) add(*j, sum);
        if (run.last) finish<N>(sum, y, run.residual ? run.residual + o * c.residual_plane : nullptr, c.activation);
        else
            for (int n = 0; n < N; n++) store_unaligned(y + n * L, sum[n]);
    }
}

// f(N) with N = n.
template <int N, class F>
inline void with_vectors(int64_t n, const F& f) {
    if constexpr (N > 1) {
        if (n < N) return with_vectors<N - 1>(n, f);
    }
    f(std::integral_constant<int, N>{});
}

// f(first pixel, number of vectors as a constant) for the pixels of a band, in runs of equal length.
template <int MOST, class F>
inline void runs(int64_t pixels, const F& f) {
    const int64_t all = (pixels + L - 1) / L, parts = (all + MOST - 1) / MOST;
    for (int64_t part = 0; part < parts; part++) {
        const int64_t begin = all * part / parts, end = all * (part + 1) / parts;
        with_vectors<MOST>(end - begin, [&](auto n) { f(begin * L, n); });
    }
}

struct Band {
    const float* x;
    int64_t pixel, pixels;
};
// What the pixels of a band read: copies of the channels in `scratch`, or the channels themselves.
inline Band band_of(const Window& w, const float* x, int64_t plane, int64_t channels, int64_t band, float* scratch) {
    const int64_t first = band * w.band, last = least(first + w.band, w.out_height);
    const Band found{w.channel ? scratch : x + first * w.out_width, first * w.out_width, (last - first) * w.out_width};
    if (w.channel) lay_channels(w, x, plane, channels, scratch, first, last, 0.0f);
    return found;
}

void conv(const Conv& c, int64_t image, int64_t group, int64_t band, int64_t first, int64_t last, float* scratch) {
    const Band b =
        band_of(c.window, c.x + image * c.x_image + group * c.channels * c.x_plane, c.x_plane, c.channels, band, scratch);
    const int64_t output = group * c.outputs;
    float* const y = c.y + image * c.y_image + output * c.y_plane + b.pixel;
    const float* const residual =
        c.residual ? c.residual + image * c.residual_image + output * c.residual_plane + b.pixel : nullptr;
    runs<VECTORS>(b.pixels, [&](int64_t pixel, auto n) {
        for (int64_t block = 0; block < c.blocks; block++) {
            const int64_t at = group * c.blocks + block;
            const Run run{b.x + pixel,
                          c.bias ? c.bias + output : nullptr,
                          residual ? residual + pixel : nullptr,
                          y + pixel,
                          c.start + at * (c.outputs + 1),
                          c.order + at * c.outputs,
                          block == 0,
                          block == c.blocks - 1};
            conv_run<n.value>(c, run, first, last);
        }
    });
}

constexpr int WIDE = VECTOR_BYTES == 64 ? 4 : 2; // vectors of pixels that outputs of a dense weight read together

template <int N>
inline void dense_run(const DenseConv& d, const Band& b, int64_t pixel, int64_t o, float* y, const float* residual) {
    const Conv& c = d.conv;
    const float* weight = d.weight + o * d.taps;
    const float* const x = b.x + pixel;
    const int32_t *offset = d.offset, *const stop = offset + d.taps;
    const int64_t count = least(TOGETHER, c.outputs - o);
    Lanes sum[TOGETHER][N];
    for (int m = 0; m < TOGETHER; m++)
        for (int n = 0; n < N; n++) sum[m][n] = splat(c.bias && m < count ? c.bias[o + m] : 0.0f);
    for (; offset < stop; offset++, weight += TOGETHER) {
        const float* const in = x + *offset;
        Lanes pixels[N];
        for (int n = 0; n < N; n++) pixels[n] = load_unaligned(in + n * L);
        for (int m = 0; m < TOGETHER; m++) {
            const Lanes value = splat(weight[m]);
            for (int n = 0; n < N; n++) sum[m][n] += value * pixels[n];
        }
    }
    for (int m = 0; m < TOGETHER; m++)
        if (m < count)
            finish<N>(sum[m], y + (o + m) * c.y_plane + pixel,
                      residual ? residual + (o + m) * c.residual_plane + pixel : nullptr, c.activation);
}

void dense(const DenseConv& d, int64_t image, int64_t band, int64_t first, int64_t last, float* scratch) {
    const Conv& c = d.conv;
    const Band b = band_of(c.window, c.x + image * c.x_image, c.x_plane, c.channels, band, scratch);
    float* const y = c.y + image * c.y_image + b.pixel;
    const float* const residual = c.residual ? c.residual + image * c.residual_image + b.pixel : nullptr;
    runs<WIDE>(b.pixels, [&](int64_t pixel, auto n) {
        for (int64_t group = first; group < last; group++) dense_run<n.value>(d, b, pixel, group * TOGETHER, y, residual);
    });
}
