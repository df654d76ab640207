// Linear layers with a compressed weight: the operators around the kernels.
#include <optional>
#include <tuple>
#include <vector>

#include "linear_gradients.h"

namespace regrow {
namespace {

// Columns (forward) or rows (backward) at a time. Few enough that their activations stay in a near cache, and so many
// that a visit of a row has some connections to amortise loading and storing its sums: all where most would have none.
// The numbers are for 128 elements of a batch; fewer take less of the cache.
constexpr double FEW = 1.5;
int64_t in_blocks(int64_t all, int64_t block, double density, int64_t batch) {
    block = block * 128 / std::clamp<int64_t>(rounded(batch), ROUND, 128);
    return block * 4 >= all * 3 || block * density < FEW ? all : block;
}
int64_t forward_block(int64_t columns, double density, int64_t batch) {
    if (batch <= 32 && columns * rounded(batch) <= 1 << 18) return columns; // all of them stay in L2: fewer visits
    const int64_t wanted = density > 0.14 ? 96 : int64_t(24 / std::max(density, 1e-6));
    return in_blocks(columns, std::min<int64_t>(wanted, 2048), density, batch);
}
int64_t backward_block(int64_t rows, double density, int64_t batch) {
    return in_blocks(rows, density > 0.14 ? 128 : density > 0.03 ? 512 : 1536, density, batch);
}

double density(const Tensor& crow, int64_t rows, int64_t columns) {
    return double(read(crow)[rows]) / std::max<double>(1, double(rows) * double(columns));
}

// Tiles are copied together where each feature is read by so many connections that it pays: soon, where each feature
// is on a page of its own.
constexpr int64_t FAR = 1024;
Tiles tiles_of(int64_t size, int64_t batch, int64_t nnz, int64_t rows, int64_t columns) {
    const int64_t often = batch < FAR ? 96 : 8;
    return {size, batch > size && nnz > often * std::max(rows, columns)};
}

// Whether a batch has so many tiles that values are put into the order in which the kernels take them: each tile would
// look them up again, far apart in memory.
constexpr int64_t MANY = 8;
bool many_tiles(int64_t batch, int64_t tile) { return batch > MANY * tile; }

// The values of connections in the index's order, from their places, and back.
template <class T>
Tensor in_order(const Tensor& values, const Tensor& order, int64_t nnz) {
    Tensor result = empty(values, {nnz}, TYPE<T>);
    const T* const from = read<T>(values);
    const int32_t* const place = read(order);
    T* const to = write<T>(result);
    parallel_for(0, nnz, 1 << 14, [&](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; j++) to[j] = from[place[j]];
    });
    return result;
}
template <class T>
void put_back(const Tensor& values, const Tensor& order, int64_t nnz, T* to) {
    const T* const from = read<T>(values);
    const int32_t* const place = read(order);
    parallel_for(0, nnz, 1 << 14, [&](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; j++) to[place[j]] = from[j];
    });
}

// All rows of all tiles, divided among the threads.
template <class T>
void run(const Forward<T>& work, int64_t rows) {
    const Kernels<T>& kernels = isa().kernels<T>();
    const int64_t tiles = (work.batch + kernels.forward_tile - 1) / kernels.forward_tile;
    if (tiles == 0) return;
    const Parts parts(work.crow, rows, (torch::stable::get_num_threads() + tiles - 1) / tiles, work.batch);
    parallel_for(0, tiles * parts.count(), 1, [&](int64_t begin, int64_t end) {
        std::vector<int32_t> cursor(work.chunk + 1);
        for (int64_t i = begin; i < end; i++) {
            const int64_t part = i % parts.count();
            kernels.forward(work, parts.first(part), parts.first(part + 1), i / parts.count(), cursor.data());
        }
    });
}

// The output, and what went into the activation where that is to be kept.
template <class T>
std::tuple<Tensor, Tensor> forward(const Tensor& input, const Tensor& values, const std::optional<Tensor>& bias,
                                   const Tensor& crow, const Tensor& col, Activation activation, bool keep) {
    const int64_t batch = input.size(0), columns = input.size(1), rows = crow.numel() - 1;
    const int64_t tile = isa().kernels<T>().forward_tile;
    const Tensor w = as<T>(values);
    const std::optional<Tensor> b = bias ? std::optional(as<T>(*bias)) : std::nullopt;
    const Tiles cut = tiles_of(tile, batch, read(crow)[rows], rows, columns);
    const Input<T> x(input, cut);
    const Output<T> y(input, batch, rows, cut);
    std::optional<Output<T>> sum;
    if (keep) sum.emplace(input, batch, rows, cut);
    run<T>({read(crow), read(col), read<T>(w), nullptr, b ? read<T>(*b) : nullptr, x.operand(), y.operand(),
            sum ? sum->operand() : Operand<T>{}, columns, forward_block(columns, density(crow, rows, columns), batch), 1024,
            batch, activation},
           rows);
    return {y.finish(), sum ? sum->finish() : empty(input, {0}, input.scalar_type())};
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& gradient, const Tensor& input, const std::optional<Tensor>& kept,
                                            const Tensor& values, const Tensor& crow_t, const Tensor& row_t,
                                            const Tensor& order, Activation activation, bool need_input, bool need_values,
                                            bool need_bias) {
    const int64_t batch = input.size(0), columns = input.size(1), rows = gradient.size(1);
    const Kernels<T>& kernels = isa().kernels<T>();
    const ScalarType type = input.scalar_type();

    const int64_t tile = !need_values ? kernels.forward_tile : need_input ? kernels.backward_tile : kernels.values_tile;
    const Tiles cut = tiles_of(tile, batch, read(crow_t)[columns], rows, columns);

    Tensor bias_gradient = empty(input, {need_bias ? rows : 0}, TYPE<T>);
    const BeforeActivation<T> before(gradient, kept, cut, activation, need_bias ? write<T>(bias_gradient) : nullptr);
    if (type != TYPE<T>) bias_gradient = torch::stable::to(bias_gradient, type);

    const int64_t nnz = read(crow_t)[columns];
    const bool many = many_tiles(batch, tile);
    const Tensor w = many ? in_order<T>(as<T>(values), order, nnz) : as<T>(values);
    const int32_t* const places = many ? nullptr : read(order);
    if (!need_values) {
        Tensor none = empty(values, {0}, type);
        if (!need_input) return {empty(input, {0}, type), none, bias_gradient};
        // the transposed matrix forward
        const Output<T> dx(input, batch, columns, cut);
        run<T>({read(crow_t), read(row_t), read<T>(w), places, nullptr, before.gradient(), dx.operand(), Operand<T>{}, rows,
                forward_block(rows, density(crow_t, columns, rows), batch), 1024, batch, Activation::none},
               columns);
        return {dx.finish(), none, bias_gradient};
    }

    const Input<T> x(input, cut);
    std::optional<Output<T>> dx;
    if (need_input) dx.emplace(input, batch, columns, cut);
    Tensor values_gradient = empty(values, {values.size(0), 1}, TYPE<T>);
    T* const dw = write<T>(values_gradient);
    const int64_t used = batch > 0 ? nnz : 0;
    std::fill(dw + used, dw + values.size(0), T(0));
    const std::optional<Tensor> ordered = many ? std::optional(empty(values, {nnz}, TYPE<T>)) : std::nullopt;
    const double dense = density(crow_t, columns, rows);
    const Backward<T> work{read(crow_t),
                           read(row_t),
                           places,
                           read<T>(w),
                           x.operand(),
                           before.gradient(),
                           dx ? dx->operand() : Operand<T>{},
                           dw,
                           rows,
                           backward_block(rows, dense, batch),
                           batch,
                           !many && dense > 0.03 && nnz * int64_t(sizeof(T)) > (1 << 20)};
    const Parts parts(read(crow_t), columns, torch::stable::get_num_threads(), batch);
    const OfValues<T> own(ordered ? *ordered : values_gradient, used, rows, many ? 1 : parts.count());
    parallel_for(0, parts.count(), 1, [&](int64_t begin, int64_t end) {
        Backward<T> mine = work;
        for (int64_t part = begin; part < end; part++) {
            const int64_t first = parts.first(part), last = parts.first(part + 1);
            std::vector<int32_t> cursor(last - first + 1);
            mine.values_gradient = own.of(part);
            (need_input ? kernels.backward : kernels.backward_values)(mine, first, last, cursor.data());
        }
    });
    own.join();
    if (ordered) put_back<T>(*ordered, order, used, dw);
    if (type != TYPE<T>) values_gradient = torch::stable::to(values_gradient, type);
    return {dx ? dx->finish() : empty(input, {0}, type), values_gradient, bias_gradient};
}

// What each tensor must be like for the kernels to stay inside all of them; that columns are in range, whoever made the
// index has checked.
void check_activations(const Tensor& t, const Tensor& input, int64_t features, const char* name) {
    STD_TORCH_CHECK(t.dim() == 2 && t.is_cpu() && t.size(0) == input.size(0) && t.size(1) == features &&
                        t.scalar_type() == input.scalar_type(),
                    "`", name, "` must be of shape [", input.size(0), ", ", features, "] and the input's dtype, on the CPU");
}
void check_sizes(int64_t rows, int64_t columns) {
    STD_TORCH_CHECK(rows > 0 && columns > 0, "a linear layer has at least one row and one column, got ", rows, " and ",
                    columns);
}
void check_activation(int64_t activation, bool kept) {
    STD_TORCH_CHECK(activation >= 0 && activation <= int64_t(Activation::silu), "`activation` must be in [0, 3], got ",
                    activation);
    STD_TORCH_CHECK(kept || activation == 0, "`kept` is missing: the activation needs it");
}

std::tuple<Tensor, Tensor> linear_forward(Tensor input, Tensor values, std::optional<Tensor> bias, Tensor crow, Tensor col,
                                          int64_t activation, bool keep) {
    STD_TORCH_CHECK(input.dim() == 2, "`input` must be of shape [batch, columns]");
    const auto f = is_double(input) ? &forward<double> : &forward<float>;
    check_activations(input, input, input.size(1), "input");
    const int64_t rows = std::max<int64_t>(crow.numel() - 1, 0), nnz = check_pointers(crow, rows, "crow");
    check_sizes(rows, input.size(1));
    check_index(col, nnz, "col");
    check_vector(values, nnz, input, "values");
    if (bias) check_vector(*bias, rows, input, "bias");
    check_activation(activation, true);
    return f(input, values, bias, crow, col, Activation(activation), keep);
}

std::tuple<Tensor, Tensor, Tensor> linear_backward(Tensor gradient, Tensor input, std::optional<Tensor> kept, Tensor values,
                                                   Tensor crow_t, Tensor row_t, Tensor order, int64_t activation,
                                                   bool need_input, bool need_values, bool need_bias) {
    STD_TORCH_CHECK(input.dim() == 2 && gradient.dim() == 2, "`input` and `gradient` must be of shape [batch, features]");
    const auto f = is_double(input) ? &backward<double> : &backward<float>;
    const int64_t rows = gradient.size(1), columns = input.size(1);
    check_activations(input, input, columns, "input");
    check_activations(gradient, input, rows, "gradient");
    if (kept) check_activations(*kept, input, rows, "kept");
    check_sizes(rows, columns);
    const int64_t nnz = check_pointers(crow_t, columns, "crow_t");
    check_index(row_t, nnz, "row_t");
    check_index(order, nnz, "order");
    check_vector(values, nnz, input, "values");
    check_activation(activation, kept.has_value());
    return f(gradient, input, kept, values, crow_t, row_t, order, Activation(activation), need_input, need_values,
             need_bias);
}

} // namespace
} // namespace regrow

STABLE_TORCH_LIBRARY_FRAGMENT(regrow_native, m) {
    m.def("linear_forward(Tensor input, Tensor values, Tensor? bias, Tensor crow, Tensor col, int activation, bool keep) "
          "-> (Tensor, Tensor)");
    m.def("linear_backward(Tensor gradient, Tensor input, Tensor? kept, Tensor values, Tensor crow_t, Tensor row_t, "
          "Tensor order, int activation, bool need_input, bool need_values, bool need_bias) -> (Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(regrow_native, CPU, m) {
    m.impl("linear_forward", TORCH_BOX(&regrow::linear_forward));
    m.impl("linear_backward", TORCH_BOX(&regrow::linear_backward));
}
