// The best of scores, exactly, ties to the lower position; all at once, or tile by tile with some positions excluded.
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "parallel.h"

namespace regrow {
namespace {

constexpr int64_t SHARE = 1 << 14; // scores that are worth a thread
constexpr int64_t SLAB = 1 << 18;  // scores that may all become candidates before the worst are dropped

// Unsigned numbers in the order of the scores; -0 is 0.
inline uint32_t key(float x) {
    uint32_t bits;
    x += 0.0f;
    std::memcpy(&bits, &x, sizeof bits);
    return bits ^ (uint32_t(int32_t(bits) >> 31) | 0x80000000u);
}
inline uint64_t key(double x) {
    uint64_t bits;
    x += 0.0;
    std::memcpy(&bits, &x, sizeof bits);
    return bits ^ (uint64_t(int64_t(bits) >> 63) | 0x8000000000000000ull);
}
template <class T> using Key = decltype(key(T()));

// Who is among the best: all with a higher key, and so many of those with just that one.
template <class T>
struct Bar {
    Key<T> worst;
    int64_t ties;
};

// The bar that `count` of n scores pass, found 11 bits of the key at a time.
template <class T>
Bar<T> bar_of(const T* scores, int64_t n, int64_t count) {
    constexpr int DIGIT = 11, ALL = 8 * sizeof(T);
    constexpr int64_t VALUES = 1 << DIGIT;
    const int64_t parts = parts_of(n, SHARE);
    std::vector<int64_t> histogram(parts * VALUES);
    Key<T> known = 0; // the first bits of the key
    for (int shift = ALL - DIGIT, above = ALL;; above = shift, shift = std::max(shift - DIGIT, 0)) {
        const Key<T> mask = (Key<T>(1) << (above - shift)) - 1;
        std::fill(histogram.begin(), histogram.end(), 0);
        in_parts(n, parts, [&](int64_t part, int64_t begin, int64_t end) {
            int64_t* const own = histogram.data() + part * VALUES;
            for (int64_t i = begin; i < end; i++) {
                const Key<T> k = key(scores[i]);
                if (above == ALL || k >> (above % ALL) == known) own[(k >> shift) & mask]++;
            }
        });
        for (Key<T> digit = mask;; digit--) {
            int64_t here = 0;
            for (int64_t part = 0; part < parts; part++) here += histogram[part * VALUES + digit];
            if (here >= count) {
                known = (above == ALL ? 0 : known << (above - shift)) | digit;
                break;
            }
            count -= here;
        }
        if (shift == 0) return {known, count};
    }
}

// Scores and their positions, ascending; there is room for more than are wanted.
template <class T>
struct Candidates {
    T* scores;
    int64_t* positions;
    int64_t filled, capacity;

    // Keeps the `count` best, in order, and returns the worst of them.
    T shrink(int64_t count) {
        Bar<T> bar = bar_of(scores, filled, count);
        int64_t kept = 0;
        T worst = std::numeric_limits<T>::infinity();
        for (int64_t i = 0; i < filled; i++) {
            const Key<T> k = key(scores[i]);
            const bool tied = k == bar.worst && bar.ties > 0, stays = k > bar.worst || tied;
            bar.ties -= tied;
            worst = stays ? std::min(worst, scores[i]) : worst;
            scores[kept] = scores[i];
            positions[kept] = positions[i];
            kept += stays;
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

// Writes what reaches `least` of scores [begin, end) and returns how much that is.
template <class T, bool MAGNITUDE>
int64_t collect(const T* tile, int64_t begin, int64_t end, int64_t offset, T least, T* scores, int64_t* positions) {
    constexpr int64_t RUN = 64; // most have none where few are wanted
    int64_t found = 0;
    for (int64_t start = begin; start < end; start += RUN) {
        const int64_t stop = std::min(start + RUN, end);
        bool some = false;
        for (int64_t i = start; i < stop; i++) some |= (MAGNITUDE ? std::abs(tile[i]) : tile[i]) >= least;
        if (!some) continue;
        for (int64_t i = start; i < stop; i++) {
            const T x = MAGNITUDE ? std::abs(tile[i]) : tile[i];
            scores[found] = x;
            positions[found] = offset + i;
            found += x >= least;
        }
    }
    return found;
}

template <class T>
int64_t scan(T* tile, int64_t size, const int64_t* excluded, int64_t number, int64_t offset, bool magnitude,
             int64_t count, double floor, Candidates<T> all) {
    T least = T(floor); // what a score must reach
    for (int64_t slab = 0; slab < size; slab += SLAB) {
        const int64_t length = std::min(SLAB, size - slab), parts = parts_of(length, SHARE);
        if (all.filled + length > all.capacity && all.filled > count)
            least = std::nextafter(all.shrink(count), std::numeric_limits<T>::infinity()); // later ties lose
        const int64_t base = all.filled;
        std::vector<int64_t> found(parts);
        in_parts(length, parts, [&](int64_t part, int64_t first, int64_t last) {
            const int64_t begin = slab + first, end = slab + last;
            if (!sound(tile + begin, end - begin, magnitude)) {
                found[part] = -1;
                return;
            }
            const int64_t* e = std::lower_bound(excluded, excluded + number, offset + begin);
            for (; e < excluded + number && *e < offset + end; e++)
                tile[*e - offset] = std::numeric_limits<T>::quiet_NaN(); // never enters
            const auto f = magnitude ? &collect<T, true> : &collect<T, false>;
            found[part] = f(tile, begin, end, offset, least, all.scores + base + first, all.positions + base + first);
        });
        for (int64_t part = 0; part < parts; part++) {
            if (found[part] < 0) return -1;
            const int64_t from = base + length * part / parts;
            std::copy_n(all.scores + from, found[part], all.scores + all.filled);
            std::copy_n(all.positions + from, found[part], all.positions + all.filled);
            all.filled += found[part];
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

void check_candidates(const Tensor& scores, const Tensor& positions, int64_t filled, int64_t least) {
    is_double(scores);
    check_positions(positions, "positions");
    STD_TORCH_CHECK(positions.numel() >= least && scores.numel() == positions.numel(), "`positions` must have room for ", least);
    STD_TORCH_CHECK(filled >= 0 && filled <= positions.numel(), "`filled` must be in [0, ", positions.numel(), "]");
}

// Lets the scores of a tile that reach `floor`, and that may be among the `count` best, join the candidates; returns how
// many there are then, or -1 where a score is not finite (magnitude) or not a number. The tile is used up.
int64_t scan_op(Tensor tile, Tensor excluded, int64_t offset, bool magnitude, int64_t count, double floor, Tensor scores,
                Tensor positions, int64_t filled) {
    check_candidates(scores, positions, filled, count + std::min(SLAB, tile.numel()));
    check_positions(excluded, "excluded");
    STD_TORCH_CHECK(count > 0 && scores.scalar_type() == tile.scalar_type(), "the wrong type");
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
    check_candidates(scores, positions, filled, count);
    if (filled <= count) return filled;
    if (count == 0) return 0;
    if (is_double(scores)) candidates<double>(scores, positions, filled).shrink(count);
    else candidates<float>(scores, positions, filled).shrink(count);
    return count;
}

template <class T>
Tensor top_of(const Tensor& scores, int64_t count) {
    const T* const s = read<T>(scores);
    const int64_t n = scores.numel(), parts = parts_of(n, SHARE);
    const Bar<T> bar = bar_of(s, n, count);
    struct Found { int64_t better = 0, tied = 0; bool good = true; };
    std::vector<Found> found(parts);
    in_parts(n, parts, [&](int64_t part, int64_t begin, int64_t end) {
        Found own;
        own.good = sound(s + begin, end - begin, false);
        for (int64_t i = begin; i < end; i++) {
            const Key<T> k = key(s[i]);
            own.better += k > bar.worst;
            own.tied += k == bar.worst;
        }
        found[part] = own;
    });
    for (const Found& own : found)
        if (!own.good) return empty(scores, {0}, ScalarType::Long);
    const Tensor positions = empty(scores, {count}, ScalarType::Long);
    int64_t* const p = write<int64_t>(positions);
    in_parts(n, parts, [&](int64_t part, int64_t begin, int64_t end) {
        int64_t place = 0, ties = bar.ties;
        for (int64_t before = 0; before < part; before++) {
            place += found[before].better + std::min(found[before].tied, ties);
            ties -= std::min(found[before].tied, ties);
        }
        const int64_t last = place + found[part].better + std::min(found[part].tied, ties);
        for (int64_t i = begin; i < end && place < last; i++) {
            const Key<T> k = key(s[i]);
            const bool tied = k == bar.worst && ties > 0;
            ties -= tied;
            p[place] = i;
            place += k > bar.worst || tied;
        }
    });
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
