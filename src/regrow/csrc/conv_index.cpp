#include "conv_index.h"

#include <algorithm>

#include "layout.h"

namespace regrow {
namespace {

int64_t floor_divide(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }
int64_t remainder(int64_t a, int64_t b) { return a - floor_divide(a, b) * b; }

// Channels at a time: so few that what a patch reads of them stays in the nearest cache, and so many that a visit of a
// channel on the other side has `least` connections to amortise loading and storing its sums, which costs more where they
// lie in memory.
int64_t block_of(int64_t channels, int64_t lines, double connections, int64_t cache, double least) {
    const int64_t wanted = int64_t(least / std::max(connections, 1e-9)); // of large kernels, none fits
    const int64_t block = std::max({int64_t(1), cache / (lines * TILE * 4), wanted});
    return block * 4 >= channels * 3 ? channels : block;
}

// Lines of a channel that a patch reads.
int64_t lines_of(const Window& w, int64_t patch, bool forward) {
    const int64_t down = forward ? w.span(0) : (w.span(0) - 1) / w.stride[0] + 1;
    const int64_t wide = forward ? (patch - 1) * w.stride[1] + w.span(1) : patch + (w.span(1) - 1) / w.stride[1];
    return std::min(down * wide, w.taps() * patch);
}

// Of as many channels as `any` says of whether they have a connection.
Used used_of(const std::vector<char>& any, int64_t block) {
    Used used;
    for (size_t c = 0; c < any.size(); c++) {
        if (c % block == 0) used.start.push_back(int32_t(used.channels.size()));
        if (any[c]) used.channels.push_back(int32_t(c));
    }
    used.start.push_back(int32_t(used.channels.size()));
    return used;
}

// What is looked at here at each call in any case, and so checked too.
void check_ascending(const int32_t* pointers, int64_t number, const char* name) {
    bool ascending = true;
    for (int64_t i = 0; i < number; i++) ascending &= pointers[i] <= pointers[i + 1];
    STD_TORCH_CHECK(ascending, "`", name, "` must ascend");
}
void check_below(const int32_t* numbers, int64_t count, int64_t end, const char* name) {
    bool inside = true;
    for (int64_t j = 0; j < count; j++) inside &= numbers[j] >= 0 && numbers[j] < end;
    STD_TORCH_CHECK(inside, "`", name, "` must be in [0, ", end, ")");
}

} // namespace

int64_t Window::border(const Geometry& in, const Geometry& out) const {
    const int64_t past[2] = {(out.height - 1) * stride[0] + origin(0, kernel[0] - 1) - (in.height - 1),
                             (out.width - 1) * stride[1] + origin(1, kernel[1] - 1) - (in.width - 1)};
    return std::max({int64_t(0), before[0], before[1], past[0], past[1]});
}

int64_t Window::gradient_border(const Geometry& in, const Geometry& out) const {
    int64_t needed = 0;
    const int64_t in_size[2] = {in.height, in.width}, out_size[2] = {out.height, out.width};
    for (int d = 0; d < 2; d++) {
        needed = std::max(needed, -floor_divide(-origin(d, kernel[d] - 1), stride[d]));
        needed = std::max(needed, floor_divide(in_size[d] - 1 - origin(d, 0), stride[d]) - (out_size[d] - 1));
    }
    return needed;
}

ForwardIndex::ForwardIndex(const int32_t* crow, const int32_t* col, int64_t rows, int64_t channels, const Window& w,
                           const Geometry& in, int64_t patch, bool large) {
    const int64_t taps = w.taps(), nnz = crow[rows];
    const double density = double(nnz) / std::max<double>(1, double(rows) * double(channels * taps));
    const int64_t block = block_of(channels, lines_of(w, patch, true), density * taps, 40 << 10, large ? 25 : 12);
    blocks = (channels + block - 1) / block;

    check_ascending(crow, rows, "crow");
    check_below(col, nnz, channels * taps, "col");
    std::vector<int32_t> from(channels * taps);
    for (int64_t c = 0, column = 0; c < channels; c++)
        for (int64_t u = 0; u < w.kernel[0]; u++)
            for (int64_t v = 0; v < w.kernel[1]; v++)
                from[column++] = int32_t(c * in.size() + (w.origin(0, u) * in.row() + w.origin(1, v)) * TILE);
    offset.resize(nnz);
    std::vector<char> read(channels * taps), any(channels);
    for (int64_t j = 0; j < nnz; j++) {
        offset[j] = from[col[j]];
        read[col[j]] = true;
    }
    for (int64_t c = 0; c < channels; c++)
        any[c] = std::any_of(&read[c * taps], &read[c * taps] + taps, [](char r) { return r; });
    used = used_of(any, block);

    start.resize((blocks + 1) * rows);
    for (int64_t r = 0; r < rows; r++) {
        start[r] = crow[r];
        for (int64_t b = 1; b <= blocks; b++) {
            const int32_t* const rest = col + start[(b - 1) * rows + r];
            start[b * rows + r] = int32_t(std::lower_bound(rest, col + crow[r + 1], b * block * taps) - col);
        }
    }
}

BackwardIndex::BackwardIndex(const int32_t* crow_t, const int32_t* row_t, const int32_t* order, int64_t values, int64_t rows,
                             int64_t channels, const Window& w, const Geometry& in, const Geometry& out, int64_t patch,
                             bool large, int64_t most) {
    const int64_t taps = w.taps(), nnz = crow_t[channels * taps];
    const double density = double(nnz) / std::max<double>(1, double(rows) * double(channels * taps));
    const int64_t block = block_of(rows, lines_of(w, patch, false), density * taps, 48 << 10, large ? 40 : 20);
    blocks = (rows + block - 1) / block;

    check_ascending(crow_t, channels * taps, "crow_t");
    check_below(row_t, nnz, rows, "row_t");
    check_below(order, nnz, values, "order");
    std::vector<int32_t> crow_channels(channels + 1);
    for (int64_t c = 0; c <= channels; c++) crow_channels[c] = crow_t[c * taps];
    const Parts even(crow_channels.data(), channels, most, in.tiles() * TILE * in.height * in.width);
    for (int64_t p = 0; p < even.count(); p++) {
        const int64_t begin = even.first(p), end = even.first(p + 1);
        parts.push_back({begin, end, crow_channels[begin], crow_channels[end], {}});
    }

    std::vector<char> any(rows);
    for (int64_t j = 0; j < nnz; j++) any[row_t[j]] = true;
    used = used_of(any, block);

    offset.resize(nnz);
    place.resize(nnz);
    const int64_t in_size[2] = {in.height, in.width};
    for (Part& part : parts) {
        std::vector<int32_t> next(crow_t + part.begin * taps, crow_t + part.end * taps);
        int32_t j = int32_t(part.first);
        for (int64_t kind = 0; kind < w.stride[0] * w.stride[1]; kind++) {
            Sweep sweep{{kind / w.stride[1], kind % w.stride[1]}, {}, {}};
            for (int d = 0; d < 2; d++)
                sweep.size[d] = std::max<int64_t>(0, in_size[d] - sweep.first[d] + w.stride[d] - 1) / w.stride[d];
            // its taps, and how far from a pixel they read the output's gradient
            std::vector<std::pair<int64_t, int64_t>> taps_of;
            for (int64_t tap = 0; tap < taps; tap++) {
                const int64_t far[2] = {sweep.first[0] - w.origin(0, tap / w.kernel[1]),
                                        sweep.first[1] - w.origin(1, tap % w.kernel[1])};
                if (remainder(far[0], w.stride[0]) == 0 && remainder(far[1], w.stride[1]) == 0)
                    taps_of.push_back({tap, (far[0] / w.stride[0] * out.row() + far[1] / w.stride[1]) * TILE});
            }
            for (int64_t stop = block; stop < rows + block; stop += block) {
                for (int64_t c = part.begin; c < part.end; c++) {
                    sweep.start.push_back(j);
                    for (const auto& [tap, far] : taps_of) {
                        int32_t& k = next[(c - part.begin) * taps + tap];
                        for (const int32_t last = crow_t[c * taps + tap + 1]; k < last && row_t[k] < stop; k++, j++) {
                            offset[j] = int32_t(row_t[k] * out.size() + far);
                            place[j] = order[k];
                        }
                    }
                }
                sweep.start.push_back(j);
            }
            part.sweeps.push_back(std::move(sweep));
        }
    }
}

} // namespace regrow
