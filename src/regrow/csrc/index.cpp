// A changed topology, in time of its connections: the new index, what moves where, and the mirrored index.
#include <algorithm>
#include <limits>
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

// `mix` of regrow.ops.sketch
uint64_t mix(int64_t position) {
    uint64_t mixed = uint64_t(position) * 0x9E3779B97F4A7C1ull + 0x632BE59BD9B4E019ull;
    mixed = (mixed ^ (mixed >> 29)) * 0x3C79AC492BA7B653ull;
    return mixed ^ (mixed >> 32);
}

// The index of the transposed matrix [columns, rows], by counting: crow_t, row_t, order; padded like col with zeros.
// Returns the fingerprint, as below: it takes no time beside the reading of the columns.
int64_t mirror(Tensor crow_, Tensor col_, Tensor crow_t_, Tensor row_t_, Tensor order_) {
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
    std::vector<uint64_t> sums(parts);
    in_rows(in, parts, [&](int64_t part, int64_t first, int64_t last) {
        int32_t* const own = next.data() + part * columns;
        bool good = true;
        uint64_t sum = 0;
        for (int64_t r = first; r < last; r++) {
            for (int64_t j = in.crow[r]; j < in.crow[r + 1] && good; j++) {
                const int64_t c = in.col[j];
                good = c >= 0 && c < columns;
                if (good) own[c]++;
                sum += mix(r * columns + c);
            }
        }
        inside[part] = good;
        sums[part] = sum;
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
    return int64_t(std::accumulate(sums.begin(), sums.end(), uint64_t(0)));
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
    return std::accumulate(stays.begin() + in.crow[first], stays.begin() + in.crow[last], int32_t(0));
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

// Merges the connections of some rows with what comes in them.
struct Merge {
    const int32_t *crow, *col;
    const uint8_t* stays;
    const int64_t *grow, *last; // positions of what comes in the rows that are left
    int32_t *new_crow, *new_col, *source;
    int64_t columns, row, rows; // the present row, and where they end
    int64_t n, end;             // what has been written, and what will be
    int64_t j = 0, stop = 0;    // what is left of the present row's connections
    std::vector<int32_t> coming = {}; // columns of what comes in the present row
    int64_t k = 0;                    // how many of these have come

    bool both() const { return j < stop && k < int64_t(coming.size()); }

    // Goes to the next row that has connections and gets some, beginning with the present one; false at the end.
    bool next() {
        for (; row < rows; row++) {
            if (stop == 0) { // not begun; a row before it leaves this so
                j = crow[row];
                stop = crow[row + 1];
                coming.clear();
                for (k = 0; grow < last && *grow < (row + 1) * columns; grow++)
                    coming.push_back(int32_t(*grow - row * columns));
            }
            if (both()) return true;
            for (; j < stop && n < end; n += stays[j++]) { // at the end, all others go
                new_col[n] = col[j];
                source[n] = int32_t(j);
            }
            for (; k < int64_t(coming.size()) && n < end; n++) {
                new_col[n] = coming[k++];
                source[n] = -1;
            }
            new_crow[row + 1] = int32_t(n);
            stop = 0;
        }
        return false;
    }
};

// Merges two ranges of rows at a time, as each step has to wait for the one before: no branch depends on their order.
void merge(Merge& a, Merge& b) {
    const auto step = [](const int32_t* col, const uint8_t* stays, const int32_t* coming, int32_t* new_col, int32_t* source,
                         int64_t& j, int64_t& k, int64_t& n) {
        const int32_t x = col[j], y = coming[k];
        const int64_t known = x <= y, comes = y <= x;
        new_col[n] = std::min(x, y);
        source[n] = int32_t(j | (known - 1));
        n += comes | stays[j];
        j += known;
        k += comes;
    };
    bool more_a = a.next(), more_b = b.next();
    while (more_a && more_b) {
        int64_t ja = a.j, ka = a.k, na = a.n, jb = b.j, kb = b.k, nb = b.n;
        const int32_t *const col = a.col, *const ca = a.coming.data(), *const cb = b.coming.data();
        const uint8_t* const stays = a.stays;
        const int64_t ja_stop = a.stop, ka_stop = a.coming.size(), jb_stop = b.stop, kb_stop = b.coming.size();
        int32_t *const new_col = a.new_col, *const source = a.source;
        while (ja < ja_stop && ka < ka_stop && jb < jb_stop && kb < kb_stop) {
            step(col, stays, ca, new_col, source, ja, ka, na);
            step(col, stays, cb, new_col, source, jb, kb, nb);
        }
        a.j = ja, a.k = ka, a.n = na, b.j = jb, b.k = kb, b.n = nb;
        more_a = a.next();
        more_b = b.next();
    }
    for (Merge* const rest : {&a, &b})
        while (rest->next())
            while (rest->both()) step(a.col, a.stays, rest->coming.data(), a.new_col, a.source, rest->j, rest->k, rest->n);
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

    const int64_t pairs = parts_of(in.nnz, SHARE);
    std::vector<Merge> all(2 * pairs);
    in_rows(in, 2 * pairs, [&](int64_t part, int64_t first, int64_t last) {
        const auto at = [&](int64_t row) { return std::lower_bound(grow, grow + grown, row * columns); };
        Merge& own = all[part];
        own.columns = columns, own.crow = in.crow, own.col = in.col, own.stays = stays.data();
        own.row = first, own.rows = last, own.grow = at(first), own.last = at(last);
        own.n = 0, own.end = count_of(stays, in, first, last) + (own.last - own.grow);
    });
    int64_t total = 0;
    for (Merge& part : all) {
        part.n = total;
        total = part.end += total;
    }
    STD_TORCH_CHECK(total <= std::numeric_limits<int32_t>::max(), "2^31 - 1 connections are the limit, got ", total);
    const Tensor new_crow_ = empty(crow_, {in.rows + 1}, ScalarType::Int), new_col_ = empty(col_, {total}, ScalarType::Int),
                 source_ = empty(col_, {total}, ScalarType::Int);
    write(new_crow_)[0] = 0;
    for (Merge& part : all) part.new_crow = write(new_crow_), part.new_col = write(new_col_), part.source = write(source_);
    std::vector<int64_t> fresh(pairs);
    in_parts(pairs, pairs, [&](int64_t pair, int64_t, int64_t) {
        Merge &a = all[2 * pair], &b = all[2 * pair + 1];
        const int64_t begin = a.n;
        merge(a, b);
        int32_t count = 0;
        for (int64_t i = begin; i < b.end; i++) count += a.source[i] < 0;
        fresh[pair] = a.n == a.end && b.n == b.end ? count : -1;
    });
    for (const int64_t each : fresh) STD_TORCH_CHECK(each >= 0, "`grow` must be disjoint from the connections that stay");
    return {new_crow_, new_col_, source_, std::accumulate(fresh.begin(), fresh.end(), int64_t(0))};
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
                        (size & (size - 1)) == 0,
                    "the registers must be uint8, contiguous, a power of 2 of them");
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
void move_as(const int32_t* source, int64_t count, void* data_, void* scratch, int64_t capacity) {
    T *const data = static_cast<T*>(data_), *const before = static_cast<T*>(scratch) + 1;
    before[-1] = T(0); // where a new one comes from
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
// `scratch` is bytes, room for one entry more.
void move(Tensor source, Tensor tensor, Tensor scratch) {
    const int64_t count = source.numel(), capacity = tensor.numel();
    check_index(source, 0, "source");
    STD_TORCH_CHECK(tensor.is_contiguous() && tensor.is_cpu() && count <= capacity,
                    "`tensor` must be contiguous, of the capacity");
    STD_TORCH_CHECK(scratch.is_contiguous() && scratch.is_cpu() && scratch.scalar_type() == ScalarType::Byte &&
                        scratch.numel() >= (capacity + 1) * int64_t(tensor.element_size()),
                    "`scratch` is too small");
    const int32_t* const from = read(source);
    void *const data = tensor.mutable_data_ptr(), *const room = scratch.mutable_data_ptr();
    switch (tensor.element_size()) {
        case 8: return move_as<uint64_t>(from, count, data, room, capacity);
        case 4: return move_as<uint32_t>(from, count, data, room, capacity);
        case 2: return move_as<uint16_t>(from, count, data, room, capacity);
        case 1: return move_as<uint8_t>(from, count, data, room, capacity);
    }
    STD_TORCH_CHECK(false, "`tensor` has entries of ", tensor.element_size(), " bytes");
}

} // namespace
} // namespace regrow

STABLE_TORCH_LIBRARY_FRAGMENT(regrow_native, m) {
    m.def("mirror(Tensor crow, Tensor col, Tensor(a!) crow_t, Tensor(b!) row_t, Tensor(c!) order) -> int");
    m.def("positions(Tensor crow, Tensor col, int columns, Tensor drop) -> Tensor");
    m.def("fingerprint(Tensor crow, Tensor col, int columns) -> int");
    m.def("sketch(Tensor positions, Tensor(a!) registers) -> ()");
    m.def("rewire(Tensor crow, Tensor col, int columns, Tensor drop, Tensor grow) -> (Tensor, Tensor, Tensor, int)");
    m.def("move(Tensor source, Tensor(a!) tensor, Tensor(b!) scratch) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(regrow_native, CPU, m) {
    m.impl("mirror", TORCH_BOX(&regrow::mirror));
    m.impl("positions", TORCH_BOX(&regrow::positions));
    m.impl("fingerprint", TORCH_BOX(&regrow::fingerprint));
    m.impl("sketch", TORCH_BOX(&regrow::sketch));
    m.impl("rewire", TORCH_BOX(&regrow::rewire));
    m.impl("move", TORCH_BOX(&regrow::move));
}
