// The output's gradient through an activation, and the bias gradient, in one sweep; included once for each instruction set.

template <class T, Activation A>
inline void finish_rows(const Finish<T>& args, int64_t begin, int64_t end) {
    constexpr int L = LANES<T>;
    const Finish<T> a = args;
    for (int64_t first = begin; first < end; first += L) { // so many features are summed together
        const int count = end - first < L ? int(end - first) : L;
        Vector<T> sum[L] = {};
        for (int i = 0; i < count; i++) {
            const int64_t f = first + i;
            const T* const g = a.gradient + f * a.gradient_stride;
            for (int64_t b = 0; b < a.batch; b += L) {
                Vector<T> v = load(g + b);
                if (A != Activation::none) {
                    v = through<A>(v, load(a.kept + f * a.kept_stride + b));
                    store(a.out + f * a.out_stride + b, v);
                }
                sum[i] += a.batch - b < L ? keep(v, int(a.batch - b)) : v;
            }
        }
        if (!a.bias) continue;
        const Vector<T> bias = sums<T>(sum);
        for (int i = 0; i < count; i++) a.bias[first + i] = bias[i] + (a.add ? a.bias[first + i] : T(0));
    }
}

template <class T>
inline void finish(const Finish<T>& a, int64_t begin, int64_t end) {
    switch (a.activation) {
        case Activation::none: return finish_rows<T, Activation::none>(a, begin, end);
        case Activation::relu: return finish_rows<T, Activation::relu>(a, begin, end);
        case Activation::gelu: return finish_rows<T, Activation::gelu>(a, begin, end);
        case Activation::silu: return finish_rows<T, Activation::silu>(a, begin, end);
    }
}
