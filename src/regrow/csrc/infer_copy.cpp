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
        return;
    }
    constexpr int64_t SIDE = 16; // in squares, whose lines stay in the nearest cache both ways
    for (int64_t i = 0; i < rows; i += SIDE)
        for (int64_t j = 0; j < columns; j += SIDE)
            for (int64_t r = i; r < std::min(i + SIDE, rows); r++)
                for (int64_t c = j; c < std::min(j + SIDE, columns); c++)
                    y[r * y_row + c * y_column] = x[r * x_row + c * x_column];
}

} // namespace

void run(const CopyStep& s, const Memory& memory) {
    int64_t x_extent = 1, y_extent = 1, all = 1;
    for (int64_t d = 0; d < DIMENSIONS_OF_COPY; d++) {
        STD_TORCH_CHECK(s.size[d] >= 0 && s.size[d] <= int64_t(1) << 40 && s.x_stride[d] >= 0 && s.y_stride[d] >= 0,
                        "a copy of an inference program has wrong sizes");
        x_extent += (s.size[d] - 1) * s.x_stride[d];
        y_extent += (s.size[d] - 1) * s.y_stride[d];
        all *= s.size[d];
    }
    if (!all) return;
    const float* const x = memory.find(s.x, x_extent);
    float* const y = memory.find(s.y, y_extent);
    // the first dimensions one by one, the last two as a matrix
    const int64_t outer = s.size[0] * s.size[1] * s.size[2] * s.size[3];
    in_tasks(all < 1 << 15 ? 1 : std::min(outer, threads()), [&](int64_t, int64_t part) {
        const int64_t parts = all < 1 << 15 ? 1 : std::min(outer, threads());
        for (int64_t i = outer * part / parts; i < outer * (part + 1) / parts; i++) {
            int64_t rest = i, from = 0, to = 0;
            for (int64_t d = 3; d >= 0; d--) {
                from += rest % s.size[d] * s.x_stride[d];
                to += rest % s.size[d] * s.y_stride[d];
                rest /= s.size[d];
            }
            copy_matrix(x + from, y + to, s.size[4], s.size[5], s.x_stride[4], s.x_stride[5], s.y_stride[4], s.y_stride[5]);
        }
    });
}

} // namespace regrow::infer
