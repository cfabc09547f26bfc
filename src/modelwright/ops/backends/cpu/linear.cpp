// Linear layers that read the same rows: no torch, only pointers.

#include "several.h"

namespace {

// Columns `first` to `last` - 1 of a layer's y, of its rows from `begin` on.
template <typename X>
void multiply(const LinearLayer& layer, const Several<X>& rows, int64_t begin, int64_t first, int64_t last) {
    const X* shift = static_cast<const X*>(layer.bias);
    with_kind<X>(layer.weight.kind, [&](auto matrix) {
        fill(layer.weight, matrix);
        rows.times(matrix, first, last, [&](int64_t row, int64_t m, const float* sums, int64_t some) {
            X* at = static_cast<X*>(layer.y) + (begin + m) * layer.out + row;
            for (int64_t i = 0; i < some; i++) store(at + i, shift ? sums[i] + to_float(shift[row + i]) : sums[i]);
        });
    });
}

// All layers in one region, whose rows are shared out as if they were one layer's, for `count` rows of x and of each y
// from `begin` on.
template <typename X>
void linears(const LinearLayer* layers, int64_t number, const X* x, int64_t x_stride, int64_t begin, int64_t count,
             Unit unit, int threads) {
    const Inputs<X> inputs(x + begin * x_stride, x_stride, count, layers[0].weight.in);
    Several<X> rows(inputs.rows, layers[0].weight.in, unit);
    int64_t whole = 1, all = 0;
    for (int64_t l = 0; l < number; l++) {
        all += layers[l].out;
        with_kind<X>(layers[l].weight.kind, [&](auto matrix) {
            rows.template meet<decltype(matrix)>();
            whole = std::max(whole, rows.template whole<decltype(matrix)>());
        });
    }
    if (!rows.blocks())
        for (int64_t part = 0; part < rows.parts(); part++) rows.pack(part);
    Pieces pieces(all, whole, threads);
#pragma omp parallel num_threads(threads)
    {
        if (rows.blocks()) {
#pragma omp for
            for (int64_t part = 0; part < rows.parts(); part++) rows.pack(part);
        }
        for (int64_t first, last; pieces.take(first, last);) {
            for (int64_t l = 0, base = 0; l < number && base < last; base += layers[l++].out) {
                const int64_t end = std::min(last - base, layers[l].out);
                if (first - base < end) multiply(layers[l], rows, begin, std::max<int64_t>(first - base, 0), end);
            }
        }
    }
}

}  // namespace

extern "C" {

// The best `Unit` that this processor has, and that the system lets the process use.
Unit best_unit() {
#if HAS_TILES
    if (tiles_permitted()) return Unit::tiles;
#endif
    return HAS_BF16_DOTS ? Unit::dots : Unit::streams;
}

void linear_rows(const LinearLayer* layers, int64_t number, int32_t halves, const void* x, int64_t x_stride,
                 int64_t count, Unit unit, int32_t threads) {
    const auto run = [&](auto type) {
        const auto* rows = static_cast<const decltype(type)*>(x);
        for (int64_t begin = 0; begin < count; begin += ROWS_AT_ONCE)
            linears(layers, number, rows, x_stride, begin, std::min(ROWS_AT_ONCE, count - begin), unit, threads);
    };
    if (halves) run(bf16{});
    else run(0.0f);
}
}
