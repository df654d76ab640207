// Layer norms, softmax and attention on tokens in planes, included once for each instruction set: the lanes are tokens,
// so that sums over channels and over keys are sums of vectors.

constexpr int NORM = 4, QUERIES = 2;

inline Lanes root(Lanes v) {
    for (int i = 0; i < L; i++) v[i] = __builtin_sqrtf(v[i]);
    return v;
}

template <int N>
inline void layer_norm(const Norm& n, const float* x, float* y) {
    const Lanes share = splat(1.0f / float(n.channels));
    Lanes mean[N] = {}, square[N] = {};
    for (int64_t c = 0; c < n.channels; c++)
        for (int i = 0; i < N; i++) mean[i] += load_unaligned(x + c * n.x_plane + i * L);
    for (int i = 0; i < N; i++) mean[i] *= share;
    for (int64_t c = 0; c < n.channels; c++)
        for (int i = 0; i < N; i++) {
            const Lanes d = load_unaligned(x + c * n.x_plane + i * L) - mean[i];
            square[i] += d * d;
        }
    for (int i = 0; i < N; i++) square[i] = 1.0f / root(square[i] * share + n.epsilon);
    for (int64_t c = 0; c < n.channels; c++) {
        const Lanes weight = splat(n.weight ? n.weight[c] : 1.0f), bias = splat(n.bias ? n.bias[c] : 0.0f);
        for (int i = 0; i < N; i++) {
            const Lanes v = (load_unaligned(x + c * n.x_plane + i * L) - mean[i]) * square[i];
            store_unaligned(y + c * n.y_plane + i * L, v * weight + bias);
        }
    }
}

// Of `rows` rows of N vectors each; each lane on its own. Returns what is left to divide by.
template <int N>
inline void exponentials(const float* x, int64_t x_row, float* y, int64_t y_row, int64_t rows, float scale, Lanes* total) {
    Lanes most[N];
    for (int i = 0; i < N; i++) most[i] = splat(-__builtin_inff()), total[i] = Lanes{};
    for (int64_t r = 0; r < rows; r++)
        for (int i = 0; i < N; i++) {
            const Lanes v = load_unaligned(x + r * x_row + i * L);
            most[i] = v > most[i] ? v : most[i];
        }
    for (int64_t r = 0; r < rows; r++)
        for (int i = 0; i < N; i++) {
            const Lanes e = exp_of((load_unaligned(x + r * x_row + i * L) - most[i]) * scale);
            total[i] += e;
            store_unaligned(y + r * y_row + i * L, e);
        }
}

template <int N>
inline void softmax(const Norm& n, const float* x, float* y) {
    Lanes total[N];
    exponentials<N>(x, n.x_plane, y, n.y_plane, n.channels, 1.0f, total);
    for (int i = 0; i < N; i++) total[i] = 1.0f / total[i];
    for (int64_t c = 0; c < n.channels; c++)
        for (int i = 0; i < N; i++) {
            float* const at = y + c * n.y_plane + i * L;
            store_unaligned(at, load_unaligned(at) * total[i]);
        }
}

// f(i, how) added up over one vector.
template <class F>
inline float total_of(int64_t size, const F& f) {
    Lanes sum{};
    each_lanes(0, size, [&](int64_t i, auto how) { sum += keep(f(i, how), int(least(L, size - i))); });
    return sum_of(sum);
}

// The same of one vector, whose channels follow one another.
void norm_vector(const Norm& n, const float* x, float* y) {
    const int64_t size = n.channels;
    if (n.softmax) {
        Lanes most = splat(-__builtin_inff());
        each_lanes(0, size, [&](int64_t i, auto how) {
            const Lanes v = how.read(x + i);
            for (int64_t lane = 0; lane < L; lane++)
                if (i + lane < size && v[lane] > most[lane]) most[lane] = v[lane];
        });
        float top = most[0];
        for (int64_t lane = 1; lane < L; lane++) top = most[lane] > top ? most[lane] : top;
        const float total = total_of(size, [&](int64_t i, auto how) { return exp_of(how.read(x + i) - top); });
        each_lanes(0, size, [&](int64_t i, auto how) { how.write(y + i, exp_of(how.read(x + i) - top) / total); });
        return;
    }
    const float mean = total_of(size, [&](int64_t i, auto how) { return how.read(x + i); }) / float(size);
    const float square = total_of(size, [&](int64_t i, auto how) {
        const Lanes d = how.read(x + i) - mean;
        return d * d;
    });
    const float scale = 1.0f / root(splat(square / float(size) + n.epsilon))[0];
    each_lanes(0, size, [&](int64_t i, auto how) {
        Lanes v = (how.read(x + i) - mean) * scale;
        if (n.weight) v *= how.read(n.weight + i);
        if (n.bias) v += how.read(n.bias + i);
        how.write(y + i, v);
    });
}

void norm(const Norm& n, int64_t image, int64_t begin, int64_t end) {
    const float* const x = n.x + image * n.x_image + begin;
    float* const y = n.y + image * n.y_image + begin;
    if (n.x_plane == 1 && n.y_plane == 1) return norm_vector(n, x, y);
    runs<NORM>(end - begin, [&](int64_t pixel, auto count) {
        constexpr int N = count.value;
        n.softmax ? softmax<N>(n, x + pixel, y + pixel) : layer_norm<N>(n, x + pixel, y + pixel);
    });
}

// y[m, n] = sum over t of w[m * w_row + t * w_step] * x[t * x_row + n], N vectors of n, each times its `scale` in the end.
template <int M, int N>
inline void product_rows(const float* w, int64_t w_row, int64_t w_step, const float* x, int64_t x_row, int64_t terms,
                         float* y, int64_t y_row, const Lanes* scale) {
    Lanes sum[M][N] = {};
    for (int64_t t = 0; t < terms; t++) {
        Lanes in[N];
        for (int n = 0; n < N; n++) in[n] = load_unaligned(x + t * x_row + n * L);
        for (int m = 0; m < M; m++) {
            const Lanes value = splat(w[m * w_row + t * w_step]);
            for (int n = 0; n < N; n++) sum[m][n] += value * in[n];
        }
    }
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) store_unaligned(y + m * y_row + n * L, scale ? sum[m][n] * scale[n] : sum[m][n]);
}

template <int N>
inline void product(const float* w, int64_t rows, int64_t w_row, int64_t w_step, const float* x, int64_t x_row,
                    int64_t terms, float* y, int64_t y_row, const Lanes* scale) {
    constexpr int MOST = VECTOR_BYTES == 64 ? 12 : 6; // with QUERIES vectors each: what the registers hold
    for (int64_t m = 0; m < rows; m += MOST)
        with_vectors<MOST>(least(MOST, rows - m), [&](auto some) {
            product_rows<some.value, N>(w + m * w_row, w_row, w_step, x, x_row, terms, y + m * y_row, y_row, scale);
        });
}

template <int N>
inline void attend(const Attention& a, const float* q, const float* k, const float* v, float* y, int64_t begin,
                   float* scratch) {
    constexpr int64_t ROW = N * L;
    const int64_t keys = a.causal ? least(a.keys, begin + ROW) : a.keys;
    product<N>(k, keys, 1, a.k_plane, q, a.q_plane, a.size, scratch, ROW, nullptr);
    if (a.causal)
        for (int64_t j = begin; j < keys; j++)
            for (int64_t i = 0; i < j - begin; i++) scratch[j * ROW + i] = -__builtin_inff();
    Lanes share[N];
    exponentials<N>(scratch, ROW, scratch, ROW, keys, a.scale, share);
    for (int n = 0; n < N; n++) share[n] = 1.0f / share[n];
    product<N>(v, a.out_size, a.v_plane, 1, scratch, ROW, keys, y, a.y_plane, share);
}

void attention(const Attention& a, int64_t image, int64_t head, int64_t begin, int64_t end, float* scratch) {
    const float* const q = a.q + image * a.q_image + head * a.q_head + begin;
    const float* const k = a.k + image * a.k_image + head * a.k_head;
    const float* const v = a.v + image * a.v_image + head * a.v_head;
    float* const y = a.y + image * a.y_image + head * a.y_head + begin;
    runs<QUERIES>(end - begin,
                  [&](int64_t pixel, auto n) { attend<n.value>(a, q + pixel, k, v, y + pixel, begin + pixel, scratch); });
}
