// Recurrent layers, a whole sequence each way: what their kernels are given.
//
// SLICE sequences of the batch are a slice, which runs through all time steps by itself. Its state and gates lie in
// rows of SLICE lanes, those past the batch zero.
#pragma once

#include <cstdint>

namespace regrow {

enum class Cell : int64_t { gru = 0, lstm = 1, rnn_tanh = 2, rnn_relu = 3 };

inline int64_t gates_of(Cell cell) { return cell == Cell::gru ? 3 : cell == Cell::lstm ? 4 : 1; }
// What the forward pass keeps of a unit, in this order: r, z, n and the state's share of n; i, f, g, o and the cell.
inline int64_t kept_of(Cell cell) { return cell == Cell::gru ? 4 : cell == Cell::lstm ? 5 : 0; }

// In float64; the kernels have their own for float32.
double sigmoid(double x), tangent(double x);

constexpr int64_t SLICE = 16;
constexpr int64_t SIDE = 4; // connections that are summed side by side; rows are filled up to a multiple

// Rows of x in blocks, few enough to stay in a near cache. A block begins with a row of zeros, for what fills rows up.
struct Blocks {
    int64_t size, count;
    int64_t rows() const { return count * (size + 1); }
    int64_t at(int64_t row) const { return (row + int64_t(uint32_t(row) / uint32_t(size)) + 1) * SLICE; } // where it lies
};

struct Run {
    int32_t rows;   // that follow one another
    int32_t groups; // of SIDE connections, in each of them
};

// Some rows of a sparse matrix, as the kernels read it from front to back: for each block its rows, by their length.
template <class T>
struct Part {
    int64_t first, last; // rows of the result, or units of a cell
    const int64_t* ends; // [blocks + 1]: the runs of each block
    const Run* runs;
    const uint16_t* row; // of each in a run: where its sum lies, from `first` on
    const uint16_t* at;  // of each connection: where x lies in its block, by 8 bytes
    const T* values;
};

template <class T>
struct Packed {
    Blocks blocks;
    const Part<T>* parts;
    int64_t count;
};

// [time, batch, features], where the batch is innermost.
template <class T>
struct Sequence {
    T* data;
    int64_t time_stride, feature_stride;
};

template <class T>
struct Scan {
    Cell cell;
    Packed<T> weight; // W_hh, its parts units with all their gates; or its transpose
    int64_t time, batch, units;
    const int64_t* lengths; // [batch] or null
};

template <class T>
struct ScanForward : Scan<T> {
    const T* bias; // [gates * units] or null
    Sequence<const T> gates;
    Sequence<T> output;
    T* kept; // [slices, time, units, kept_of(cell), SLICE] or null
};

template <class T>
struct ScanBackward : Scan<T> {
    Sequence<const T> gradient, output;
    const T* kept;
    Sequence<T> gates_gradient;
    Sequence<T> hidden_gradient; // of the state's share of the gates; null where it is the same
};

// Memory of one slice, in rows of SLICE lanes.
template <class T>
struct ScanState {
    T* h[2];  // forward: the state before a time step and after it, in the weight's blocks; backward: h[0], the first one
    T* c;     // [units]: the cell; backward: its gradient
    T* first; // [units]: backward: the first cell
    T* above; // [units]: backward: the gradient of the state
    T* sums;  // forward: of a part's gates; backward: the gates' gradients, in the weight's blocks
};

template <class T>
struct ScanKernels {
    void (*forward)(const ScanForward<T>&, int64_t slice, const ScanState<T>&); // the last state is in h[time % 2]
    void (*backward)(const ScanBackward<T>&, int64_t slice, const ScanState<T>&);
};

} // namespace regrow
