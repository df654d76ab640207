// The best of scores, exactly, ties to the lower position; all at once, or tile by tile with some positions excluded.
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <optional>
#include <vector>

#include "parallel.h"

namespace regrow {
namespace {

constexpr int64_t SHARE = 1 << 14; // scores that are worth a thread
constexpr int64_t SLAB = 1 << 18;  // scores that may all become candidates before the worst are dropped
constexpr int64_t RUN = 64;        // scores that are looked at together: a bit for each in a word

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

inline uint32_t key(uint32_t k) { return k; }
inline uint64_t key(uint64_t k) { return k; }

// Which of n <= RUN things pass, as bits.
template <class F>
inline uint64_t which(int64_t n, const F& passes) {
    uint8_t flags[RUN]; // 0 or 1
    if (n == RUN)
        for (int64_t i = 0; i < RUN; i++) flags[i] = passes(i);
    else
        for (int64_t i = 0; i < RUN; i++) flags[i] = i < n && passes(i);
    uint64_t bits = 0;
    for (int64_t i = 0; i < RUN; i += 8) {
        uint64_t eight;
        std::memcpy(&eight, flags + i, sizeof eight);
        bits |= (eight * 0x0102040810204080ull >> 56) << i; // their lowest bits, brought together
    }
    return bits;
}

// f(i) for each bit i that is set, ascending.
template <class F>
inline void each_of(uint64_t bits, const F& f) {
    for (; bits; bits &= bits - 1) f(__builtin_ctzll(bits));
}

// f(start, n) for [begin, end), a run at a time.
template <class F>
inline void in_runs(int64_t begin, int64_t end, const F& f) {
    for (; begin < end; begin += RUN) f(begin, std::min(RUN, end - begin));
}

// The keys of those n values that the `count`th best is among by the 11 bits at `shift`; `count` becomes its rank there.
// All bits of keys are turned by `flip`.
template <class K, class X>
std::vector<K> narrow(const X* values, int64_t n, int shift, int64_t& count, K flip = 0) {
    constexpr int64_t VALUES = 1 << 11;
    const int64_t parts = parts_of(n, SHARE);
    std::vector<int64_t> histogram(2 * parts * VALUES);
    in_parts(n, parts, [&](int64_t part, int64_t begin, int64_t end) {
        int64_t* const own = histogram.data() + part * VALUES;
        int64_t* const other = own + parts * VALUES; // of every second one: to count the same twice in a row is slow
        const auto digit = [=](int64_t i) { return ((key(values[i]) ^ flip) >> shift) & (VALUES - 1); };
        for (int64_t i = begin; i + 1 < end; i += 2) {
            own[digit(i)]++;
            other[digit(i + 1)]++;
        }
        if ((end - begin) % 2) own[digit(end - 1)]++;
        for (int64_t d = 0; d < VALUES; d++) own[d] += other[d];
    });
    K digit = VALUES - 1;
    const auto before = [&](int64_t part) {
        int64_t sum = 0;
        for (int64_t p = 0; p < part; p++) sum += histogram[p * VALUES + digit];
        return sum;
    };
    for (; before(parts) < count; digit--) count -= before(parts);
    std::vector<K> those(before(parts));
    in_parts(n, parts, [&](int64_t part, int64_t begin, int64_t end) {
        K* to = those.data() + before(part);
        in_runs(begin, end, [&](int64_t start, int64_t length) {
            const X* const x = values + start;
            each_of(which(length, [=](int64_t i) { return (((key(x[i]) ^ flip) >> shift) & (VALUES - 1)) == digit; }),
                    [&](int i) { *to++ = key(x[i]) ^ flip; });
        });
    });
    return those;
}

// Who is among the best: all with a higher key, and so many of those with just that one.
template <class T>
struct Bar {
    Key<T> worst;
    int64_t ties;
};

// The bar that `count` > 0 of n scores pass.
template <class T>
Bar<T> bar_of(const T* scores, int64_t n, int64_t count, Key<T> flip = 0) {
    int shift = 8 * sizeof(T) - 11;
    std::vector<Key<T>> rest = narrow<Key<T>>(scores, n, shift, count, flip);
    while (shift > 0) {
        shift = std::max(shift - 11, 0);
        rest = narrow<Key<T>>(rest.data(), int64_t(rest.size()), shift, count);
    }
    return {rest[0], count};
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

// Writes what reaches `least` of scores [begin, end) but the positions `excluded`, and returns how much that is; -1 where
// one is not finite (MAGNITUDE) or not a number.
template <class T, bool MAGNITUDE>
int64_t collect(const T* tile, int64_t begin, int64_t end, int64_t offset, const int64_t* excluded, const int64_t* last,
                T least, T* scores, int64_t* positions) {
    constexpr T LIMIT = MAGNITUDE ? std::numeric_limits<T>::max() : std::numeric_limits<T>::infinity();
    const auto score = [](T x) { return MAGNITUDE ? std::abs(x) : x; };
    int64_t found = 0;
    bool sound = true;
    const int64_t* e = std::lower_bound(excluded, last, offset + begin);
    in_runs(begin, end, [&](int64_t start, int64_t n) {
        const T* const x = tile + start;
        int32_t bad = 0;
        for (int64_t i = 0; i < n; i++) bad |= !(score(x[i]) <= LIMIT);
        sound &= !bad;
        uint64_t best = which(n, [=](int64_t i) { return score(x[i]) >= least; });
        for (; e < last && *e < offset + start + n; e++) best &= ~(uint64_t(1) << (*e - offset - start));
        each_of(best, [&](int i) {
            scores[found] = score(x[i]);
            positions[found++] = offset + start + i;
        });
    });
    return sound ? found : -1;
}

template <class T>
int64_t scan(const T* tile, int64_t size, const int64_t* excluded, int64_t number, int64_t offset, bool magnitude,
             int64_t count, double floor, Candidates<T> all) {
    T least = T(floor); // what a score must reach
    for (int64_t slab = 0; slab < size; slab += SLAB) {
        const int64_t length = std::min(SLAB, size - slab), parts = parts_of(length, SHARE);
        if (all.filled + length > all.capacity && all.filled > count)
            least = std::nextafter(all.shrink(count), std::numeric_limits<T>::infinity()); // later ties lose
        const int64_t base = all.filled;
        std::vector<int64_t> found(parts);
        in_parts(length, parts, [&](int64_t part, int64_t first, int64_t last) {
            const auto f = magnitude ? &collect<T, true> : &collect<T, false>;
            found[part] = f(tile, slab + first, slab + last, offset, excluded, excluded + number, least,
                            all.scores + base + first, all.positions + base + first);
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
    STD_TORCH_CHECK(positions.numel() >= least && scores.numel() == positions.numel(), "`positions` must have room for ",
                    least);
    STD_TORCH_CHECK(filled >= 0 && filled <= positions.numel(), "`filled` must be in [0, ", positions.numel(), "]");
}

// Lets the scores of a tile that reach `floor`, and that may be among the `count` best, join the candidates; returns how
// many there are then, or -1 where a score is not finite (magnitude) or not a number.
int64_t scan_op(Tensor tile, Tensor excluded, int64_t offset, bool magnitude, int64_t count, double floor, Tensor scores,
                Tensor positions, int64_t filled) {
    check_candidates(scores, positions, filled, count + std::min(SLAB, tile.numel()));
    check_positions(excluded, "excluded");
    STD_TORCH_CHECK(count > 0, "`count` must be positive, got ", count);
    STD_TORCH_CHECK(scores.scalar_type() == tile.scalar_type(), "`scores` must be of the tile's dtype");
    const int64_t* const e = read<int64_t>(excluded);
    const int64_t n = excluded.numel();
    STD_TORCH_CHECK(n == 0 || (e[0] >= offset && e[n - 1] < offset + tile.numel()), "`excluded` must be in the tile");
    if (is_double(tile))
        return scan(read<double>(tile), tile.numel(), e, n, offset, magnitude, count, floor,
                    candidates<double>(scores, positions, filled));
    return scan(read<float>(tile), tile.numel(), e, n, offset, magnitude, count, floor,
                candidates<float>(scores, positions, filled));
}

template <class T>
Tensor top_of(const Tensor& scores, int64_t count, bool lowest, const int64_t* names) {
    const T* const s = read<T>(scores);
    const int64_t n = scores.numel(), parts = parts_of(n, SHARE);
    const Key<T> flip = lowest ? ~Key<T>(0) : 0;
    const Bar<T> bar = bar_of(s, n, count, flip);
    struct Found { int64_t better = 0, tied = 0, bad = 0; };
    std::vector<Found> found(parts);
    in_parts(n, parts, [&](int64_t part, int64_t begin, int64_t end) {
        Found own;
        in_runs(begin, end, [&](int64_t start, int64_t length) {
            Key<T> better = 0, tied = 0, bad = 0; // as wide as the scores, which is fastest
            for (int64_t i = start; i < start + length; i++) {
                const Key<T> k = key(s[i]) ^ flip;
                better += k > bar.worst;
                tied += k == bar.worst;
                bad += s[i] != s[i];
            }
            own.better += better;
            own.tied += tied;
            own.bad += bad;
        });
        found[part] = own;
    });
    for (const Found& own : found)
        if (own.bad) return empty(scores, {0}, ScalarType::Long);
    const Tensor positions = empty(scores, {count}, ScalarType::Long);
    in_parts(n, parts, [&](int64_t part, int64_t begin, int64_t end) {
        int64_t* to = write<int64_t>(positions);
        int64_t ties = bar.ties; // that are left
        for (int64_t before = 0; before < part; before++) {
            to += found[before].better + std::min(found[before].tied, ties);
            ties -= std::min(found[before].tied, ties);
        }
        in_runs(begin, end, [&](int64_t start, int64_t length) {
            const T* const x = s + start;
            uint64_t best = which(length, [=](int64_t i) { return (key(x[i]) ^ flip) > bar.worst; });
            uint64_t tied = ties ? which(length, [=](int64_t i) { return (key(x[i]) ^ flip) == bar.worst; }) : 0;
            for (; tied && ties; tied &= tied - 1, ties--) best |= tied & -tied;
            each_of(best, [&](int i) { *to++ = names ? names[start + i] : start + i; });
        });
    });
    return positions;
}

// Indices of the `count` > 0 highest or lowest, or their names, in order; none where one is not a number.
Tensor top(Tensor scores, int64_t count, bool lowest, std::optional<Tensor> names_) {
    STD_TORCH_CHECK(count > 0 && count <= scores.numel(), "`count` must be in [1, ", scores.numel(), "], got ", count);
    if (names_) check_positions(*names_, "names");
    STD_TORCH_CHECK(!names_ || names_->numel() == scores.numel(), "`names` must be as many as the scores");
    const int64_t* const names = names_ ? read<int64_t>(*names_) : nullptr;
    return is_double(scores) ? top_of<double>(scores, count, lowest, names) : top_of<float>(scores, count, lowest, names);
}

template <class T>
double floor_of(T* sample, const int64_t* rows, int64_t number, int64_t columns, const int64_t* excluded,
                const int64_t* last, double share) {
    std::vector<int64_t> taken(number);
    in_parts(number, parts_of(number * columns, SHARE), [&](int64_t, int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; r++) {
            T* const row = sample + r * columns;
            for (int64_t c = 0; c < columns; c++) row[c] = std::abs(row[c]);
            const int64_t start = rows[r] * columns, *e = std::lower_bound(excluded, last, start), *const first = e;
            for (; e < last && *e >= start && *e < start + columns; e++) row[*e - start] = -1;
            taken[r] = e - first;
        }
    });
    const int64_t free = number * columns - std::accumulate(taken.begin(), taken.end(), int64_t(0));
    const double wanted = share * double(free);
    const int64_t rank = int64_t(1.5 * wanted + 4 * std::sqrt(wanted) + 16); // with some to spare, as rows differ
    T floor = std::numeric_limits<T>::infinity();
    if (rank < free) {
        const Bar<T> bar = bar_of(sample, number * columns, rank);
        for (int64_t i = 0; i < number * columns; i++)
            floor = key(sample[i]) >= bar.worst ? std::min(floor, sample[i]) : floor;
    }
    return floor <= std::numeric_limits<T>::max() ? floor : -std::numeric_limits<double>::infinity();
}

// A magnitude that somewhat more than `share` of all are likely to reach whose positions are not `excluded`, by a sample
// of the rows, which is used up; -inf where it cannot say.
double floor_op(Tensor sample, Tensor rows, Tensor excluded, double share) {
    check_positions(rows, "rows");
    check_positions(excluded, "excluded");
    STD_TORCH_CHECK(sample.dim() == 2 && sample.size(0) == rows.numel() && sample.numel() > 0,
                    "`sample` must be a matrix of the rows");
    STD_TORCH_CHECK(share >= 0 && share <= 1, "`share` must be in [0, 1], got ", share);
    const auto of = [&](auto* data) {
        const int64_t* const e = read<int64_t>(excluded);
        return floor_of(data, read<int64_t>(rows), sample.size(0), sample.size(1), e, e + excluded.numel(), share);
    };
    return is_double(sample) ? of(write<double>(sample)) : of(write<float>(sample));
}

} // namespace
} // namespace regrow

STABLE_TORCH_LIBRARY_FRAGMENT(regrow_native, m) {
    m.def("scan(Tensor tile, Tensor excluded, int offset, bool magnitude, int count, float floor, Tensor(a!) scores, "
          "Tensor(b!) positions, int filled) -> int");
    m.def("top(Tensor scores, int count, bool lowest, Tensor? names) -> Tensor");
    m.def("floor(Tensor(a!) sample, Tensor rows, Tensor excluded, float share) -> float");
}
STABLE_TORCH_LIBRARY_IMPL(regrow_native, CPU, m) {
    m.impl("scan", TORCH_BOX(&regrow::scan_op));
    m.impl("top", TORCH_BOX(&regrow::top));
    m.impl("floor", TORCH_BOX(&regrow::floor_op));
}
