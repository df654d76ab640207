// A changed topology, in time of its connections: the new index, what moves where, and the mirrored index.
#include <algorithm>
#include <tuple>
#include <vector>

#include "torch.h"

namespace regrow {
namespace {

// The index of the transposed matrix [columns, rows], by counting: crow_t, row_t, order; padded like col with zeros.
std::tuple<Tensor, Tensor, Tensor> mirror(Tensor crow_, Tensor col_, int64_t columns) {
    const int64_t rows = crow_.numel() - 1;
    check_index(crow_, 1, "crow");
    const int32_t* const crow = read(crow_);
    const int64_t nnz = crow[rows];
    check_index(col_, nnz, "col");
    const int32_t* const col = read(col_);
    const Tensor crow_t_ = empty(crow_, {columns + 1}, ScalarType::Int);
    const Tensor row_t_ = empty(col_, {col_.numel()}, ScalarType::Int);
    const Tensor order_ = empty(col_, {col_.numel()}, ScalarType::Int);
    int32_t *const crow_t = write(crow_t_), *const row_t = write(row_t_), *const order = write(order_);

    std::fill(crow_t, crow_t + columns + 1, 0);
    for (int64_t j = 0; j < nnz; j++) {
        STD_TORCH_CHECK(col[j] >= 0 && col[j] < columns, "`col` must be in [0, ", columns, "), got ", col[j]);
        crow_t[col[j] + 1]++;
    }
    for (int64_t c = 0; c < columns; c++) crow_t[c + 1] += crow_t[c];
    std::vector<int32_t> next(crow_t, crow_t + columns);
    for (int64_t r = 0; r < rows; r++) {
        for (int32_t j = crow[r]; j < crow[r + 1]; j++) {
            const int32_t place = next[col[j]]++;
            row_t[place] = int32_t(r);
            order[place] = j;
        }
    }
    std::fill(row_t + nnz, row_t + col_.numel(), 0);
    std::fill(order + nnz, order + col_.numel(), 0);
    return {crow_t_, row_t_, order_};
}

// The index without the connections `drop` (indices) and with those at the positions `grow` (ascending): crow, col, and
// for each connection the place it had before, -1 where it is new. One that is dropped and grown keeps its place.
std::tuple<Tensor, Tensor, Tensor> rewire(Tensor crow_, Tensor col_, int64_t columns, Tensor drop_, Tensor grow_) {
    const int64_t rows = crow_.numel() - 1;
    check_index(crow_, 1, "crow");
    const int32_t* const crow = read(crow_);
    const int64_t nnz = crow[rows];
    check_index(col_, nnz, "col");
    const int32_t* const col = read(col_);
    const int64_t *const drop = read<int64_t>(drop_), *const grow = read<int64_t>(grow_);
    const int64_t dropped = drop_.numel(), grown = grow_.numel();

    std::vector<char> goes(nnz, 0);
    for (int64_t i = 0; i < dropped; i++) {
        STD_TORCH_CHECK(drop[i] >= 0 && drop[i] < nnz, "`drop` must be in [0, ", nnz, "), got ", drop[i]);
        goes[drop[i]] = 1;
    }
    std::vector<int32_t> new_col, source;
    new_col.reserve(nnz + grown);
    source.reserve(nnz + grown);
    const Tensor new_crow_ = empty(crow_, {rows + 1}, ScalarType::Int);
    int32_t* const new_crow = write(new_crow_);
    new_crow[0] = 0;
    int64_t k = 0;
    for (int64_t r = 0; r < rows; r++) {
        const int64_t start = r * columns;
        int32_t j = crow[r];
        while (true) {
            const int64_t present = j < crow[r + 1] ? col[j] : columns;
            const int64_t coming = k < grown ? std::min(grow[k] - start, columns) : columns;
            if (present == columns && coming == columns) break;
            STD_TORCH_CHECK(coming >= 0, "`grow` must ascend");
            if (coming < present) {
                new_col.push_back(int32_t(coming));
                source.push_back(-1);
            } else if (coming == present || !goes[j]) {
                new_col.push_back(int32_t(present));
                source.push_back(j);
            }
            k += coming <= present;
            j += present <= coming;
        }
        new_crow[r + 1] = int32_t(new_col.size());
    }
    STD_TORCH_CHECK(k == grown, "`grow` must be below rows x columns");
    const int64_t count = int64_t(source.size());
    const Tensor new_col_ = empty(col_, {count}, ScalarType::Int), source_ = empty(col_, {count}, ScalarType::Int);
    std::copy(new_col.begin(), new_col.end(), write(new_col_));
    std::copy(source.begin(), source.end(), write(source_));
    return {new_crow_, new_col_, source_};
}

// The sum of the hashes of the positions; the hash is `mix` of regrow.ops.sketch.
int64_t fingerprint(Tensor crow_, Tensor col_, int64_t columns) {
    check_index(crow_, 1, "crow");
    const int32_t* const crow = read(crow_);
    const int64_t rows = crow_.numel() - 1;
    check_index(col_, crow[rows], "col");
    const int32_t* const col = read(col_);
    uint64_t sum = 0;
    for (int64_t r = 0; r < rows; r++) {
        for (int32_t j = crow[r]; j < crow[r + 1]; j++) {
            uint64_t mixed = uint64_t(r * columns + col[j]) * 0x9E3779B97F4A7C1ull + 0x632BE59BD9B4E019ull;
            mixed = (mixed ^ (mixed >> 29)) * 0x3C79AC492BA7B653ull;
            sum += mixed ^ (mixed >> 32);
        }
    }
    return int64_t(sum);
}

template <class T>
void move_as(const int32_t* source, int64_t count, T* data, int64_t capacity) {
    const std::vector<T> before(data, data + capacity);
    for (int64_t i = 0; i < count; i++) data[i] = source[i] < 0 ? T(0) : before[source[i]];
    std::fill(data + count, data + capacity, T(0));
}

// Moves the entries of a tensor [capacity, 1] to their new places; zero where a connection is new, and in the padding.
void move(Tensor source, Tensor tensor) {
    const int64_t count = source.numel(), capacity = tensor.numel();
    STD_TORCH_CHECK(tensor.is_contiguous() && count <= capacity, "`tensor` must be contiguous, of the capacity");
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
    m.def("mirror(Tensor crow, Tensor col, int columns) -> (Tensor, Tensor, Tensor)");
    m.def("fingerprint(Tensor crow, Tensor col, int columns) -> int");
    m.def("rewire(Tensor crow, Tensor col, int columns, Tensor drop, Tensor grow) -> (Tensor, Tensor, Tensor)");
    m.def("move(Tensor source, Tensor(a!) tensor) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(regrow_native, CPU, m) {
    m.impl("mirror", TORCH_BOX(&regrow::mirror));
    m.impl("fingerprint", TORCH_BOX(&regrow::fingerprint));
    m.impl("rewire", TORCH_BOX(&regrow::rewire));
    m.impl("move", TORCH_BOX(&regrow::move));
}
