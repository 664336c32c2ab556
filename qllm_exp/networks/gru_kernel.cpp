// Linear + ReLU -> GRU -> Linear over whole sequences of many short rows, single precision, one thread; with layer
// normalisation before the ReLU if dims[4] is 1.
//
// Rows are processed in blocks. One block passes through all time steps, so that its activations stay in the L2 cache.
// Sequences may have different lengths. Rows are sorted by them, longest first, so the rows that have a step t are the
// first sizes[t] rows, and arrays hold the steps one after another without padding.
// Gates, candidate and new hidden state of a tile of rows are computed from accumulators that stay in registers.
// The result of a row depends on that row alone, and the order of summation depends on the shapes alone.
//
// Notation: T steps, R rows, M steps of all rows together, I inputs, H hidden units, A actions; P panels of W lanes that
// cover H, Hp = P * W; b rows of a block that have a step, m steps of all rows of a block together.
// Order of the parameters: fc_in.weight [H, I], fc_in.bias, weight_ih [3H, H], weight_hh [3H, H], bias_ih,
// bias_hh, fc_out.weight [A, H], fc_out.bias, and norm.weight [H], norm.bias if there is a normalisation; order of the
// gates: reset, update, candidate.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int W = 16, ROWS = 6, COLUMNS = 4, CELL_ROWS = 6;
#elif defined(__AVX__)
constexpr int W = 8, ROWS = 6, COLUMNS = 2, CELL_ROWS = 3;
#elif defined(__aarch64__)
constexpr int W = 4, ROWS = 6, COLUMNS = 4, CELL_ROWS = 6;
#else
constexpr int W = 4, ROWS = 3, COLUMNS = 4, CELL_ROWS = 3;
#endif
constexpr int64_t BLOCK = 96;  // rows that pass through all time steps together

typedef float V __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef int32_t N __attribute__((vector_size(W * 4)));

enum { FC_IN, FC_IN_BIAS, WEIGHT_IH, WEIGHT_HH, BIAS_IH, BIAS_HH, FC_OUT, FC_OUT_BIAS, NORM, NORM_BIAS };

inline V load(const float* p) { return *reinterpret_cast<const V*>(p); }
inline void store(float* p, V v) { *reinterpret_cast<V*>(p) = v; }
inline V splat(float x) { return x - V{}; }  // subtracting zero changes no value, so this compiles to one broadcast

// The bound is returned only if it is strictly beyond x, so that a NaN in x is preserved.
#if defined(__AVX512F__)
inline V at_least(float low, V x) { return (V)_mm512_max_ps((__m512)splat(low), (__m512)x); }
inline V at_most(float high, V x) { return (V)_mm512_min_ps((__m512)splat(high), (__m512)x); }
#elif defined(__AVX__)
inline V at_least(float low, V x) { return (V)_mm256_max_ps((__m256)splat(low), (__m256)x); }
inline V at_most(float high, V x) { return (V)_mm256_min_ps((__m256)splat(high), (__m256)x); }
#else
inline V at_least(float low, V x) { return splat(low) > x ? splat(low) : x; }
inline V at_most(float high, V x) { return splat(high) < x ? splat(high) : x; }
#endif

// 2^(c * x) = power * (1 + rest), with |rest| < 0.42, accurate to a few units in the last place of rest.
struct Exponential {
    V power, rest;
    Exponential(V x, float c) {
        const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, held in the low bits
        const V shifted = x * c + shift;
        const V f = x * c - (shifted - shift);
        V p = splat(1.54035122e-4f);  // (2^f - 1) / f on [-1/2, 1/2], minimax in relative error: 2e-8
        p = p * f + 1.33907353e-3f;
        p = p * f + 9.61823761e-3f;
        p = p * f + 5.55035733e-2f;
        p = p * f + 2.40226492e-1f;
        p = p * f + 6.93147182e-1f;
        rest = p * f;
        power = (V)(((N)shifted << 23) + 0x3f800000);
    }
};

inline V sigmoid(V x) {
    const Exponential e(at_most(60.0f, at_least(-60.0f, x)), -1.44269504f);
    return 1.0f / (e.power * e.rest + (e.power + 1.0f));
}

inline V tanh_(V x) {
    const Exponential e(at_most(10.0f, at_least(-10.0f, x)), 2.88539008f);
    const V m = e.power * e.rest + (e.power - 1.0f);  // exp(2x) - 1 without cancellation
    return m / (m + 2.0f);
}

// Memory for packed weights and one block of rows. It is kept between calls because newly mapped pages are slow.
class Scratch {
    static constexpr int64_t LINE = 16, PIECES = 16;  // floats in a cache line; maximum number of pieces in use
    float *start = nullptr, *next = nullptr;
    int64_t size = 0;

public:
    ~Scratch() { std::free(start); }
    bool reserve(int64_t floats) {
        const int64_t needed = (floats + LINE * PIECES) / LINE * LINE;
        if (needed > size) {
            std::free(start);
            start = static_cast<float*>(std::aligned_alloc(LINE * sizeof(float), needed * sizeof(float)));
            size = start ? needed : 0;
        }
        next = start;
        return start;
    }
    float* take(int64_t floats) {
        float* taken = next;
        next += (floats + LINE - 1) / LINE * LINE;
        return taken;
    }
    float* zeros(int64_t floats) {
        float* taken = take(floats);
        std::memset(taken, 0, floats * sizeof(float));
        return taken;
    }
};
thread_local Scratch scratch;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Shape {
    int64_t T, I, H, A, Hp, Ap;  // Ap: A rounded up to whole vectors
    bool normalised;
    const int64_t* sizes;  // [T], not increasing
    int64_t R, block;      // block: rows of every block but the last, an equal share rounded up to whole tiles
    Shape(const int64_t* d, const int64_t* sizes)
        : T(d[0]), I(d[1]), H(d[2]), A(d[3]), normalised(d[4]), sizes(sizes), R(sizes[0]) {
        Hp = divide_up(H, W) * W;
        Ap = divide_up(A, W) * W;
        const int64_t share = divide_up(divide_up(R, divide_up(R, BLOCK)), ROWS) * ROWS;
        block = share < R ? share : R;
    }
    // Rows that have step t, of the block that begins at row `first`.
    int64_t rows(int64_t first, int64_t t) const {
        const int64_t left = sizes[t] - first;
        return left < 0 ? 0 : left < block ? left : block;
    }
    int64_t saved_per_step() const { return (normalised ? 7 : 6) * Hp; }
    int64_t steps_of_block(int64_t first) const {
        int64_t m = 0;
        for (int64_t t = 0; t < T; ++t) m += rows(first, t);
        return m;
    }
};

// Activations that the forward pass saves for the backward pass, for the rows of one block.
struct Saved {
    // x and h: [m, Hp]. gates: [m, P, 4, W] with r, z, n and W_hn h + b_hn. raw: [m, Hp], what is normalised to x, or null
    float *x = nullptr, *h = nullptr, *gates = nullptr, *raw = nullptr;

    // Null if nothing is saved. Otherwise `all` moves on to the activations of the next block.
    Saved(float*& all, int64_t m, const Shape& s) {
        if (!all) return;
        x = all;
        h = x + m * s.Hp;
        gates = h + m * s.Hp;
        raw = s.normalised ? gates + m * 4 * s.Hp : nullptr;
        all += m * s.saved_per_step();
    }
};

// ---- products -------------------------------------------------------------------------------------------------

// One tile of C = A B, or of C += A B if `add`. A is [MR, K] with row stride lda, or [K, MR] if TRANSPOSED.
// B is [K, NV * W].
template <int MR, int NV, bool TRANSPOSED>
void tile(int64_t K, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, bool add) {
    V sum[MR][NV] = {};
    const int64_t along_rows = TRANSPOSED ? 1 : lda, along_k = TRANSPOSED ? lda : 1;
    for (int64_t k = 0; k < K; ++k) {
        V right[NV];
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) right[v] = load(b + v * W);
#pragma GCC unroll 8
        for (int r = 0; r < MR; ++r) {
            const V left = splat(a[r * along_rows]);
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) sum[r][v] += left * right[v];
        }
        a += along_k;
        b += ldb;
    }
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) {
            float* at = c + r * ldc + v * W;
            store(at, add ? load(at) + sum[r][v] : sum[r][v]);
        }
}

template <int MR, bool TRANSPOSED>
void tile_of_width(int64_t vectors, int64_t K, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                   int64_t ldc, bool add) {
    if constexpr (COLUMNS >= 4) {
        if (vectors == 4) return tile<MR, 4, TRANSPOSED>(K, a, lda, b, ldb, c, ldc, add);
        if (vectors == 3) return tile<MR, 3, TRANSPOSED>(K, a, lda, b, ldb, c, ldc, add);
    }
    if (vectors == 2) return tile<MR, 2, TRANSPOSED>(K, a, lda, b, ldb, c, ldc, add);
    return tile<MR, 1, TRANSPOSED>(K, a, lda, b, ldb, c, ldc, add);
}

template <bool TRANSPOSED, int MR = ROWS>
void tiles(int64_t M, int64_t vectors, int64_t K, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
           int64_t ldc, bool add) {
    for (; M >= MR; M -= MR, a += MR * (TRANSPOSED ? 1 : lda), c += MR * ldc)
        tile_of_width<MR, TRANSPOSED>(vectors, K, a, lda, b, ldb, c, ldc, add);
    if constexpr (MR > 1) {
        if (M) tiles<TRANSPOSED, MR - 1>(M, vectors, K, a, lda, b, ldb, c, ldc, add);
    }
}

// C [M, width] = A B, or C += A B if `add`, summed over K. B is packed in Panels (ldb = 0) or has row stride ldb.
template <bool TRANSPOSED>
void product(int64_t M, int64_t width, int64_t K, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
             int64_t ldc, bool add) {
    for (int64_t j = 0; j < width; j += COLUMNS * W) {
        const int64_t wide = width - j < COLUMNS * W ? width - j : COLUMNS * W;
        tiles<TRANSPOSED>(M, wide / W, K, a, lda, ldb ? b + j : b + j * K, ldb ? ldb : wide, c + j, ldc, add);
    }
}

// ---- packing --------------------------------------------------------------------------------------------------

// A [K, width] matrix packed for `product` into contiguous panels of COLUMNS vectors. at(k, j) is the address of
// element (k, j).
struct Panels {
    float* to;
    int64_t K, width;
    float* at(int64_t k, int64_t j) const {
        const int64_t first = j / (COLUMNS * W) * (COLUMNS * W);
        const int64_t wide = width - first < COLUMNS * W ? width - first : COLUMNS * W;
        return to + first * K + k * wide + (j - first);
    }
};

void pack_transposed(const float* from, int64_t rows, int64_t columns, const Panels& panels) {
    for (int64_t j = 0; j < rows; ++j) {
        float* to = panels.at(0, j);
        const int64_t step = panels.K > 1 ? panels.at(1, j) - to : 0;
        for (int64_t k = 0; k < columns; ++k) to[k * step] = from[j * columns + k];
    }
}

void pack_rows(const float* from, int64_t rows, int64_t columns, int64_t first_row, const Panels& panels) {
    for (int64_t j = 0; j < columns; j += COLUMNS * W) {
        const int64_t wide = columns - j < COLUMNS * W ? columns - j : COLUMNS * W;
        for (int64_t k = 0; k < rows; ++k)
            std::memcpy(panels.at(first_row + k, j), from + k * columns + j, wide * sizeof(float));
    }
}

// Pack a weight [3H, H] of the cell as [P, H, 3, W], so that a panel of units reads its three gates sequentially.
void pack_cell(const float* from, int64_t H, float* to) {
    for (int64_t p = 0; p * W < H; ++p)
        for (int64_t gate = 0; gate < 3; ++gate)
            for (int64_t lane = 0; lane < W && p * W + lane < H; ++lane) {
                const float* row = from + (gate * H + p * W + lane) * H;
                float* at = to + (p * H * 3 + gate) * W + lane;
                for (int64_t k = 0; k < H; ++k) at[k * 3 * W] = row[k];
            }
}

// ---- layer normalisation ----------------------------------------------------------------------------------------

inline float sum_of(V v) {
    float sum = 0.0f;
    for (int lane = 0; lane < W; ++lane) sum += v[lane];
    return sum;
}

// Parameters of a normalisation over H units, padded with zeros to Hp. used: [Hp], 1 for the H units.
struct Norm {
    static constexpr float EPSILON = 1e-5f;  // that of torch.nn.LayerNorm
    int64_t H, Hp;
    float *weight, *bias, *used;
    Norm(const Shape& s, const float* const* params, float* zeros) : H(s.H), Hp(s.Hp) {
        weight = zeros;
        bias = weight + Hp;
        used = bias + Hp;
        for (int64_t j = 0; s.normalised && j < H; ++j) {
            weight[j] = params[NORM][j];
            bias[j] = params[NORM_BIAS][j];
            used[j] = 1.0f;
        }
    }
    // Write a row [Hp], whose padding is zero, with mean 0 and variance 1. Returns 1 / standard deviation.
    float standardise(const float* row, float* to) const {
        V sum{}, squares{};
        for (int64_t j = 0; j < Hp; j += W) sum += load(row + j);
        const float mean = sum_of(sum) / H;
        for (int64_t j = 0; j < Hp; j += W) {
            const V centred = (load(row + j) - mean) * load(used + j);
            squares += centred * centred;
            store(to + j, centred);
        }
        const float scale = 1.0f / std::sqrt(sum_of(squares) / H + EPSILON);
        for (int64_t j = 0; j < Hp; j += W) store(to + j, load(to + j) * scale);
        return scale;
    }
    // Overwrite dx [Hp], the gradient of a row after normalisation and ReLU, with that of the row before them; add to the
    // gradients of weight and bias [Hp]. room: [Hp].
    void backward(const float* row, const float* x, float* dx, float* d_weight, float* d_bias, float* room) const {
        const float scale = standardise(row, room);
        V sum{}, projection{};
        for (int64_t j = 0; j < Hp; j += W) {
            const V standard = load(room + j), down = load(x + j) > 0.0f ? load(dx + j) : V{};
            const V inner = down * load(weight + j);
            store(d_weight + j, load(d_weight + j) + down * standard);
            store(d_bias + j, load(d_bias + j) + down);
            store(dx + j, inner);
            sum += inner;
            projection += inner * standard;
        }
        const float mean = sum_of(sum) / H, along = sum_of(projection) / H;
        for (int64_t j = 0; j < Hp; j += W)
            store(dx + j, (load(dx + j) - (mean + load(room + j) * along)) * load(used + j) * scale);
    }
};

// ---- forward --------------------------------------------------------------------------------------------------

struct Cell {
    int64_t H, Hp;
    const float *input, *hidden, *bias;  // packed: weights [P, H, 3, W]; biases of r, z, n and W_hn h [P, 4, W]
};

// New hidden state of MR rows and one panel of units. A null h stands for a previous hidden state of zeros.
template <int MR>
void cell_tile(const Cell& c, int64_t p, const float* x, const float* h, float* h_next, float* gates) {
    V r[MR] = {}, z[MR] = {}, n[MR] = {}, m[MR] = {};
    const float* w = c.input + p * c.H * 3 * W;
    for (int64_t k = 0; k < c.H; ++k, w += 3 * W) {
        const V wr = load(w), wz = load(w + W), wn = load(w + 2 * W);
#pragma GCC unroll 8
        for (int i = 0; i < MR; ++i) {
            const V left = splat(x[i * c.Hp + k]);
            r[i] += left * wr;
            z[i] += left * wz;
            n[i] += left * wn;
        }
    }
    w = c.hidden + p * c.H * 3 * W;
    for (int64_t k = 0; h && k < c.H; ++k, w += 3 * W) {
        const V wr = load(w), wz = load(w + W), wn = load(w + 2 * W);
#pragma GCC unroll 8
        for (int i = 0; i < MR; ++i) {
            const V left = splat(h[i * c.Hp + k]);
            r[i] += left * wr;
            z[i] += left * wz;
            m[i] += left * wn;
        }
    }
    const float* bias = c.bias + p * 4 * W;
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
        const V reset = sigmoid(r[i] + load(bias)), update = sigmoid(z[i] + load(bias + W));
        const V memory = m[i] + load(bias + 3 * W);
        const V candidate = tanh_((n[i] + load(bias + 2 * W)) + reset * memory);
        const V before = h ? load(h + i * c.Hp + p * W) : V{};
        store(h_next + i * c.Hp + p * W, candidate + update * (before - candidate));
        if (gates) {
            float* at = gates + i * 4 * c.Hp + p * 4 * W;
            store(at, reset);
            store(at + W, update);
            store(at + 2 * W, candidate);
            store(at + 3 * W, memory);
        }
    }
}

template <int MR = CELL_ROWS>
void cell_rows(const Cell& c, int64_t p, int64_t left, const float* x, const float* h, float* h_next, float* gates) {
    for (; left >= MR; left -= MR) {
        cell_tile<MR>(c, p, x, h, h_next, gates);
        x += MR * c.Hp;
        h = h ? h + MR * c.Hp : h;
        h_next += MR * c.Hp;
        gates = gates ? gates + MR * 4 * c.Hp : gates;
    }
    if constexpr (MR > 1) {
        if (left) cell_rows<MR - 1>(c, p, left, x, h, h_next, gates);
    }
}

// ---- backward -------------------------------------------------------------------------------------------------

// Gradients of the gates' pre-activations of one step, from dh [b, Hp], the gradient of the new hidden state. dh is
// overwritten with the part of the gradient of the previous hidden state that passes through no weight.
// d: [b, 4, Hp] for candidate, reset, update and W_hn h. sums: [4, Hp], to which the sums of d over rows are added.
// h: [b, Hp], the hidden state before the step, or null for zeros.
void gate_gradients(int64_t b, int64_t Hp, const float* gates, const float* h, float* dh, float* d, float* sums) {
    for (int64_t j = 0; j < Hp; j += W) {
        V sum_n{}, sum_r{}, sum_z{}, sum_m{};
        for (int64_t i = 0; i < b; ++i) {
            const float* g = gates + i * 4 * Hp + j * 4;
            const V r = load(g), z = load(g + W), n = load(g + 2 * W), m = load(g + 3 * W);
            const V before = h ? load(h + i * Hp + j) : V{};
            const V down = load(dh + i * Hp + j);
            const V dn = down * (1.0f - z) * (1.0f - n * n);
            const V dm = dn * r;
            const V dr = dm * (1.0f - r) * m;
            const V dz = down * z * (1.0f - z) * (before - n);
            float* at = d + i * 4 * Hp + j;
            store(at, dn);
            store(at + Hp, dr);
            store(at + 2 * Hp, dz);
            store(at + 3 * Hp, dm);
            store(dh + i * Hp + j, down * z);
            sum_n += dn;
            sum_r += dr;
            sum_z += dz;
            sum_m += dm;
        }
        store(sums + j, load(sums + j) + sum_n);
        store(sums + Hp + j, load(sums + Hp + j) + sum_r);
        store(sums + 2 * Hp + j, load(sums + 2 * Hp + j) + sum_z);
        store(sums + 3 * Hp + j, load(sums + 3 * Hp + j) + sum_m);
    }
}

}  // namespace

extern "C" {

// Number of floats in the buffer `saved`, for M steps.
int64_t qllm_recurrent_saved_size(const int64_t* dims, const int64_t* sizes) {
    const Shape s(dims, sizes);
    int64_t M = 0;
    for (int64_t t = 0; t < s.T; ++t) M += sizes[t];
    return M * s.saved_per_step();
}

// Compute q [M, A] from inputs [M, I]. sizes [T]: rows that have each step. h_first and saved may be null, as may h_last
// [R, H], the hidden state after the last of T steps that all rows have. Returns 0, or 1 if an allocation failed.
int qllm_recurrent_forward(const int64_t* dims, const int64_t* sizes, const float* const* params, const float* inputs,
                           const float* h_first, float* h_last, float* q, float* saved) {
    const Shape s(dims, sizes);
    const int64_t H = s.H, Hp = s.Hp, rows = s.block * Hp;
    if (!scratch.reserve(s.I * Hp + 2 * Hp * 3 * H + H * s.Ap + 8 * Hp + 4 * rows + s.block * s.Ap)) return 1;
    const auto padded = [&](int64_t floats) { return H == Hp ? scratch.take(floats) : scratch.zeros(floats); };
    float *fc_in = padded(s.I * Hp), *cell_input = padded(Hp * 3 * H), *cell_hidden = padded(Hp * 3 * H);
    float *fc_out = scratch.zeros(H * s.Ap), *in_bias = scratch.zeros(Hp), *cell_bias = scratch.zeros(4 * Hp);
    pack_transposed(params[FC_IN], H, s.I, {fc_in, s.I, Hp});
    pack_transposed(params[FC_OUT], s.A, H, {fc_out, H, s.Ap});
    pack_cell(params[WEIGHT_IH], H, cell_input);
    pack_cell(params[WEIGHT_HH], H, cell_hidden);
    std::memcpy(in_bias, params[FC_IN_BIAS], H * sizeof(float));
    for (int64_t j = 0; j < H; ++j) {
        float* at = cell_bias + j / W * 4 * W + j % W;
        const float *ih = params[BIAS_IH] + j, *hh = params[BIAS_HH] + j;
        at[0] = ih[0] + hh[0];
        at[W] = ih[H] + hh[H];
        at[2 * W] = ih[2 * H];
        at[3 * W] = hh[2 * H];
    }
    const Cell cell{H, Hp, cell_input, cell_hidden, cell_bias};
    const Norm norm(s, params, scratch.zeros(3 * Hp));
    float *x_here = scratch.take(rows), *raw_here = scratch.take(rows), *h_here[2] = {scratch.take(rows), scratch.take(rows)};
    float* q_here = scratch.take(s.block * s.Ap);
    for (int64_t first = 0; first < s.R; first += s.block) {
        const int64_t all_rows = s.rows(first, 0);
        const bool keeps = saved;
        const Saved keep(saved, keeps ? s.steps_of_block(first) : 0, s);
        const float* h = nullptr;
        if (h_first) {
            std::memset(h_here[1], 0, all_rows * Hp * sizeof(float));
            for (int64_t i = 0; i < all_rows; ++i)
                std::memcpy(h_here[1] + i * Hp, h_first + (first + i) * H, H * sizeof(float));
            h = h_here[1];
        }
        int64_t at = first, kept = 0;  // steps before the block's rows at step t: in the arrays, and in what is saved
        for (int64_t t = 0; t < s.T; ++t) {
            const int64_t b = s.rows(first, t);
            if (!b) break;
            float* x = keeps ? keep.x + kept * Hp : x_here;
            float* h_next = keeps ? keep.h + kept * Hp : h_here[t % 2];
            float* gates = keeps ? keep.gates + kept * 4 * Hp : nullptr;
            float* raw = !s.normalised ? x : keeps ? keep.raw + kept * Hp : raw_here;
            product<false>(b, Hp, s.I, inputs + at * s.I, s.I, fc_in, 0, raw, Hp, false);
            for (int64_t i = 0; i < b; ++i)
                for (int64_t j = 0; j < Hp; j += W) {
                    const V sum = load(raw + i * Hp + j) + load(in_bias + j);
                    store(raw + i * Hp + j, s.normalised ? sum : at_least(0.0f, sum));
                }
            for (int64_t i = 0; s.normalised && i < b; ++i) {
                float* to = x + i * Hp;
                norm.standardise(raw + i * Hp, to);
                for (int64_t j = 0; j < Hp; j += W)
                    store(to + j, at_least(0.0f, load(to + j) * load(norm.weight + j) + load(norm.bias + j)));
            }
            for (int64_t p = 0; p < Hp / W; ++p) cell_rows(cell, p, b, x, h, h_next, gates);
            h = h_next;
            product<false>(b, s.Ap, H, h, Hp, fc_out, 0, q_here, s.Ap, false);
            float* to = q + at * s.A;
            for (int64_t i = 0; i < b; ++i)
                for (int64_t a = 0; a < s.A; ++a) to[i * s.A + a] = q_here[i * s.Ap + a] + params[FC_OUT_BIAS][a];
            at += sizes[t];
            kept += b;
        }
        for (int64_t i = 0; h_last && i < all_rows; ++i)
            std::memcpy(h_last + (first + i) * H, h + i * Hp, H * sizeof(float));
    }
    return 0;
}

// Compute the gradients of all parameters, in their order, from grad_q [M, A] and the activations saved by the
// forward pass. Returns 0, or 1 if an allocation failed.
int qllm_recurrent_backward(const int64_t* dims, const int64_t* sizes, const float* const* params, const float* inputs,
                            float* saved, const float* grad_q, float* const* grads) {
    const Shape s(dims, sizes);
    const int64_t H = s.H, Hp = s.Hp, weight = 3 * Hp * Hp;
    const int64_t rows = s.block < BLOCK ? BLOCK : s.block;  // of the steps whose weight gradients are summed together
    if (!scratch.reserve(4 * weight + (s.I + 2 * s.A + 11 + s.block + 6 * rows) * Hp)) return 1;
    float *to_input = scratch.zeros(weight), *to_hidden = scratch.zeros(weight);
    float* from_q = scratch.zeros(s.A * Hp);
    for (int64_t gate = 0; gate < 3; ++gate) {  // order of gate_gradients: n, r, z for x; r, z, n for h
        pack_rows(params[WEIGHT_IH] + gate * H * H, H, H, (gate + 1) % 3 * Hp, {to_input, 3 * Hp, Hp});
        pack_rows(params[WEIGHT_HH] + gate * H * H, H, H, gate * Hp, {to_hidden, 3 * Hp, Hp});
    }
    pack_rows(params[FC_OUT], s.A, H, 0, {from_q, s.A, Hp});
    float *d_ih = scratch.zeros(weight), *d_hh = scratch.zeros(weight);
    float *d_in = scratch.zeros(s.I * Hp), *d_out = scratch.zeros(s.A * Hp);
    float *d_gate_bias = scratch.zeros(4 * Hp), *d_in_bias = scratch.zeros(Hp);
    float *dh = scratch.take(s.block * Hp), *dx = scratch.take(rows * Hp), *d = scratch.take(rows * 4 * Hp);
    float* h_before = scratch.take(rows * Hp);  // hidden states before the steps that are summed together
    const Norm norm(s, params, scratch.zeros(3 * Hp));
    float *d_norm = scratch.zeros(3 * Hp), *d_norm_bias = d_norm + Hp, *standard = d_norm_bias + Hp;
    std::memset(grads[FC_OUT_BIAS], 0, s.A * sizeof(float));

    for (int64_t first = 0; first < s.R; first += s.block) {
        const int64_t m = s.steps_of_block(first);
        const Saved keep(saved, m, s);
        std::memset(dh, 0, s.rows(first, 0) * Hp * sizeof(float));
        int64_t at = first, kept = m, stop = 0;  // as in the forward pass, for step `stop`
        for (; stop < s.T && s.rows(first, stop); ++stop) at += sizes[stop];
        while (stop > 0) {
            // Consecutive steps are summed together while all of their rows lie in this block, and so are contiguous.
            int64_t begin = stop - 1, n = s.rows(first, begin);
            while (begin > 0 && first == 0 && sizes[begin - 1] <= s.block && n + sizes[begin - 1] <= rows)
                n += sizes[--begin];
            int64_t done = n;
            for (int64_t t = stop - 1; t >= begin; --t) {
                const int64_t b = s.rows(first, t);
                at -= sizes[t];
                kept -= b;
                done -= b;
                const float *dq = grad_q + at * s.A, *x = keep.x + kept * Hp;
                const float* before = t ? keep.h + (kept - s.rows(first, t - 1)) * Hp : nullptr;
                float *d_here = d + done * 4 * Hp, *dx_here = dx + done * Hp;
                if (before && stop - begin > 1) std::memcpy(h_before + done * Hp, before, b * Hp * sizeof(float));
                product<false>(b, Hp, s.A, dq, s.A, from_q, 0, dh, Hp, true);
                gate_gradients(b, Hp, keep.gates + kept * 4 * Hp, before, dh, d_here, d_gate_bias);
                product<false>(b, Hp, 3 * Hp, d_here, 4 * Hp, to_input, 0, dx_here, Hp, false);
                if (t) product<false>(b, Hp, 3 * Hp, d_here + Hp, 4 * Hp, to_hidden, 0, dh, Hp, true);
                for (int64_t i = 0; s.normalised && i < b; ++i)
                    norm.backward(keep.raw + (kept + i) * Hp, x + i * Hp, dx_here + i * Hp, d_norm, d_norm_bias, standard);
                for (int64_t j = 0; j < Hp; j += W) {
                    V sum{};
                    for (int64_t i = 0; i < b; ++i) {
                        const V after = load(dx_here + i * Hp + j);
                        const V down = s.normalised || load(x + i * Hp + j) > 0.0f ? after : V{};
                        store(dx_here + i * Hp + j, down);
                        sum += down;
                    }
                    store(d_in_bias + j, load(d_in_bias + j) + sum);
                }
                for (int64_t a = 0; a < s.A; ++a) {
                    float sum = 0.0f;
                    for (int64_t i = 0; i < b; ++i) sum += dq[i * s.A + a];
                    grads[FC_OUT_BIAS][a] += sum;
                }
            }
            const int64_t skip = begin ? 0 : s.rows(first, 0);  // no hidden state before the first step
            const float *in = inputs + at * s.I, *dq = grad_q + at * s.A, *d_hidden = d + skip * 4 * Hp + Hp;
            const float* before = h_before + skip * Hp;
            if (stop - begin == 1 && begin) before = keep.h + (kept - s.rows(first, begin - 1)) * Hp;
            product<true>(3 * Hp, Hp, n, d, 4 * Hp, keep.x + kept * Hp, Hp, d_ih, Hp, true);
            product<true>(3 * Hp, Hp, n - skip, d_hidden, 4 * Hp, before, Hp, d_hh, Hp, true);
            product<true>(s.I, Hp, n, in, s.I, dx, Hp, d_in, Hp, true);
            product<true>(s.A, Hp, n, dq, s.A, keep.h + kept * Hp, Hp, d_out, Hp, true);
            stop = begin;
        }
    }

    for (int64_t j = 0; j < H; ++j) {
        for (int64_t k = 0; k < s.I; ++k) grads[FC_IN][j * s.I + k] = d_in[k * Hp + j];
        grads[FC_IN_BIAS][j] = d_in_bias[j];
        if (s.normalised) {
            grads[NORM][j] = d_norm[j];
            grads[NORM_BIAS][j] = d_norm_bias[j];
        }
        for (int64_t gate = 0; gate < 3; ++gate) {
            const int64_t row = gate * H + j, ih = (gate + 1) % 3 * Hp + j, hh = gate * Hp + j;
            std::memcpy(grads[WEIGHT_IH] + row * H, d_ih + ih * Hp, H * sizeof(float));
            std::memcpy(grads[WEIGHT_HH] + row * H, d_hh + hh * Hp, H * sizeof(float));
            grads[BIAS_IH][row] = d_gate_bias[ih];
            grads[BIAS_HH][row] = d_gate_bias[Hp + hh];
        }
    }
    for (int64_t a = 0; a < s.A; ++a) std::memcpy(grads[FC_OUT] + a * H, d_out + a * Hp, H * sizeof(float));
    return 0;
}

// Compute TD(lambda) returns [T, N] of N sequences, as td_lambda in algorithms/targets.py. reward, next_value, terminated
// and mask: [T, N].
void qllm_td_lambda(int64_t T, int64_t N, float gamma, float lambda, const float* reward, const float* next_value,
                    const uint8_t* terminated, const uint8_t* mask, float* target) {
    for (int64_t t = T - 1; t >= 0; --t)
        for (int64_t i = t * N; i < (t + 1) * N; ++i) {
            float next = next_value[i];
            if (t + 1 < T && mask[i + N]) next += lambda * (target[i + N] - next);
            target[i] = mask[i] ? reward[i] + (terminated[i] ? 0.0f : gamma) * next : 0.0f;
        }
}
}
