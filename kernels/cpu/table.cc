// The table of one ISA level: kernel names and functions.
#include "kernel_list.h"
#include "registry.h"
#include "simd.h"

extern "C" {
#define DECLARE(name)                                                                            \
  int32_t NIR_SYMBOL(name)(nir_ctx *, void *const *, const int64_t *, int64_t, int64_t, int64_t, \
                           int64_t);
NIR_KERNELS(DECLARE)

#define ENTRY(name) {"nir_" #name, NIR_SYMBOL(name)},
extern const nir_kernel_entry NIR_CAT(nir_kernels_, NIR_ISA)[];
const nir_kernel_entry NIR_CAT(nir_kernels_, NIR_ISA)[] = {NIR_KERNELS(ENTRY){nullptr, nullptr}};
}
