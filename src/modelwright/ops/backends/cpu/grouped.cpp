// Runs of rows, each times a matrix of its own, and the gradients of these matrices, in bf16: experts that are trained.

#include <vector>

#include "panels.h"

#if HAS_BF16_DOTS
namespace {

constexpr int64_t ROOM = 1 << 16;  // lanes that are laid out at once: a quarter of a second cache of 1 MiB

// C [rows, columns]
struct Product {
    Side<bf16> a, b;
    int64_t rows, depth;
    bf16* to;
};

// Every run's C(m, n) of `columns` columns, so many at a time as `at_once`: sides(run, its first row, its rows) gives A, B,
// m, the depth and where C goes.
template <typename Sides>
void by_runs(int64_t runs, const int64_t* counts, int64_t columns, int64_t depth, int threads, Sides sides) {
    std::vector<int64_t> starts(runs + 1, 0);
    for (int64_t r = 0; r < runs; r++) starts[r + 1] = starts[r] + counts[r];
    const int64_t at_once = std::max<int64_t>(ROOM / lanes_for<bf16>(depth + 1) / PANEL, 1) * PANEL;
    const int64_t parts = (columns + at_once - 1) / at_once;
#pragma omp parallel num_threads(threads)
    {
        Panels panels;
        Scratch room;
#pragma omp for schedule(dynamic)
        for (int64_t part = 0; part < runs * parts; part++) {
            const int64_t run = part / parts, first = part % parts * at_once, last = std::min(first + at_once, columns);
            const Product own = sides(run, starts[run], counts[run]);
            panels.take(own.b.from(first), last - first, own.depth);
            multiply<bf16>(lanes_of(own.a, own.rows, own.depth, room), own.rows, panels, 0, last - first, 0, panels.lanes,
                           Sums<bf16>{own.to + first, columns, false});
        }
    }
}

}  // namespace
#endif

extern "C" {

void grouped_rows(const bf16* x, const bf16* weight, int64_t run_stride, int64_t stride, int32_t turned, int64_t runs,
                  const int64_t* counts, int64_t in, int64_t out, bf16* y, int32_t threads) {
#if HAS_BF16_DOTS
    by_runs(runs, counts, out, in, threads, [&](int64_t run, int64_t row, int64_t rows) {
        const Side<bf16> own{weight + run * run_stride, stride, turned != 0};
        return Product{{x + row * in, in, false}, own, rows, in, y + row * out};
    });
#endif
}

void grouped_weights(const bf16* gradient, const bf16* x, int64_t runs, const int64_t* counts, int64_t in, int64_t out,
                     bf16* y, int32_t threads) {
#if HAS_BF16_DOTS
    const int64_t most = runs ? *std::max_element(counts, counts + runs) : 0;
    by_runs(runs, counts, in, most, threads, [&](int64_t run, int64_t row, int64_t rows) {
        return Product{{gradient + row * out, out, true}, {x + row * in, in, true}, out, rows, y + run * out * in};
    });
#endif
}
}
