// A step of inference programs: copies between layouts.
#include <cstring>

#include "infer_steps.h"

namespace regrow::infer {
namespace {

// y[i, j] = x[i, j], the second dimension being the inner one of y.
void copy_matrix(const float* x, float* y, int64_t rows, int64_t columns, int64_t x_row, int64_t x_column, int64_t y_row,
                 int64_t y_column) {
    if (x_column == 1 && y_column == 1) {
        for (int64_t i = 0; i < rows; i++) std::memcpy(y + i * y_row, x + i * x_row, columns * sizeof(float));
    } else if (x_row == 1 && y_column == 1) {
        kernels().transpose(x, y, rows, columns, x_column, y_row);
    } else {
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < columns; j++) y[i * y_row + j * y_column] = x[i * x_row + j * x_column];
    }
}

constexpr int64_t LEAST = 1 << 15; // numbers that are worth a second thread
constexpr int64_t ROWS = 64;       // of a matrix, for one thread at a time

} // namespace

void run(const CopyStep& s, const Memory& memory) {
    int64_t x_extent, y_extent;
    const int64_t all = elements(DIMENSIONS_OF_COPY, s.size, s.x_stride, &x_extent);
    elements(DIMENSIONS_OF_COPY, s.size, s.y_stride, &y_extent);
    if (!all) return;
    const float* const x = memory.source(s.x, x_extent);
    float* const y = memory.find(s.y, y_extent);
    require(x && y);
    // the first dimensions one by one, the last two as a matrix, some rows at a time
    const int64_t rows = s.size[4], shares = (rows + ROWS - 1) / ROWS;
    const auto one = [&](int64_t, int64_t task) {
        int64_t rest = task / shares, from = 0, to = 0;
        const int64_t first = task % shares * ROWS, last = std::min(first + ROWS, rows);
        for (int64_t d = 3; d >= 0; d--) {
            from += rest % s.size[d] * s.x_stride[d];
            to += rest % s.size[d] * s.y_stride[d];
            rest /= s.size[d];
        }
        copy_matrix(x + from + first * s.x_stride[4], y + to + first * s.y_stride[4], last - first, s.size[5], s.x_stride[4],
                    s.x_stride[5], s.y_stride[4], s.y_stride[5]);
    };
    const int64_t tasks = s.size[0] * s.size[1] * s.size[2] * s.size[3] * shares;
    if (all >= LEAST) return in_tasks(tasks, one);
    for (int64_t task = 0; task < tasks; task++) one(0, task);
}

} // namespace regrow::infer
