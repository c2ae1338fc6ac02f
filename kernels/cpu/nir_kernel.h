// The one calling convention of nir's CPU kernels: generated loops, hand-written kernels,
// epilogues, just-in-time and ahead-of-time code all share it. Plain C, so that any host can call it.
#ifndef NIR_KERNEL_H
#define NIR_KERNEL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct nir_ctx nir_ctx;

// Computes the output rows [r0, r1) and columns [c0, c1) of its iteration space.
//   ptrs  operand and result buffers, in the order of the call's arguments
//   dims  sizes, strides and integer attributes; floats travel as the bits of a double
// A kernel never allocates, never throws, and gives bit-equal results however its range is split.
// Returns 0, or a code of enum nir_status; then ctx->detail may hold a value for the message.
typedef int32_t (*nir_kernel_fn)(nir_ctx *ctx, void *const *ptrs, const int64_t *dims,
                                 int64_t r0, int64_t r1, int64_t c0, int64_t c1);

enum nir_status {
  NIR_OK = 0,
  NIR_INDEX_OUT_OF_RANGE = 1,  // detail[0] = the index, detail[1] = the size of the axis
  NIR_UNSUPPORTED = 2,         // a combination that the target's table must not have chosen
  // 3 is the runtime's own: an error kept by a host function
  NIR_INDEX_NOT_BELOW = 4  // the same for an index that must not be negative
};

// What one thread lends to one kernel call.
struct nir_ctx {
  void *scratch;            // 64-byte aligned, at least the call's scratch bytes, not cleared
  nir_kernel_fn epilogue;   // NULL, or called on each finished output tile while it is hot in cache:
                            // epilogue(ctx, epilogue_ptrs, epilogue_dims, r0, r1, c0, c1) with the
                            // tile's range in the same row x column space as the kernel's own
  void *const *epilogue_ptrs;
  const int64_t *epilogue_dims;
  int64_t detail[2];
};

#ifdef __cplusplus
}
#endif
#endif  // NIR_KERNEL_H
