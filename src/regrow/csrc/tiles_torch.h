// Tensors that hold batch tiles.
#pragma once

#include <optional>

#include "buffers.h"
#include "tiles.h"

namespace regrow {

inline Tensor empty_tiles(const Tensor& like, int64_t channels, const Geometry& g) {
    return empty_buffer(like, {g.tiles(), channels, g.size() / TILE, TILE}, like.scalar_type());
}

constexpr int64_t CACHED = 4 << 20; // bytes of activations beyond which they come from memory

template <class T>
bool is_large(int64_t channels, const Geometry& g) {
    return g.tiles() * channels * g.size() * int64_t(sizeof(T)) > CACHED;
}

// Whether kernels can read it where it is; memory that torch has not made itself may begin anywhere.
inline bool is_aligned(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 64 == 0; }

// The tensor where kernels can read it: itself, or a copy.
inline Tensor aligned(const Tensor& t) { return is_aligned(t) ? t : torch::stable::clone(t); }
inline std::optional<Tensor> aligned(const std::optional<Tensor>& t) {
    return t ? std::optional(aligned(*t)) : std::nullopt;
}

inline void check_geometry(const Geometry& g) {
    STD_TORCH_CHECK(std::min({g.images, g.height, g.width, g.border}) >= 0,
                    "`images`, `height`, `width` and `border` must not be negative, got ", g.images, ", ", g.height, ", ",
                    g.width, " and ", g.border);
}

inline void check_tiles(const Tensor& buffer, const Geometry& g, const char* name = "buffer") {
    check_geometry(g);
    STD_TORCH_CHECK(buffer.dim() == 4 && buffer.is_contiguous() && buffer.is_cpu() && buffer.size(0) == g.tiles() &&
                        buffer.size(2) * TILE == g.size() && buffer.size(3) == TILE,
                    "`", name, "` must be contiguous [", g.tiles(), ", channels, ", g.size() / TILE, ", 16] on the CPU");
}

// run(T()) for the tensor's type.
template <class F>
auto by_type(const Tensor& t, F run) {
    const ScalarType type = t.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "tiles are float32 or float64");
    return type == ScalarType::Double ? run(double()) : run(float());
}

} // namespace regrow
