// Everything of a forward and backward pass that is not a matrix product.
//
// A kernel takes one struct by value; src/kernels.rs declares the same structs.
// Matrices are row-major f32. Nothing uses atomics and every sum has a fixed
// order, so a launch gives the same bits every time, and a row the same bits
// in every batch that cuts its sequence alike.
#include "kernels.h"

// Rows of a stored matrix as f32 or bf16: row rows[i], or `first` + i where
// there are no rows. One block a row. Blocks lie as in GGUF files; a row of NF4
// is its codes, the first of two in the high half, then a scale for each 64.
struct Expand {
  const unsigned char *table;
  const int *rows;
  void *out;
  long long row_bytes;
  int width;
  int format;
  int first;
  int is_bf16;
};
KERNEL(expand, struct Expand) {
  long long row = a.rows ? a.rows[BLOCK] : a.first + BLOCK;
  const unsigned char *from = a.table + row * a.row_bytes;
  long long to = (long long)BLOCK * a.width;
  for (int i = THREAD; i < a.width; i += THREADS) {
    float x = stored_value(from, i, a.width, a.format);
    if (a.is_bf16) ((bf16 *)a.out)[to + i] = f32_to_bf16(x);
    else ((float *)a.out)[to + i] = x;
  }
}

// A page of the cache, keys or values, into another. One block a token.
struct CopyPage {
  float *cache;
  long long from;
  long long to;
  int width;
};
KERNEL(copy_page, struct CopyPage) {
  long long row = (long long)BLOCK * a.width;
  for (int i = THREAD; i < a.width; i += THREADS) a.cache[a.to + row + i] = a.cache[a.from + row + i];
}

// Rows: out[i] = x[rows[i]], or out[rows[i]] = x[i] with distinct rows.
// One block a row.
struct Rows {
  const float *x;
  const int *rows;
  float *out;
  int width;
};
KERNEL(gather, struct Rows) {
  long long from = (long long)a.rows[BLOCK] * a.width, to = (long long)BLOCK * a.width;
  for (int i = THREAD; i < a.width; i += THREADS) a.out[to + i] = a.x[from + i];
}
KERNEL(scatter, struct Rows) {
  long long from = (long long)BLOCK * a.width, to = (long long)a.rows[BLOCK] * a.width;
  for (int i = THREAD; i < a.width; i += THREADS) a.out[to + i] = a.x[from + i];
}

// RMS norm (Zhang and Sennrich, 2019) of pieces of each row: whole rows, or
// heads. One block a row and piece; in place is allowed. Keeps 1 / rms.
struct RmsNorm {
  const float *x;
  const float *weight;
  float *out;
  float *inverse;
  int width;
  int stride;
  int pieces;
  float eps;
};
KERNEL(rms_norm, struct RmsNorm) {
  SHARED float scratch[THREADS];
  long long at = (long long)BLOCK * a.stride + (long long)BLOCK_Y * a.width;
  float squares = 0.0f;
  for (int i = THREAD; i < a.width; i += THREADS) squares += a.x[at + i] * a.x[at + i];
  float inverse = 1.0f / sqrtf(block_sum(squares, scratch) / (float)a.width + a.eps);
  for (int i = THREAD; i < a.width; i += THREADS)
    a.out[at + i] = a.x[at + i] * inverse * a.weight[i];
  if (THREAD == 0) a.inverse[(long long)BLOCK * a.pieces + BLOCK_Y] = inverse;
}

// Backward: dx = inverse (w dy - x inverse^2 mean(w dy x)), added to dx or put
// in its place. dy may be dx.
struct RmsNormBackward {
  const float *x;
  const float *weight;
  const float *inverse;
  const float *dy;
  float *dx;
  int width;
  int stride;
  int pieces;
  int add;
};
KERNEL(rms_norm_backward, struct RmsNormBackward) {
  SHARED float scratch[THREADS];
  long long at = (long long)BLOCK * a.stride + (long long)BLOCK_Y * a.width;
  float inverse = a.inverse[(long long)BLOCK * a.pieces + BLOCK_Y];
  float along = 0.0f;
  for (int i = THREAD; i < a.width; i += THREADS) along += a.weight[i] * a.dy[at + i] * a.x[at + i];
  along = block_sum(along, scratch) / (float)a.width * inverse * inverse;
  for (int i = THREAD; i < a.width; i += THREADS) {
    float d = inverse * (a.weight[i] * a.dy[at + i] - a.x[at + i] * along);
    a.dx[at + i] = a.add ? a.dx[at + i] + d : d;
  }
}

// Rotary embedding of `heads` heads from the start of each row, halves of a
// head together; sign -1 turns back. One block a row.
struct Rotate {
  float *x;
  const int *positions;
  const float *cosines;
  const float *sines;
  int heads;
  int head_dim;
  int stride;
  float sign;
};
KERNEL(rotate, struct Rotate) {
  int half = a.head_dim / 2;
  long long angle = (long long)a.positions[BLOCK] * half;
  float *row = a.x + (long long)BLOCK * a.stride;
  for (int i = THREAD; i < a.heads * half; i += THREADS) {
    float *head = row + (i / half) * a.head_dim;
    int j = i % half;
    float c = a.cosines[angle + j], s = a.sign * a.sines[angle + j];
    float low = head[j], high = head[j + half];
    head[j] = low * c - high * s;
    head[j + half] = high * c + low * s;
  }
}

// out = silu(gate) up of rows [gate, up]; one block a row.
struct Swiglu {
  float *gate_up;
  const float *d_out;
  float *out;
  int width;
};
KERNEL(swiglu, struct Swiglu) {
  long long at = (long long)BLOCK * 2 * a.width;
  for (int i = THREAD; i < a.width; i += THREADS) {
    float gate = a.gate_up[at + i];
    a.out[(long long)BLOCK * a.width + i] = gate / (1.0f + expf(-gate)) * a.gate_up[at + a.width + i];
  }
}
// Turns [gate, up] into its gradient.
KERNEL(swiglu_backward, struct Swiglu) {
  long long at = (long long)BLOCK * 2 * a.width;
  for (int i = THREAD; i < a.width; i += THREADS) {
    float gate = a.gate_up[at + i], up = a.gate_up[at + a.width + i];
    float d = a.d_out[(long long)BLOCK * a.width + i];
    float sigmoid = 1.0f / (1.0f + expf(-gate));
    a.gate_up[at + i] = d * up * sigmoid * (1.0f + gate * (1.0f - sigmoid));
    a.gate_up[at + a.width + i] = d * gate * sigmoid;
  }
}

// x += y over n elements, or each row of x += the one row y; blocks of THREADS.
struct Add {
  float *x;
  const float *y;
  long long n;
  int period;
};
KERNEL(add, struct Add) {
  long long i = (long long)BLOCK * THREADS + THREAD;
  if (i < a.n) a.x[i] += a.y[i];
}
KERNEL(add_row, struct Add) {
  long long i = (long long)BLOCK * THREADS + THREAD;
  if (i < a.n) a.x[i] += a.y[i % a.period];
}

// out = bf16(x), rows that lie `stride` apart packed, for products with 16-bit
// weights. One block a row.
struct Narrow {
  const float *x;
  bf16 *out;
  int width;
  int stride;
};
KERNEL(narrow, struct Narrow) {
  long long from = (long long)BLOCK * a.stride, to = (long long)BLOCK * a.width;
  for (int i = THREAD; i < a.width; i += THREADS) a.out[to + i] = f32_to_bf16(a.x[from + i]);
}

// Keys and values of each row into their slots of the cache. One block a row.
struct Store {
  const float *qkv;
  float *keys;
  float *values;
  const int *slots;
  int q_width;
  int kv_width;
};
KERNEL(store, struct Store) {
  const float *from = a.qkv + (long long)BLOCK * (a.q_width + 2 * a.kv_width) + a.q_width;
  long long to = (long long)a.slots[BLOCK] * a.kv_width;
  for (int i = THREAD; i < a.kv_width; i += THREADS) {
    a.keys[to + i] = from[i];
    a.values[to + i] = from[a.kv_width + i];
  }
}

// Causal attention with an optional window. Position p of the row's sequence
// lies in row starts[tables[row] + p / page] + p % page of keys and values.
// The softmax is kept running (Milakov and Gimelshein, 2018), in tiles of
// THREADS keys. One block a row and head; head_dim <= 2 THREADS.
struct Attend {
  const float *q;
  const float *keys;
  const float *values;
  float *out;
  float *log_sum;
  const int *tables;
  const int *starts;
  const int *positions;
  int q_stride;
  int kv_stride;
  int head_dim;
  int heads;
  int share;
  int page;
  int window;
  float scale;
};
KERNEL(attend, struct Attend) {
  SHARED float scratch[THREADS];
  SHARED float weights[THREADS];
  int head = BLOCK_Y, d = a.head_dim;
  int kv = (head / a.share) * d;
  const float *q = a.q + (long long)BLOCK * a.q_stride + (long long)head * d;
  const int *starts = a.starts + a.tables[BLOCK];
  int last = a.positions[BLOCK];
  int first = a.window > 0 && last + 1 > a.window ? last + 1 - a.window : 0;
  float top = -INFINITY, sum = 0.0f, low = 0.0f, high = 0.0f;
  for (int from = first; from <= last; from += THREADS) {
    int at = from + THREAD;
    float score = -INFINITY;
    if (at <= last) {
      const float *key = a.keys + ((long long)starts[at / a.page] + at % a.page) * a.kv_stride + kv;
      score = 0.0f;
      for (int i = 0; i < d; i++) score += q[i] * key[i];
      score *= a.scale;
    }
    float highest = fmaxf(top, block_max(score, scratch));
    float weight = at <= last ? expf(score - highest) : 0.0f;
    weights[THREAD] = weight;
    float shrink = expf(top - highest);
    sum = sum * shrink + block_sum(weight, scratch);
    low *= shrink;
    high *= shrink;
    top = highest;
    int count = last - from + 1 < THREADS ? last - from + 1 : THREADS;
    for (int j = 0; j < count; j++) {
      int p = from + j;
      const float *value = a.values + ((long long)starts[p / a.page] + p % a.page) * a.kv_stride + kv;
      if (THREAD < d) low += weights[j] * value[THREAD];
      if (THREAD + THREADS < d) high += weights[j] * value[THREAD + THREADS];
    }
    BARRIER();
  }
  float *out = a.out + ((long long)BLOCK * a.heads + head) * d;
  if (THREAD < d) out[THREAD] = low / sum;
  if (THREAD + THREADS < d) out[THREAD + THREADS] = high / sum;
  if (THREAD == 0) a.log_sum[(long long)BLOCK * a.heads + head] = top + logf(sum);
}

// Backward of attention within packed sequences: row r belongs to the rows
// begins[r] <= r < ends[r]. d_qkv gets every element of its rows.
struct AttendBackward {
  const float *qkv;
  const float *out;
  const float *d_out;
  const float *log_sum;
  float *inner;
  float *d_qkv;
  const int *begins;
  const int *ends;
  int stride;
  int head_dim;
  int heads;
  int kv_heads;
  int window;
  float scale;
};
// inner = d_out . out; one block a row and head.
KERNEL(attend_inner, struct AttendBackward) {
  SHARED float scratch[THREADS];
  long long at = ((long long)BLOCK * a.heads + BLOCK_Y) * a.head_dim;
  float sum = 0.0f;
  for (int i = THREAD; i < a.head_dim; i += THREADS) sum += a.d_out[at + i] * a.out[at + i];
  sum = block_sum(sum, scratch);
  if (THREAD == 0) a.inner[(long long)BLOCK * a.heads + BLOCK_Y] = sum;
}
// Gradient of the query; one block a row and head.
KERNEL(attend_d_query, struct AttendBackward) {
  SHARED float weights[THREADS];
  int head = BLOCK_Y, d = a.head_dim, row = BLOCK;
  int share = a.heads / a.kv_heads, group = head / share;
  const float *q = a.qkv + (long long)row * a.stride + (long long)head * d;
  const float *d_out = a.d_out + ((long long)row * a.heads + head) * d;
  float log_sum = a.log_sum[(long long)row * a.heads + head];
  float inner = a.inner[(long long)row * a.heads + head];
  int first = a.begins[row];
  if (a.window > 0 && row + 1 - a.window > first) first = row + 1 - a.window;
  float low = 0.0f, high = 0.0f;
  for (int from = first; from <= row; from += THREADS) {
    int at = from + THREAD;
    float slope = 0.0f;
    if (at <= row) {
      const float *key = a.qkv + (long long)at * a.stride + (long long)(a.heads + group) * d;
      const float *value = key + (long long)a.kv_heads * d;
      float score = 0.0f, along = 0.0f;
      for (int i = 0; i < d; i++) {
        score += q[i] * key[i];
        along += d_out[i] * value[i];
      }
      slope = expf(score * a.scale - log_sum) * (along - inner) * a.scale;
    }
    weights[THREAD] = slope;
    BARRIER();
    int count = row - from + 1 < THREADS ? row - from + 1 : THREADS;
    for (int j = 0; j < count; j++) {
      const float *key = a.qkv + (long long)(from + j) * a.stride + (long long)(a.heads + group) * d;
      if (THREAD < d) low += weights[j] * key[THREAD];
      if (THREAD + THREADS < d) high += weights[j] * key[THREAD + THREADS];
    }
    BARRIER();
  }
  float *d_q = a.d_qkv + (long long)row * a.stride + (long long)head * d;
  if (THREAD < d) d_q[THREAD] = low;
  if (THREAD + THREADS < d) d_q[THREAD + THREADS] = high;
}
// Gradients of key and value; one block a row and key-value head.
KERNEL(attend_d_key_value, struct AttendBackward) {
  SHARED float slopes[THREADS];
  SHARED float weights[THREADS];
  int group = BLOCK_Y, d = a.head_dim, row = BLOCK;
  int share = a.heads / a.kv_heads;
  const float *key = a.qkv + (long long)row * a.stride + (long long)(a.heads + group) * d;
  const float *value = key + (long long)a.kv_heads * d;
  int end = a.ends[row];
  if (a.window > 0 && row + a.window < end) end = row + a.window;
  float key_low = 0.0f, key_high = 0.0f, value_low = 0.0f, value_high = 0.0f;
  for (int head = group * share; head < (group + 1) * share; head++) {
    for (int from = row; from < end; from += THREADS) {
      int at = from + THREAD;
      float weight = 0.0f, slope = 0.0f;
      if (at < end) {
        const float *q = a.qkv + (long long)at * a.stride + (long long)head * d;
        const float *d_out = a.d_out + ((long long)at * a.heads + head) * d;
        float score = 0.0f, along = 0.0f;
        for (int i = 0; i < d; i++) {
          score += q[i] * key[i];
          along += d_out[i] * value[i];
        }
        weight = expf(score * a.scale - a.log_sum[(long long)at * a.heads + head]);
        slope = weight * (along - a.inner[(long long)at * a.heads + head]) * a.scale;
      }
      weights[THREAD] = weight;
      slopes[THREAD] = slope;
      BARRIER();
      int count = end - from < THREADS ? end - from : THREADS;
      for (int j = 0; j < count; j++) {
        const float *q = a.qkv + (long long)(from + j) * a.stride + (long long)head * d;
        const float *d_out = a.d_out + ((long long)(from + j) * a.heads + head) * d;
        if (THREAD < d) {
          key_low += slopes[j] * q[THREAD];
          value_low += weights[j] * d_out[THREAD];
        }
        if (THREAD + THREADS < d) {
          key_high += slopes[j] * q[THREAD + THREADS];
          value_high += weights[j] * d_out[THREAD + THREADS];
        }
      }
      BARRIER();
    }
  }
  float *d_key = a.d_qkv + (long long)row * a.stride + (long long)(a.heads + group) * d;
  float *d_value = d_key + (long long)a.kv_heads * d;
  if (THREAD < d) {
    d_key[THREAD] = key_low;
    d_value[THREAD] = value_low;
  }
  if (THREAD + THREADS < d) {
    d_key[THREAD + THREADS] = key_high;
    d_value[THREAD + THREADS] = value_high;
  }
}

// Negative log-likelihood of each row's goal; logits turn into their gradient,
// weighted. One block a row.
struct CrossEntropy {
  float *logits;
  const int *goals;
  const float *weights;
  float *losses;
  int vocab;
};
KERNEL(cross_entropy, struct CrossEntropy) {
  SHARED float scratch[THREADS];
  float *row = a.logits + (long long)BLOCK * a.vocab;
  int goal = a.goals[BLOCK];
  float top = -INFINITY;
  for (int i = THREAD; i < a.vocab; i += THREADS) top = fmaxf(top, row[i]);
  top = block_max(top, scratch);
  float sum = 0.0f;
  for (int i = THREAD; i < a.vocab; i += THREADS) sum += expf(row[i] - top);
  sum = block_sum(sum, scratch);
  if (THREAD == 0) a.losses[BLOCK] = logf(sum) + top - row[goal];
  BARRIER();
  for (int i = THREAD; i < a.vocab; i += THREADS)
    row[i] = a.weights[BLOCK] * (expf(row[i] - top) / sum - (i == goal ? 1.0f : 0.0f));
}

// A token of each row of logits. What takes part, and what is drawn, are
// beginnings of one order: by weight, the lower token first among equals. So
// each limit is a mass, and the token is where the mass exceeds a part of it.
// One block a row. Weights are scratch, a row of them a block.
struct DrawRow {
  double uniform;
  float temperature;
  float top_p;
  float min_p;
  int top_k;
  int n_top;
  int row;
};
struct Sample {
  const float *logits;
  float *weights;
  const struct DrawRow *draws;
  float *out;
  int vocab;
  int stride;
};
// Floats of a row of `out`: token (-1: the logits are no numbers), rank,
// log-probability, then pairs of token and log-probability. Tokens are exact.
KERNEL(sample, struct Sample) {
  SHARED float scratch[THREADS];
  SHARED double sums[THREADS];
  SHARED int counts[THREADS];
  SHARED int found;
  struct DrawRow draw = a.draws[BLOCK];
  const float *row = a.logits + (long long)draw.row * a.vocab;
  float *weights = a.weights + (long long)BLOCK * a.vocab;
  float *out = a.out + (long long)BLOCK * a.stride;
  float best = -INFINITY;
  int bad = 0;
  for (int i = THREAD; i < a.vocab; i += THREADS) {
    if (!(row[i] < INFINITY)) bad = 1;
    best = fmaxf(best, row[i]);
  }
  best = block_max(bad ? INFINITY : best, scratch);
  if (!(best < INFINITY && best > -INFINITY)) {
    if (THREAD == 0) out[0] = -1.0f;
    return;
  }
  double sum = 0.0;
  for (int i = THREAD; i < a.vocab; i += THREADS) sum += (double)expf(row[i] - best);
  float log_sum = best + (float)log(block_total(sum, sums));
  // Weights: of all tokens by temperature, or of the largest logits alone.
  for (int i = THREAD; i < a.vocab; i += THREADS)
    weights[i] = draw.temperature > 0.0f ? expf((row[i] - best) / draw.temperature)
                                         : (row[i] == best ? 1.0f : 0.0f);
  BARRIER();
  double target = 0.0;
  if (draw.temperature > 0.0f) {
    double kept = mass_from(weights, a.vocab, 1, 0, sums);
    if (draw.top_k > 0 && draw.top_k < a.vocab) {
      unsigned int key = find_mass(weights, a.vocab, (double)draw.top_k, 0, 1, sums);
      double above = mass_from(weights, a.vocab, key + 1, 0, sums);
      double n_above = mass_from(weights, a.vocab, key + 1, 1, sums);
      above += (draw.top_k - n_above) * (double)float_of(key);
      if (above < kept) kept = above;
    }
    if (draw.min_p > 0.0f) {
      double above = mass_from(weights, a.vocab, bits_of(draw.min_p), 0, sums);
      if (above < kept) kept = above;
    }
    if (draw.top_p < 1.0f) {
      double wanted = draw.top_p * kept;
      unsigned int key = find_mass(weights, a.vocab, wanted, 0, 0, sums);
      double above = mass_from(weights, a.vocab, key + 1, 0, sums);
      double weight = float_of(key);
      if (weight > 0.0) {
        double n = ceil((wanted - above) / weight);
        above += (n < 1.0 ? 1.0 : n) * weight;
        if (above < kept) kept = above;
      }
    }
    // Rounding must not lead beyond what takes part.
    target = draw.uniform * kept;
    if (target > kept * (1.0 - 1e-12)) target = kept * (1.0 - 1e-12);
  }
  unsigned int key = find_mass(weights, a.vocab, target, 1, 0, sums);
  double above = mass_from(weights, a.vocab, key + 1, 0, sums);
  int n_before = (int)floor((target - above) / (double)float_of(key));
  // The token after so many of equal weight, by number: threads take parts
  // of the row in its order.
  int part = (a.vocab + THREADS - 1) / THREADS;
  int first = THREAD * part, last = first + part < a.vocab ? first + part : a.vocab;
  int n = 0;
  for (int i = first; i < last; i++) n += bits_of(weights[i]) == key;
  counts[THREAD] = n;
  if (THREAD == 0) found = -1;
  BARRIER();
  int all = 0, before = 0;
  for (int i = 0; i < THREADS; i++) {
    if (i < THREAD) before += counts[i];
    all += counts[i];
  }
  if (n_before < 0) n_before = 0;
  if (n_before > all - 1) n_before = all - 1;
  if (before <= n_before && n_before < before + n)
    for (int i = first; i < last; i++)
      if (bits_of(weights[i]) == key && before++ == n_before) found = i;
  BARRIER();
  int token = found;
  double likelier = 0.0;
  for (int i = THREAD; i < a.vocab; i += THREADS) likelier += row[i] > row[token];
  likelier = block_total(likelier, sums);
  if (THREAD == 0) {
    out[0] = (float)token;
    out[1] = (float)likelier + 1.0f;
    out[2] = row[token] - log_sum;
  }
  // The likeliest, one after the other.
  float bound = INFINITY;
  int bound_at = -1;
  for (int t = 0; t < draw.n_top; t++) {
    float top = -INFINITY;
    int at = a.vocab;
    for (int i = THREAD; i < a.vocab; i += THREADS)
      if ((row[i] < bound || (row[i] == bound && i > bound_at)) && (row[i] > top || at == a.vocab)) {
        top = row[i];
        at = i;
      }
    bound = block_max(top, scratch);
    counts[THREAD] = top == bound ? at : a.vocab;
    BARRIER();
    bound_at = a.vocab;
    for (int i = 0; i < THREADS; i++)
      if (counts[i] < bound_at) bound_at = counts[i];
    BARRIER();
    if (THREAD == 0) {
      out[3 + 2 * t] = (float)bound_at;
      out[4 + 2 * t] = bound - log_sum;
    }
  }
}

// Low-rank products of rows with an adapter each. An adapter's block is found in
// `blocks`: A [rank, d_in] and B [d_out, rank]; rank 0 where it has none. z has
// `z_stride` floats a row.
//
// Rows that stand alone are named by `items`: row and adapter (BGMV; Chen et
// al., 2023). Rows of a longer segment come in tiles of at most TILE: first row,
// number of rows, adapter (SGMV); a tile reads its adapter once. Which of the two
// takes a row depends on its segment only.
struct LoraBlock {
  const float *a;
  const float *b;
  int rank;
  float scale;
};
struct Lora {
  const float *x;
  const struct LoraBlock *blocks;
  const int *items;
  float *z;
  float *y;
  int d_in;
  int d_out;
  int y_stride;
  int z_stride;
  int block;
  int n_blocks;
};
#define TILE 16
// z = scale x A^T: groups of 32 threads take turns at the rows of A. One
// block a row.
KERNEL(bgmv_shrink, struct Lora) {
  SHARED float scratch[THREADS];
  long long row = a.items[2 * BLOCK];
  struct LoraBlock block = a.blocks[(long long)a.items[2 * BLOCK + 1] * a.n_blocks + a.block];
  const float *x = a.x + row * a.d_in;
  int group = THREAD / 32, lane = THREAD % 32;
  for (int from = 0; from < block.rank; from += THREADS / 32) {
    int r = from + group;
    float sum = 0.0f;
    if (r < block.rank)
      for (int i = lane; i < a.d_in; i += 32) sum += x[i] * block.a[(long long)r * a.d_in + i];
    scratch[THREAD] = sum;
    BARRIER();
    if (lane == 0 && r < block.rank) {
      for (int i = 1; i < 32; i++) sum += scratch[THREAD + i];
      a.z[row * a.z_stride + r] = block.scale * sum;
    }
    BARRIER();
  }
}
// y += z B^T; one block a row and THREADS outputs.
KERNEL(bgmv_expand, struct Lora) {
  long long row = a.items[2 * BLOCK];
  struct LoraBlock block = a.blocks[(long long)a.items[2 * BLOCK + 1] * a.n_blocks + a.block];
  int o = BLOCK_Y * THREADS + THREAD;
  if (o >= a.d_out || block.rank == 0) return;
  const float *z = a.z + row * a.z_stride;
  const float *b = block.b + (long long)o * block.rank;
  float sum = 0.0f;
  for (int r = 0; r < block.rank; r++) sum += z[r] * b[r];
  a.y[row * a.y_stride + o] += sum;
}
// z = scale x A^T of a tile and 32 rows of A: each thread one row of A and four
// rows of x.
KERNEL(sgmv_shrink, struct Lora) {
  SHARED float xs[TILE * 32];
  SHARED float as[32 * 33];
  int first = a.items[3 * BLOCK], count = a.items[3 * BLOCK + 1];
  struct LoraBlock block = a.blocks[(long long)a.items[3 * BLOCK + 2] * a.n_blocks + a.block];
  int ranks = BLOCK_Y * 32;
  if (ranks >= block.rank) return;
  int r = THREAD % 32, group = THREAD / 32 * 4;
  float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (int from = 0; from < a.d_in; from += 32) {
    for (int i = THREAD; i < TILE * 32; i += THREADS) {
      int row = i / 32, k = from + i % 32;
      xs[i] = row < count && k < a.d_in ? a.x[(long long)(first + row) * a.d_in + k] : 0.0f;
    }
    for (int i = THREAD; i < 32 * 32; i += THREADS) {
      int row = ranks + i / 32, k = from + i % 32;
      as[i / 32 * 33 + i % 32] =
          row < block.rank && k < a.d_in ? block.a[(long long)row * a.d_in + k] : 0.0f;
    }
    BARRIER();
    for (int k = 0; k < 32; k++)
      for (int j = 0; j < 4; j++) sum[j] += xs[(group + j) * 32 + k] * as[r * 33 + k];
    BARRIER();
  }
  for (int j = 0; j < 4; j++)
    if (group + j < count && ranks + r < block.rank)
      a.z[(long long)(first + group + j) * a.z_stride + ranks + r] = block.scale * sum[j];
}
// y += z B^T of a tile; one block a tile and THREADS outputs.
KERNEL(sgmv_expand, struct Lora) {
  SHARED float zs[TILE * 32];
  int first = a.items[3 * BLOCK], count = a.items[3 * BLOCK + 1];
  struct LoraBlock block = a.blocks[(long long)a.items[3 * BLOCK + 2] * a.n_blocks + a.block];
  int o = BLOCK_Y * THREADS + THREAD;
  float sum[TILE];
  for (int j = 0; j < TILE; j++) sum[j] = 0.0f;
  for (int from = 0; from < block.rank; from += 32) {
    int width = block.rank - from < 32 ? block.rank - from : 32;
    for (int i = THREAD; i < TILE * 32; i += THREADS) {
      int row = i / 32, r = i % 32;
      zs[i] = row < count && r < width ? a.z[(long long)(first + row) * a.z_stride + from + r] : 0.0f;
    }
    BARRIER();
    if (o < a.d_out)
      for (int r = 0; r < width; r++) {
        float b = block.b[(long long)o * block.rank + from + r];
        for (int j = 0; j < TILE; j++) sum[j] += zs[j * 32 + r] * b;
      }
    BARRIER();
  }
  if (o < a.d_out)
    for (int j = 0; j < TILE; j++)
      if (j < count) a.y[(long long)(first + j) * a.y_stride + o] += sum[j];
}
