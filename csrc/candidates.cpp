// The best of scores, exactly, ties to the lower position; all at once, or tile by tile with some positions excluded.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "torch.h"

namespace regrow {
namespace {

// The worst of the `count` best of n scores, and how many are better than it.
template <class T>
std::pair<T, int64_t> worst_of_best(const T* scores, int64_t n, int64_t count) {
    std::vector<T> copy(scores, scores + n);
    std::nth_element(copy.begin(), copy.begin() + (count - 1), copy.end(), std::greater<T>());
    const T worst = copy[count - 1];
    return {worst, std::count_if(copy.begin(), copy.begin() + count, [=](T x) { return x > worst; })};
}

// Scores and their positions, ascending; there is room for more than are wanted.
template <class T>
struct Candidates {
    T* scores;
    int64_t* positions;
    int64_t filled, capacity;

    // Keeps the `count` best, in order, and returns the worst of them.
    T shrink(int64_t count) {
        const auto [worst, better] = worst_of_best(scores, filled, count);
        int64_t kept = 0, ties = count - better;
        for (int64_t i = 0; i < filled; i++) {
            const bool tied = scores[i] == worst && ties > 0;
            ties -= tied;
            scores[kept] = scores[i];
            positions[kept] = positions[i];
            kept += scores[i] > worst || tied;
        }
        filled = kept;
        return worst;
    }
};

// Whether all scores are finite, or are numbers at least.
template <class T>
bool sound(const T* scores, int64_t n, bool finite) {
    bool good = true;
    for (int64_t i = 0; i < n; i++) good &= finite ? std::abs(scores[i]) <= std::numeric_limits<T>::max() : scores[i] == scores[i];
    return good;
}

template <class T>
int64_t scan(T* tile, int64_t size, const int64_t* excluded, int64_t number, int64_t offset, bool magnitude,
             int64_t count, double floor, Candidates<T> all) {
    if (!sound(tile, size, magnitude)) return -1;
    for (int64_t i = 0; i < number; i++) tile[excluded[i] - offset] = std::numeric_limits<T>::quiet_NaN(); // never enters
    T least = T(floor); // what a score must reach
    constexpr T infinity = std::numeric_limits<T>::infinity();
    constexpr int64_t RUN = 256;
    for (int64_t begin = 0; begin < size; begin += RUN) {
        if (all.filled + RUN > all.capacity) least = std::nextafter(all.shrink(count), infinity); // later ties lose
        const int64_t end = std::min(begin + RUN, size);
        bool some = false;
        for (int64_t i = begin; i < end; i++) some |= (magnitude ? std::abs(tile[i]) : tile[i]) >= least;
        if (!some) continue;
        for (int64_t i = begin; i < end; i++) {
            const T x = magnitude ? std::abs(tile[i]) : tile[i];
            all.scores[all.filled] = x;
            all.positions[all.filled] = offset + i;
            all.filled += x >= least;
        }
    }
    return all.filled;
}

template <class T>
Candidates<T> candidates(const Tensor& scores, const Tensor& positions, int64_t filled) {
    return {write<T>(scores), write<int64_t>(positions), filled, positions.numel()};
}

bool is_double(const Tensor& scores) {
    const ScalarType type = scores.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "scores must be float32 or float64");
    STD_TORCH_CHECK(scores.is_contiguous() && scores.is_cpu(), "scores must be contiguous, on the CPU");
    return type == ScalarType::Double;
}

// Lets the scores of a tile that reach `floor`, and that may be among the `count` best, join the candidates; returns how
// many there are then, or -1 where a score is not finite (magnitude) or not a number. The tile is used up.
int64_t scan_op(Tensor tile, Tensor excluded, int64_t offset, bool magnitude, int64_t count, double floor, Tensor scores,
                Tensor positions, int64_t filled) {
    STD_TORCH_CHECK(positions.numel() >= count + 256 && scores.numel() == positions.numel(), "too little room");
    STD_TORCH_CHECK(scores.scalar_type() == tile.scalar_type() && excluded.is_contiguous(), "the wrong type");
    const int64_t* const e = read<int64_t>(excluded);
    const int64_t n = excluded.numel();
    STD_TORCH_CHECK(n == 0 || (e[0] >= offset && e[n - 1] < offset + tile.numel()), "`excluded` must be in the tile");
    if (is_double(tile))
        return scan(write<double>(tile), tile.numel(), e, n, offset, magnitude, count, floor,
                    candidates<double>(scores, positions, filled));
    return scan(write<float>(tile), tile.numel(), e, n, offset, magnitude, count, floor,
                candidates<float>(scores, positions, filled));
}

// Keeps the `count` best candidates in front; returns how many there are.
int64_t settle(Tensor scores, Tensor positions, int64_t filled, int64_t count) {
    if (filled <= count) return filled;
    if (count == 0) return 0;
    if (is_double(scores)) candidates<double>(scores, positions, filled).shrink(count);
    else candidates<float>(scores, positions, filled).shrink(count);
    return count;
}

template <class T>
Tensor top_of(const Tensor& scores, int64_t count) {
    const T* const s = read<T>(scores);
    const int64_t n = scores.numel();
    if (!sound(s, n, false)) return empty(scores, {0}, ScalarType::Long);
    const auto [worst, better] = worst_of_best(s, n, count);
    int64_t ties = count - better, found = 0;
    const Tensor positions = empty(scores, {count}, ScalarType::Long);
    int64_t* const p = write<int64_t>(positions);
    for (int64_t i = 0; i < n && found < count; i++) {
        const bool tied = s[i] == worst && ties > 0;
        ties -= tied;
        p[found] = i;
        found += s[i] > worst || tied;
    }
    return positions;
}

// Indices of the `count` > 0 best, ascending; none where one is not a number.
Tensor top(Tensor scores, int64_t count) {
    STD_TORCH_CHECK(count > 0 && count <= scores.numel(), "`count` must be in [1, ", scores.numel(), "], got ", count);
    return is_double(scores) ? top_of<double>(scores, count) : top_of<float>(scores, count);
}

} // namespace
} // namespace regrow

STABLE_TORCH_LIBRARY_FRAGMENT(regrow_native, m) {
    m.def("scan(Tensor(a!) tile, Tensor excluded, int offset, bool magnitude, int count, float floor, Tensor(b!) scores, "
          "Tensor(c!) positions, int filled) -> int");
    m.def("settle(Tensor(a!) scores, Tensor(b!) positions, int filled, int count) -> int");
    m.def("top(Tensor scores, int count) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(regrow_native, CPU, m) {
    m.impl("scan", TORCH_BOX(&regrow::scan_op));
    m.impl("settle", TORCH_BOX(&regrow::settle));
    m.impl("top", TORCH_BOX(&regrow::top));
}
