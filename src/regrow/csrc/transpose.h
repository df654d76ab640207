// Squares of a vector each way, transposed in registers; included once for each instruction set.

// v[j][i] = v[i][j], by as many perfect shuffles as a vector has halves.
template <class V, int... I>
inline V first_halves(V a, V b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, (I % 2 * int(sizeof...(I)) + I / 2)...);
}
template <class V, int... I>
inline V last_halves(V a, V b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, (I % 2 * int(sizeof...(I)) + I / 2 + int(sizeof...(I)) / 2)...);
}
template <class T>
inline void transpose(Vector<T>* v) {
    constexpr int L = LANES<T>;
    const std::make_integer_sequence<int, L> lanes{};
#pragma GCC unroll 8
    for (int n = 1; n < L; n *= 2) {
        Vector<T> w[L];
#pragma GCC unroll 16
        for (int i = 0; i < L / 2; i++) {
            w[2 * i] = first_halves(v[i], v[i + L / 2], lanes);
            w[2 * i + 1] = last_halves(v[i], v[i + L / 2], lanes);
        }
#pragma GCC unroll 16
        for (int i = 0; i < L; i++) v[i] = w[i];
    }
}
