// Recurrent layers, a slice of the batch through all time steps; included once for each instruction set.

// The lanes of a vector that are in the batch; what lies past them is another time step's.
template <class T>
inline Vector<T> load_lanes(const T* p, int64_t lanes) {
    if (lanes >= LANES<T>) return load_unaligned(p);
    T some[LANES<T>] = {};
    for (int64_t i = 0; i < lanes; i++) some[i] = p[i];
    return load_unaligned(some);
}
template <class T>
inline void store_lanes(T* p, Vector<T> v, int64_t lanes) {
    if (lanes >= LANES<T>) return store_unaligned(p, v);
    T some[LANES<T>];
    store_unaligned(some, v);
    for (int64_t i = 0; i < lanes; i++) p[i] = some[i];
}

// Of one slice at one time step: where it lies in sequences and which of its lanes are to change. FULL: all are in the batch.
template <class T, bool FULL>
struct Moment {
    int64_t time, lane, lanes;
    const T* lengths; // [SLICE] or null
    template <class U> U* at(const Sequence<U>& s, int64_t feature, int n) const {
        return s.data + time * s.time_stride + feature * s.feature_stride + lane + n * LANES<T>;
    }
    Vector<T> read(const Sequence<const T>& s, int64_t feature, int n) const {
        return FULL ? load_unaligned(at(s, feature, n)) : load_lanes<T>(at(s, feature, n), lanes - n * LANES<T>);
    }
    void write(const Sequence<T>& s, int64_t feature, int n, Vector<T> v) const {
        FULL ? store_unaligned(at(s, feature, n), v) : store_lanes<T>(at(s, feature, n), v, lanes - n * LANES<T>);
    }
    // `now` in sequences that have not ended, else `ended`
    Vector<T> live(int n, Vector<T> now, Vector<T> ended) const {
        return lengths ? (splat(T(time)) < load(lengths + n * LANES<T>) ? now : ended) : now;
    }
};

template <class T, bool FULL>
inline Moment<T, FULL> moment_of(const Scan<T>& a, int64_t slice, T* lengths) {
    const int64_t lane = slice * SLICE, lanes = a.batch - lane < SLICE ? a.batch - lane : SLICE;
    if (a.lengths)
        for (int64_t i = 0; i < SLICE; i++) lengths[i] = i < lanes ? T(a.lengths[lane + i]) : T(0);
    return {0, lane, lanes, a.lengths ? lengths : nullptr};
}

template <Cell C, class T, bool FULL>
inline void forward_units(const ScanForward<T>& args, const Moment<T, FULL>& moment, int64_t begin, int64_t end,
                          const ScanState<T>& s, T* kept) {
    const ScanForward<T> a = args; // copies, which no store can change
    const Moment<T, FULL> now = moment;
    constexpr int L = LANES<T>, N = SLICE / L;
    constexpr int G = C == Cell::gru ? 3 : C == Cell::lstm ? 4 : 1;
    constexpr int K = C == Cell::gru ? 4 : C == Cell::lstm ? 5 : 0;
    constexpr int AHEAD = 4;
    const T *const before = s.h[now.time % 2], *sum = s.sums;
    T *const after = s.h[(now.time + 1) % 2], *const cells = s.c;
    for (int64_t u = begin; u < end; u++, sum += G * SLICE) {
        const int64_t place = a.weight.blocks.at(u);
        T* const keep = kept ? kept + u * K * SLICE : nullptr;
        if (u + AHEAD < end)
            for (int g = 0; g < G; g++) __builtin_prefetch(now.at(a.gates, g * a.units + u + AHEAD, 0));
#pragma GCC unroll 2
        for (int n = 0; n < N; n++) {
            const auto share = [&](int g) {
                const Vector<T> found = load(sum + g * SLICE + n * L);
                return a.bias ? found + a.bias[g * a.units + u] : found;
            };
            const auto given = [&](int g) { return now.read(a.gates, g * a.units + u, n); };
            const auto put = [&](int k, Vector<T> v) {
                if (keep) store(keep + k * SLICE + n * L, v);
            };
            const Vector<T> old = load(before + place + n * L);
            Vector<T> h;
            if (C == Cell::gru) {
                const Vector<T> r = sigmoid_of(given(0) + share(0)), z = sigmoid_of(given(1) + share(1)), q = share(2);
                const Vector<T> g = tanh_of(given(2) + r * q);
                h = g + z * (old - g);
                put(0, r), put(1, z), put(2, g), put(3, q);
            } else if (C == Cell::lstm) {
                const Vector<T> i = sigmoid_of(given(0) + share(0)), f = sigmoid_of(given(1) + share(1));
                const Vector<T> g = tanh_of(given(2) + share(2)), o = sigmoid_of(given(3) + share(3));
                T* const cell = cells + u * SLICE + n * L;
                const Vector<T> c = f * load(cell) + i * g;
                h = o * tanh_of(c);
                put(0, i), put(1, f), put(2, g), put(3, o), put(4, c);
                store(cell, now.live(n, c, load(cell)));
            } else {
                const Vector<T> x = given(0) + share(0);
                h = C == Cell::rnn_tanh ? tanh_of(x) : rectify(x);
            }
            h = now.live(n, h, old);
            store(after + place + n * L, h);
            now.write(a.output, u, n, h);
        }
    }
}

template <Cell C, bool FULL, class T>
inline void scan_forward_cell(const ScanForward<T>& a, int64_t slice, const ScanState<T>& s) {
    T lengths[SLICE] __attribute__((aligned(VECTOR_BYTES)));
    Moment<T, FULL> now = moment_of<T, FULL>(a, slice, lengths);
    const int64_t step = a.units * kept_of(C) * SLICE;
    for (; now.time < a.time; now.time++) {
        T* const kept = a.kept ? a.kept + (slice * a.time + now.time) * step : nullptr;
        for (int64_t p = 0; p < a.weight.count; p++) {
            const Part<T>& part = a.weight.parts[p];
            packed_product<T, false>(a.weight, part, s.h[now.time % 2], s.sums);
            forward_units<C>(a, now, part.first, part.last, s, kept);
        }
    }
}

template <Cell C, class T, bool FULL>
inline void backward_units(const ScanBackward<T>& args, const Moment<T, FULL>& moment, const ScanState<T>& state,
                           const T* kept, const T* earlier) {
    const ScanBackward<T> a = args; // copies, which no store can change
    const Moment<T, FULL> now = moment;
    const ScanState<T> s = state;
    constexpr int L = LANES<T>, N = SLICE / L;
    constexpr int G = C == Cell::gru ? 3 : C == Cell::lstm ? 4 : 1;
    constexpr int K = C == Cell::gru ? 4 : C == Cell::lstm ? 5 : 0;
    constexpr int AHEAD = 4;
    const Sequence<const T> previous{a.output.data - a.output.time_stride, a.output.time_stride, a.output.feature_stride};
    for (int64_t u = 0; u < a.units; u++) {
        if (u + AHEAD < a.units) {
            __builtin_prefetch(now.at(a.gradient, u + AHEAD, 0));
            for (int g = 0; g < G; g++) __builtin_prefetch(now.at(a.gates_gradient, g * a.units + u + AHEAD, 0), 1);
        }
#pragma GCC unroll 2
        for (int n = 0; n < N; n++) {
            const Vector<T> none{};
            const auto k = [&](int i) { return load(kept + (u * K + i) * SLICE + n * L); };
            const auto put = [&](int g, Vector<T> v, Vector<T> hidden) {
                v = now.live(n, v, none);
                hidden = now.live(n, hidden, none);
                const int64_t feature = g * a.units + u;
                now.write(a.gates_gradient, feature, n, v);
                if (a.hidden_gradient.data) now.write(a.hidden_gradient, feature, n, hidden);
                store(s.sums + a.weight.blocks.at(feature) + n * L, hidden);
            };
            T* const above = s.above + u * SLICE + n * L;
            const Vector<T> d = now.read(a.gradient, u, n) + load(above);
            Vector<T> passed{};
            if (C == Cell::gru) {
                const Vector<T> r = k(0), z = k(1), g = k(2), q = k(3);
                const Vector<T> old = now.time ? now.read(previous, u, n) : load(s.h[0] + u * SLICE + n * L);
                const Vector<T> dg = d * (T(1) - z) * (T(1) - g * g);
                const Vector<T> dr = dg * q * r * (T(1) - r), dz = d * (old - g) * z * (T(1) - z);
                put(0, dr, dr), put(1, dz, dz), put(2, dg, dg * r);
                passed = d * z;
            } else if (C == Cell::lstm) {
                const Vector<T> i = k(0), f = k(1), g = k(2), o = k(3), c = tanh_of(k(4));
                T* const cell = s.c + u * SLICE + n * L;
                const Vector<T> over = load(cell), dc = over + d * o * (T(1) - c * c);
                const Vector<T> old = load(earlier + n * L + u * (now.time ? K : 1) * SLICE);
                const Vector<T> di = dc * g * i * (T(1) - i), df = dc * old * f * (T(1) - f);
                const Vector<T> dg = dc * i * (T(1) - g * g), dout = d * c * o * (T(1) - o);
                put(0, di, di), put(1, df, df), put(2, dg, dg), put(3, dout, dout);
                store(cell, now.live(n, dc * f, over));
            } else {
                const Vector<T> h = now.read(a.output, u, n);
                const Vector<T> x = C == Cell::rnn_tanh ? d * (T(1) - h * h) : through_relu(d, h);
                put(0, x, x);
            }
            store(above, now.live(n, passed, d));
        }
    }
}

template <Cell C, bool FULL, class T>
inline void scan_backward_cell(const ScanBackward<T>& a, int64_t slice, const ScanState<T>& s) {
    T lengths[SLICE] __attribute__((aligned(VECTOR_BYTES)));
    Moment<T, FULL> now = moment_of<T, FULL>(a, slice, lengths);
    const int64_t step = a.units * kept_of(C) * SLICE;
    for (now.time = a.time - 1; now.time >= 0; now.time--) {
        const T* const kept = a.kept + (slice * a.time + now.time) * step;
        backward_units<C>(a, now, s, kept, now.time ? kept - step + 4 * SLICE : s.first);
        for (int64_t p = 0; p < a.weight.count; p++) {
            const Part<T>& part = a.weight.parts[p];
            packed_product<T, true>(a.weight, part, s.sums, s.above + part.first * SLICE);
        }
    }
}

template <Cell C, class T>
inline void scan_cell(const ScanForward<T>& a, int64_t slice, const ScanState<T>& s) {
    (slice + 1) * SLICE <= a.batch ? scan_forward_cell<C, true>(a, slice, s) : scan_forward_cell<C, false>(a, slice, s);
}
template <Cell C, class T>
inline void scan_cell(const ScanBackward<T>& a, int64_t slice, const ScanState<T>& s) {
    (slice + 1) * SLICE <= a.batch ? scan_backward_cell<C, true>(a, slice, s) : scan_backward_cell<C, false>(a, slice, s);
}

template <class Work, class T>
void scan(const Work& a, int64_t slice, const ScanState<T>& s) {
    switch (a.cell) {
        case Cell::gru: return scan_cell<Cell::gru>(a, slice, s);
        case Cell::lstm: return scan_cell<Cell::lstm>(a, slice, s);
        case Cell::rnn_tanh: return scan_cell<Cell::rnn_tanh>(a, slice, s);
        case Cell::rnn_relu: return scan_cell<Cell::rnn_relu>(a, slice, s);
    }
}
