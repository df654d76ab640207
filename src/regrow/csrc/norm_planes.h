// Batch norm, one channel of one tile at a time; included once for each instruction set.

template <class T> constexpr int64_t PLANE_AHEAD = 2048 / sizeof(T); // what a first pass fetches early

template <class T>
inline Vector<T> load_ahead(const T* p) {
    __builtin_prefetch(p + PLANE_AHEAD<T>, 0, 2);
    return load(p);
}

// The sum over the images that there are.
template <class T>
inline double total(const Vector<T>* partial, int64_t present) {
    double sum[4] = {};
    for (int line = 0; line < LINE<T>; line++, present -= LANES<T>) {
        Vector<T> v = partial[line];
        for (int u = line + LINE<T>; u < STEP<T>; u += LINE<T>) v += partial[u];
        if (present < LANES<T>) v = keep(v, present > 0 ? int(present) : 0);
        for (int i = 0; i < LANES<T>; i++) sum[i % 4] += v[i];
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

template <class T>
inline Sums norm_moments(const T* x, T pivot, const Geometry& geometry, int64_t t) {
    const Geometry g = geometry;
    const Vector<T> middle = splat(pivot);
    Vector<T> first[STEP<T>] = {}, second[STEP<T>] = {};
    each_vector<T>(g, [&](int64_t i, int u) {
        const Vector<T> d = load_ahead(x + i) - middle;
        first[u] += d;
        second[u] += d * d;
    });
    return {total<T>(first, g.present(t)), total<T>(second, g.present(t))};
}

template <class T, bool RESIDUAL, bool RELU>
inline void norm_rows(const Norm<T>& args, const Geometry& g) {
    const Norm<T> a = args;
    const Vector<T> scale = splat(a.scale), shift = splat(a.shift);
    write_plane(a.y, a.large, g, [&](int64_t i) {
        if (a.next) __builtin_prefetch(a.next + i, 0, 2);
        Vector<T> v = load(a.x + i) * scale + shift;
        if (RESIDUAL) v += load_ahead(a.residual + i);
        if (RELU) v = rectify(v);
        return v;
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
    const Vector<T> g = load_ahead(a.gradient + i);
    if (GATE == Gate::by_output) return through_relu(g, load_ahead(a.y + i));
    if (GATE == Gate::by_input) return through_relu(g, x * splat(a.scale) + splat(a.shift));
    return g;
}

template <class T, Gate GATE>
inline Sums norm_sums_of(const NormBackward<T>& args, const Geometry& g, int64_t t) {
    const NormBackward<T> a = args;
    const Vector<T> mean = splat(a.mean);
    Vector<T> first[STEP<T>] = {}, second[STEP<T>] = {};
    each_vector<T>(
        g,
        [&](int64_t i, int u) {
            const Vector<T> x = load_ahead(a.x + i), through = let_through<T, GATE>(a, i, x);
            if (GATE == Gate::by_output) store(a.residual + i, through);
            first[u] += through;
            second[u] += through * (x - mean);
        },
        [&](int64_t i, int64_t end) {
            for (; GATE == Gate::by_output && i < end; i += LANES<T>) store(a.residual + i, Vector<T>{});
        });
    return {total<T>(first, g.present(t)), total<T>(second, g.present(t))};
}

template <class T>
inline Sums norm_sums(const NormBackward<T>& a, const Geometry& geometry, int64_t t) {
    const Geometry g = geometry;
    if (!a.relu) return norm_sums_of<T, Gate::open>(a, g, t);
    return a.y ? norm_sums_of<T, Gate::by_output>(a, g, t) : norm_sums_of<T, Gate::by_input>(a, g, t);
}

template <class T, Gate GATE, bool GIVEN>
inline void norm_input_of(const NormBackward<T>& args, const Geometry& g) {
    const NormBackward<T> a = args;
    const Vector<T> mean = splat(a.mean), va = splat(a.a), vb = splat(a.b), vc = splat(a.c);
    write_plane(a.input, a.large, g, [&](int64_t i) {
        if (a.next_x) __builtin_prefetch(a.next_gradient + i, 0, 2), __builtin_prefetch(a.next_x + i, 0, 2);
        const Vector<T> x = load(a.x + i);
        Vector<T> v = va * let_through<T, GATE>(a, i, x);
        if (!GIVEN) v += vb * (x - mean) + vc;
        return a.passed ? v + load_ahead(a.passed + i) : v;
    });
}

template <class T>
inline void norm_backward(const NormBackward<T>& a, const Geometry& geometry) {
    const Geometry g = geometry;
    if (a.given) a.relu ? norm_input_of<T, Gate::by_input, true>(a, g) : norm_input_of<T, Gate::open, true>(a, g);
    else a.relu ? norm_input_of<T, Gate::by_input, false>(a, g) : norm_input_of<T, Gate::open, false>(a, g);
}
