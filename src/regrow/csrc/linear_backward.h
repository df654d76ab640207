// Gradients of the input and of the values in one sweep, included once for each instruction set.
//
// One column's batch elements of x and of the input gradient stay in registers while the column's connections in a
// block of rows pass: each loads one row of the output gradient, which serves both products.

// Sums the products of `count` connections over the batch and puts them into their places in the gradient. ASCENDING:
// the places are, and so follow one another where the last is as far from the first as it can be nearest.
template <class T, bool ASCENDING>
inline void put(Vector<T>* product, const int32_t* place, int count, T* gradient, bool first) {
    constexpr int L = LANES<T>;
    const Vector<T> all = sums<T>(product);
    if (ASCENDING && count == L && place[L - 1] - place[0] == L - 1) {
        T* const to = gradient + place[0];
        return store_unaligned(to, first ? all : load_unaligned(to) + all);
    }
    T sum[L] __attribute__((aligned(VECTOR_BYTES)));
    store(sum, all);
    asm("" : "+m"(sum)); // to memory once: taking the lanes apart is slower, and so is a scatter instruction
    if (first) {
        for (int i = 0; i < count; i++) gradient[place[i]] = sum[i];
    } else {
        for (int i = 0; i < count; i++) gradient[place[i]] += sum[i];
    }
}

// W: vectors of a whole tile, of which N hold something. ORDERED: a.order is there.
template <class T, int W, int N, bool INPUT, bool ORDERED, bool TAIL>
inline void backward_tile(const Backward<T>& args, int64_t begin, int64_t end, int64_t tile, int32_t* cursor) {
    constexpr int L = LANES<T>;
    const Backward<T> a = args; // a copy, which no store can change
    const int tail = int(a.batch - tile * W * L) - (N - 1) * L; // lanes of the last vector
    const T* const x = a.x.data + tile * a.x.tile_stride;
    const T* const g = a.gradient.data + tile * a.gradient.tile_stride;
    T* const dx = INPUT ? a.input_gradient.data + tile * a.input_gradient.tile_stride : nullptr;
    // lines of the index that a column has in a block, on average
    const int64_t lines =
        a.block < a.rows && begin < end ? 1 + (a.crow_t[end] - a.crow_t[begin]) / (end - begin) * a.block / a.rows / 16 : 0;
    const int64_t gs = a.gradient.row_stride;
    // products of connections, each lane a share of the batch, that wait to be summed a vector full at a time
    Vector<T> product[L];
    int32_t place[L];
    int waiting = 0;
    for (int64_t start = 0; start == 0 || start < a.rows; start += a.block) {
        const bool first = start == 0, last = start + a.block >= a.rows;
        const int32_t stop = int32_t(last ? a.rows : start + a.block);
        for (int64_t c = begin; c < end; c++) {
            int32_t j = first ? a.crow_t[c] : cursor[c - begin];
            const int32_t column_end = a.crow_t[c + 1];
            if (!(j < column_end && a.row_t[j] < stop) && !(INPUT && first)) {
                if (first) cursor[c - begin] = j;
                continue;
            }
            const int32_t soon = first ? a.crow_t[c + 1] : cursor[c + 1 - begin];
            for (int i = 0; i < lines; i++) {
                __builtin_prefetch(a.row_t + soon + 16 * i);
                if (ORDERED) __builtin_prefetch(a.order + soon + 16 * i);
            }
            Vector<T> in[N], sum[N];
            for (int n = 0; n < N; n++) in[n] = load(x + c * a.x.row_stride + n * L);
            if (TAIL) in[N - 1] = keep(in[N - 1], tail);
            if (INPUT) {
                for (int n = 0; n < N; n++)
                    sum[n] = first ? Vector<T>{} : load(dx + c * a.input_gradient.row_stride + n * L);
            }
            for (; j < column_end && a.row_t[j] < stop; j++) {
                const T* const out = g + a.row_t[j] * gs;
                place[waiting] = ORDERED ? a.order[j] : j;
                const Vector<T> w = splat(a.values[place[waiting]]);
                if (a.dense) { // the next line of this row's values, for one of the next columns
                    __builtin_prefetch(a.values + place[waiting] + L);
                    __builtin_prefetch(a.values_gradient + place[waiting] + L, 1);
                }
                Vector<T> p[2] = {};
                for (int n = 0; n < N; n++) {
                    Vector<T> o = hold(load(out + n * L));
                    if (TAIL && n == N - 1) o = keep(o, tail);
                    if (INPUT) sum[n] += w * o;
                    p[n % 2] += in[n] * o;
                }
                product[waiting] = p[0] + p[1];
                if (++waiting == L) {
                    put<T, !ORDERED>(product, place, L, a.values_gradient, tile == 0);
                    waiting = 0;
                }
            }
            cursor[c - begin] = j;
            if (INPUT)
                for (int n = 0; n < N; n++) store(dx + c * a.input_gradient.row_stride + n * L, sum[n]);
        }
        put<T, !ORDERED>(product, place, waiting, a.values_gradient, tile == 0); // the next block begins at a lower place
        waiting = 0;
    }
}

template <class T, bool INPUT, bool ORDERED, int W, int N = W>
inline void backward_any(const Backward<T>& a, int64_t begin, int64_t end, int64_t tile, int32_t* cursor) {
    const int64_t width = a.batch - tile * W * LANES<T>;
    if constexpr (N > 1) {
        if (width <= (N - 1) * LANES<T>) return backward_any<T, INPUT, ORDERED, W, N - 1>(a, begin, end, tile, cursor);
    }
    width < N* LANES<T> ? backward_tile<T, W, N, INPUT, ORDERED, true>(a, begin, end, tile, cursor)
                        : backward_tile<T, W, N, INPUT, ORDERED, false>(a, begin, end, tile, cursor);
}

// Without sums of the input's gradient in registers, there is room for more of the input.
template <class T, bool INPUT>
inline void backward(const Backward<T>& a, int64_t begin, int64_t end, int32_t* cursor) {
    constexpr int W = INPUT ? BACKWARD_VECTORS : VALUES_VECTORS;
    for (int64_t tile = 0; tile * W * LANES<T> < a.batch; tile++)
        a.order ? backward_any<T, INPUT, true, W>(a, begin, end, tile, cursor)
                : backward_any<T, INPUT, false, W>(a, begin, end, tile, cursor);
}
