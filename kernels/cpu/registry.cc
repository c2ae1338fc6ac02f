// Compiled once, for the baseline of the architecture: it must run on every CPU.
#include "registry.h"

#include <string.h>

extern "C" {

#if defined(__x86_64__)
extern const nir_kernel_entry nir_kernels_avx512[];
extern const nir_kernel_entry nir_kernels_avx2[];
#endif
extern const nir_kernel_entry nir_kernels_plain[];

static const struct {
  const char *isa;
  const nir_kernel_entry *kernels;
} kLevels[] = {
#if defined(__x86_64__)
    {"avx512", nir_kernels_avx512},
    {"avx2", nir_kernels_avx2},
#endif
    {"plain", nir_kernels_plain},
};
static const int kLevelCount = sizeof(kLevels) / sizeof(kLevels[0]);

int nir_has_isa(const char *isa) {
  if (!strcmp(isa, "plain")) return 1;
#if defined(__x86_64__)
  // The builtin reads cpuid and checks that the operating system saves the registers.
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (!strcmp(isa, "avx2")) return avx2;
  if (!strcmp(isa, "avx512"))
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return 0;
}

const char *nir_best_isa(void) {
  for (int i = 0; i < kLevelCount; ++i)
    if (nir_has_isa(kLevels[i].isa)) return kLevels[i].isa;
  return "plain";
}

const char *nir_isa_name(int i) { return i >= 0 && i < kLevelCount ? kLevels[i].isa : nullptr; }

const nir_kernel_entry *nir_kernel_table(const char *isa) {
  for (int i = 0; i < kLevelCount; ++i)
    if (!strcmp(kLevels[i].isa, isa)) return kLevels[i].kernels;
  return nullptr;
}

nir_kernel_fn nir_find_kernel(const char *name, const char *isa) {
  const nir_kernel_entry *kernels = nir_kernel_table(isa);
  for (; kernels && kernels->name; ++kernels)
    if (!strcmp(kernels->name, name)) return kernels->fn;
  return nullptr;
}

}  // extern "C"
