// Activations of a sum x, and their derivatives, in vectors; included once for each instruction set.
//
// float32: by polynomials, to some 3e-7. float64 is for checking, and calls the standard library lane by lane, outside.

typedef uint32_t BitVector __attribute__((vector_size(VECTOR_BYTES), may_alias));

// Of x <= 0; 0 from -88 on.
inline FloatVector exp_of(FloatVector x) {
    x = x < -88.0f ? splat(-88.0f) : x;
    constexpr float ROUNDER = 12582912.0f; // 1.5 x 2^23: a sum with it is a whole number in its low bits
    const FloatVector shifted = x * 1.44269504f + ROUNDER, n = shifted - ROUNDER;
    const FloatVector r = x - n * 0.693359375f + n * 2.12194440e-4f;
    FloatVector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (FloatVector)(((BitVector)shifted << 23) + (127u << 23));
}

// The share of a normal distribution below x, from e = exp(-x^2 / 2): the tail over e is a polynomial in 1 / (1 + c |x|),
// fitted to 1.3e-7 of it.
inline FloatVector normal_share(FloatVector x, FloatVector e) {
    const FloatVector t = 1.0f / (1.0f + 0.2316419f * (x < 0 ? -x : x));
    FloatVector p = t * -0.0704248263f + 0.247689397f;
    p = p * t - 0.201664887f;
    p = p * t + 0.22525733f;
    p = p * t + 0.0135497856f;
    p = p * t + 0.102651023f;
    p = p * t + 0.0904199866f;
    p = p * t + 0.0925222557f;
    p = p * t * e;
    return x < 0 ? p : 1.0f - p;
}

inline FloatVector gelu_of(FloatVector x) { return x * normal_share(x, exp_of(x * x * -0.5f)); }
// From e = exp(-|x|), which cannot overflow: an infinite x gives what torch gives.
inline FloatVector silu_of(FloatVector x) {
    const FloatVector e = exp_of(x < 0 ? x : -x);
    return (x < 0 ? x * e : x) / (1.0f + e);
}
inline FloatVector gelu_slope(FloatVector x) {
    const FloatVector e = exp_of(x * x * -0.5f);
    return normal_share(x, e) + x * 0.398942280f * e;
}
inline FloatVector silu_slope(FloatVector x) {
    const FloatVector e = exp_of(x < 0 ? x : -x), s = 1.0f / (1.0f + e), rest = e * s;
    return (x < 0 ? rest : s) + x * (s * rest);
}

inline DoubleVector each_of(DoubleVector x, double (*function)(double)) {
    for (int i = 0; i < LANES<double>; i++) x[i] = function(x[i]);
    return x;
}
inline DoubleVector gelu_of(DoubleVector x) { return each_of(x, regrow::gelu); }
inline DoubleVector silu_of(DoubleVector x) { return each_of(x, regrow::silu); }
inline DoubleVector gelu_slope(DoubleVector x) { return each_of(x, regrow::gelu_derivative); }
inline DoubleVector silu_slope(DoubleVector x) { return each_of(x, regrow::silu_derivative); }

// Gates of recurrent layers.
inline FloatVector sigmoid_of(FloatVector x) {
    const FloatVector e = exp_of(x < 0 ? x : -x);
    return (x < 0 ? e : splat(1.0f)) / (1.0f + e);
}
// A quotient of polynomials in x, which is 1 to float32 from 9 on.
inline FloatVector tanh_of(FloatVector x) {
    x = x < -9.0f ? splat(-9.0f) : x;
    x = x > 9.0f ? splat(9.0f) : x;
    const FloatVector s = x * x;
    FloatVector p = s * -2.76076847742355e-16f + 2.00018790482477e-13f;
    p = p * s - 8.60467152213735e-11f;
    p = p * s + 5.12229709037114e-08f;
    p = p * s + 1.48572235717979e-05f;
    p = p * s + 6.37261928875436e-04f;
    p = p * s + 4.89352455891786e-03f;
    FloatVector q = s * 1.19825839466702e-06f + 1.18534705686654e-04f;
    q = q * s + 2.26843463243900e-03f;
    q = q * s + 4.89352518554385e-03f;
    return x * p / q;
}
inline DoubleVector sigmoid_of(DoubleVector x) { return each_of(x, regrow::sigmoid); }
inline DoubleVector tanh_of(DoubleVector x) { return each_of(x, regrow::tangent); }

// A ReLU, and its gradient from that of its output y. Nan passes both ways, as in torch: it is not below 0.
template <class V>
inline V rectify(V x) {
    return x < 0 ? V{} : x;
}
template <class V>
inline V through_relu(V g, V y) {
    return y <= 0 ? V{} : g;
}

template <class V>
inline V activate(V x, Activation activation) {
    switch (activation) {
        case Activation::none: return x;
        case Activation::relu: return rectify(x);
        case Activation::gelu: return gelu_of(x);
        case Activation::silu: return silu_of(x);
    }
    return x;
}

// The derivative times g; `kept` is the output of a ReLU, and the sum that went into the others.
template <Activation A, class V>
inline V through(V g, V kept) {
    if (A == Activation::relu) return through_relu(g, kept);
    if (A == Activation::gelu) return g * gelu_slope(kept);
    if (A == Activation::silu) return g * silu_slope(kept);
    return g;
}
