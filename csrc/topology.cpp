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
    // so many columns at a time that their places stay within what the processor translates of addresses, and that a
    // visit of a row has some connections
    const int64_t block = std::max<int64_t>({1, columns * (1 << 19) / std::max<int64_t>(in.nnz, 1),
                                             int64_t(32 * double(in.rows) * double(columns) / double(in.nnz + 1))});
    in_rows(in, parts, [&](int64_t part, int64_t first, int64_t last) {
        int32_t* const own = next.data() + part * columns;
        std::vector<int32_t> cursor(in.crow + first, in.crow + last);
        for (int64_t stop = std::min(block, columns);; stop = std::min(stop + block, columns)) {
            for (int64_t r = first; r < last; r++) {
                int32_t j = cursor[r - first];
                for (; j < in.crow[r + 1] && in.col[j] < stop; j++) {
                    const int32_t to = own[in.col[j]]++;
                    row_t[to] = int32_t(r);
                    order[to] = j;
                }
                cursor[r - first] = j;
            }
            if (stop == columns) break;
        }
    });
    std::fill(row_t + in.nnz, row_t + row_t_.numel(), 0);
    std::fill(order + in.nnz, order + order_.numel(), 0);
}

// Which connections go.
std::vector<char> marked(const Tensor& drop_, int64_t nnz) {
    check_positions(drop_, "drop");
    const int64_t* const drop = read<int64_t>(drop_);
    std::vector<char> goes(nnz, 0);
    for (int64_t i = 0; i < drop_.numel(); i++) {
        STD_TORCH_CHECK(drop[i] >= 0 && drop[i] < nnz, "`drop` must be in [0, ", nnz, "), got ", drop[i]);
        goes[drop[i]] = 1;
    }
    return goes;
}

// Flat positions of the connections but for those in `drop` (indices), ascending.
Tensor positions(Tensor crow_, Tensor col_, int64_t columns, Tensor drop_) {
    const Index in(crow_, col_, columns);
    const std::vector<char> goes = marked(drop_, in.nnz);
    const int64_t parts = parts_of(in.nnz, SHARE);
    std::vector<int64_t> stay(parts);
    in_rows(in, parts, [&](int64_t part, int64_t first, int64_t last) {
        stay[part] = std::count(goes.begin() + in.crow[first], goes.begin() + in.crow[last], 0);
    });
    const Tensor positions_ = empty(crow_, {std::accumulate(stay.begin(), stay.end(), int64_t(0))}, ScalarType::Long);
    in_rows(in, parts, [&](int64_t part, int64_t first, int64_t last) {
        int64_t* to = write<int64_t>(positions_) + std::accumulate(stay.begin(), stay.begin() + part, int64_t(0));
        int64_t* const end = to + stay[part];
        for (int64_t r = first; r < last; r++) {
            for (int32_t j = in.crow[r]; j < in.crow[r + 1] && to < end; j++) {
                *to = r * columns + in.col[j];
                to += !goes[j];
            }
        }
    });
    return positions_;
}

// The index without the connections `drop` (indices) and with those at the positions `grow` (ascending): crow, col, and
// for each connection the place it had before, -1 where it is new. One that is dropped and grown keeps its place.
std::tuple<Tensor, Tensor, Tensor> rewire(Tensor crow_, Tensor col_, int64_t columns, Tensor drop_, Tensor grow_) {
    const Index in(crow_, col_, columns);
    check_positions(grow_, "grow");
    const std::vector<char> goes = marked(drop_, in.nnz);
    const int64_t* const grow = read<int64_t>(grow_);
    const int64_t grown = grow_.numel();
    bool ascending = grown == 0 || (grow[0] >= 0 && grow[grown - 1] < in.rows * columns);
    for (int64_t i = 1; i < grown; i++) ascending &= grow[i - 1] < grow[i];
    STD_TORCH_CHECK(ascending, "`grow` must ascend, below rows x columns");

    // each part merges its rows into a place of its own, where there would be room if nothing went
    const Tensor new_crow_ = empty(crow_, {in.rows + 1}, ScalarType::Int);
    int32_t* const new_crow = write(new_crow_);
    const int64_t room = in.nnz + grown;
    STD_TORCH_CHECK(room <= std::numeric_limits<int32_t>::max(), "2^31 - 1 connections are the limit, got ", room);
    Tensor new_col_ = empty(col_, {room}, ScalarType::Int), source_ = empty(col_, {room}, ScalarType::Int);
    int32_t *const new_col = write(new_col_), *const source = write(source_);
    const int64_t parts = parts_of(in.nnz, SHARE);
    struct Part { int64_t first = 0, last = 0, start = 0, count = 0; };
    std::vector<Part> all(parts);
    in_rows(in, parts, [&](int64_t part, int64_t first, int64_t last) {
        int64_t k = std::lower_bound(grow, grow + grown, first * columns) - grow;
        const int64_t start = in.crow[first] + k;
        int64_t n = 0;
        const auto put = [&](int64_t column, int32_t place, bool stays) {
            new_col[start + n] = int32_t(column);
            source[start + n] = place;
            n += stays;
        };
        for (int64_t r = first; r < last; r++) {
            const int64_t zero = r * columns;
            int32_t j = in.crow[r];
            const int32_t end = in.crow[r + 1];
            while (j < end && k < grown && grow[k] - zero < columns) {
                const int64_t present = in.col[j], coming = grow[k] - zero;
                put(std::min(present, coming), present <= coming ? j : -1, coming <= present || !goes[j]);
                j += present <= coming;
                k += coming <= present;
            }
            for (; j < end; j++) put(in.col[j], j, !goes[j]);
            for (; k < grown && grow[k] - zero < columns; k++) put(grow[k] - zero, -1, true);
            new_crow[r + 1] = int32_t(n); // from the part's first row on
        }
        all[part] = {first, last, start, n};
    });
    new_crow[0] = 0;
    int64_t count = 0;
    for (const Part& part : all) {
        std::copy_n(new_col + part.start, part.count, new_col + count);
        std::copy_n(source + part.start, part.count, source + count);
        for (int64_t r = part.first; r < part.last; r++) new_crow[r + 1] += int32_t(count);
        count += part.count;
    }
    const auto used = [&](Tensor& t) { return torch::stable::narrow(t, 0, 0, count); };
    return {new_crow_, used(new_col_), used(source_)};
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

// Adds the positions to the registers of a sketch as regrow.ops.sketch does: the low bits of a hash choose the register, which
// keeps the longest run of leading zeros of the others, plus one.
void sketch(Tensor crow_, Tensor col_, int64_t columns, Tensor registers_) {
    const Index in(crow_, col_, columns);
    const int64_t size = registers_.numel();
    STD_TORCH_CHECK(registers_.scalar_type() == ScalarType::Byte && registers_.is_contiguous() && size > 1 &&
                        (size & (size - 1)) == 0, "the registers must be uint8, contiguous, a power of 2 of them");
    const int bits = __builtin_ctzll(uint64_t(size));
    const int64_t parts = parts_of(in.nnz, SHARE);
    std::vector<uint8_t> found(parts * size);
    in_rows(in, parts, [&](int64_t part, int64_t first, int64_t last) {
        uint8_t* const own = found.data() + part * size;
        for (int64_t r = first; r < last; r++) {
            for (int32_t j = in.crow[r]; j < in.crow[r + 1]; j++) {
                const uint64_t mixed = mix(r * columns + in.col[j]), rest = mixed >> bits;
                const int zeros = rest ? __builtin_clzll(rest) - bits : 64 - bits;
                uint8_t& longest = own[mixed & (size - 1)];
                longest = std::max<uint8_t>(longest, uint8_t(zeros + 1));
            }
        }
    });
    uint8_t* const registers = write<uint8_t>(registers_);
    for (size_t i = 0; i < found.size(); i++) registers[i % size] = std::max(registers[i % size], found[i]);
}

template <class T>
void move_as(const int32_t* source, int64_t count, T* data, int64_t capacity) {
    const std::unique_ptr<T[]> before(new T[capacity]);
    const int64_t parts = parts_of(capacity, SHARE);
    in_parts(capacity, parts, [&](int64_t, int64_t begin, int64_t end) {
        std::copy(data + begin, data + end, before.get() + begin);
    });
    in_parts(capacity, parts, [&](int64_t, int64_t begin, int64_t end) {
        const int64_t used = std::clamp(count, begin, end);
        for (int64_t i = begin; i < used; i++) data[i] = source[i] < 0 ? T(0) : before[source[i]];
        std::fill(data + used, data + end, T(0));
    });
}

// Moves the entries of a tensor [capacity, 1] to their new places; zero where a connection is new, and in the padding.
void move(Tensor source, Tensor tensor) {
    const int64_t count = source.numel(), capacity = tensor.numel();
    check_index(source, 0, "source");
    STD_TORCH_CHECK(tensor.is_contiguous() && tensor.is_cpu() && count <= capacity, "`tensor` must be contiguous, of the capacity");
    const int32_t* const from = read(source);
    STD_TORCH_CHECK(std::all_of(from, from + count, [=](int32_t i) { return i < capacity; }), "`source` must be below ", capacity);
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
    m.def("sketch(Tensor crow, Tensor col, int columns, Tensor(a!) registers) -> ()");
    m.def("rewire(Tensor crow, Tensor col, int columns, Tensor drop, Tensor grow) -> (Tensor, Tensor, Tensor)");
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
