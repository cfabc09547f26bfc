// The chosen experts of each token: gate and up, SiLU, down, and the weighted sum. No torch, only pointers.

#include "several.h"

namespace {

// One expert and the choices (token * top_k + place) that fell on it.
struct Visit {
    int64_t expert;
    std::vector<int64_t> choices;
};

// The visits in the order of the experts, so that a token's sum has one order whatever else is in the batch.
std::vector<Visit> visits_of(const int64_t* chosen, int64_t choices) {
    const int64_t last = choices ? *std::max_element(chosen, chosen + choices) : -1;
    std::vector<Visit> all(last + 1), visits;
    for (int64_t c = 0; c < choices; c++) all[chosen[c]].choices.push_back(c);
    for (int64_t e = 0; e <= last; e++)
        if (!all[e].choices.empty()) visits.push_back({e, std::move(all[e].choices)});
    return visits;
}

// What the visits read of a matrix: for each the rows that `row_of` a choice gives.
template <typename X, typename Matrix, typename RowOf>
std::vector<Several<X>> reads_of(const std::vector<Visit>& visits, int64_t in, Unit unit, RowOf row_of) {
    std::vector<Several<X>> reads;
    reads.reserve(visits.size());
    for (const Visit& visit : visits) {
        std::vector<const typename Several<X>::Element*> rows;
        for (int64_t choice : visit.choices) rows.push_back(row_of(choice));
        reads.emplace_back(std::move(rows), in, unit);
        reads.back().template meet<Matrix>();
    }
    return reads;
}

// By all threads of the region, or by the caller outside one.
template <typename X>
void pack(std::vector<Several<X>>& reads) {
    if (std::none_of(reads.begin(), reads.end(), [](const Several<X>& rows) { return rows.parts() > 0; })) return;
#pragma omp for schedule(dynamic)
    for (size_t v = 0; v < reads.size(); v++)
        for (int64_t part = 0; part < reads[v].parts(); part++) reads[v].pack(part);
}

template <typename X, typename Matrix>
int64_t whole(const std::vector<Several<X>>& reads) {
    int64_t most = 1;
    for (const Several<X>& rows : reads) most = std::max(most, rows.template whole<Matrix>());
    return most;
}

// out[i] = silu(gate[i]) * up[i]
template <typename T>
void gated(const float* gate, const float* up, int64_t count, T* out) {
    for (int64_t i = 0; i < count; i += LANES) {
        const int64_t some = std::min<int64_t>(LANES, count - i);
        const Floats unit = silu(load_some(gate + i, some)) * load_some(up + i, some);
        for (int64_t j = 0; j < some; j++) store(out + i + j, unit[j]);
    }
}

template <typename X>
struct Layer {
    typedef typename Several<X>::Element Element;
    const int64_t dim, width, tokens, top_k;
    const int64_t padded;  // the width in whole vectors
    const std::vector<Visit> visits;
    std::vector<Element> hidden;  // [choices, padded]

    Layer(const Weight& w_in, int64_t width, int64_t tokens, int64_t top_k, const int64_t* chosen)
        : dim(w_in.in), width(width), tokens(tokens), top_k(top_k), padded(up_to(width, LANES)),
          visits(visits_of(chosen, tokens * top_k)), hidden(tokens * top_k * padded, Element{}) {}

    // Hidden units `first` to `last` - 1 of one visit, so many at a time that their sums stay in the second cache.
    template <typename Matrix>
    void project(const Matrix& matrix, const Visit& visit, const Several<X>& x, int64_t first, int64_t last) {
        const int64_t choices = visit.choices.size(), most = std::max<int64_t>(32768 / choices / 96, 1) * 96;
        std::vector<float> gate(std::min(most, last - first) * choices), up(gate.size());
        for (; first < last; first += most) {
            const int64_t some = std::min(most, last - first), base = visit.expert * 2 * width + first;
            const auto into = [&](std::vector<float>& out, int64_t from) {
                x.times(matrix, from, from + some, [&](int64_t row, int64_t m, const float* sums, int64_t count) {
                    std::copy_n(sums, count, &out[m * some + row - from]);
                });
            };
            into(gate, base);
            into(up, base + width);
            for (int64_t m = 0; m < choices; m++)
                gated(&gate[m * some], &up[m * some], some, &hidden[visit.choices[m] * padded + first]);
        }
    }

    // Outputs `first` to `last` - 1 of all tokens.
    template <typename Matrix>
    void sum_up(const Matrix& matrix, const std::vector<Several<X>>& reads, const float* weights, int64_t first,
                int64_t last, X* y) const {
        const int64_t some = last - first;
        std::vector<float> totals(tokens * some, 0.0f);
        for (size_t v = 0; v < visits.size(); v++) {
            const int64_t base = visits[v].expert * dim;
            reads[v].times(matrix, base + first, base + last,
                           [&](int64_t row, int64_t m, const float* sums, int64_t count) {
                const int64_t choice = visits[v].choices[m];
                float* total = &totals[choice / top_k * some + row - base - first];
                for (int64_t i = 0; i < count; i++) total[i] += weights[choice] * sums[i];
            });
        }
        for (int64_t token = 0; token < tokens; token++)
            for (int64_t i = 0; i < some; i++) store(y + token * dim + first + i, totals[token * some + i]);
    }
};

template <typename X>
void experts(const Weight& w_in, const Weight& w_out, int64_t width, const X* x, int64_t tokens, int64_t top_k,
             const int64_t* chosen, const float* weights, X* y, Unit unit, int threads) {
    Layer<X> layer(w_in, width, tokens, top_k, chosen);
    const Inputs<X> inputs(x, layer.dim, tokens, layer.dim);
    const auto token_of = [&](int64_t choice) { return inputs.rows[choice / top_k]; };
    const auto hidden_of = [&](int64_t choice) { return &layer.hidden[choice * layer.padded]; };
    with_kind<X>(w_in.kind, [&](auto in) {
        typedef decltype(in) Matrix;
        auto out = in;
        fill(w_in, in);
        fill(w_out, out);
        auto of_token = reads_of<X, Matrix>(layer.visits, layer.dim, unit, token_of);
        auto of_hidden = reads_of<X, Matrix>(layer.visits, width, unit, hidden_of);
        const bool blocks = std::any_of(of_token.begin(), of_token.end(), [](auto& rows) { return rows.blocks(); });
        if (!blocks) pack(of_token);  // by this thread
        const int64_t visits = layer.visits.size();
        Pieces units(visits * width, whole<X, Matrix>(of_token), threads);
        Pieces outputs(layer.dim, whole<X, Matrix>(of_hidden), threads);
#pragma omp parallel num_threads(threads)
        {
            if (blocks) pack(of_token);
            for (int64_t first, last; units.take(first, last);) {
                for (int64_t v = first / width; v * width < last; v++) {
                    const int64_t base = v * width, from = std::max<int64_t>(first - base, 0);
                    layer.project(in, layer.visits[v], of_token[v], from, std::min(last - base, width));
                }
            }
#pragma omp barrier
            pack(of_hidden);
            for (int64_t first, last; outputs.take(first, last);)
                layer.sum_up(out, of_hidden, weights, first, last, y);
        }
    });
}

}  // namespace

extern "C" {

void expert_rows(const Weight* w_in, const Weight* w_out, int64_t width, int32_t halves, const void* x, int64_t tokens,
                 int64_t top_k, const int64_t* chosen, const float* weights, void* y, Unit unit, int32_t threads) {
    if (halves) {
        experts(*w_in, *w_out, width, static_cast<const bf16*>(x), tokens, top_k, chosen, weights,
                static_cast<bf16*>(y), unit, threads);
    } else {
        experts(*w_in, *w_out, width, static_cast<const float*>(x), tokens, top_k, chosen, weights,
                static_cast<float*>(y), unit, threads);
    }
}
}
