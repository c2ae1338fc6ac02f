// Looks up hand-written kernels by name and ISA level, and says what this CPU runs. Plain C.
#ifndef NIR_REGISTRY_H
#define NIR_REGISTRY_H

#include "nir_kernel.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  const char *name;  // without ISA suffix: "nir_matmul_f32_packed"
  nir_kernel_fn fn;
} nir_kernel_entry;

// The kernel `name` built for `isa` ("avx512", "avx2", "plain"), or NULL if there is none.
nir_kernel_fn nir_find_kernel(const char *name, const char *isa);

// The best level that this CPU and its operating system run.
const char *nir_best_isa(void);

// 1 if this CPU runs code of level `isa`, else 0 (also for an unknown level).
int nir_has_isa(const char *isa);

// The i-th level built into this library, best first, or NULL past the last.
const char *nir_isa_name(int i);

// The table of a level, ended by a NULL name; NULL for an unknown level.
const nir_kernel_entry *nir_kernel_table(const char *isa);

#ifdef __cplusplus
}
#endif
#endif  // NIR_REGISTRY_H
