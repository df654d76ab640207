// What stands between the layers of an inference program, included once for each instruction set: sums and products,
// activations, means, pooling.

inline Lanes load_some(const float* p, int64_t n) {
    Lanes v{};
    __builtin_memcpy(&v, p, n * sizeof(float));
    return v;
}
inline void store_some(float* p, Lanes v, int64_t n) { __builtin_memcpy(p, &v, n * sizeof(float)); }
// How a vector is read and written: whole, or its first lanes alone.
struct Whole {
    Lanes read(const float* p) const { return load_unaligned(p); }
    void write(float* p, Lanes v) const { store_unaligned(p, v); }
};
struct Some {
    int64_t lanes;
    Lanes read(const float* p) const { return load_some(p, lanes); }
    void write(float* p, Lanes v) const { store_some(p, v, lanes); }
};
// f(i, how) for each vector of [begin, end).
template <class F>
inline void each_lanes(int64_t begin, int64_t end, const F& f) {
    int64_t i = begin;
    for (; i + L <= end; i += L) f(i, Whole{});
    if (i < end) f(i, Some{end - i});
}

template <Operation O>
inline Lanes combine(Lanes x, Lanes b) {
    if (O == Operation::add) return x + b;
    if (O == Operation::subtract) return x - b;
    if (O == Operation::multiply) return x * b;
    if (O == Operation::divide) return x / b;
    return x;
}

template <Operation O>
void map_rows(const Map& m, int64_t first, int64_t last, int64_t begin, int64_t end) {
    constexpr int INNER = DIMENSIONS - 1;
    const bool x_moves = m.x_stride[INNER], b_moves = m.b_stride[INNER], c_moves = m.c_stride[INNER];
    for (int64_t row = first; row < last; row++) {
        int64_t rest = row;
        const float *x = m.x, *b = m.b, *c = m.c;
        float* y = m.y;
        for (int d = INNER - 1; d >= 0; d--) {
            const int64_t i = rest % m.size[d];
            rest /= m.size[d];
            x += i * m.x_stride[d];
            y += i * m.y_stride[d];
            if (b) b += i * m.b_stride[d];
            if (c) c += i * m.c_stride[d];
        }
        const Lanes x_all = splat(*x), b_all = splat(b ? *b : 0.0f), c_all = splat(c ? *c : 0.0f);
        each_lanes(begin, end, [&](int64_t i, auto how) {
            Lanes v = x_moves ? how.read(x + i) : x_all;
            if (O != Operation::none) v = combine<O>(v, b_moves ? how.read(b + i) : b_all);
            if (c) v += c_moves ? how.read(c + i) : c_all;
            if (m.activation == Activation::relu) v = rectify(v);
            else if (m.activation != Activation::none) v = activate(v, m.activation);
            how.write(y + i, v);
        });
    }
}

void map(const Map& m, int64_t first, int64_t last, int64_t begin, int64_t end) {
    switch (m.operation) {
        case Operation::none: return map_rows<Operation::none>(m, first, last, begin, end);
        case Operation::add: return map_rows<Operation::add>(m, first, last, begin, end);
        case Operation::subtract: return map_rows<Operation::subtract>(m, first, last, begin, end);
        case Operation::multiply: return map_rows<Operation::multiply>(m, first, last, begin, end);
        case Operation::divide: return map_rows<Operation::divide>(m, first, last, begin, end);
    }
}

inline Lanes sum_of_row(const float* x, int64_t n) {
    Lanes a{}, b{};
    int64_t i = 0;
    for (; i + 2 * L <= n; i += 2 * L) {
        a += load_unaligned(x + i);
        b += load_unaligned(x + i + L);
    }
    each_lanes(i, n, [&](int64_t at, auto how) { a += how.read(x + at); });
    return a + b;
}

void mean(const Mean& m, int64_t image, int64_t first, int64_t last) {
    const float* const x = m.x + image * m.x_image;
    float* const y = m.y + image * m.y_image;
    for (int64_t c = first; c < last; c += L) {
        const int64_t some = least(L, last - c);
        Lanes each[L] = {};
        for (int64_t i = 0; i < some; i++) each[i] = sum_of_row(x + (c + i) * m.x_plane, m.pixels);
        const Lanes all = sums<float>(each) / splat(float(m.pixels));
        for (int64_t i = 0; i < some; i++) y[(c + i) * m.y_plane] = all[i];
    }
}

// Pooling: the rows of a window become one, with what stands for the border at both ends; of that, the columns.

template <bool MAX>
inline Lanes join(Lanes a, Lanes b) {
    if (!MAX) return a + b;
    return (b > a) | (b != b) ? b : a; // nan wins, as in torch
}

struct Range { int64_t begin, end; };
// Where an adaptive window begins and ends.
inline Range adaptive(int64_t i, int64_t size, int64_t out) { return {i * size / out, ((i + 1) * size + out - 1) / out}; }
// How many pixels of a window an average counts.
inline int64_t counted(int64_t i, int64_t stride, int64_t kernel, int64_t padding, int64_t size, bool padding_too) {
    const int64_t begin = i * stride - padding, end = least(begin + kernel, size + padding);
    return padding_too ? end - begin : least(end, size) - (begin > 0 ? begin : 0);
}

template <int... I>
inline Lanes evens(Lanes a, Lanes b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, (2 * I)...);
}

// to[i] of each window of columns that begins at i * stride in `row`.
template <bool MAX>
inline void pool_columns(const Pool& p, const float* row, float* to, float* scratch) {
    const auto at = [&](const float* from) {
        Lanes best = load_unaligned(from);
        for (int64_t k = 1; k < p.kernel_x; k++) best = join<MAX>(best, load_unaligned(from + k * p.dilation_x));
        return best;
    };
    if (p.stride_x == 1) return each_lanes(0, p.out_width, [&](int64_t i, auto how) { how.write(to + i, at(row + i)); });
    if (p.stride_x == 2)
        return each_lanes(0, p.out_width, [&](int64_t i, auto how) {
            how.write(to + i, evens(at(row + 2 * i), at(row + 2 * i + L), std::make_integer_sequence<int, int(L)>{}));
        });
    const int64_t positions = (p.out_width - 1) * p.stride_x + 1;
    for (int64_t i = 0; i < positions; i += L) store_unaligned(scratch + i, at(row + i));
    for (int64_t i = 0; i < p.out_width; i++) to[i] = scratch[i * p.stride_x];
}

template <bool MAX>
inline void pool_plane(const Pool& p, const float* x, float* y, float* scratch) {
    const Lanes nothing = splat(MAX ? -__builtin_inff() : 0.0f);
    float *const count = scratch, *const row = count + p.scratch, *const more = row + p.scratch;
    if (!MAX)
        for (int64_t i = 0; i < p.out_width; i++) {
            const Range r = adaptive(i, p.width, p.out_width);
            count[i] = p.adaptive  ? float(r.end - r.begin)
                       : p.divisor ? float(p.divisor)
                                   : float(counted(i, p.stride_x, p.kernel_x, p.padding_x, p.width, p.count_padding));
        }
    for (int64_t i = 0; i + L <= p.scratch; i += L) store_unaligned(row + i, nothing);
    float* const inner = row + (p.adaptive ? 0 : p.padding_x);
    for (int64_t oy = 0; oy < p.out_height; oy++, y += p.out_width) {
        const Range r = p.adaptive ? adaptive(oy, p.height, p.out_height)
                                   : Range{oy * p.stride_y - p.padding_y,
                                           oy * p.stride_y - p.padding_y + (p.kernel_y - 1) * p.dilation_y + 1};
        const int64_t step = p.adaptive ? 1 : p.dilation_y;
        int64_t begin = r.begin, end = r.end < p.height ? r.end : p.height;
        if (begin < 0) begin += (step - 1 - begin) / step * step;
        for (int64_t i = 0; i < p.width; i += L) {
            Lanes best = nothing;
            for (int64_t iy = begin; iy < end; iy += step) best = join<MAX>(best, load_unaligned(x + iy * p.width + i));
            store_unaligned(inner + i, best);
        }
        store_unaligned(inner + p.width, nothing);
        if (p.adaptive) {
            for (int64_t i = 0; i < p.out_width; i++) {
                const Range c = adaptive(i, p.width, p.out_width);
                y[i] = 0;
                for (int64_t ix = c.begin; ix < c.end; ix++) y[i] += row[ix];
            }
        } else {
            pool_columns<MAX>(p, row, y, more);
        }
        if (MAX) continue;
        const int64_t rows = p.adaptive  ? r.end - r.begin
                             : p.divisor ? 1
                                         : counted(oy, p.stride_y, p.kernel_y, p.padding_y, p.height, p.count_padding);
        each_lanes(0, p.out_width, [&](int64_t i, auto how) {
            how.write(y + i, how.read(y + i) / (how.read(count + i) * splat(float(rows))));
        });
    }
}

void pool(const Pool& p, int64_t image, int64_t first, int64_t last, float* scratch) {
    for (int64_t c = first; c < last; c++) {
        const float* const x = p.x + image * p.x_image + c * p.x_plane;
        float* const y = p.y + image * p.y_image + c * p.y_plane;
        if (p.max) pool_plane<true>(p, x, y, scratch);
        else pool_plane<false>(p, x, y, scratch);
    }
}

// y[r * y_row + c] = x[r + c * x_column]
void transpose_matrix(const float* x, float* y, int64_t rows, int64_t columns, int64_t x_column, int64_t y_row) {
    constexpr int64_t SIDE = 64; // columns whose lines stay in the nearest cache
    for (int64_t from = 0; from < columns; from += SIDE) {
        const int64_t to = least(from + SIDE, columns);
        int64_t r = 0;
        for (; r + L <= rows; r += L) {
            int64_t c = from;
            for (; c + L <= to; c += L) {
                Lanes v[L];
                for (int64_t i = 0; i < L; i++) v[i] = load_unaligned(x + r + (c + i) * x_column);
                transpose<float>(v);
                for (int64_t i = 0; i < L; i++) store_unaligned(y + (r + i) * y_row + c, v[i]);
            }
            for (int64_t i = 0; i < L; i++)
                for (int64_t j = c; j < to; j++) y[(r + i) * y_row + j] = x[r + i + j * x_column];
        }
        for (; r < rows; r++)
            for (int64_t c = from; c < to; c++) y[r * y_row + c] = x[r + c * x_column];
    }
}
