// Batch norm, one channel of one tile at a time; included once for each instruction set.

template <class T> constexpr int LINE = TILE / LANES<T>;                    // vectors in a line
template <class T> constexpr int STEP = LINE<T> > 4 ? LINE<T> : 4;          // vectors at a time: sums of their own

// Calls step(i, u) for each vector of each row of pixels, i elements from the channel's start, u < STEP with lanes
// of the same images for the same u.
template <class T, class Step>
inline void each_vector(const Geometry& g, Step step) {
    constexpr int L = LANES<T>;
    const int64_t vectors = g.width * LINE<T>;
    int64_t row = g.first() * TILE;
    for (int64_t h = 0; h < g.height; h++, row += g.row() * TILE) {
        int64_t n = 0;
        for (; n + STEP<T> <= vectors; n += STEP<T>)
#pragma GCC unroll 8
            for (int u = 0; u < STEP<T>; u++) step(row + (n + u) * L, u);
        for (; n < vectors; n += LINE<T>)
#pragma GCC unroll 8
            for (int u = 0; u < LINE<T>; u++) step(row + (n + u) * L, u);
    }
}

// The sum over the images that there are.
template <class T>
inline double total(const Vector<T>* partial, int64_t present) {
    double sum = 0;
    for (int u = 0; u < STEP<T>; u++)
        for (int i = 0; i < LANES<T>; i++)
            if (u % LINE<T> * LANES<T> + i < present) sum += partial[u][i];
    return sum;
}

template <class T>
inline Sums norm_moments(const T* x, T pivot, const Geometry& geometry, int64_t t) {
    const Geometry g = geometry;
    const Vector<T> middle = splat(pivot);
    Vector<T> first[STEP<T>] = {}, second[STEP<T>] = {};
    each_vector<T>(g, [&](int64_t i, int u) {
        const Vector<T> d = load(x + i) - middle;
        first[u] += d;
        second[u] += d * d;
    });
    return {total<T>(first, g.present(t)), total<T>(second, g.present(t))};
}

template <class T, bool RESIDUAL, bool RELU>
inline void norm_rows(const Norm<T>& args, const Geometry& g) {
    const Norm<T> a = args;
    const Vector<T> scale = splat(a.scale), shift = splat(a.shift);
    each_vector<T>(g, [&](int64_t i, int) {
        Vector<T> v = load(a.x + i) * scale + shift;
        if (RESIDUAL) v += load(a.residual + i);
        if (RELU) v = v > 0 ? v : Vector<T>{};
        store(a.y + i, v);
    });
}

template <class T>
inline void norm_forward(const Norm<T>& a, const Geometry& geometry) {
    const Geometry g = geometry;
    if (a.residual) a.relu ? norm_rows<T, true, true>(a, g) : norm_rows<T, true, false>(a, g);
    else a.relu ? norm_rows<T, false, true>(a, g) : norm_rows<T, false, false>(a, g);
}

enum class Gate { open, by_output, by_input };

// The gradient that the ReLU lets through.
template <class T, Gate GATE>
inline Vector<T> let_through(const NormBackward<T>& a, int64_t i, Vector<T> x) {
    const Vector<T> g = load(a.gradient + i);
    if (GATE == Gate::by_output) return load(a.y + i) > 0 ? g : Vector<T>{};
    if (GATE == Gate::by_input) return x * splat(a.scale) + splat(a.shift) > 0 ? g : Vector<T>{};
    return g;
}

template <class T, Gate GATE>
inline Sums norm_sums_of(const NormBackward<T>& args, const Geometry& g, int64_t t) {
    const NormBackward<T> a = args;
    const Vector<T> mean = splat(a.mean);
    Vector<T> first[STEP<T>] = {}, second[STEP<T>] = {};
    each_vector<T>(g, [&](int64_t i, int u) {
        const Vector<T> x = load(a.x + i), through = let_through<T, GATE>(a, i, x);
        if (GATE == Gate::by_output) store(a.residual + i, through);
        first[u] += through;
        second[u] += through * (x - mean);
    });
    return {total<T>(first, g.present(t)), total<T>(second, g.present(t))};
}

template <class T>
inline Sums norm_sums(const NormBackward<T>& a, const Geometry& geometry, int64_t t) {
    const Geometry g = geometry;
    if (!a.relu) return norm_sums_of<T, Gate::open>(a, g, t);
    return a.y ? norm_sums_of<T, Gate::by_output>(a, g, t) : norm_sums_of<T, Gate::by_input>(a, g, t);
}

template <class T, Gate GATE>
inline void norm_input_of(const NormBackward<T>& args, const Geometry& g) {
    const NormBackward<T> a = args;
    const Vector<T> mean = splat(a.mean), va = splat(a.a), vb = splat(a.b), vc = splat(a.c);
    each_vector<T>(g, [&](int64_t i, int) {
        const Vector<T> x = load(a.x + i);
        store(a.input + i, va * let_through<T, GATE>(a, i, x) + (vb * (x - mean) + vc));
    });
}

template <class T>
inline void norm_backward(const NormBackward<T>& a, const Geometry& geometry) {
    const Geometry g = geometry;
    a.relu ? norm_input_of<T, Gate::by_input>(a, g) : norm_input_of<T, Gate::open>(a, g);
}
