// Vectors of one instruction set, by GCC's and clang's vector extensions. Included inside `namespace REGROW_ISA`.
// VECTOR_BYTES, and how many registers a kernel may use as accumulators, are set by the file that includes it.

typedef float FloatVector __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef double DoubleVector __attribute__((vector_size(VECTOR_BYTES), may_alias));

template <class T> struct VectorOf;
template <> struct VectorOf<float> { typedef FloatVector type; };
template <> struct VectorOf<double> { typedef DoubleVector type; };
template <class T> using Vector = typename VectorOf<T>::type;

template <class T> constexpr int LANES = VECTOR_BYTES / int(sizeof(T));

// Activations are aligned to the vector (the operators see to that).
template <class T> inline Vector<T> load(const T* p) { return *reinterpret_cast<const Vector<T>*>(p); }
template <class T> inline void store(T* p, Vector<T> v) { *reinterpret_cast<Vector<T>*>(p) = v; }
template <class T> inline Vector<T> load_unaligned(const T* p) {
    Vector<T> v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
template <class T> inline void store_unaligned(T* p, Vector<T> v) { __builtin_memcpy(p, &v, sizeof v); }
template <class T> inline Vector<T> splat(T x) { return x - Vector<T>{}; }

// Stores past the caches, for what is too large to be found there; `fence` before another thread reads it.
template <class T> inline void store_past_caches(T* p, Vector<T> v) {
#if defined(__x86_64__) && VECTOR_BYTES > 16
    asm volatile("vmovntps %1, %0" : "=m"(*reinterpret_cast<Vector<T>*>(p)) : "v"(v));
#elif defined(__x86_64__)
    asm volatile("movntps %1, %0" : "=m"(*reinterpret_cast<Vector<T>*>(p)) : "x"(v));
#else
    store(p, v);
#endif
}
inline void fence() {
#if defined(__x86_64__)
    asm volatile("sfence" ::: "memory");
#endif
}

// Keeps v in a register: the compiler would rather read it from memory again for each use.
template <class V> inline V hold(V v) {
#if defined(__x86_64__)
    asm("" : "+v"(v));
#elif defined(__aarch64__)
    asm("" : "+w"(v));
#endif
    return v;
}

// The first `lanes` lanes of v, zero in the others, whatever those hold (nan too).
inline FloatVector keep(FloatVector v, int lanes) {
    typedef int32_t Mask __attribute__((vector_size(VECTOR_BYTES)));
    Mask lane;
    for (int i = 0; i < LANES<float>; i++) lane[i] = i;
    return (FloatVector)((Mask)v & (lane < lanes));
}
inline DoubleVector keep(DoubleVector v, int lanes) {
    typedef int64_t Mask __attribute__((vector_size(VECTOR_BYTES)));
    Mask lane;
    for (int i = 0; i < LANES<double>; i++) lane[i] = i;
    return (DoubleVector)((Mask)v & (lane < int64_t(lanes)));
}

// Sums of neighbours within each 128 bits, K lanes: there first those of a, then those of b. Shuffles that cross 128 bits
// cost several times as much.
template <int K, class V, int... I>
inline V pairs(V a, V b, std::integer_sequence<int, I...>) {
    constexpr int L = sizeof...(I), HALF = K / 2;
    return __builtin_shufflevector(a, b, (I % K / HALF * L + I / K * K + 2 * (I % HALF))...) +
           __builtin_shufflevector(a, b, (I % K / HALF * L + I / K * K + 2 * (I % HALF) + 1)...);
}

// Sums of neighbouring 128 bits: first those of a, then those of b.
template <int K, class V, int... I>
inline V pairs_of_blocks(V a, V b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, (I / K * 2 * K + I % K)...) +
           __builtin_shufflevector(a, b, (I / K * 2 * K + I % K + K)...);
}

// Sums of each of as many vectors as a vector has lanes; `v` is used up.
template <class T>
inline Vector<T> sums(Vector<T>* v) {
    constexpr int L = LANES<T>, K = 16 / int(sizeof(T));
    constexpr std::make_integer_sequence<int, L> LANE;
    for (int n = L / 2; n >= L / K; n /= 2)
        for (int i = 0; i < n; i++) v[i] = pairs<K>(v[2 * i], v[2 * i + 1], LANE);
    if constexpr (L > K) {
        for (int n = L / K / 2; n > 0; n /= 2)
            for (int i = 0; i < n; i++) v[i] = pairs_of_blocks<K>(v[2 * i], v[2 * i + 1], LANE);
    }
    return v[0];
}
