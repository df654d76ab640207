// Batch norm over batch tiles: the operators around the kernels. Some channels are done at a time, all tiles of them, so
// that what the first pass reads is still in a near cache for the second, which fetches what the next channels' first
// pass will read.
#include "norm.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>

#include "kernels.h"
#include "tiles_torch.h"

namespace regrow {
namespace {

using Given = const std::optional<Tensor>&;

constexpr int64_t NEAR = 640 << 10;  // bytes that a near cache holds from one pass to the next
constexpr int64_t MOST = 16;         // channels at a time

template <class T> const T* maybe(Given t) { return t ? read<T>(*t) : nullptr; }

// A buffer's channels.
template <class T>
struct Channels {
    T* data;
    int64_t channels;
    Geometry g;
    T* at(int64_t t, int64_t c) const { return data ? data + (t * channels + c) * g.size() : nullptr; }
    int64_t bytes() const { return g.tiles() * g.size() * int64_t(sizeof(T)); } // of one channel
    bool large() const { return is_large<T>(channels, g); }
};

// Calls work(begin, end, last) for neighbouring channels of which a near cache holds `operands` buffers, threaded. Those up
// to `last` come next, and there is room for them.
template <class T, class F>
void some_channels(const Channels<T>& x, int64_t operands, F work) {
    const int64_t bytes = operands * x.bytes(), together = std::clamp<int64_t>(NEAR / (2 * bytes + 1), 1, MOST);
    const int64_t grain = 1 + (int64_t(sizeof(T)) << 14) / (x.bytes() + 1);
    parallel_for(0, x.channels, grain, [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; c += together) {
            const int64_t stop = std::min(c + together, end);
            work(c, stop, bytes <= NEAR ? end : stop);
        }
    });
}

// What is written past the caches is whole; not so the last tile's lanes, which are cleared again.
template <class T>
bool past_caches(const Channels<T>& out, int64_t t) {
    return out.large() && out.g.present(t) == TILE;
}

template <class T>
struct Moments {
    T mean;
    double variance;
};

// In float64, as torch does it: where squares pass what T holds, or a value is not finite.
template <class T>
Moments<T> exact_statistics(const Channels<const T>& x, int64_t c) {
    const Geometry& g = x.g;
    const double count = double(g.images * g.pixels());
    const auto sum = [&](auto of) {
        double total = 0;
        for (int64_t t = 0; t < g.tiles(); t++)
            for (int64_t pixel = 0; pixel < g.pixels(); pixel++)
                for (int64_t n = 0; n < g.present(t); n++) total += of(double(x.at(t, c)[g.line(pixel) * TILE + n]));
        return total;
    };
    const double mean = sum([](double value) { return value; }) / count;
    return {T(mean), sum([&](double value) { return (value - mean) * (value - mean); }) / count};
}

// Of the channels [begin, end).
template <class T>
void statistics(const Channels<const T>& x, int64_t begin, int64_t end, Moments<T>* found) {
    const auto& kernels = isa().kernels<T>().norm;
    const Geometry& g = x.g;
    const double count = double(g.images * g.pixels());
    Sums sums[MOST] = {};
    T pivot[MOST];
    // about the mean of the first tile, so that squares do not cancel
    for (int64_t c = begin; c < end; c++)
        pivot[c - begin] = T(kernels.moments(x.at(0, c), T(0), g, 0).first / double(g.present(0) * g.pixels()));
    for (int64_t t = 0; t < g.tiles(); t++)
        for (int64_t c = begin; c < end; c++) {
            const Sums some = kernels.moments(x.at(t, c), pivot[c - begin], g, t);
            sums[c - begin].first += some.first;
            sums[c - begin].second += some.second;
        }
    for (int64_t i = 0; i < end - begin; i++) {
        const double off = sums[i].first / count;
        found[i] = {T(pivot[i] + off), std::max(sums[i].second / count - off * off, 0.0)};
        if (!std::isfinite(sums[i].second)) found[i] = exact_statistics(x, begin + i);
    }
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& input, Given residual, Given weight, Given bias, Given running_mean,
                                           Given running_var, const Geometry& g, bool training, double momentum, double eps,
                                           bool relu) {
    const auto& kernels = isa().kernels<T>().norm;
    const int64_t channels = input.size(1);
    const double count = double(g.images * g.pixels());
    Tensor output = empty_tiles(input, channels, g);
    Tensor mean = empty(input, {channels}, TYPE<T>), invstd = empty(input, {channels}, TYPE<T>);
    const Channels<const T> x{read<T>(input), channels, g}, r{maybe<T>(residual), channels, g};
    const Channels<T> y{write<T>(output), channels, g};
    T *const means = write<T>(mean), *const scales = write<T>(invstd);
    T* const old_mean = running_mean ? write<T>(*running_mean) : nullptr;
    T* const old_var = running_var ? write<T>(*running_var) : nullptr;
    const T *const w = maybe<T>(weight), *const b = maybe<T>(bias);
    some_channels(x, residual ? 2 : 1, [&](int64_t begin, int64_t end, int64_t last) {
        Moments<T> of[MOST];
        if (training) statistics(x, begin, end, of);
        for (int64_t c = begin; c < end; c++) {
            auto& [middle, variance] = of[c - begin];
            if (training) {
                if (old_mean) old_mean[c] = T((1 - momentum) * old_mean[c] + momentum * middle);
                if (old_var) old_var[c] = T((1 - momentum) * old_var[c] + momentum * variance * count / (count - 1));
            } else {
                middle = old_mean[c];
                variance = old_var[c];
            }
            means[c] = middle;
            scales[c] = T(1 / std::sqrt(variance + eps));
        }
        for (int64_t t = 0; t < g.tiles(); t++)
            for (int64_t c = begin; c < end; c++) {
                const T scale = scales[c] * (w ? w[c] : T(1)), shift = (b ? b[c] : T(0)) - means[c] * scale;
                const int64_t next = c + end - begin;
                kernels.forward({x.at(t, c), r.at(t, c), y.at(t, c), next < last ? x.at(t, next) : nullptr, scale, shift,
                                 relu, past_caches(y, t)},
                                g);
                clear_absent(g, y.at(t, c), t);
            }
    });
    return {output, mean, invstd};
}

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& gradient, const Tensor& input, Given output, Given passed,
                                                    Given weight, Given bias, const Tensor& mean, const Tensor& invstd,
                                                    const Geometry& g, bool training, bool relu) {
    const auto& kernels = isa().kernels<T>().norm;
    const int64_t channels = input.size(1);
    const double count = double(g.images * g.pixels());
    Tensor input_gradient = empty_tiles(input, channels, g);
    Tensor residual_gradient = output ? empty_tiles(input, channels, g) : empty(input, {0}, TYPE<T>);
    Tensor weight_gradient = empty(input, {channels}, TYPE<T>), bias_gradient = empty(input, {channels}, TYPE<T>);
    const auto given = [&](const T* data) { return Channels<const T>{data, channels, g}; };
    const Channels<const T> dy = given(read<T>(gradient)), x = given(read<T>(input)), y = given(maybe<T>(output)),
                            past = given(maybe<T>(passed));
    const Channels<T> dx{write<T>(input_gradient), channels, g},
        dr{output ? write<T>(residual_gradient) : nullptr, channels, g};
    const T *const w = maybe<T>(weight), *const b = maybe<T>(bias), *const means = read<T>(mean),
                   *const scales = read<T>(invstd);
    T *const dw = write<T>(weight_gradient), *const db = write<T>(bias_gradient);
    const int64_t operands = output ? 4 : passed ? 3 : 2;
    some_channels(x, operands, [&](int64_t begin, int64_t end, int64_t last) {
        const auto work = [&](int64_t t, int64_t c) {
            const int64_t next = c + end - begin;
            const auto soon = [&](const Channels<const T>& from) { return next < last ? from.at(t, next) : nullptr; };
            const T scale = scales[c] * (w ? w[c] : T(1)), shift = (b ? b[c] : T(0)) - means[c] * scale;
            return NormBackward<T>{dy.at(t, c), x.at(t, c), y.at(t, c), past.at(t, c), dr.at(t, c),       dx.at(t, c),
                                   soon(dy),    soon(x),    scale,      shift,         means[c],          scale,
                                   0,           0,          !training,  relu,          past_caches(dx, t)};
        };
        Sums sums[MOST] = {};
        for (int64_t t = 0; t < g.tiles(); t++)
            for (int64_t c = begin; c < end; c++) {
                const Sums some = kernels.sums(work(t, c), g, t);
                sums[c - begin].first += some.first;
                sums[c - begin].second += some.second;
                if (output) clear_absent(g, dr.at(t, c), t);
            }
        for (int64_t t = 0; t < g.tiles(); t++)
            for (int64_t c = begin; c < end; c++) {
                NormBackward<T> rest = work(t, c);
                if (training) {
                    rest.b = T(-rest.scale * double(scales[c]) * scales[c] * sums[c - begin].second / count);
                    rest.c = T(-rest.scale * sums[c - begin].first / count);
                }
                if (output) { // the first pass has put through the ReLU what comes
                    rest.gradient = rest.residual;
                    rest.relu = false;
                }
                kernels.backward(rest, g);
                clear_absent(g, dx.at(t, c), t);
            }
        for (int64_t c = begin; c < end; c++) {
            db[c] = T(sums[c - begin].first);
            dw[c] = T(sums[c - begin].second * scales[c]);
        }
    });
    return {input_gradient, residual_gradient, weight_gradient, bias_gradient};
}

void check(const Tensor& given, const Tensor& like, bool vector) {
    STD_TORCH_CHECK(given.is_cpu() && given.is_contiguous() && given.scalar_type() == like.scalar_type() &&
                        given.numel() == (vector ? like.size(1) : like.numel()),
                    "operands of batch norm must be contiguous, of one dtype and fit each other");
}
void check_images(const Geometry& g) {
    STD_TORCH_CHECK(g.images * g.pixels() > 0, "batch norm needs at least one image and one pixel");
}
void check(Given given, const Tensor& like, bool vector) {
    if (given) check(*given, like, vector);
}

std::tuple<Tensor, Tensor, Tensor> norm_forward(Tensor input, std::optional<Tensor> residual, std::optional<Tensor> weight,
                                                std::optional<Tensor> bias, std::optional<Tensor> running_mean,
                                                std::optional<Tensor> running_var, int64_t images, int64_t height,
                                                int64_t width, int64_t border, bool training, double momentum, double eps,
                                                bool relu) {
    const Geometry g{images, height, width, border};
    check_tiles(input, g);
    check_images(g);
    check(residual, input, false);
    for (Given each : {weight, bias, running_mean, running_var}) check(each, input, true);
    STD_TORCH_CHECK(training || (running_mean && running_var), "evaluation needs running statistics");
    return by_type(input, [&](auto type) {
        return forward<decltype(type)>(aligned(input), aligned(residual), weight, bias, running_mean, running_var, g,
                                       training, momentum, eps, relu);
    });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> norm_backward(Tensor gradient, Tensor input, std::optional<Tensor> output,
                                                         std::optional<Tensor> passed, std::optional<Tensor> weight,
                                                         std::optional<Tensor> bias, Tensor mean, Tensor invstd,
                                                         int64_t images, int64_t height, int64_t width, int64_t border,
                                                         bool training, bool relu) {
    const Geometry g{images, height, width, border};
    check_tiles(input, g);
    check_images(g);
    check(gradient, input, false);
    for (Given each : {output, passed}) check(each, input, false);
    for (Given each : {weight, bias}) check(each, input, true);
    check(mean, input, true);
    check(invstd, input, true);
    return by_type(input, [&](auto type) {
        return backward<decltype(type)>(aligned(gradient), aligned(input), aligned(output), aligned(passed), weight, bias,
                                        mean, invstd, g, training, relu);
    });
}

} // namespace
} // namespace regrow

STABLE_TORCH_LIBRARY_FRAGMENT(regrow_native, m) {
    m.def("norm_forward(Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, "
          "Tensor(b!)? running_var, int images, int height, int width, int border, bool training, float momentum, "
          "float eps, bool relu) -> (Tensor, Tensor, Tensor)");
    m.def("norm_backward(Tensor gradient, Tensor input, Tensor? output, Tensor? passed, Tensor? weight, Tensor? bias, "
          "Tensor mean, Tensor invstd, int images, int height, int width, int border, bool training, bool relu) "
          "-> (Tensor, Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(regrow_native, CPU, m) {
    m.impl("norm_forward", TORCH_BOX(&regrow::norm_forward));
    m.impl("norm_backward", TORCH_BOX(&regrow::norm_backward));
}
