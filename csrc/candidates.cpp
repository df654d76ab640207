// The best of scores that come tile by tile, some positions excluded; exact, ties to the lower position.
#include <algorithm>
#include <cmath>
#include <limits>

#include "torch.h"

namespace regrow {
namespace {

struct Candidate {
    double score;
    int64_t position;
    bool operator<(const Candidate& other) const { // better
        return score > other.score || (score == other.score && position < other.position);
    }
};

// Leaves the `count` best in front, the worst of them last.
int64_t shrink(Candidate* all, int64_t filled, int64_t count) {
    if (filled < count) return filled;
    if (count > 0) std::nth_element(all, all + count - 1, all + filled);
    return count;
}

// Candidates of one tile that are better than the worst of `count` join those in front of `all`.
template <class T>
int64_t scan(const T* tile, int64_t size, const int64_t* excluded, int64_t number, int64_t offset, bool magnitude,
             int64_t count, Candidate* all, int64_t capacity, int64_t filled) {
    constexpr int64_t RUN = 64;
    constexpr T worst = -std::numeric_limits<T>::infinity();
    T threshold = worst; // what a score must pass; positions ascend, so a tie with the worst never enters
    const auto settle = [&] {
        filled = shrink(all, filled, count);
        if (filled == count && count > 0) threshold = T(all[count - 1].score);
    };
    settle();
    bool all_enter = filled < count; // an infinitely bad score too, while there is room
    const int64_t* next = excluded;
    for (int64_t begin = 0; begin < size; begin += RUN) {
        const int64_t end = std::min(begin + RUN, size);
        bool some = all_enter, good = true;
        for (int64_t i = begin; i < end; i++) {
            const T x = magnitude ? std::abs(tile[i]) : tile[i];
            some |= x > threshold;
            good &= magnitude ? x <= std::numeric_limits<T>::max() : x == x;
        }
        if (!good) return -1;
        if (!some) continue;
        next = std::lower_bound(next, excluded + number, offset + begin);
        for (int64_t i = begin; i < end; i++) {
            if (next < excluded + number && *next == offset + i) {
                next++;
                continue;
            }
            const T x = magnitude ? std::abs(tile[i]) : tile[i];
            if (!all_enter && !(x > threshold)) continue;
            all[filled++] = {double(x), offset + i};
        }
        if (filled + RUN > capacity) {
            settle();
            all_enter = filled < count;
        }
    }
    return filled;
}

int64_t scan_op(Tensor tile, Tensor excluded, int64_t offset, bool magnitude, int64_t count, Tensor best, int64_t filled) {
    STD_TORCH_CHECK(tile.is_contiguous() && excluded.is_contiguous() && best.is_contiguous(), "not contiguous");
    const int64_t capacity = best.size(0);
    STD_TORCH_CHECK(best.element_size() == 8 && best.size(1) == 2 && capacity >= count + 64, "`best` is too small");
    auto* const all = static_cast<Candidate*>(best.mutable_data_ptr());
    if (tile.scalar_type() == ScalarType::Double)
        return scan(read<double>(tile), tile.numel(), read<int64_t>(excluded), excluded.numel(), offset, magnitude, count,
                    all, capacity, filled);
    STD_TORCH_CHECK(tile.scalar_type() == ScalarType::Float, "scores must be float32 or float64");
    return scan(read<float>(tile), tile.numel(), read<int64_t>(excluded), excluded.numel(), offset, magnitude, count, all,
                capacity, filled);
}

// The positions of the `count` best, ascending.
Tensor chosen(Tensor best, int64_t filled, int64_t count) {
    auto* const all = static_cast<Candidate*>(best.mutable_data_ptr());
    filled = shrink(all, filled, count);
    const Tensor positions = empty(best, {filled}, ScalarType::Long);
    int64_t* const p = write<int64_t>(positions);
    for (int64_t i = 0; i < filled; i++) p[i] = all[i].position;
    std::sort(p, p + filled);
    return positions;
}

} // namespace
} // namespace regrow

STABLE_TORCH_LIBRARY_FRAGMENT(regrow_native, m) {
    m.def("scan(Tensor tile, Tensor excluded, int offset, bool magnitude, int count, Tensor(a!) best, int filled) -> int");
    m.def("chosen(Tensor(a!) best, int filled, int count) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(regrow_native, CPU, m) {
    m.impl("scan", TORCH_BOX(&regrow::scan_op));
    m.impl("chosen", TORCH_BOX(&regrow::chosen));
}
