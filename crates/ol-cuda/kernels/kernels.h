// What a kernel may use. nvcc compiles kernels.cu as CUDA; the tests compile
// the same file as C, with tests/it/emulator.h in place of CUDA's own words.
#ifndef KERNELS_H
#define KERNELS_H

// Threads of every block; the host launches nothing else.
#define THREADS 128

#ifdef __CUDACC__
#include <math.h>
#define KERNEL(name, type) extern "C" __global__ void __launch_bounds__(THREADS) name(const type a)
#define DEVICE static __device__ __forceinline__
#define SHARED __shared__
#define BARRIER() __syncthreads()
#define THREAD ((int)threadIdx.x)
#define BLOCK ((int)blockIdx.x)
#define BLOCK_Y ((int)blockIdx.y)
#else
#include "emulator.h"
#endif

typedef unsigned short bf16;

// Exact: the lower half of such an f32 is zero.
DEVICE float bf16_to_f32(bf16 x) {
  union { unsigned int bits; float value; } u;
  u.bits = (unsigned int)x << 16;
  return u.value;
}

// Rounds to nearest, ties to even; x is finite.
DEVICE bf16 f32_to_bf16(float x) {
  union { unsigned int bits; float value; } u;
  u.value = x;
  return (bf16)((u.bits + 0x7fffu + ((u.bits >> 16) & 1u)) >> 16);
}

// Sum over the block, the same in every thread: a tree of fixed shape. All
// threads must call it.
DEVICE float block_sum(float x, float *scratch) {
  scratch[THREAD] = x;
  BARRIER();
  for (int half = THREADS / 2; half > 0; half /= 2) {
    if (THREAD < half) scratch[THREAD] += scratch[THREAD + half];
    BARRIER();
  }
  float sum = scratch[0];
  BARRIER();
  return sum;
}

// Maximum over the block, the same in every thread.
DEVICE float block_max(float x, float *scratch) {
  scratch[THREAD] = x;
  BARRIER();
  for (int half = THREADS / 2; half > 0; half /= 2) {
    if (THREAD < half) scratch[THREAD] = fmaxf(scratch[THREAD], scratch[THREAD + half]);
    BARRIER();
  }
  float top = scratch[0];
  BARRIER();
  return top;
}

#endif
