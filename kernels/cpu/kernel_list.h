// Every hand-written CPU kernel, by its name without "nir_" and ISA suffix. The tables, the
// declarations and the tests are made from this one list.
#define NIR_FLOATS(X, op) X(op##_f32) X(op##_f64)
#define NIR_NUMBERS(X, op) X(op##_f32) X(op##_f64) X(op##_i32) X(op##_i64)

// clang-format off
#define NIR_KERNELS(X)                                                                         \
  NIR_NUMBERS(X, pack_b)                                                                       \
  X(matmul_f32_packed) X(matmul_f64_packed) X(matmul_i32_packed) X(matmul_i64_packed)          \
  X(matmul_f32_rows) X(matmul_f64_rows) X(matmul_i32_rows) X(matmul_i64_rows)          \
  NIR_FLOATS(X, conv2d) NIR_FLOATS(X, conv2d_input_grad) NIR_FLOATS(X, conv2d_weight_grad)     \
  NIR_FLOATS(X, conv2d_depthwise) NIR_FLOATS(X, conv2d_depthwise_input_grad)                   \
  NIR_FLOATS(X, conv2d_depthwise_weight_grad)
// clang-format on
