// A changed topology, in time of its connections: the new index, what moves where, and the mirrored index.
#include <algorithm>
#include <limits>
#include <memory>
#include <numeric>
#include <tuple>
#include <vector>

#include "parallel.h"

namespace regrow {
namespace {

constexpr int64_t SHARE = 1 << 14; // connections that are worth a thread

// A CSR matrix's index, checked.
struct Index {
    Index(const Tensor& crow_, const Tensor& col_, int64_t columns) : columns(columns) {
        check_index(crow_, 1, "crow");
        rows = crow_.numel() - 1;
        crow = read(crow_);
        nnz = crow[rows];
        check_index(col_, std::max<int64_t>(nnz, 0), "col");
        col = read(col_);
        bool ascending = crow[0] == 0 && columns >= 0;
        for (int64_t r = 0; r < rows; r++) ascending &= crow[r] <= crow[r + 1];
        STD_TORCH_CHECK(ascending, "`crow` must ascend from 0");
    }
    // The first row that starts at connection j or later.
    int64_t row_of(int64_t j) const { return std::lower_bound(crow, crow + rows, j) - crow; }

    int64_t rows, columns, nnz;
    const int32_t *crow, *col;
};

// f(part, first, last) for ranges of rows that hold about as many connections each.
template <class F>
void in_rows(const Index& index, int64_t parts, const F& f) {
    in_parts(index.nnz, parts, [&](int64_t part, int64_t begin, int64_t end) {
        f(part, part == 0 ? 0 : index.row_of(begin), part == parts - 1 ? index.rows : index.row_of(end));
    });
}

// The index of the transposed matrix [columns, rows], by counting: crow_t, row_t, order; padded like col with zeros.
void mirror(Tensor crow_, Tensor col_, Tensor crow_t_, Tensor row_t_, Tensor order_) {
    check_index(crow_t_, 1, "crow_t");
    const int64_t columns = crow_t_.numel() - 1;
    const Index in(crow_, col_, columns);
    check_index(row_t_, in.nnz, "row_t");
    check_index(order_, row_t_.numel(), "order");
    int32_t *const crow_t = write(crow_t_), *const row_t = write(row_t_), *const order = write(order_);

    // each part counts its own connections by column, and then knows where in each column they go
    const int64_t parts = std::min(parts_of(in.nnz, SHARE), 1 + in.nnz / std::max<int64_t>(columns, 1));
    std::vector<int32_t> next(parts * columns);
    std::vector<char> inside(parts);
    in_rows(in, parts, [&](int64_t part, int64_t first, int64_t last) {
        int32_t* const own = next.data() + part * columns;
        bool good = true;
        for (int64_t j = in.crow[first]; j < in.crow[last] && good; j++) {
            good = in.col[j] >= 0 && in.col[j] < columns;
            if (good) own[in.col[j]]++;
        }
        inside[part] = good;
    });
    for (const char good : inside) STD_TORCH_CHECK(good, "`col` must be in [0, ", columns, ")");
    int32_t place = 0;
    for (int64_t c = 0; c < columns; c++) {
        crow_t[c] = place;
        for (int64_t part = 0; part < parts; part++) {
            int32_t& count = next[part * columns + c];
            place += count;
            count = place - count;
        }
    }
    crow_t[columns] = place;
    // so many columns at a time that the ends of their places stay in the nearest cache, and all of them within what the
    // processor translates of addresses; but a visit of a row should have some connections
    const int64_t near = std::min<int64_t>(512, columns * (1 << 19) / std::max<int64_t>(in.nnz, 1));
    const int64_t block = std::max({int64_t(1), near, int64_t(32 * double(in.rows) * double(columns) / double(in.nnz + 1))});
    in_rows(in, parts, [&](int64_t part, int64_t first, int64_t last) {
        int32_t* const own = next.data() + part * columns;
        std::vector<int32_t> cursor(in.crow + first, in.crow + last);
        const int32_t *const crow = in.crow, *const col = in.col; // local, as whatever is written could change the others
        int32_t *const rows = row_t, *const places = order;
        for (int64_t stop = std::min(block, columns);; stop = std::min(stop + block, columns)) {
            for (int64_t r = first; r < last; r++) {
                int32_t j = cursor[r - first];
                for (; j < crow[r + 1] && col[j] < stop; j++) {
                    const int32_t to = own[col[j]]++;
                    rows[to] = int32_t(r);
                    places[to] = j;
                }
                cursor[r - first] = j;
            }
            if (stop == columns) break;
        }
    });
    std::fill(row_t + in.nnz, row_t + row_t_.numel(), 0);
    std::fill(order + in.nnz, order + order_.numel(), 0);
}

// 0 for each connection that goes, else 1.
std::vector<uint8_t> staying(const Tensor& drop_, int64_t nnz) {
    check_positions(drop_, "drop");
    const int64_t* const drop = read<int64_t>(drop_);
    std::vector<uint8_t> stays(nnz, 1);
    const int64_t parts = parts_of(drop_.numel(), SHARE);
    std::vector<int64_t> wrong(parts, -1); // place of one
    in_parts(drop_.numel(), parts, [&](int64_t part, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            if (drop[i] < 0 || drop[i] >= nnz) wrong[part] = i;
            else __atomic_store_n(&stays[drop[i]], 0, __ATOMIC_RELAXED); // another part may name the same connection
        }
    });
    for (const int64_t i : wrong) STD_TORCH_CHECK(i < 0, "`drop` must be in [0, ", nnz, "), got ", drop[i]);
    return stays;
}

// How many connections of the rows [first, last) stay.
int64_t count_of(const std::vector<uint8_t>& stays, const Index& in, int64_t first, int64_t last) {
    return std::accumulate(stays.begin() + in.crow[first], stays.begin() + in.crow[last], int64_t(0));
}

// Flat positions of the connections but for those in `drop` (indices), ascending.
Tensor positions(Tensor crow_, Tensor col_, int64_t columns, Tensor drop_) {
    const Index in(crow_, col_, columns);
    const std::vector<uint8_t> stays = staying(drop_, in.nnz);
    const int64_t parts = parts_of(in.nnz, SHARE);
    std::vector<int64_t> count(parts);
    in_rows(in, parts, [&](int64_t part, int64_t first, int64_t last) { count[part] = count_of(stays, in, first, last); });
    const Tensor positions_ = empty(crow_, {std::accumulate(count.begin(), count.end(), int64_t(0))}, ScalarType::Long);
    in_rows(in, parts, [&](int64_t part, int64_t first, int64_t last) {
        int64_t* to = write<int64_t>(positions_) + std::accumulate(count.begin(), count.begin() + part, int64_t(0));
        int64_t* const end = to + count[part];
        for (int64_t r = first; r < last; r++) {
            for (int32_t j = in.crow[r]; j < in.crow[r + 1] && to < end; j++) {
                *to = r * columns + in.col[j];
                to += stays[j];
            }
        }
    });
    return positions_;
}

// Merges the connections [j, stop) of the row that starts at position `zero` with what comes in it, written from n up to
// `end` at most; returns how far. Without a branch that depends on their order. Not inline, where there would be too few registers.
__attribute__((noinline)) int64_t merge(const int32_t* col, const uint8_t* stays, int64_t j, int64_t stop, const int64_t* grow,
                                       const int64_t* last, int64_t zero, int32_t* new_col, int32_t* source, int64_t n,
                                       int64_t end) {
    while (j < stop && grow < last) {
        const int64_t present = zero + col[j], coming = *grow;
        const int64_t known = present <= coming, comes = coming <= present;
        new_col[n] = int32_t(std::min(present, coming) - zero);
        source[n] = int32_t(j | (known - 1));
        n += comes | stays[j];
        j += known;
        grow += comes;
    }
    for (; j < stop && n < end; n += stays[j++]) { // at the end, all others go
        new_col[n] = col[j];
        source[n] = int32_t(j);
    }
    for (; grow < last && n < end; n++, grow++) {
        new_col[n] = int32_t(*grow - zero);
        source[n] = -1;
    }
    return n;
}

// The index without the connections `drop` (indices) and with those at the positions `grow` (ascending, none that stays):
// crow, col, for each connection the place it had before, -1 where it is new, and how many are new. One that is dropped
// and grown keeps its place.
std::tuple<Tensor, Tensor, Tensor, int64_t> rewire(Tensor crow_, Tensor col_, int64_t columns, Tensor drop_, Tensor grow_) {
    const Index in(crow_, col_, columns);
    check_positions(grow_, "grow");
    const std::vector<uint8_t> stays = staying(drop_, in.nnz);
    const int64_t* const grow = read<int64_t>(grow_);
    const int64_t grown = grow_.numel();
    bool ascending = grown == 0 || (grow[0] >= 0 && grow[grown - 1] < in.rows * columns);
    for (int64_t i = 1; i < grown; i++) ascending &= grow[i - 1] < grow[i];
    STD_TORCH_CHECK(ascending, "`grow` must ascend, below rows x columns");

    const int64_t parts = parts_of(in.nnz, SHARE);
    struct Part { const int64_t *grow, *end; int64_t count, fresh; }; // what comes, what there is then, what of it is new
    std::vector<Part> all(parts);
    in_rows(in, parts, [&](int64_t part, int64_t first, int64_t last) {
        const auto at = [&](int64_t row) { return std::lower_bound(grow, grow + grown, row * columns); };
        all[part] = {at(first), at(last), count_of(stays, in, first, last) + (at(last) - at(first)), 0};
    });
    int64_t total = 0;
    for (const Part& part : all) total += part.count;
    STD_TORCH_CHECK(total <= std::numeric_limits<int32_t>::max(), "2^31 - 1 connections are the limit, got ", total);
    const Tensor new_crow_ = empty(crow_, {in.rows + 1}, ScalarType::Int), new_col_ = empty(col_, {total}, ScalarType::Int),
                 source_ = empty(col_, {total}, ScalarType::Int);
    int32_t *const new_crow = write(new_crow_), *const new_col = write(new_col_), *const source = write(source_);
    new_crow[0] = 0;
    in_rows(in, parts, [&](int64_t part, int64_t first, int64_t last) {
        int64_t begin = 0;
        for (int64_t p = 0; p < part; p++) begin += all[p].count;
        const int64_t end = begin + all[part].count;
        const int64_t* next = all[part].grow;
        int64_t n = begin;
        for (int64_t r = first; r < last; r++) {
            const int64_t* const row = next;
            while (next < all[part].end && *next < (r + 1) * columns) next++;
            n = merge(in.col, stays.data(), in.crow[r], in.crow[r + 1], row, next, r * columns, new_col, source, n, end);
            new_crow[r + 1] = int32_t(n);
        }
        all[part].fresh = n == end ? std::count(source + begin, source + end, -1) : -1;
    });
    int64_t fresh = 0;
    for (const Part& part : all) {
        STD_TORCH_CHECK(part.fresh >= 0, "`grow` must be disjoint from the connections that stay");
        fresh += part.fresh;
    }
    return {new_crow_, new_col_, source_, fresh};
}

// `mix` of regrow.ops.sketch
uint64_t mix(int64_t position) {
    uint64_t mixed = uint64_t(position) * 0x9E3779B97F4A7C1ull + 0x632BE59BD9B4E019ull;
    mixed = (mixed ^ (mixed >> 29)) * 0x3C79AC492BA7B653ull;
    return mixed ^ (mixed >> 32);
}

// The sum of the hashes of the positions.
int64_t fingerprint(Tensor crow_, Tensor col_, int64_t columns) {
    const Index in(crow_, col_, columns);
    const int64_t parts = parts_of(in.nnz, SHARE);
    std::vector<uint64_t> sums(parts);
    in_rows(in, parts, [&](int64_t part, int64_t first, int64_t last) {
        uint64_t sum = 0;
        for (int64_t r = first; r < last; r++) {
            for (int32_t j = in.crow[r]; j < in.crow[r + 1]; j++) sum += mix(r * columns + in.col[j]);
        }
        sums[part] = sum;
    });
    return int64_t(std::accumulate(sums.begin(), sums.end(), uint64_t(0)));
}

// Adds positions to the registers of a sketch as regrow.ops.sketch does: the low bits of a hash choose the register, which
// keeps the longest run of leading zeros of the others, plus one.
void sketch(Tensor positions_, Tensor registers_) {
    check_positions(positions_, "positions");
    const int64_t size = registers_.numel();
    STD_TORCH_CHECK(registers_.scalar_type() == ScalarType::Byte && registers_.is_contiguous() && size > 1 &&
                        (size & (size - 1)) == 0, "the registers must be uint8, contiguous, a power of 2 of them");
    const int64_t* const positions = read<int64_t>(positions_);
    const int bits = __builtin_ctzll(uint64_t(size));
    const int64_t parts = parts_of(positions_.numel(), SHARE);
    std::vector<uint8_t> found(parts * size);
    in_parts(positions_.numel(), parts, [&](int64_t part, int64_t begin, int64_t end) {
        uint8_t* const own = found.data() + part * size;
        for (int64_t i = begin; i < end; i++) {
            const uint64_t mixed = mix(positions[i]), rest = mixed >> bits;
            const int zeros = rest ? __builtin_clzll(rest) - bits : 64 - bits;
            uint8_t& longest = own[mixed & (size - 1)];
            longest = std::max<uint8_t>(longest, uint8_t(zeros + 1));
        }
    });
    uint8_t* const registers = write<uint8_t>(registers_);
    for (int64_t part = 0; part < parts; part++)
        for (int64_t i = 0; i < size; i++) registers[i] = std::max(registers[i], found[part * size + i]);
}

template <class T>
void move_as(const int32_t* source, int64_t count, T* data, int64_t capacity) {
    const std::unique_ptr<T[]> buffer(new T[capacity + 1]); // where a new one comes from, and all that were before
    buffer[0] = T(0);
    T* const before = buffer.get() + 1;
    const int64_t parts = parts_of(capacity, SHARE);
    std::vector<uint8_t> inside(parts);
    in_parts(capacity, parts, [&](int64_t part, int64_t begin, int64_t end) {
        std::copy(data + begin, data + end, before + begin);
        int32_t lowest = -1, highest = -1;
        for (int64_t i = begin, stop = std::min(end, count); i < stop; i++) {
            lowest = std::min(lowest, source[i]);
            highest = std::max(highest, source[i]);
        }
        inside[part] = lowest == -1 && highest < capacity;
    });
    for (const uint8_t good : inside) STD_TORCH_CHECK(good, "`source` must be in [-1, ", capacity, ")");
    in_parts(capacity, parts, [=](int64_t, int64_t begin, int64_t end) {
        const int64_t used = std::clamp(count, begin, end);
        for (int64_t i = begin; i < used; i++) data[i] = before[source[i]];
        std::fill(data + used, data + end, T(0));
    });
}

// Moves the entries of a tensor [capacity, 1] to their new places; zero where a connection is new, and in the padding.
void move(Tensor source, Tensor tensor) {
    const int64_t count = source.numel(), capacity = tensor.numel();
    check_index(source, 0, "source");
    STD_TORCH_CHECK(tensor.is_contiguous() && tensor.is_cpu() && count <= capacity, "`tensor` must be contiguous, of the capacity");
    const int32_t* const from = read(source);
    void* const data = tensor.mutable_data_ptr();
    switch (tensor.element_size()) {
        case 8: return move_as(from, count, static_cast<uint64_t*>(data), capacity);
        case 4: return move_as(from, count, static_cast<uint32_t*>(data), capacity);
        case 2: return move_as(from, count, static_cast<uint16_t*>(data), capacity);
        case 1: return move_as(from, count, static_cast<uint8_t*>(data), capacity);
    }
    STD_TORCH_CHECK(false, "`tensor` has entries of ", tensor.element_size(), " bytes");
}

} // namespace
} // namespace regrow

STABLE_TORCH_LIBRARY_FRAGMENT(regrow_native, m) {
    m.def("mirror(Tensor crow, Tensor col, Tensor(a!) crow_t, Tensor(b!) row_t, Tensor(c!) order) -> ()");
    m.def("positions(Tensor crow, Tensor col, int columns, Tensor drop) -> Tensor");
    m.def("fingerprint(Tensor crow, Tensor col, int columns) -> int");
    m.def("sketch(Tensor positions, Tensor(a!) registers) -> ()");
    m.def("rewire(Tensor crow, Tensor col, int columns, Tensor drop, Tensor grow) -> (Tensor, Tensor, Tensor, int)");
    m.def("move(Tensor source, Tensor(a!) tensor) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(regrow_native, CPU, m) {
    m.impl("mirror", TORCH_BOX(&regrow::mirror));
    m.impl("positions", TORCH_BOX(&regrow::positions));
    m.impl("fingerprint", TORCH_BOX(&regrow::fingerprint));
    m.impl("sketch", TORCH_BOX(&regrow::sketch));
    m.impl("rewire", TORCH_BOX(&regrow::rewire));
    m.impl("move", TORCH_BOX(&regrow::move));
}
