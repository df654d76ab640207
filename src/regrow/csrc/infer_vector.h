// y = activation(W x + bias + residual) of one vector, included once for each instruction set.
//
// The weight is read once, and x stays in the nearest cache: the elements of x are picked one by one into a vector, which
// takes less time than a gather instruction on most machines.

template <Values K> struct ValuesOf;
template <> struct ValuesOf<Values::float32> {
    typedef float type;
    static float one(float v) { return v; }
    static Lanes some(const float* v) { return load_unaligned(v); }
};
template <> struct ValuesOf<Values::bfloat16> {
    typedef uint16_t type;
    static float one(uint16_t v) {
        const uint32_t bits = uint32_t(v) << 16;
        float f;
        __builtin_memcpy(&f, &bits, 4);
        return f;
    }
    static Lanes some(const uint16_t* v) {
        typedef uint16_t Half __attribute__((vector_size(VECTOR_BYTES / 2)));
        Half half;
        __builtin_memcpy(&half, v, sizeof half);
        return (Lanes)(__builtin_convertvector(half, BitVector) << 16);
    }
};
template <> struct ValuesOf<Values::int8> {
    typedef int8_t type;
    static float one(int8_t v) { return v; }
    static Lanes some(const int8_t* v) {
#if VECTOR_BYTES == 64
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(v))));
#elif VECTOR_BYTES == 32
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(v))));
#else
        Lanes some;
        for (int i = 0; i < L; i++) some[i] = v[i];
        return some;
#endif
    }
};

template <class C, int... I>
inline Lanes picked(const float* x, const C* col, std::integer_sequence<int, I...>) {
    constexpr int IN_WORD = 8 / int(sizeof(C)); // columns that one load brings
    uint64_t words[L / IN_WORD];
    for (int i = 0; i < L / IN_WORD; i++) {
        __builtin_memcpy(words + i, col + i * IN_WORD, 8);
        asm("" : "+r"(words[i])); // in a register each: together they would pass through memory
    }
    return Lanes{x[C(words[I / IN_WORD] >> (I % IN_WORD * 8 * int(sizeof(C))))]...};
}

// v with the two halves of each group of 2 N lanes exchanged.
template <int N, int... I>
inline Lanes exchanged(Lanes v, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(v, v, (I ^ N)...);
}
// The sum of all lanes, in a tree.
template <int N = int(L) / 2>
inline float sum_of(Lanes v) {
    if constexpr (N == 0) return v[0];
    else return sum_of<N / 2>(v + exchanged<N>(v, std::make_integer_sequence<int, int(L)>{}));
}

template <class C, Values K>
inline void vector_rows(const Vector& v, int64_t first, int64_t last) {
    typedef typename ValuesOf<K>::type Value;
    constexpr std::make_integer_sequence<int, int(L)> lanes{};
    const float* const x = v.x;
    const C* const col = static_cast<const C*>(v.col);
    const Value* const values = static_cast<const Value*>(v.values);
    const int64_t all = v.crow[v.rows];
    for (int64_t r = first; r < last; r++) {
        int64_t j = v.crow[r];
        const int64_t end = v.crow[r + 1];
        const auto some = [&](int64_t from) { return ValuesOf<K>::some(values + from) * picked(x, col + from, lanes); };
        Lanes a{}, b{};
        float sum = 0;
        for (; j + 2 * L <= end; j += 2 * L) {
            a += some(j);
            b += some(j + L);
        }
        for (; j + L <= end; j += L) a += some(j);
        if (j < end && j + L <= all) // the rest, beside connections of the next row, which are left out
            a += keep(some(j), int(end - j));
        else
            for (; j < end; j++) sum += ValuesOf<K>::one(values[j]) * x[col[j]];
        sum += sum_of(a + b);
        if (v.scale) sum *= v.scale[r];
        if (v.bias) sum += v.bias[r];
        if (v.residual) sum += v.residual[r];
        v.y[r] = sum;
    }
}

inline void dense_rows(const Vector& v, int64_t first, int64_t last) {
    const float* const values = static_cast<const float*>(v.values);
    for (int64_t r = first; r < last; r++) {
        const float* const row = values + r * v.columns;
        Lanes a[4] = {};
        int64_t j = 0;
        for (; j + 4 * L <= v.columns; j += 4 * L)
            for (int i = 0; i < 4; i++) a[i] += load_unaligned(row + j + i * L) * load_unaligned(v.x + j + i * L);
        for (; j + L <= v.columns; j += L) a[0] += load_unaligned(row + j) * load_unaligned(v.x + j);
        float sum = sum_of((a[0] + a[1]) + (a[2] + a[3]));
        for (; j < v.columns; j++) sum += row[j] * v.x[j];
        if (v.bias) sum += v.bias[r];
        if (v.residual) sum += v.residual[r];
        v.y[r] = sum;
    }
}

void vector(const Vector& v, int64_t first, int64_t last) {
    const auto with = [&](auto column) {
        typedef decltype(column) C;
        if (v.kind == Values::float32) vector_rows<C, Values::float32>(v, first, last);
        else if (v.kind == Values::bfloat16) vector_rows<C, Values::bfloat16>(v, first, last);
        else vector_rows<C, Values::int8>(v, first, last);
    };
    if (!v.crow) dense_rows(v, first, last);
    else v.wide ? with(int32_t{}) : with(uint16_t{});
    if (v.activation == Activation::none) return;
    int64_t r = first;
    for (; r + L <= last; r += L) store_unaligned(v.y + r, activate(load_unaligned(v.y + r), v.activation));
    for (; r < last; r++) v.y[r] = activate(splat(v.y[r]), v.activation)[0];
}
