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

// The same for doubles.
DEVICE double block_total(double x, double *scratch) {
  scratch[THREAD] = x;
  BARRIER();
  for (int half = THREADS / 2; half > 0; half /= 2) {
    if (THREAD < half) scratch[THREAD] += scratch[THREAD + half];
    BARRIER();
  }
  double sum = scratch[0];
  BARRIER();
  return sum;
}

DEVICE unsigned int bits_of(float x) {
  union { float value; unsigned int bits; } u;
  u.value = x;
  return u.bits;
}

DEVICE float float_of(unsigned int bits) {
  union { unsigned int bits; float value; } u;
  u.bits = bits;
  return u.value;
}

// Sum of the weights from `key` on, or their number. Weights are not negative,
// so they are ordered as their bits are.
DEVICE double mass_from(const float *weights, int n, unsigned int key, int count, double *scratch) {
  double sum = 0.0;
  for (int i = THREAD; i < n; i += THREADS)
    if (bits_of(weights[i]) >= key) sum += count ? 1.0 : (double)weights[i];
  return block_total(sum, scratch);
}

// The largest key from which on the mass (or number) is more than `target`, or
// at least that unless `strict`. A sum of more terms in the same order is no
// smaller, rounded or not, so one bit after the other decides. Weights are at
// most 1.
DEVICE unsigned int find_mass(const float *weights, int n, double target, int strict, int count,
                              double *scratch) {
  unsigned int key = 0;
  for (int bit = 29; bit >= 0; bit--) {
    unsigned int tried = key | 1u << bit;
    double mass = mass_from(weights, n, tried, count, scratch);
    if (strict ? mass > target : mass >= target) key = tried;
  }
  return key;
}

// Bits of an IEEE half as f32; exact, finite.
DEVICE float f16_to_f32(unsigned int half) {
  unsigned int sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31u, fraction = half & 1023u;
  if (exponent) return float_of(sign | (exponent + 112u) << 23 | fraction << 13);
  float tiny = (float)fraction * 5.9604644775390625e-8f;
  return sign ? -tiny : tiny;
}

DEVICE unsigned int word16(const unsigned char *p) { return p[0] | (unsigned int)p[1] << 8; }

DEVICE float word32(const unsigned char *p) {
  return float_of(p[0] | (unsigned int)p[1] << 8 | (unsigned int)p[2] << 16 | (unsigned int)p[3] << 24);
}

DEVICE float nf4_value(int code) {
  switch (code) {
    case 0: return -1.0f;
    case 1: return -0.6961928f;
    case 2: return -0.52507305f;
    case 3: return -0.3949175f;
    case 4: return -0.28444138f;
    case 5: return -0.18477343f;
    case 6: return -0.091050036f;
    case 7: return 0.0f;
    case 8: return 0.0795803f;
    case 9: return 0.1609302f;
    case 10: return 0.2461123f;
    case 11: return 0.33791524f;
    case 12: return 0.44070983f;
    case 13: return 0.562617f;
    case 14: return 0.72295684f;
    default: return 1.0f;
  }
}

// Value i of a stored row of `width`. Formats are numbered as in src/weights.rs.
DEVICE float stored_value(const unsigned char *row, int i, int width, int format) {
  switch (format) {
    case 0: return word32(row + 4LL * i);
    case 1: return bf16_to_f32((bf16)word16(row + 2LL * i));
    case 2: return f16_to_f32(word16(row + 2LL * i));
    case 3: {  // Q8_0
      const unsigned char *b = row + i / 32 * 34;
      return f16_to_f32(word16(b)) * (float)(signed char)b[2 + i % 32];
    }
    case 4: {  // Q4_0
      const unsigned char *b = row + i / 32 * 18;
      int j = i % 32, code = j < 16 ? b[2 + j] & 15 : b[2 + j - 16] >> 4;
      return f16_to_f32(word16(b)) * (float)(code - 8);
    }
    case 5: {  // Q4_K
      const unsigned char *b = row + i / 256 * 144, *s = b + 4;
      int j = i % 256, part = j / 32, l = j % 32;
      int byte = b[16 + part / 2 * 32 + l], code = part % 2 ? byte >> 4 : byte & 15;
      int scale = part < 4 ? s[part] & 63 : (s[part + 4] & 15) | s[part - 4] >> 6 << 4;
      int low = part < 4 ? s[part + 4] & 63 : s[part + 4] >> 4 | s[part] >> 6 << 4;
      return f16_to_f32(word16(b)) * (float)scale * (float)code -
             f16_to_f32(word16(b + 2)) * (float)low;
    }
    case 6: {  // Q6_K
      const unsigned char *b = row + i / 256 * 210;
      int j = i % 256, n = j / 128, l = j % 128;
      int nibble = b[64 * n + l % 64] >> l / 64 * 4 & 15;
      int high = b[128 + 32 * n + l % 32] >> l / 32 * 2 & 3;
      float scale = f16_to_f32(word16(b + 208)) * (float)(signed char)b[192 + j / 16];
      return scale * (float)((nibble | high << 4) - 32);
    }
    default: {  // NF4
      int byte = row[i / 2], code = i % 2 ? byte & 15 : byte >> 4;
      return nf4_value(code) * word32(row + width / 2 + i / 64 * 4);
    }
  }
}

#endif
