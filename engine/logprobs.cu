// What logprobs.py does to a piece of logits, on a GPU: one block of threads a row, no atomics, the same bits every run.
//
//   add_tile                 an online softmax: take a tile of the vocabulary into each row's (maximum, sums, own logit)
//   to_gradient              overwrite a tile of logits by the loss's gradient, from log-probability and entropy
//   divergence               reverse KL, forward KL or JSD of two whole rows
//   divergence_to_gradient   overwrite the student's row by the gradient
//
// All are bound by memory: each reads a row once (JSD twice), 16 bytes a thread at a time.  A row's maximum and the log of
// its sum stay two numbers and what is summed are gaps to the maximum, so an offset of all logits costs no digits.
// Temperature is divided out in the exponent: e^(x / T) = 2^(x c), c = log2(e) / T.
//
// The file is compiled by nvcc for a GPU, and by any C++ compiler over tests/simt_shim.h, where each thread is a fiber.
#include <cfloat>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define SHARED(type, name, count) __shared__ type name[count]
#define LAUNCH(kernel, rows, stream, ...) kernel<<<(unsigned)(rows), THREADS, 0, (cudaStream_t)(stream)>>>(__VA_ARGS__)
#define LAST_ERROR() ((int)cudaGetLastError())
#define ALIGNED_16(pointer) (pointer)                       // on trust; the emulation looks
__device__ __forceinline__ float exp2_fast(float x) {       // 2 ulp, denormals are 0
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float log2_fast(float x) { return __log2f(x); }
__device__ __forceinline__ float half_to_float(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
__device__ __forceinline__ uint16_t float_to_half(float x) { return __half_as_ushort(__float2half_rn(x)); }
#else
#include "simt_shim.h"
#endif

namespace {

constexpr int THREADS = 512, WARPS = THREADS / 32;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
constexpr int BLOCKS_PER_SM = 3;                            // 1,536 threads there; asking for more drops the bound
#else
constexpr int BLOCKS_PER_SM = 4;
#endif
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;
constexpr float FAR = 1e30f;                                // bound on a gap that may meet a weight of 0: 0 · −inf is NaN

// ---------------------------------------------------------------- numbers in memory

struct Bfloat16 { uint16_t bits; };
struct Half { uint16_t bits; };
struct alignas(16) Bytes16 { uint32_t words[4]; };

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(Half x) { return half_to_float(x.bits); }
__device__ __forceinline__ float to_float(Bfloat16 x) {
  const uint32_t bits = (uint32_t)x.bits << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

__device__ __forceinline__ void from_float(float value, float& x) { x = value; }
__device__ __forceinline__ void from_float(float value, Half& x) { x.bits = float_to_half(value); }
__device__ __forceinline__ void from_float(float value, Bfloat16& x) {      // to the nearest, ties to even
  uint32_t bits;
  memcpy(&bits, &value, 4);
  x.bits = value != value ? 0x7fff : (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <typename T> __device__ __forceinline__ Bytes16& sixteen_bytes(T* first) {
  return *reinterpret_cast<Bytes16*>(ALIGNED_16(first));
}

// Show each element of one or two rows to a thread: visit(x, column) with x float[ROWS][K], K adjacent columns from
// `column` on.  What lies between the first and last 16-byte boundary goes 16 bytes at a time, the rest one by one;
// two rows that are not aligned alike go one by one.  With STORE, what visit leaves in x[0] is written back.
template <bool STORE, typename T, int ROWS, typename Visit>
__device__ __forceinline__ void walk(T* const (&rows)[ROWS], int64_t width, Visit visit) {
  constexpr int K = 16 / sizeof(T), LOADS = STORE || ROWS > 1 ? 1 : 2;  // of a row, in flight
  int64_t head = (16 - (uintptr_t)rows[0] % 16) % 16 / sizeof(T);
  for (int r = 1; r < ROWS; r++)
    if ((uintptr_t)rows[r] % 16 != (uintptr_t)rows[0] % 16) head = width;
  head = head < width ? head : width;
  const int64_t vectors = (width - head) / K, tail = head + vectors * K;

  for (int64_t first = threadIdx.x; first < vectors; first += LOADS * THREADS) {
    Bytes16 raw[LOADS][ROWS];
#pragma unroll
    for (int l = 0; l < LOADS; l++)
#pragma unroll
      for (int r = 0; r < ROWS; r++)
        if (first + l * THREADS < vectors) raw[l][r] = sixteen_bytes(rows[r] + head + (first + l * THREADS) * K);
#pragma unroll
    for (int l = 0; l < LOADS; l++) {
      const int64_t vector = first + l * THREADS;
      if (vector >= vectors) break;
      float x[ROWS][K];
      T packed[K];
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        memcpy(packed, &raw[l][r], 16);
#pragma unroll
        for (int k = 0; k < K; k++) x[r][k] = to_float(packed[k]);
      }
      visit(x, head + vector * K);
      if (STORE) {
#pragma unroll
        for (int k = 0; k < K; k++) from_float(x[0][k], packed[k]);
        memcpy(&raw[l][0], packed, 16);
        sixteen_bytes(rows[0] + head + vector * K) = raw[l][0];
      }
    }
  }
  for (int64_t j = threadIdx.x; j < head + width - tail; j += THREADS) {
    const int64_t column = j < head ? j : j - head + tail;
    float x[ROWS][1];
    for (int r = 0; r < ROWS; r++) x[r][0] = to_float(rows[r][column]);
    visit(x, column);
    if (STORE) from_float(x[0][0], rows[0][column]);
  }
}

// ---------------------------------------------------------------- what a thread carries along a row, and how two merge

struct Softmax {
  float maximum, total, gap_total;                          // total of w = 2^((x − maximum) c), and of w (x − maximum)

  // The maximum begins finite, as −inf minus −inf is no number.
  static __device__ __forceinline__ Softmax none() { return {-FLT_MAX, 0, 0}; }
  __device__ __forceinline__ void raise(float higher, float c) {
    const float gap = fminf(higher - maximum, FAR), scale = exp2_fast(-gap * c);
    gap_total = scale * (gap_total - gap * total);
    total *= scale;
    maximum = higher;
  }
  __device__ __forceinline__ void merge(Softmax other, float c) {
    const float higher = fmaxf(maximum, other.maximum);
    raise(higher, c);
    other.raise(higher, c);
    total += other.total;
    gap_total += other.gap_total;
  }
  template <int K> __device__ __forceinline__ void add(const float (&x)[K], float c) {
    float highest = x[0];
#pragma unroll
    for (int k = 1; k < K; k++) highest = fmaxf(highest, x[k]);
    if (highest > maximum) raise(highest, c);
#pragma unroll
    for (int k = 0; k < K; k++) {
      const float gap = x[k] - maximum, weight = exp2_fast(gap * c);        // of the gap itself: a NaN must stay one
      total += weight;
      gap_total += weight * fmaxf(gap, -FAR);
    }
  }
};

struct Pair {                                               // of KL(a || b)
  float a_maximum, a_total, b_maximum, b_total;
  float gap_total;                                          // of w_a ((a − a_maximum) − (b − b_maximum))

  static __device__ __forceinline__ Pair none() { return {-FLT_MAX, 0, -FLT_MAX, 0, 0}; }
  __device__ __forceinline__ void raise(float a_higher, float b_higher, float c) {
    const float a_gap = fminf(a_higher - a_maximum, FAR), b_gap = fminf(b_higher - b_maximum, FAR);
    const float a_scale = exp2_fast(-a_gap * c);
    gap_total = a_scale == 0 ? 0 : a_scale * (gap_total + (b_gap - a_gap) * a_total);   // it may be infinite
    a_total *= a_scale;
    b_total *= exp2_fast(-b_gap * c);
    a_maximum = a_higher;
    b_maximum = b_higher;
  }
  __device__ __forceinline__ void merge(Pair other, float c) {
    const float a_higher = fmaxf(a_maximum, other.a_maximum), b_higher = fmaxf(b_maximum, other.b_maximum);
    raise(a_higher, b_higher, c);
    other.raise(a_higher, b_higher, c);
    a_total += other.a_total;
    b_total += other.b_total;
    gap_total += other.gap_total;
  }
  template <int K> __device__ __forceinline__ void add(const float (&a)[K], const float (&b)[K], float c) {
    float a_highest = a[0], b_highest = b[0];
#pragma unroll
    for (int k = 1; k < K; k++) { a_highest = fmaxf(a_highest, a[k]); b_highest = fmaxf(b_highest, b[k]); }
    if (a_highest > a_maximum || b_highest > b_maximum)
      raise(fmaxf(a_highest, a_maximum), fmaxf(b_highest, b_maximum), c);
#pragma unroll
    for (int k = 0; k < K; k++) {
      const float a_gap = a[k] - a_maximum, b_gap = b[k] - b_maximum, weight = exp2_fast(a_gap * c);
      a_total += weight;
      b_total += exp2_fast(b_gap * c);
      gap_total += weight == 0 ? 0 : weight * (a_gap - b_gap);
    }
  }
};

struct Sums {                                               // of JSD, in units of log2
  float student, teacher;                                   // Σ p (log p − log mixture) of each

  static __device__ __forceinline__ Sums none() { return {0, 0}; }
  __device__ __forceinline__ void merge(Sums other, float) { student += other.student; teacher += other.teacher; }
};

template <typename State> __device__ __forceinline__ State from_lane(State state, int distance) {
  float* numbers = reinterpret_cast<float*>(&state);
#pragma unroll
  for (int i = 0; i < (int)(sizeof(State) / sizeof(float)); i++)
    numbers[i] = __shfl_xor_sync(0xffffffffu, numbers[i], distance);
  return state;
}

// The states of all threads merged, in an order that is always the same; every thread gets it.
template <typename State> __device__ __forceinline__ State merge_block(State state, State* of_warp, float c) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) state.merge(from_lane(state, distance), c);
  if (lane == 0) of_warp[warp] = state;
  __syncthreads();
  if (warp == 0) {
    state = lane < WARPS ? of_warp[lane] : State::none();
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) state.merge(from_lane(state, distance), c);
    if (lane == 0) of_warp[0] = state;
  }
  __syncthreads();
  return of_warp[0];
}

// ---------------------------------------------------------------- logprobs

// state (rows, 4): maximum, total, gap_total and the logit of the row's token id, which columns [start, start + width)
// may hold.  A negative id is masked.
template <typename T>
__global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
add_tile_kernel(T* logits, int64_t stride, const int64_t* ids, int64_t start, int64_t width, float inv_t, float4* state) {
  const int64_t row = blockIdx.x, own = ids[row] - start;
  if (ids[row] < 0) return;
  SHARED(Softmax, of_warp, WARPS);
  const float c = inv_t * LOG2E;
  T* const rows[1] = {logits + row * stride};
  Softmax tile = Softmax::none();
  walk<false>(rows, width, [&](auto& x, int64_t) { tile.add(x[0], c); });
  tile = merge_block(tile, of_warp, c);
  if (threadIdx.x == 0) {
    const float4 old = state[row];
    Softmax all = {old.x, old.y, old.z};
    all.merge(tile, c);
    const float target = own >= 0 && own < width ? to_float(rows[0][own]) : old.w;
    state[row] = make_float4(all.maximum, all.total, all.gap_total, target);
  }
}

// d loss / d x = (g (1[own] − p) − h p (log p + H)) / T, g and h the gradients of logprob and entropy H.
template <typename T>
__global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
to_gradient_kernel(T* logits, int64_t stride, const int64_t* ids, int64_t start, int64_t width, float inv_t,
                   const float* maxima, const float* log_totals, const float* grad_logprobs, const float* entropies,
                   const float* grad_entropies) {
  const int64_t row = blockIdx.x, own = ids[row] - start;
  const bool live = ids[row] >= 0;
  const float c = inv_t * LOG2E, maximum = maxima[row], log_total = log_totals[row] * LOG2E;
  const float g = grad_logprobs[row] * inv_t, h = grad_entropies ? grad_entropies[row] * inv_t : 0;
  const float of_p = grad_entropies ? -g - h * entropies[row] : -g, of_p_log_p = -h * LN2;
  T* const rows[1] = {logits + row * stride};
  walk<true>(rows, width, [&](auto& x, int64_t column) {
    constexpr int K = sizeof(x[0]) / sizeof(float);
#pragma unroll
    for (int k = 0; k < K; k++) {
      const float log_p = (x[0][k] - maximum) * c - log_total, p = exp2_fast(log_p);
      const float gradient = p * (of_p + of_p_log_p * fmaxf(log_p, -FAR)) + (column + k == own ? g : 0);
      x[0][k] = live ? gradient : 0;
    }
  });
}

// ---------------------------------------------------------------- divergences

enum Kind { REVERSE = 0, FORWARD = 1, JSD = 2 };            // KL(student || teacher), KL(teacher || student), their mean
                                                            // KL to the mixture
struct Figures {                                            // of a row, for its gradient
  float student_maximum, student_log_total, teacher_maximum, teacher_log_total;
  float centre;                                             // what the gradient is relative to: KL or KL(student || mixture)
};

struct LogProbs {                                           // of one column, base 2
  float student, teacher, p, q, mixture;
  __device__ __forceinline__ LogProbs(float x, float y, const Figures& row, float c) {
    student = (x - row.student_maximum) * c - row.student_log_total * LOG2E;
    teacher = (y - row.teacher_maximum) * c - row.teacher_log_total * LOG2E;
    p = exp2_fast(student);
    q = exp2_fast(teacher);
  }
  __device__ __forceinline__ float log_mixture() const { return log2_fast(0.5f * (p + q)); }
};

template <typename T, int KIND>
__global__ void __launch_bounds__(THREADS, 2)
divergence_kernel(T* student, int64_t student_stride, T* teacher, int64_t teacher_stride, int64_t width, float inv_t,
                  float* values, Figures* figures) {
  const int64_t row = blockIdx.x;
  SHARED(Pair, pair_of_warp, WARPS);
  const float c = inv_t * LOG2E;
  T* const rows[2] = {student + row * student_stride, teacher + row * teacher_stride};
  constexpr int A = KIND == FORWARD ? 1 : 0, B = 1 - A;     // of KL(a || b)
  Pair pair = Pair::none();
  walk<false>(rows, width, [&](auto& x, int64_t) { pair.add(x[A], x[B], c); });
  pair = merge_block(pair, pair_of_warp, c);
  float value = inv_t * pair.gap_total / pair.a_total - logf(pair.a_total / pair.b_total), centre = value;
  Figures mine = {pair.a_maximum, logf(pair.a_total), pair.b_maximum, logf(pair.b_total), centre};
  if (KIND == FORWARD) mine = {mine.teacher_maximum, mine.teacher_log_total, mine.student_maximum, mine.student_log_total, 0};
  if (KIND == JSD) {
    SHARED(Sums, sums_of_warp, WARPS);
    Sums sums = Sums::none();
    walk<false>(rows, width, [&](auto& x, int64_t) {
      constexpr int K = sizeof(x[0]) / sizeof(float);
#pragma unroll
      for (int k = 0; k < K; k++) {
        const LogProbs here(x[0][k], x[1][k], mine, c);
        const float log_mixture = here.log_mixture();
        sums.student += here.p == 0 ? 0 : here.p * (here.student - log_mixture);
        sums.teacher += here.q == 0 ? 0 : here.q * (here.teacher - log_mixture);
      }
    });
    sums = merge_block(sums, sums_of_warp, c);
    value = 0.5f * LN2 * (sums.student + sums.teacher);
    mine.centre = LN2 * sums.student;
  }
  if (threadIdx.x == 0) {
    values[row] = value;
    figures[row] = mine;
  }
}

template <typename T, int KIND>
__global__ void __launch_bounds__(THREADS, 2)
divergence_to_gradient_kernel(T* student, int64_t student_stride, T* teacher, int64_t teacher_stride, int64_t width,
                              float inv_t, const Figures* figures, const float* weights) {
  const int64_t row = blockIdx.x;
  const float c = inv_t * LOG2E, weight = weights[row] * inv_t, centre = figures[row].centre * LOG2E;
  const Figures mine = figures[row];
  T* const rows[2] = {student + row * student_stride, teacher + row * teacher_stride};
  walk<true>(rows, width, [&](auto& x, int64_t) {
    constexpr int K = sizeof(x[0]) / sizeof(float);
#pragma unroll
    for (int k = 0; k < K; k++) {
      const LogProbs here(x[0][k], x[1][k], mine, c);
      float gradient;
      if (KIND == FORWARD) {
        gradient = here.p - here.q;
      } else if (KIND == REVERSE) {
        gradient = here.p == 0 ? 0 : LN2 * here.p * (here.student - here.teacher - centre);
      } else {
        gradient = here.p == 0 ? 0 : 0.5f * LN2 * here.p * (here.student - here.log_mixture() - centre);
      }
      x[0][k] = weight == 0 ? 0 : weight * gradient;
    }
  });
}

// Call function(T(), integral constant of kind) for the dtype's type.
template <typename Function> int by_dtype(int dtype, Function function) {
  switch (dtype) {
    case 0: function(float()); break;
    case 1: function(Bfloat16()); break;
    case 2: function(Half()); break;
    default: return -1;
  }
  return LAST_ERROR();
}

}  // namespace

// ---------------------------------------------------------------- C functions, for ctypes
// dtype: 0 float32, 1 bfloat16, 2 float16.  Strides in elements.  Rows of 0 width or none at all are no work.
// -> 0, a cudaError_t, or −1 for a bad argument.
#define API extern "C" __attribute__((visibility("default"))) int

API add_tile(void* logits, int dtype, int64_t stride, int64_t rows, int64_t width, const int64_t* ids, int64_t start,
             float inv_t, void* state, void* stream) {
  if (rows == 0 || width == 0) return 0;
  return by_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    LAUNCH(add_tile_kernel<T>, rows, stream, (T*)logits, stride, ids, start, width, inv_t, (float4*)state);
  });
}

API to_gradient(void* logits, int dtype, int64_t stride, int64_t rows, int64_t width, const int64_t* ids, int64_t start,
                float inv_t, const float* maxima, const float* log_totals, const float* grad_logprobs,
                const float* entropies, const float* grad_entropies, void* stream) {
  if (grad_entropies && !entropies) return -1;
  if (rows == 0 || width == 0) return 0;
  return by_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    LAUNCH(to_gradient_kernel<T>, rows, stream, (T*)logits, stride, ids, start, width, inv_t, maxima, log_totals,
           grad_logprobs, entropies, grad_entropies);
  });
}

#define BY_KIND(kernel, ...)                                                         \
  by_dtype(dtype, [&](auto zero) {                                                   \
    using T = decltype(zero);                                                        \
    T *x = (T*)student, *y = (T*)teacher;                                            \
    if (kind == REVERSE) LAUNCH((kernel<T, REVERSE>), rows, stream, __VA_ARGS__);    \
    else if (kind == FORWARD) LAUNCH((kernel<T, FORWARD>), rows, stream, __VA_ARGS__); \
    else LAUNCH((kernel<T, JSD>), rows, stream, __VA_ARGS__);                        \
  })

API divergence(void* student, int64_t student_stride, void* teacher, int64_t teacher_stride, int dtype, int64_t rows,
               int64_t width, int kind, float inv_t, float* values, void* figures, void* stream) {
  if (kind < REVERSE || kind > JSD) return -1;
  if (rows == 0 || width == 0) return 0;
  return BY_KIND(divergence_kernel, x, student_stride, y, teacher_stride, width, inv_t, values, (Figures*)figures);
}

API divergence_to_gradient(void* student, int64_t student_stride, void* teacher, int64_t teacher_stride, int dtype,
                           int64_t rows, int64_t width, int kind, float inv_t, const void* figures, const float* weights,
                           void* stream) {
  if (kind < REVERSE || kind > JSD) return -1;
  if (rows == 0 || width == 0) return 0;
  return BY_KIND(divergence_to_gradient_kernel, x, student_stride, y, teacher_stride, width, inv_t,
                 (const Figures*)figures, weights);
}
