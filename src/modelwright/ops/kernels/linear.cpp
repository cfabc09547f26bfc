// The feed-forward of a few tokens: a linear layer, and the chosen experts of each token. No torch, only pointers.

#include <cmath>

#include "linear.h"

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
void linears(const Layer* layers, int64_t number, const X* x, int64_t x_stride, int64_t count, int threads) {
    const Inputs<X> inputs(x, x_stride, count, layers[0].weight.in);
#pragma omp parallel num_threads(threads)
    for (int64_t l = 0; l < number; l++) {
        const Weight& weight = layers[l].weight;
        const int64_t out = layers[l].out;
        const X* bias = static_cast<const X*>(layers[l].bias);
        X* y = static_cast<X*>(layers[l].y);
        with_kind<X>(weight.kind, [&](auto matrix) {
            fill(weight, matrix);
            const int64_t step = rows_at_a_time(matrix.row_bytes(weight.in), STREAMS);
#pragma omp for schedule(dynamic) nowait
            for (int64_t first = 0; first < out; first += step) {
                product(matrix, first, std::min(first + step, out), inputs.rows.data(), count,
                        [&](int64_t row, int64_t m, float sum) {
                    store(y + m * out + row, bias ? sum + to_float(bias[row]) : sum);
                });
            }
        });
    }
}

// One expert and the choices (token * top_k + place) that fell on it.
struct Visit {
    int64_t expert;
    std::vector<int64_t> choices;
};

std::vector<Visit> visits_of(const int64_t* chosen, int64_t choices) {
    std::vector<Visit> visits;
    for (int64_t c = 0; c < choices; c++) {
        size_t i = 0;
        while (i < visits.size() && visits[i].expert != chosen[c]) i++;
        if (i == visits.size()) visits.push_back({chosen[c], {}});
        visits[i].choices.push_back(c);
    }
    return visits;
}

// Calls act(visit, first row, last row) for pieces of each visited expert's `rows`, on all threads of the region.
template <typename Act>
void each_piece(const std::vector<Visit>& visits, int64_t rows, int64_t step, Act act) {
    const int64_t pieces = (rows + step - 1) / step;
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < int64_t(visits.size()) * pieces; i++) {
        const int64_t first = i % pieces * step;
        act(visits[i / pieces], first, first + step < rows ? first + step : rows);
    }
}

inline float silu(float x) { return x / (1.0f + std::exp(-x)); }

// Hidden units first, then each choice's output apart, then the weighted sum per token in the order of its choices.
template <typename X>
void experts(const Weight& w_in, const Weight& w_out, int64_t width, const X* x, int64_t tokens, int64_t top_k,
             const int64_t* chosen, const float* weights, X* y, int threads) {
    const int64_t dim = w_in.in, choices = tokens * top_k;
    const std::vector<Visit> visits = visits_of(chosen, choices);
    const Inputs<X> inputs(x, dim, tokens, dim);
    typedef typename Inputs<X>::Element Element;
    const int64_t padded = (width + LANES - 1) / LANES * LANES;
    std::vector<Element> hidden(choices * padded, Element{});
    std::vector<float> said(choices * dim);
    with_kind<X>(w_in.kind, [&](auto in) {
        auto out = in;
        fill(w_in, in);
        fill(w_out, out);
#pragma omp parallel num_threads(threads)
        {
            each_piece(visits, width, rows_at_a_time(2 * in.row_bytes(dim), STREAMS),
                       [&](const Visit& visit, int64_t first, int64_t last) {
                const int64_t count = visit.choices.size(), base = visit.expert * 2 * width, up = base + width;
                std::vector<const Element*> xs(count);
                for (int64_t m = 0; m < count; m++) xs[m] = inputs.rows[visit.choices[m] / top_k];
                std::vector<float> gate((last - first) * count);
                product(in, base + first, base + last, xs.data(), count, [&](int64_t row, int64_t m, float sum) {
                    gate[(row - base - first) * count + m] = silu(sum);
                });
                product(in, up + first, up + last, xs.data(), count, [&](int64_t row, int64_t m, float sum) {
                    const int64_t unit = row - up;
                    store(&hidden[visit.choices[m] * padded + unit], gate[(unit - first) * count + m] * sum);
                });
            });
            each_piece(visits, dim, rows_at_a_time(out.row_bytes(width), STREAMS),
                       [&](const Visit& visit, int64_t first, int64_t last) {
                const int64_t count = visit.choices.size(), base = visit.expert * dim;
                std::vector<const Element*> xs(count);
                for (int64_t m = 0; m < count; m++) xs[m] = &hidden[visit.choices[m] * padded];
                product(out, base + first, base + last, xs.data(), count, [&](int64_t row, int64_t m, float sum) {
                    said[visit.choices[m] * dim + row - base] = sum;
                });
            });
#pragma omp for schedule(static)
            for (int64_t i = 0; i < tokens * dim; i++) {
                const int64_t token = i / dim;
                float total = 0;
                for (int64_t c = token * top_k; c < (token + 1) * top_k; c++)
                    total += weights[c] * said[c * dim + i % dim];
                store(y + i, total);
            }
        }
    });
}

}  // namespace

extern "C" {

void linear_rows(const Layer* layers, int64_t number, int32_t halves, const void* x, int64_t x_stride, int64_t count,
                 int32_t threads) {
    if (halves) {
        linears(layers, number, static_cast<const bf16*>(x), x_stride, count, threads);
    } else {
        linears(layers, number, static_cast<const float*>(x), x_stride, count, threads);
    }
}

void expert_rows(const Weight* w_in, const Weight* w_out, int64_t width, int32_t halves, const void* x, int64_t tokens,
                 int64_t top_k, const int64_t* chosen, const float* weights, void* y, int32_t threads) {
    if (halves) {
        experts(*w_in, *w_out, width, static_cast<const bf16*>(x), tokens, top_k, chosen, weights,
                static_cast<bf16*>(y), threads);
    } else {
        experts(*w_in, *w_out, width, static_cast<const float*>(x), tokens, top_k, chosen, weights,
                static_cast<float*>(y), threads);
    }
}
}
