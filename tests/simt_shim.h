// A GPU for tests: what engine/logprobs.cu uses of CUDA, on a CPU.  One block at a time; each of its threads is a fiber
// that runs until a barrier or a shuffle, where it waits for the others as on a GPU.
//
//   - shared memory holds NaN when a block begins;
//   - fibers run in ascending, descending or random order (simt_order): where a barrier is missing, the results differ;
//   - a barrier or shuffle that not all threads reach is error 700, not a hang, and so are a shuffle with a partial mask
//     and 16 bytes that do not lie on a 16-byte boundary.
//
// It cannot show races that need two threads at once, the GPU's own exp2 (2 ulp), or speed.
#pragma once
#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <ucontext.h>
#include <utility>
#include <vector>

namespace simt {

enum class Wait { NOTHING, BARRIER, SHUFFLE, END };

struct Fiber {
  std::unique_ptr<char[]> stack;
  ucontext_t start;
  jmp_buf here;                                 // where it waits
  bool started = false;
  Wait wait = Wait::NOTHING;
  unsigned index = 0;
  float mine = 0, received = 0;                 // of a shuffle
  unsigned distance = 0;
};

struct Machine {
  std::vector<Fiber> fibers;
  Fiber* current = nullptr;
  jmp_buf scheduler;
  std::function<void()> kernel;
  unsigned block = 0;
  int order = 0, error = 0;                     // 0 ascending, 1 descending, 2 random
  uint64_t random = 1;
  alignas(16) unsigned char shared[16384];
  size_t shared_used = 0;
};
inline Machine machine;

inline void stop(const char* why) {
  if (!machine.error) std::fprintf(stderr, "simt: block %u: %s\n", machine.block, why);
  machine.error = 700;
}
inline int take_error() { return std::exchange(machine.error, 0); }

inline void pause(Wait wait) {
  machine.current->wait = wait;
  if (!_setjmp(machine.current->here)) _longjmp(machine.scheduler, 1);
}
inline void fiber_main() {
  for (;;) {
    machine.kernel();
    pause(Wait::END);                           // the next block goes on from here
  }
}
inline void resume(Fiber& fiber) {
  machine.current = &fiber;
  if (_setjmp(machine.scheduler)) return;
  if (fiber.started) _longjmp(fiber.here, 1);
  fiber.started = true;
  setcontext(&fiber.start);
}

inline float shuffle(unsigned mask, float value, unsigned distance) {
  if (mask != 0xffffffffu) stop("a shuffle of part of a warp");
  Fiber& me = *machine.current;
  me.mine = value;
  me.distance = distance;
  pause(Wait::SHUFFLE);
  return me.received;
}
template <typename T> T* aligned_16(T* pointer) {
  alignas(16) static unsigned char elsewhere[16];
  if ((uintptr_t)pointer % 16 == 0) return pointer;
  stop("16 bytes that are not aligned");
  return reinterpret_cast<T*>(elsewhere);
}
template <typename T> T* shared(const char* name, size_t count) {       // by name: each fiber finds the same
  static std::vector<std::pair<const char*, size_t>> places;
  if (machine.shared_used == 0) places.clear();
  for (auto& place : places)
    if (place.first == name) return reinterpret_cast<T*>(machine.shared + place.second);
  places.emplace_back(name, machine.shared_used);
  machine.shared_used += (sizeof(T) * count + 15) / 16 * 16;
  if (machine.shared_used > sizeof(machine.shared)) std::abort();
  return reinterpret_cast<T*>(machine.shared + places.back().second);
}

// Let each warp whose lanes all wait at a shuffle have its values.  -> whether there was one
inline bool finish_shuffles() {
  bool any = false;
  for (size_t warp = 0; warp < machine.fibers.size(); warp += 32) {
    Fiber* lanes = &machine.fibers[warp];
    bool all = true;
    for (int i = 0; i < 32; i++) all &= lanes[i].wait == Wait::SHUFFLE;
    if (!all) continue;
    for (int i = 0; i < 32; i++) {
      const unsigned from = i ^ lanes[i].distance;
      lanes[i].received = from < 32 ? lanes[from].mine : lanes[i].mine;
      lanes[i].wait = Wait::NOTHING;
    }
    any = true;
  }
  return any;
}
inline bool all_wait(Wait wait) {
  for (auto& fiber : machine.fibers)
    if (fiber.wait != wait) return false;
  return true;
}
inline uint64_t random_number() {
  uint64_t& x = machine.random;
  x ^= x << 13; x ^= x >> 7; x ^= x << 17;
  return x;
}

inline void run_block() {
  auto& fibers = machine.fibers;
  std::memset(machine.shared, 0xff, sizeof(machine.shared));
  machine.shared_used = 0;
  std::vector<int> order(fibers.size());
  std::iota(order.begin(), order.end(), 0);
  if (machine.order == 1) std::reverse(order.begin(), order.end());
  for (auto& fiber : fibers) fiber.wait = Wait::NOTHING;
  while (!all_wait(Wait::END)) {
    if (machine.order == 2)
      for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[random_number() % i]);
    bool ran = false;
    for (int i : order)
      if (fibers[i].wait == Wait::NOTHING) { resume(fibers[i]); ran = true; }
    if (all_wait(Wait::BARRIER)) {
      for (auto& fiber : fibers) fiber.wait = Wait::NOTHING;
    } else if (!finish_shuffles() && !ran) {
      stop("a barrier or shuffle that not all threads reach");
      for (auto& fiber : fibers) fiber.started = false;
      return;
    }
  }
}

inline void launch(int64_t blocks, unsigned threads, std::function<void()> kernel) {
  constexpr size_t STACK = 65536;
  machine.fibers.resize(threads);
  machine.kernel = std::move(kernel);
  for (unsigned i = 0; i < threads; i++) {
    Fiber& fiber = machine.fibers[i];
    fiber.index = i;
    if (fiber.started) continue;
    if (!fiber.stack) fiber.stack.reset(new char[STACK]);
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = STACK;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, fiber_main, 0);
  }
  for (machine.block = 0; machine.block < blocks && !machine.error; machine.block++) run_block();
}

struct Index { unsigned x; };
}  // namespace simt

// ---------------------------------------------------------------- CUDA's names

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define threadIdx (simt::Index{simt::machine.current->index})
#define blockIdx (simt::Index{simt::machine.block})
#define __syncthreads() simt::pause(simt::Wait::BARRIER)
#define __shfl_xor_sync simt::shuffle
#define SHARED(type, name, count) type* name = simt::shared<type>(#name, count)
#define LAUNCH(kernel, rows, stream, ...) ((void)(stream), simt::launch(rows, THREADS, [&] { (kernel)(__VA_ARGS__); }))
#define LAST_ERROR() simt::take_error()
#define ALIGNED_16(pointer) simt::aligned_16(pointer)

struct alignas(16) float4 { float x, y, z, w; };
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float exp2_fast(float x) { const float y = exp2f(x); return y < 1.17549435e-38f ? 0 : y; }
inline float log2_fast(float x) { return log2f(x); }

inline float half_to_float(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                     : exponent == 0 ? std::ldexp((float)fraction, -24)
                                     : std::ldexp((float)(fraction + 1024), exponent - 25);
  return bits & 0x8000 ? -size : size;
}
inline uint16_t float_to_half(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const float size = std::fabs(x);
  if (size != size) return 0x7fff;
  if (size >= 65520) return sign | 0x7c00;
  int exponent = size < 6.103515625e-5f ? -14 : std::ilogb(size);
  int fraction = (int)std::nearbyint(std::ldexp(size, 10 - exponent));     // 1024 … 2048, or less: a denormal
  return sign | (uint16_t)(fraction < 1024 ? fraction : ((exponent + 14) << 10) + fraction);
}

extern "C" __attribute__((visibility("default"))) void simt_order(int order, uint64_t seed) {
  simt::machine.order = order;
  simt::machine.random = seed * 2 + 1;
}
