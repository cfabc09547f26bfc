// A latent layer's kv_b, head by head, on a few tokens: queries into the latent space, and what was found there out of it.

#include "linear.h"

namespace {

// y[h][t] = the sum over n of q[h][t][n] times row n of head h; rows are read four at a time.
template <typename X>
void into(const X* kv_b, int64_t heads, int64_t rows, int64_t nope, int64_t rank, const X* q, int64_t head_stride,
          int64_t token_stride, int64_t tokens, X* y, int threads) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t h = 0; h < heads; h++) {
        const X* weight = kv_b + h * rows * rank;
        const int64_t padded = (rank + LANES - 1) / LANES * LANES;
        std::vector<float> sums(tokens * padded, 0.0f);
        for (int64_t n = 0; n < nope; n += STREAMS) {
            const int64_t some = std::min<int64_t>(STREAMS, nope - n);
            for (int64_t k = 0; k < rank; k += LANES) {
                Floats w[STREAMS];
                for (int64_t r = 0; r < STREAMS; r++) {
                    const X* at = weight + (n + (r < some ? r : 0)) * rank + k;
                    __builtin_prefetch(reinterpret_cast<const char*>(at) + STREAMS * rank * sizeof(X));
                    w[r] = k + LANES <= rank ? load(at) : load_some(at, rank - k);
                }
                for (int64_t t = 0; t < tokens; t++) {
                    const X* own = q + h * head_stride + t * token_stride + n;
                    float* at = sums.data() + t * padded + k;
                    Floats total = load(at);
                    for (int64_t r = 0; r < some; r++) total += w[r] * to_float(own[r]);
                    store(at, total);
                }
            }
        }
        for (int64_t t = 0; t < tokens; t++)
            for (int64_t k = 0; k < rank; k++) store(y + (h * tokens + t) * rank + k, sums[t * padded + k]);
    }
}

// y[h][t][v] = row nope + v of head h times x[h][t].
template <typename X>
void out_of(const X* kv_b, int64_t heads, int64_t rows, int64_t nope, int64_t rank, const X* x, int64_t tokens, X* y,
            int threads) {
    const Plain<X> matrix{kv_b, rank};
    const Inputs<X> inputs(x, rank, heads * tokens, rank);
    const int64_t width = rows - nope;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t h = 0; h < heads; h++) {
        const int64_t first = h * rows + nope;
        product(matrix, first, first + width, inputs.rows.data() + h * tokens, tokens,
                [&](int64_t row, int64_t t, float sum) { store(y + (h * tokens + t) * width + row - first, sum); });
    }
}

}  // namespace

extern "C" {

void latent_in(int32_t halves, const void* kv_b, int64_t heads, int64_t rows, int64_t nope, int64_t rank, const void* q,
               int64_t head_stride, int64_t token_stride, int64_t tokens, void* y, int32_t threads) {
    if (halves) {
        into(static_cast<const bf16*>(kv_b), heads, rows, nope, rank, static_cast<const bf16*>(q), head_stride,
             token_stride, tokens, static_cast<bf16*>(y), threads);
    } else {
        into(static_cast<const float*>(kv_b), heads, rows, nope, rank, static_cast<const float*>(q), head_stride,
             token_stride, tokens, static_cast<float*>(y), threads);
    }
}

void latent_out(int32_t halves, const void* kv_b, int64_t heads, int64_t rows, int64_t nope, int64_t rank,
                const void* x, int64_t tokens, void* y, int32_t threads) {
    if (halves) {
        out_of(static_cast<const bf16*>(kv_b), heads, rows, nope, rank, static_cast<const bf16*>(x), tokens,
               static_cast<bf16*>(y), threads);
    } else {
        out_of(static_cast<const float*>(kv_b), heads, rows, nope, rank, static_cast<const float*>(x), tokens,
               static_cast<float*>(y), threads);
    }
}
}
