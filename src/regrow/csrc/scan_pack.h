// Packs a sparse matrix for the kernels of `scan.h`.
#pragma once

#include <algorithm>
#include <vector>

#include "scan.h"
#include "torch.h"

namespace regrow {

// A CSR matrix of `units` x `gates` rows.
template <class T>
struct Rows {
    const int32_t* crow;
    const int32_t* col;
    const int32_t* order; // where in `values` each connection's value is, or null: in its own place
    const T* values;
    int64_t units, gates, columns;
    int64_t connections() const { return crow[units * gates]; }
};

template <class T>
class Packing {
public:
    // set: a product sets its sums, else it adds to them
    Packing(const Rows<T>& rows, bool set) : rows_(rows), set_(set), blocks_(blocks_of(rows)) {
        const int64_t together = std::max<int64_t>(256 / rows.gates, 1), count = (rows.units + together - 1) / together;
        parts_.resize(count);
        memory_.resize(count);
        parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
            for (int64_t p = begin; p < end; p++) {
                parts_[p].first = p * together;
                parts_[p].last = std::min(rows.units, (p + 1) * together);
                fill(parts_[p], memory_[p]);
            }
        });
    }
    Packed<T> packed() const { return {blocks_, parts_.data(), int64_t(parts_.size())}; }
    int64_t most_sums() const { return parts_.empty() ? 0 : (parts_[0].last - parts_[0].first) * rows_.gates; }

private:
    struct Memory {
        std::vector<int64_t> ends;
        std::vector<Run> runs;
        std::vector<uint16_t> row, at;
        std::vector<T> values;
    };
    static constexpr int64_t NEAR = 24 << 10, LINE = SLICE * int64_t(sizeof(T)), FEW = 16;

    // A near cache holds a block, unless a row had too few connections in it.
    static Blocks blocks_of(const Rows<T>& rows) {
        const double each = double(rows.connections()) / double(rows.units * rows.gates * rows.columns);
        int64_t size = NEAR / LINE;
        if (each * double(size) < FEW) size = each * double(rows.columns) < FEW ? rows.columns : int64_t(FEW / each);
        size = std::min(size, 65535 * 8 / LINE); // that `at` reaches
        if (size * 4 >= rows.columns * 3 && rows.columns <= 65535 * 8 / LINE) size = rows.columns;
        const int64_t count = (rows.columns + size - 1) / size;
        return {(rows.columns + count - 1) / count, count};
    }

    void fill(Part<T>& part, Memory& m) const {
        struct Row {
            int32_t next, end, stop;
            int32_t groups() const { return int32_t((stop - next + SIDE - 1) / SIDE); }
        };
        std::vector<Row> rows;
        for (int64_t u = part.first; u < part.last; u++)
            for (int64_t g = 0; g < rows_.gates; g++) {
                const int64_t r = g * rows_.units + u;
                rows.push_back({rows_.crow[r], rows_.crow[r + 1], 0});
            }
        std::vector<int32_t> order(rows.size());
        m.ends.push_back(0);
        for (int64_t block = 0; block < blocks_.count; block++) {
            const int64_t start = block * blocks_.size, limit = start + blocks_.size;
            int32_t most = 0;
            for (Row& row : rows) {
                row.stop = int32_t(std::lower_bound(rows_.col + row.next, rows_.col + row.end, limit) - rows_.col);
                most = std::max(most, row.groups());
            }
            std::vector<int32_t> place(most + 2);
            for (const Row& row : rows) place[row.groups() + 1]++;
            for (int32_t n = 0; n <= most; n++) {
                const int32_t count = place[n + 1];
                if (count && (n || (set_ && block == 0))) m.runs.push_back({count, n});
                place[n + 1] += place[n];
            }
            for (size_t i = 0; i < rows.size(); i++) order[place[rows[i].groups()]++] = int32_t(i);
            for (const int32_t i : order) {
                Row& row = rows[i];
                if (!row.groups() && !(set_ && block == 0)) continue;
                m.row.push_back(uint16_t(i));
                const int32_t filled = row.next + row.groups() * int32_t(SIDE);
                for (int32_t j = row.next; j < filled; j++) {
                    const bool is = j < row.stop;
                    m.at.push_back(is ? uint16_t((rows_.col[j] - start + 1) * (LINE / 8)) : uint16_t(0));
                    m.values.push_back(is ? rows_.values[rows_.order ? rows_.order[j] : j] : T(0));
                }
                row.next = row.stop;
            }
            m.ends.push_back(int64_t(m.runs.size()));
        }
        part.ends = m.ends.data();
        part.runs = m.runs.data();
        part.row = m.row.data();
        part.at = m.at.data();
        part.values = m.values.data();
    }

    Rows<T> rows_;
    bool set_;
    Blocks blocks_;
    std::vector<Part<T>> parts_;
    std::vector<Memory> memory_;
};

} // namespace regrow
