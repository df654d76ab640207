// Recurrent layers with a compressed weight, a whole sequence each way: the operators around the kernels. Slices of the
// batch are divided among the threads, so that none waits for another between time steps.
#include <optional>
#include <tuple>
#include <vector>

#include "buffers.h"
#include "layout.h"
#include "scan_pack.h"

namespace regrow {
namespace {

// Rows of SLICE lanes, aligned, zero at first.
template <class T>
class Scratch {
public:
    explicit Scratch(int64_t rows) : memory_(rows * SLICE + 64 / sizeof(T)), next_(memory_.data()) {
        while (reinterpret_cast<uintptr_t>(next_) % 64) next_++;
    }
    T* take(int64_t rows) {
        T* const found = next_;
        next_ += rows * SLICE;
        return found;
    }

private:
    std::vector<T> memory_;
    T* next_;
};

// A state [batch, units] and the rows of a slice, where row u is at place(u).
template <class T, class F>
void take_in(const T* state, int64_t batch, int64_t units, int64_t slice, T* rows, const F& place) {
    for (int64_t b = slice * SLICE; b < std::min(batch, (slice + 1) * SLICE); b++)
        for (int64_t u = 0; u < units; u++) rows[place(u) + b % SLICE] = state[b * units + u];
}
template <class T>
void give_out(const T* rows, int64_t batch, int64_t units, int64_t slice, T* state) {
    for (int64_t b = slice * SLICE; b < std::min(batch, (slice + 1) * SLICE); b++)
        for (int64_t u = 0; u < units; u++) state[b * units + u] = rows[u * SLICE + b % SLICE];
}
int64_t by_row(int64_t unit) { return unit * SLICE; }

template <class T>
Sequence<const T> sequence(const Tensor& t) {
    return {read<T>(t), t.stride(0), t.stride(2)};
}

// A new sequence, as linear layers return it: [time * batch, features].
template <class T>
class NewSequence {
public:
    NewSequence(const Tensor& like, int64_t time, int64_t batch, int64_t features)
        : all_(time * batch), batch_(batch), features_(features),
          memory_(empty_buffer(like, {features, stride_of(all_)}, TYPE<T>)) {}
    Sequence<T> sequence() const { return {write<T>(memory_), batch_, stride_of(all_)}; }
    Tensor finish() const { return batch_first(memory_, all_, features_, stride_of(all_)); }

private:
    int64_t all_, batch_, features_;
    Tensor memory_;
};

using Given = const std::optional<Tensor>&;

template <class T>
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& gates, const Tensor& h, Given c, const Tensor& values, Given bias,
                                           const Tensor& crow, const Tensor& col, Cell cell, Given lengths, bool keep) {
    const int64_t time = gates.size(0), batch = gates.size(1), units = h.size(1);
    const int64_t slices = (batch + SLICE - 1) / SLICE;
    const Packing<T> packing({read(crow), read(col), nullptr, read<T>(values), units, gates_of(cell), units}, true);
    const NewSequence<T> output(gates, time, batch, units);
    Tensor kept = empty_buffer(gates, {keep ? slices : 0, time, units, kept_of(cell), SLICE}, TYPE<T>);
    Tensor cells = empty(gates, {c ? batch : 0, units}, TYPE<T>);
    ScanForward<T> work;
    static_cast<Scan<T>&>(work) = {cell, packing.packed(), time, batch, units, lengths ? read<int64_t>(*lengths) : nullptr};
    work.bias = bias ? read<T>(*bias) : nullptr;
    work.gates = sequence<T>(gates);
    work.output = output.sequence();
    work.kept = keep && kept_of(cell) ? write<T>(kept) : nullptr;
    const Blocks blocks = work.weight.blocks;
    parallel_for(0, slices, 1, [&](int64_t begin, int64_t end) {
        for (int64_t slice = begin; slice < end; slice++) {
            Scratch<T> room(2 * blocks.rows() + units + packing.most_sums());
            ScanState<T> state{{room.take(blocks.rows()), room.take(blocks.rows())},
                               room.take(units),
                               nullptr,
                               nullptr,
                               room.take(packing.most_sums())};
            take_in(read<T>(h), batch, units, slice, state.h[0], [&](int64_t u) { return blocks.at(u); });
            if (c) take_in(read<T>(*c), batch, units, slice, state.c, by_row);
            isa().kernels<T>().scan.forward(work, slice, state);
            if (c) give_out(state.c, batch, units, slice, write<T>(cells));
        }
    });
    return {output.finish(), cells, kept};
}

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor>
backward(const Tensor& gradient, Given cell_gradient, const Tensor& output, const Tensor& h, Given c, const Tensor& kept,
         const Tensor& values, const Tensor& crow_t, const Tensor& row_t, const Tensor& order, Cell cell, Given lengths) {
    const int64_t time = output.size(0), batch = output.size(1), units = h.size(1), rows = units * gates_of(cell);
    const int64_t slices = (batch + SLICE - 1) / SLICE;
    const Packing<T> packing({read(crow_t), read(row_t), read(order), read<T>(values), units, 1, rows}, false);
    const NewSequence<T> of_gates(gradient, time, batch, rows);
    std::optional<NewSequence<T>> of_hidden;
    if (cell == Cell::gru) of_hidden.emplace(gradient, time, batch, rows);
    Tensor of_h = empty(h, {batch, units}, TYPE<T>), of_c = empty(h, {c ? batch : 0, units}, TYPE<T>);
    ScanBackward<T> work;
    static_cast<Scan<T>&>(work) = {cell, packing.packed(), time, batch, units, lengths ? read<int64_t>(*lengths) : nullptr};
    work.gradient = sequence<T>(gradient);
    work.output = sequence<T>(output);
    work.kept = read<T>(kept);
    work.gates_gradient = of_gates.sequence();
    work.hidden_gradient = of_hidden ? of_hidden->sequence() : Sequence<T>{};
    const Blocks blocks = work.weight.blocks;
    parallel_for(0, slices, 1, [&](int64_t begin, int64_t end) {
        for (int64_t slice = begin; slice < end; slice++) {
            Scratch<T> room(blocks.rows() + 4 * units);
            ScanState<T> state{
                {room.take(units), nullptr}, room.take(units), room.take(units), room.take(units), room.take(blocks.rows())};
            take_in(read<T>(h), batch, units, slice, state.h[0], by_row);
            if (c) take_in(read<T>(*c), batch, units, slice, state.first, by_row);
            if (cell_gradient) take_in(read<T>(*cell_gradient), batch, units, slice, state.c, by_row);
            isa().kernels<T>().scan.backward(work, slice, state);
            give_out(state.above, batch, units, slice, write<T>(of_h));
            if (c) give_out(state.c, batch, units, slice, write<T>(of_c));
        }
    });
    return {of_gates.finish(), of_hidden ? of_hidden->finish() : empty(gradient, {0}, TYPE<T>), of_h, of_c};
}

// What each tensor must be like for the kernels to stay inside all of them; that columns are in range, whoever made the
// index has checked.
void check_sequence(const Tensor& t, int64_t time, int64_t batch, int64_t features, const Tensor& like, const char* name) {
    STD_TORCH_CHECK(t.dim() == 3 && t.is_cpu() && t.size(0) == time && t.size(1) == batch && t.size(2) == features &&
                        (batch <= 1 || t.stride(1) == 1) && t.scalar_type() == like.scalar_type(),
                    "`", name, "` must be of shape [", time, ", ", batch, ", ", features,
                    "] and one dtype on the CPU, the batch innermost");
}
void check_state(const Tensor& t, int64_t batch, int64_t units, const Tensor& like, const char* name) {
    STD_TORCH_CHECK(t.dim() == 2 && t.is_cpu() && t.size(0) == batch && t.size(1) == units && t.is_contiguous() &&
                        t.scalar_type() == like.scalar_type(),
                    "`", name, "` must be contiguous, of shape [", batch, ", ", units, "] and one dtype on the CPU");
}
Cell check_cell(int64_t kind, Given c) {
    STD_TORCH_CHECK(kind >= 0 && kind <= int64_t(Cell::rnn_relu), "`kind` must be in [0, 3], got ", kind);
    STD_TORCH_CHECK(c.has_value() == (kind == int64_t(Cell::lstm)), "`c` is for an LSTM alone, which needs it");
    return Cell(kind);
}
void check_lengths(Given lengths, int64_t batch) {
    STD_TORCH_CHECK(!lengths || (lengths->is_cpu() && lengths->scalar_type() == ScalarType::Long && lengths->dim() == 1 &&
                                 lengths->numel() == batch && lengths->is_contiguous()),
                    "`lengths` must be a contiguous int64 vector of ", batch, " on the CPU");
}
void check_type(const Tensor& t) {
    STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::Double,
                    "kernels of recurrent layers compute in float32 or float64");
}

std::tuple<Tensor, Tensor, Tensor> scan_forward(Tensor gates, Tensor h, std::optional<Tensor> c, Tensor values,
                                                std::optional<Tensor> bias, Tensor crow, Tensor col, int64_t kind,
                                                std::optional<Tensor> lengths, bool keep) {
    check_type(gates);
    const Cell cell = check_cell(kind, c);
    STD_TORCH_CHECK(gates.dim() == 3 && h.dim() == 2, "`gates` must have three dimensions, `h` two");
    const int64_t batch = gates.size(1), units = h.size(1), rows = units * gates_of(cell);
    STD_TORCH_CHECK(units > 0 && gates.size(0) > 0, "a recurrent layer has at least one unit, a sequence one time step");
    check_sequence(gates, gates.size(0), batch, rows, gates, "gates");
    check_state(h, batch, units, gates, "h");
    if (c) check_state(*c, batch, units, gates, "c");
    const int64_t nnz = check_pointers(crow, rows, "crow");
    check_index(col, nnz, "col");
    check_vector(values, nnz, gates, "values");
    STD_TORCH_CHECK(values.is_contiguous(), "`values` must be contiguous");
    if (bias) {
        check_vector(*bias, rows, gates, "bias");
        STD_TORCH_CHECK(bias->is_contiguous(), "`bias` must be contiguous");
    }
    check_lengths(lengths, batch);
    const auto f = gates.scalar_type() == ScalarType::Double ? &forward<double> : &forward<float>;
    return f(gates, h, c, values, bias, crow, col, cell, lengths, keep);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> scan_backward(Tensor gradient, std::optional<Tensor> cell_gradient, Tensor output,
                                                         Tensor h, std::optional<Tensor> c, Tensor kept, Tensor values,
                                                         Tensor crow_t, Tensor row_t, Tensor order, int64_t kind,
                                                         std::optional<Tensor> lengths) {
    check_type(gradient);
    const Cell cell = check_cell(kind, c);
    STD_TORCH_CHECK(gradient.dim() == 3 && h.dim() == 2, "`gradient` must have three dimensions, `h` two");
    const int64_t time = gradient.size(0), batch = gradient.size(1), units = h.size(1), rows = units * gates_of(cell);
    STD_TORCH_CHECK(units > 0 && time > 0, "a recurrent layer has at least one unit, a sequence one time step");
    check_sequence(gradient, time, batch, units, gradient, "gradient");
    check_sequence(output, time, batch, units, gradient, "output");
    check_state(h, batch, units, gradient, "h");
    if (c) check_state(*c, batch, units, gradient, "c");
    if (cell_gradient) check_state(*cell_gradient, batch, units, gradient, "cell_gradient");
    STD_TORCH_CHECK(kept.is_cpu() && kept.is_contiguous() && kept.scalar_type() == gradient.scalar_type() &&
                        kept.numel() == (batch + SLICE - 1) / SLICE * time * units * kept_of(cell) * SLICE,
                    "`kept` must be what the forward pass has kept");
    const int64_t nnz = check_pointers(crow_t, units, "crow_t");
    check_index(row_t, nnz, "row_t");
    check_index(order, nnz, "order");
    check_vector(values, nnz, gradient, "values");
    STD_TORCH_CHECK(values.is_contiguous(), "`values` must be contiguous");
    check_lengths(lengths, batch);
    STD_TORCH_CHECK(rows < (int64_t(1) << 31), "a recurrent layer has fewer than 2^31 gates");
    const auto f = gradient.scalar_type() == ScalarType::Double ? &backward<double> : &backward<float>;
    return f(gradient, cell_gradient, output, h, c, kept, values, crow_t, row_t, order, cell, lengths);
}

} // namespace
} // namespace regrow

STABLE_TORCH_LIBRARY_FRAGMENT(regrow_native, m) {
    m.def("scan_forward(Tensor gates, Tensor h, Tensor? c, Tensor values, Tensor? bias, Tensor crow, Tensor col, int kind, "
          "Tensor? lengths, bool keep) -> (Tensor, Tensor, Tensor)");
    m.def("scan_backward(Tensor gradient, Tensor? cell_gradient, Tensor output, Tensor h, Tensor? c, Tensor kept, "
          "Tensor values, Tensor crow_t, Tensor row_t, Tensor order, int kind, Tensor? lengths) "
          "-> (Tensor, Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(regrow_native, CPU, m) {
    m.impl("scan_forward", TORCH_BOX(&regrow::scan_forward));
    m.impl("scan_backward", TORCH_BOX(&regrow::scan_backward));
}
