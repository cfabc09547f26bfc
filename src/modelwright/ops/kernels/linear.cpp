// Linear layers that read the same rows: no torch, only pointers.

#include "several.h"

namespace {

// One of several layers that read the same x, see `_Layer` in linear.py.
struct Layer {
    Weight weight;
    int64_t out;
    const void* bias;
    void* y;
};

// All layers in one region: a thread that is done with one goes on with the next.
template <typename X>
void linears(const Layer* layers, int64_t number, const X* x, int64_t x_stride, int64_t count, Unit unit, int threads) {
    const Inputs<X> inputs(x, x_stride, count, layers[0].weight.in);
    Several<X> rows(inputs.rows, layers[0].weight.in, unit);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (int64_t part = 0; part < rows.parts(); part++) rows.pack(part);
        for (int64_t l = 0; l < number; l++) {
            const Weight& weight = layers[l].weight;
            const int64_t out = layers[l].out;
            const X* bias = static_cast<const X*>(layers[l].bias);
            X* y = static_cast<X*>(layers[l].y);
            with_kind<X>(weight.kind, [&](auto matrix) {
                fill(weight, matrix);
                const int64_t step = rows.parts() ? rows_of_piece(out, 4 * threads)
                                                  : rows_at_a_time(matrix.row_bytes(weight.in), STREAMS);
#pragma omp for schedule(dynamic) nowait
                for (int64_t first = 0; first < out; first += step) {
                    rows.times(matrix, first, std::min(first + step, out),
                               [&](int64_t row, int64_t m, const float* sums, int64_t some) {
                        X* at = y + m * out + row;
                        if (bias) {
                            for (int64_t i = 0; i < some; i++) store(at + i, sums[i] + to_float(bias[row + i]));
                        } else {
                            for (int64_t i = 0; i < some; i++) store(at + i, sums[i]);
                        }
                    });
                }
            });
        }
    }
}

}  // namespace

extern "C" {

// The best `Unit` that this processor has, and that the system lets the process use.
int32_t best_unit() {
#if HAS_TILES
    if (tiles_permitted()) return int32_t(Unit::tiles);
#endif
    return int32_t(HAS_BF16_DOTS ? Unit::dots : Unit::streams);
}

void linear_rows(const Layer* layers, int64_t number, int32_t halves, const void* x, int64_t x_stride, int64_t count,
                 int32_t unit, int32_t threads) {
    if (halves) {
        linears(layers, number, static_cast<const bf16*>(x), x_stride, count, Unit(unit), threads);
    } else {
        linears(layers, number, static_cast<const float*>(x), x_stride, count, Unit(unit), threads);
    }
}
}
