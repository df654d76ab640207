// Pooling, one channel of one tile at a time; included once for each instruction set.

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Calls run(at, window) for each output pixel, `at` elements from the output's start, where window(each) calls
// each(i) for each pixel of the input in it; and the number that an average is divided by.
template <class T, class Run>
inline void each_window(const Pool& pool, Run run) {
    const Pool p = pool;
    for (int64_t h = 0; h < p.output.height; h++) {
        const int64_t top = h * p.stride_height - p.pad_height;
        const int64_t bottom = least(top + p.kernel_height, p.input.height + p.pad_height);
        const int64_t first_row = most(top, 0), last_row = least(bottom, p.input.height);
        for (int64_t w = 0; w < p.output.width; w++) {
            const int64_t left = w * p.stride_width - p.pad_width;
            const int64_t right = least(left + p.kernel_width, p.input.width + p.pad_width);
            const int64_t first = most(left, 0), last = least(right, p.input.width);
            const int64_t count = p.divisor     ? p.divisor
                                  : p.count_pad ? (bottom - top) * (right - left)
                                                : (last_row - first_row) * (last - first);
            const auto window = [&](auto each) {
                for (int64_t r = first_row; r < last_row; r++)
                    for (int64_t c = first; c < last; c++) each((p.input.first() + r * p.input.row() + c) * TILE);
            };
            run((p.output.first() + h * p.output.row() + w) * TILE, window, T(count));
        }
    }
}

template <class T>
inline void pool_max(const T* x, T* y, const Pool& p) {
    each_window<T>(p, [&](int64_t at, auto window, T) {
        for (int64_t lane = 0; lane < TILE; lane += LANES<T>) {
            Vector<T> best = splat(-T(__builtin_inf()));
            window([&](int64_t i) {
                const Vector<T> v = load(x + i + lane);
                best = (v > best) | (v != v) ? v : best; // nan wins, as in torch
            });
            store(y + at + lane, best);
        }
    });
}

// What `pool_max_backward` leaves out: windows that hold a nan.
template <class T>
inline void pool_nan_backward(const T* x, const T* y, const T* gradient, T* input_gradient, const Pool& p) {
    each_window<T>(p, [&](int64_t at, auto window, T) {
        for (int64_t lane = 0; lane < TILE; lane++) {
            if (y[at + lane] == y[at + lane]) continue;
            int64_t last = -1;
            window([&](int64_t i) { last = x[i + lane] == x[i + lane] ? last : i; });
            if (last >= 0) input_gradient[last + lane] += gradient[at + lane];
        }
    });
}

// The gradient goes to the first pixel of the window that has the greatest value; of several nan to the last, as in torch.
template <class T>
inline void pool_max_backward(const T* x, const T* y, const T* gradient, T* input_gradient, const Pool& p) {
    auto strange = Vector<T>{} != Vector<T>{}; // lanes with a nan somewhere
    each_window<T>(p, [&](int64_t at, auto window, T) {
        for (int64_t lane = 0; lane < TILE; lane += LANES<T>) {
            const Vector<T> best = load(y + at + lane), g = load(gradient + at + lane);
            auto open = best == best; // lanes whose pixel is not found yet
            strange |= ~open;
            window([&](int64_t i) {
                const Vector<T> v = load(x + i + lane);
                const auto hit = (v == best) & open;
                open &= ~hit;
                T* const to = input_gradient + i + lane;
                store(to, load(to) + (hit ? g : Vector<T>{}));
            });
        }
    });
    for (int lane = 0; lane < LANES<T>; lane++)
        if (strange[lane]) return pool_nan_backward(x, y, gradient, input_gradient, p);
}

template <class T>
inline void pool_average(const T* x, T* y, const Pool& p) {
    each_window<T>(p, [&](int64_t at, auto window, T count) {
        for (int64_t lane = 0; lane < TILE; lane += LANES<T>) {
            Vector<T> sum = {};
            window([&](int64_t i) { sum += load(x + i + lane); });
            store(y + at + lane, sum / splat(count));
        }
    });
}

template <class T>
inline void pool_average_backward(const T* gradient, T* input_gradient, const Pool& p) {
    each_window<T>(p, [&](int64_t at, auto window, T count) {
        for (int64_t lane = 0; lane < TILE; lane += LANES<T>) {
            const Vector<T> g = load(gradient + at + lane) / splat(count);
            window([&](int64_t i) {
                T* const to = input_gradient + i + lane;
                store(to, load(to) + g);
            });
        }
    });
}

template <class T>
inline void pool_mean(const T* x, T* means, const Geometry& geometry) {
    const Geometry g = geometry;
    Vector<T> sum[STEP<T>] = {};
    each_vector<T>(g, [&](int64_t i, int u) { sum[u] += load(x + i); });
    for (int v = 0; v < LINE<T>; v++) {
        Vector<T> whole = sum[v];
        for (int u = v + LINE<T>; u < STEP<T>; u += LINE<T>) whole += sum[u];
        store_unaligned(means + v * LANES<T>, whole / splat(T(g.pixels())));
    }
}

template <class T>
inline void pool_mean_backward(const T* gradient, T* input_gradient, const Geometry& geometry) {
    const Geometry g = geometry;
    Vector<T> share[LINE<T>];
    for (int v = 0; v < LINE<T>; v++) share[v] = load_unaligned(gradient + v * LANES<T>) / splat(T(g.pixels()));
    each_vector<T>(g, [&](int64_t i, int u) { store(input_gradient + i, share[u % LINE<T>]); });
}
