// A latent layer's kv_b, head by head, on some tokens: queries into the latent space, and what was
// found there out of it.
//
// By AVX-512 where widths are whole registers, in blocks of rows (lanes.h), the next of which is asked for while one is
// multiplied; else four rows at a time. So are values of a few tokens, for which rows need not be turned.

#include "lanes.h"
#include "linear.h"

namespace {

// kv_b `[heads, rows, rank]`, of which the first `nope` rows of a head are for queries and the others for values.
template <typename X>
struct Projection {
    const X* data;
    int64_t heads, rows, nope, rank;

    const X* row(int64_t h, int64_t n) const { return data + (h * rows + n) * rank; }
    int64_t values() const { return rows - nope; }
};

template <typename X>
struct Queries {
    const X* data;
    int64_t head, token;  // strides
    int64_t tokens;
};

// y[h][t] = the sum over n of q[h][t][n] times row n of head h; rows are read four at a time.
template <typename X>
void into(const Projection<X>& kv_b, const Queries<X>& q, X* y, int threads) {
    const int64_t nope = kv_b.nope, rank = kv_b.rank, tokens = q.tokens;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t h = 0; h < kv_b.heads; h++) {
        const X* weight = kv_b.row(h, 0);
        const int64_t padded = up_to(rank, LANES);
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
                    const X* own = q.data + h * q.head + t * q.token + n;
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
void out_of(const Projection<X>& kv_b, const X* x, int64_t tokens, X* y, int threads) {
    const Plain<X> matrix{kv_b.data, kv_b.rank};
    const Inputs<X> inputs(x, kv_b.rank, kv_b.heads * tokens, kv_b.rank);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t h = 0; h < kv_b.heads; h++) {
        const int64_t first = h * kv_b.rows + kv_b.nope, width = kv_b.values();
        product(matrix, first, first + width, inputs.rows.data() + h * tokens, tokens,
                [&](int64_t row, int64_t t, float sum) { store(y + (h * tokens + t) * width + row - first, sum); });
    }
}

#if HAS_BF16_DOTS
template <typename X>
bool fills_registers(const Projection<X>& kv_b) {
    return kv_b.nope % BLOCK == 0 && kv_b.values() % BLOCK == 0 && kv_b.rank % (2 * LANES) == 0;
}

// act(head, row, block, what comes next) for blocks of rows `first` to `last` - 1 of each head that the thread takes.
// All threads of a team call this and share `taken`.
template <typename X, typename Act>
void each_block(const Projection<X>& kv_b, int64_t first, int64_t last, std::atomic<int64_t>& taken, Act act) {
    const int64_t bytes = kv_b.rank * sizeof(X);
    for (int64_t h = taken++, next; h < kv_b.heads; h = next) {
        next = taken++;  // taken early, so that it can be asked for
        for (int64_t row = first; row < last; row += BLOCK) {
            const bool more = row + BLOCK < last;
            const X* following = more ? kv_b.row(h, row + BLOCK) : kv_b.row(next < kv_b.heads ? next : h, first);
            Ahead ahead(Rows(following, bytes), bytes);
            act(h, row, Rows(kv_b.row(h, row), bytes), ahead);
        }
    }
}

// `into` in blocks: rows added up, with the queries' numbers for weights.
template <typename X>
void into_in_blocks(const Projection<X>& kv_b, const Queries<X>& q, X* y, int threads) {
    constexpr float NONE[8] = {}, ALL[8] = {1, 1, 1, 1, 1, 1, 1, 1};  // of what was added before
    const int64_t rank = kv_b.rank;
    std::atomic<int64_t> taken{0};
#pragma omp parallel num_threads(threads)
    {
        Lines sums(q.tokens * rank / LANES);
        each_block(kv_b, 0, kv_b.nope, taken, [&](int64_t h, int64_t n, const Rows& rows, Ahead& ahead) {
            const float* kept = n ? ALL : NONE;
            for (int64_t k = 0; k < rank; k += 2 * LANES) {
                in_sets(q.tokens, [&](int64_t t, auto tokens) {
                    const X* weights = q.data + h * q.head + t * q.token + n;
                    float* to = sums.at((t * rank + k) / LANES);
                    if (t == 0) add_up<X, tokens(), true>(rows, k, weights, q.token, ahead, kept, to, rank);
                    else add_up<X, tokens(), false>(rows, k, weights, q.token, ahead, kept, to, rank);
                });
            }
            if (n + BLOCK < kv_b.nope) return;
            for (int64_t i = 0; i < q.tokens * rank; i += 2 * LANES) {
                Floats both[2];
                in_order<X>(sums.at(i / LANES), both);
                Lane<X>::keep(y + h * q.tokens * rank + i, both[0], both[1]);
            }
        });
    }
}

// `out_of` in blocks: rows turned and multiplied.
template <typename X>
void out_of_in_blocks(const Projection<X>& kv_b, const X* x, int64_t tokens, X* y, int threads) {
    const int64_t rank = kv_b.rank, lanes = rank / Lane<X>::NUMBERS, width = kv_b.values();
    std::atomic<int64_t> taken{0};
#pragma omp parallel num_threads(threads)
    {
        Lines turned(CHUNK * BLOCK / LANES), sums(tokens * BLOCK / LANES);
        each_block(kv_b, kv_b.nope, kv_b.rows, taken, [&](int64_t h, int64_t row, const Rows& rows, Ahead& ahead) {
            for (int64_t first = 0; first < lanes; first += CHUNK) {
                const int64_t some = std::min<int64_t>(CHUNK, lanes - first);
                turn(rows, first, some, turned.at(0));
                in_sets(tokens, [&](int64_t t, auto vectors) {
                    const X* own = x + (h * tokens + t) * rank + first * Lane<X>::NUMBERS;
                    float* to = sums.at(t * BLOCK / LANES);
                    if (t == 0) multiply<X, vectors(), true>(turned.at(0), some, own, rank, ahead, first == 0, to);
                    else multiply<X, vectors(), false>(turned.at(0), some, own, rank, ahead, first == 0, to);
                });
            }
            for (int64_t t = 0; t < tokens; t++) {
                const float* from = sums.at(t * BLOCK / LANES);
                Lane<X>::keep(y + (h * tokens + t) * width + row - kv_b.nope, load(from), load(from + LANES));
            }
        });
    }
}
#endif

template <typename X>
void any_into(const Projection<X>& kv_b, const Queries<X>& q, X* y, int threads) {
#if HAS_BF16_DOTS
    if (fills_registers(kv_b)) return into_in_blocks(kv_b, q, y, threads);
#endif
    into(kv_b, q, y, threads);
}

template <typename X>
void any_out_of(const Projection<X>& kv_b, const X* x, int64_t tokens, X* y, int threads) {
#if HAS_BF16_DOTS
    if (tokens >= TOKENS_TO_TURN_ROWS && fills_registers(kv_b)) return out_of_in_blocks(kv_b, x, tokens, y, threads);
#endif
    out_of(kv_b, x, tokens, y, threads);
}

}  // namespace

extern "C" {

void latent_in(int32_t halves, const void* kv_b, int64_t heads, int64_t rows, int64_t nope, int64_t rank, const void* q,
               int64_t head, int64_t token, int64_t tokens, void* y, int32_t threads) {
    const auto run = [&](auto type) {
        typedef decltype(type) X;
        any_into<X>({static_cast<const X*>(kv_b), heads, rows, nope, rank},
                    {static_cast<const X*>(q), head, token, tokens}, static_cast<X*>(y), threads);
    };
    if (halves) run(bf16{});
    else run(0.0f);
}

void latent_out(int32_t halves, const void* kv_b, int64_t heads, int64_t rows, int64_t nope, int64_t rank,
                const void* x, int64_t tokens, void* y, int32_t threads) {
    const auto run = [&](auto type) {
        typedef decltype(type) X;
        any_out_of<X>({static_cast<const X*>(kv_b), heads, rows, nope, rank}, static_cast<const X*>(x), tokens,
                      static_cast<X*>(y), threads);
    };
    if (halves) run(bf16{});
    else run(0.0f);
}
}
