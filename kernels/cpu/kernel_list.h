// Every hand-written CPU kernel, by its name without "nir_" and ISA suffix. The tables, the
// declarations and the tests are made from this one list.
#define NIR_FLOATS(X, op) X(op##_f32) X(op##_f64)
#define NIR_NUMBERS(X, op) NIR_FLOATS(X, op) X(op##_i32) X(op##_i64)
// By how the right operand lies in memory.
#define NIR_MATMUL(X, dtype) \
  X(matmul_##dtype##_packed) X(matmul_##dtype##_rows) X(matmul_##dtype##_cols)
// By element size, for kernels that only move elements.
#define NIR_BITS(X, op) X(op##_b8) X(op##_b16) X(op##_b32) X(op##_b64)
// With an index dtype behind.
#define NIR_INDEXED(X, op) X(op##_i32) X(op##_i64)
#define NIR_MOVES_INDEXED(X, op) \
  NIR_INDEXED(X, op##_b8) NIR_INDEXED(X, op##_b16) NIR_INDEXED(X, op##_b32) NIR_INDEXED(X, op##_b64)
#define NIR_NUMBERS_INDEXED(X, op) \
  NIR_INDEXED(X, op##_f32)         \
  NIR_INDEXED(X, op##_f64) NIR_INDEXED(X, op##_i32) NIR_INDEXED(X, op##_i64)
// Every dtype; bool is u8.
#define NIR_ALL(X, op) \
  NIR_NUMBERS(X, op) X(op##_f16) X(op##_bf16) X(op##_i16) X(op##_i8) X(op##_u8)

// clang-format off
#define NIR_KERNELS(X)                        \
  NIR_NUMBERS(X, pack_b)                      \
  NIR_MATMUL(X, f32) NIR_MATMUL(X, f64)       \
  NIR_MATMUL(X, i32) NIR_MATMUL(X, i64)       \
  NIR_FLOATS(X, conv2d)                       \
  NIR_FLOATS(X, conv2d_planar)                \
  NIR_FLOATS(X, conv2d_winograd)              \
  NIR_FLOATS(X, conv2d_winograd_weight_grad)  \
  NIR_FLOATS(X, pack_winograd)                \
  NIR_FLOATS(X, conv2d_input_grad)            \
  NIR_FLOATS(X, conv2d_weight_grad)           \
  NIR_FLOATS(X, conv2d_depthwise)             \
  NIR_FLOATS(X, conv2d_depthwise_input_grad)  \
  NIR_FLOATS(X, conv2d_depthwise_weight_grad) \
  NIR_NUMBERS(X, max_pool2d)                  \
  NIR_NUMBERS(X, max_pool2d_select)           \
  NIR_NUMBERS(X, max_pool2d_grad)             \
  NIR_FLOATS(X, avg_pool2d)                   \
  NIR_FLOATS(X, avg_pool2d_grad)              \
  NIR_INDEXED(X, check_index)                 \
  NIR_MOVES_INDEXED(X, take)                  \
  NIR_MOVES_INDEXED(X, take_along)            \
  NIR_MOVES_INDEXED(X, put)                   \
  NIR_NUMBERS_INDEXED(X, scatter_add)         \
  NIR_NUMBERS_INDEXED(X, scatter_add_along)   \
  NIR_NUMBERS(X, cumsum)                      \
  NIR_NUMBERS(X, argmax) X(argmax_u8)         \
  NIR_NUMBERS(X, argmin) X(argmin_u8)         \
  NIR_ALL(X, sort)                            \
  NIR_ALL(X, top_k)                           \
  X(attention_f32) X(attention_few_f32)       \
  X(attention_grad_f32)                       \
  X(random_bits_i32)                          \
  NIR_BITS(X, copy)                           \
  NIR_BITS(X, pad)                            \
  NIR_BITS(X, fill)                           \
  X(concat_bytes)
// clang-format on
