// Activations from torch's own layout; included once for each instruction set.

template <class T>
inline void lay_out(const Laying<T>& args, int64_t begin, int64_t end) {
    constexpr int L = LANES<T>;
    const Laying<T> a = args;
    for (int64_t f = begin; f < end; f += L) {
        const T* const from = a.from + f;
        T* const to = a.to + f * a.stride;
        if (end - f < L) {
            for (int64_t i = 0; i < end - f; i++)
                for (int64_t b = 0; b < a.stride; b++)
                    to[i * a.stride + b] = b < a.batch ? from[b * a.batch_stride + i] : T(0);
            continue;
        }
        for (int64_t b = 0; b < a.stride; b += L) {
            Vector<T> v[L];
#pragma GCC unroll 16
            for (int i = 0; i < L; i++)
                v[i] = b + i < a.batch ? load_unaligned(from + (b + i) * a.batch_stride) : Vector<T>{};
            transpose<T>(v);
#pragma GCC unroll 16
            for (int i = 0; i < L; i++) store(to + i * a.stride + b, v[i]);
        }
    }
}
