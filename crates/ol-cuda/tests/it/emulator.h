// A CUDA block on one CPU thread: every thread of the block is a coroutine, a
// barrier passes control to the next. For tests: slow, and exact about what
// each thread does between two barriers.
#ifndef EMULATOR_H
#define EMULATOR_H
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

static int emulated_thread, emulated_block, emulated_block_y;
static jmp_buf emulated_threads[THREADS], emulated_scheduler;
static int emulated_done[THREADS];
static void (*emulated_body)(const void *);
static const void *emulated_arguments;

static void emulated_barrier(void) {
  if (!_setjmp(emulated_threads[emulated_thread])) _longjmp(emulated_scheduler, 1);
}

// A coroutine lives as long as the process and runs its thread of one block
// after the other: contexts only start them, and jumps need no system call.
static void emulated_entry(void) {
  for (;;) {
    emulated_body(emulated_arguments);
    emulated_done[emulated_thread] = 1;
    emulated_barrier();
  }
}

static void emulated_resume(char *stack, size_t size) {
  static int started[THREADS];
  if (_setjmp(emulated_scheduler)) return;
  if (started[emulated_thread]) _longjmp(emulated_threads[emulated_thread], 1);
  started[emulated_thread] = 1;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = size;
  context.uc_link = 0;
  makecontext(&context, emulated_entry, 0);
  setcontext(&context);
}

// Runs the blocks one after another. Returns 0, or 1 if some threads of a
// block waited at a barrier that the others had left without.
static int emulate(void (*body)(const void *), const void *arguments, int blocks, int blocks_y) {
  enum { STACK = 64 * 1024 };
  static char *stacks;
  if (!stacks) stacks = malloc((size_t)THREADS * STACK);
  emulated_body = body;
  emulated_arguments = arguments;
  for (emulated_block_y = 0; emulated_block_y < blocks_y; emulated_block_y++)
    for (emulated_block = 0; emulated_block < blocks; emulated_block++) {
      memset(emulated_done, 0, sizeof emulated_done);
      for (int running = THREADS; running > 0;) {
        int ended = 0;
        for (emulated_thread = 0; emulated_thread < THREADS; emulated_thread++) {
          if (emulated_done[emulated_thread]) continue;
          emulated_resume(stacks + (size_t)emulated_thread * STACK, STACK);
          ended += emulated_done[emulated_thread];
        }
        if (ended != 0 && ended != running) return 1;
        running -= ended;
      }
    }
  return 0;
}

#define KERNEL(name, type)                                                   \
  static void name##_body(const type a);                                     \
  static void name##_thread(const void *p) {                                 \
    type a;                                                                  \
    memcpy(&a, p, sizeof a);                                                 \
    name##_body(a);                                                          \
  }                                                                          \
  int name(const void *p, int blocks, int blocks_y) {                        \
    return emulate(name##_thread, p, blocks, blocks_y);                      \
  }                                                                          \
  static void name##_body(const type a)
#define DEVICE static inline
#define SHARED static
#define BARRIER() emulated_barrier()
#define THREAD emulated_thread
#define BLOCK emulated_block
#define BLOCK_Y emulated_block_y
#endif
