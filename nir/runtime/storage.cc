#include "storage.h"

#include <pybind11/numpy.h>

#include <cstring>
#include <memory>

#include "dlpack.h"

namespace py = pybind11;

namespace nir {

namespace {

constexpr int64_t kMaxBytes = int64_t{1} << 46;

int64_t size_of(const TensorRef &t) {
  int64_t n = 1;
  for (uint8_t i = 0; i < t.rank; ++i) n = checked_mul(n, t.shape[i]);
  return n;
}

void set_shape(TensorRef *t, const py::sequence &shape) {
  if (shape.size() > kMaxRank)
    throw Error(ErrorKind::kShape, "a tensor of rank " + std::to_string(shape.size()) +
                                       "; the limit is " + std::to_string(kMaxRank));
  t->rank = static_cast<uint8_t>(shape.size());
  for (uint8_t i = 0; i < t->rank; ++i) {
    t->shape[i] = shape[i].cast<int64_t>();
    if (t->shape[i] < 0)
      throw Error(ErrorKind::kShape, "a size is negative: " + std::to_string(t->shape[i]));
  }
}

int64_t bytes_of(const TensorRef &t) { return checked_mul(size_of(t), kDTypes[t.dtype].itemsize); }

int64_t checked_bytes(const TensorRef &t, const py::object &given) {
  const int64_t n = given.is_none() ? bytes_of(t) : given.cast<int64_t>();
  if (n < 0 || n > kMaxBytes)
    throw Error(ErrorKind::kMemory, "cannot allocate " + std::to_string(n) + " bytes");
  if (t.layout.empty() && n < bytes_of(t))
    throw Error(ErrorKind::kShape, describe(t) + " takes " + std::to_string(bytes_of(t)) +
                                       " bytes, got " + std::to_string(n));
  return n;
}

std::unique_ptr<Storage> empty(const std::string &dtype, const py::sequence &shape,
                               const std::string &layout, const py::object &nbytes) {
  auto s = std::make_unique<Storage>();
  s->tensor.dtype = dtype_code(dtype);
  s->tensor.layout = layout;
  set_shape(&s->tensor, shape);
  s->tensor.block = acquire_block(static_cast<size_t>(checked_bytes(s->tensor, nbytes)));
  s->tensor.data = s->tensor.block->data;
  return s;
}

void drop_object(void *owner) {
  // A run may end on a thread without the interpreter's lock.
  if (!Py_IsInitialized()) return;
  py::gil_scoped_acquire gil;
  Py_DECREF(static_cast<PyObject *>(owner));
}

std::unique_ptr<Storage> wrap(uintptr_t address, const std::string &dtype,
                              const py::sequence &shape, const py::object &owner, bool readonly,
                              const std::string &layout, const py::object &nbytes) {
  auto s = std::make_unique<Storage>();
  s->tensor.dtype = dtype_code(dtype);
  s->tensor.layout = layout;
  set_shape(&s->tensor, shape);
  const int64_t bytes = checked_bytes(s->tensor, nbytes);
  s->tensor.data = reinterpret_cast<uint8_t *>(address);
  s->tensor.block =
      foreign_block(s->tensor.data, static_cast<size_t>(bytes), drop_object, owner.inc_ref().ptr());
  s->readonly = readonly;
  return s;
}

// Another Storage on the same block.
std::unique_ptr<Storage> view(const Storage &s, const py::object &shape) {
  auto out = std::make_unique<Storage>();
  out->tensor = s.live();
  out->readonly = s.readonly;
  if (!shape.is_none()) {
    set_shape(&out->tensor, py::reinterpret_borrow<py::sequence>(shape));
    if (bytes_of(out->tensor) != bytes_of(s.tensor))
      throw Error(ErrorKind::kShape, "cannot view " + describe(s.tensor) + " as " +
                                         describe(out->tensor) + ": the sizes differ");
  }
  return out;
}

py::tuple shape_tuple(const TensorRef &t) {
  py::tuple out(t.rank);
  for (uint8_t i = 0; i < t.rank; ++i) out[i] = py::int_(t.shape[i]);
  return out;
}

py::dtype numpy_dtype(uint8_t code) {
  // numpy itself has no bfloat16; the package that adds it is loaded only when one is shown.
  if (code == kBF16) return py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16"));
  return py::dtype(std::string(kDTypes[code].numpy));
}

py::array to_numpy(const Storage &s, const py::object &dtype, const py::object &shape,
                   bool writable) {
  TensorRef t = s.live();
  if (!t.layout.empty())
    throw Error(ErrorKind::kUnsupported, describe(t) + " has a packed layout; numpy has none");
  if (!shape.is_none()) {
    set_shape(&t, py::reinterpret_borrow<py::sequence>(shape));
    if (size_of(t) != size_of(s.tensor))
      throw Error(ErrorKind::kShape, "cannot view " + describe(s.tensor) + " as " + describe(t));
  }
  const py::dtype type = dtype.is_none() ? numpy_dtype(t.dtype) : py::dtype::from_args(dtype);
  if (type.itemsize() != kDTypes[t.dtype].itemsize)
    throw Error(ErrorKind::kDType, "a numpy dtype of another size than " + describe(t));
  auto *held = new BlockRef(t.block);
  py::capsule base(held, [](void *p) { delete static_cast<BlockRef *>(p); });
  std::vector<ssize_t> sizes(t.shape.begin(), t.shape.begin() + t.rank);
  py::array out(type, sizes, t.data, base);
  if (s.readonly || !writable)
    py::detail::array_proxy(out.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  return out;
}

// All bytes of a tensor, whatever their layout; `bytes` is how many its type takes.
py::bytes raw_bytes(const Storage &s, size_t bytes) {
  const TensorRef &t = s.live();
  const auto skipped = static_cast<size_t>(t.data - t.block->data);
  if (skipped > t.block->capacity || bytes > t.block->capacity - skipped)
    throw Error(ErrorKind::kShape, describe(t) + " has fewer than " + std::to_string(bytes) +
                                       " bytes");
  return {reinterpret_cast<const char *>(t.data), bytes};
}

uint8_t dtype_of(const py::dtype &d) {
  // By kind and size where that says it, since asking numpy for a name runs Python.
  const char order = d.byteorder();
  if (order == '=' || order == '|')
    for (uint8_t k = 0; k < kDTypeCount; ++k)
      if (d.kind() == kDTypes[k].numpy[0] && d.itemsize() == kDTypes[k].itemsize) return k;
  const auto name = d.attr("name").cast<std::string>();
  for (uint8_t k = 0; k < kDTypeCount; ++k)
    if (name == kDTypes[k].numpy && d.attr("isnative").cast<bool>()) return k;
  throw Error(ErrorKind::kDType, "no nir dtype for numpy's " + py::str(d).cast<std::string>());
}

std::unique_ptr<Storage> from_numpy(const py::object &given, bool copy) {
  py::array a = py::array::ensure(given, py::array::c_style);
  if (!a) throw py::error_already_set();
  auto s = std::make_unique<Storage>();
  TensorRef &t = s->tensor;
  t.dtype = dtype_of(a.dtype());
  if (a.ndim() > static_cast<ssize_t>(kMaxRank)) set_shape(&t, a.attr("shape"));  // refuses
  t.rank = static_cast<uint8_t>(a.ndim());
  std::copy_n(a.shape(), a.ndim(), t.shape.begin());
  const auto bytes = static_cast<size_t>(a.nbytes());
  auto *data = static_cast<uint8_t *>(const_cast<void *>(a.data()));
  if (copy) {
    t.block = acquire_block(bytes);
    t.data = t.block->data;
    if (bytes) std::memcpy(t.data, data, bytes);
  } else {
    s->readonly = !a.writeable();
    t.data = data;
    t.block = foreign_block(data, bytes, drop_object, a.inc_ref().ptr());
  }
  return s;
}

// ---- the buffer protocol ------------------------------------------------------------------------

struct BufferExport {
  BlockRef block;
  Py_ssize_t shape[kMaxRank];
  Py_ssize_t strides[kMaxRank];
};

int get_buffer(PyObject *self, Py_buffer *out, int flags) {
  out->obj = nullptr;
  try {
    const auto &s = py::cast<const Storage &>(py::handle(self));
    const TensorRef &t = s.live();
    const DTypeInfo &info = kDTypes[t.dtype];
    if (!t.layout.empty() || !info.format) {
      PyErr_Format(PyExc_BufferError, "%s has no form in the buffer protocol", describe(t).c_str());
      return -1;
    }
    if (s.readonly && (flags & PyBUF_WRITABLE)) {
      PyErr_SetString(PyExc_BufferError, "the memory is read-only");
      return -1;
    }
    auto held = std::make_unique<BufferExport>();
    held->block = t.block;
    Py_ssize_t stride = info.itemsize;
    for (int i = t.rank; i-- > 0;) {
      held->shape[i] = static_cast<Py_ssize_t>(t.shape[static_cast<size_t>(i)]);
      held->strides[i] = stride;
      stride *= held->shape[i];
    }
    *out = Py_buffer{};
    out->buf = t.data;
    out->len = bytes_of(t);
    out->readonly = s.readonly;
    out->itemsize = info.itemsize;
    out->format = (flags & PyBUF_FORMAT) ? const_cast<char *>(info.format) : nullptr;
    out->ndim = (flags & PyBUF_ND) ? t.rank : 1;
    out->shape = (flags & PyBUF_ND) ? held->shape : nullptr;
    out->strides = (flags & PyBUF_STRIDES) == PyBUF_STRIDES ? held->strides : nullptr;
    out->internal = held.release();
    out->obj = py::handle(self).inc_ref().ptr();
    return 0;
  } catch (const std::exception &e) {
    PyErr_SetString(PyExc_BufferError, e.what());
    return -1;
  }
}

void release_buffer(PyObject *, Py_buffer *view) {
  delete static_cast<BufferExport *>(view->internal);
}

// ---- DLPack -------------------------------------------------------------------------------------

struct DlpackExport {
  BlockRef block;
  int64_t shape[kMaxRank];
  int64_t strides[kMaxRank];
  union {
    DLManagedTensor plain;
    DLManagedTensorVersioned versioned;
  };
  DlpackExport() : versioned{} {}
};

template <class Managed>
void delete_export(Managed *managed) {
  delete static_cast<DlpackExport *>(managed->manager_ctx);
}

template <class Managed>
void drop_capsule(PyObject *capsule, const char *name) {
  // A consumer renames the capsule that it takes over; this one was not taken.
  if (!PyCapsule_IsValid(capsule, name)) return;
  auto *managed = static_cast<Managed *>(PyCapsule_GetPointer(capsule, name));
  managed->deleter(managed);
}

py::object to_dlpack(const Storage &s, const py::object &stream, const py::object &max_version,
                     const py::object &device, const py::object &copy) {
  const TensorRef &t = s.live();
  if (!stream.is_none()) throw py::buffer_error("a CPU tensor takes no stream");
  if (!t.layout.empty()) throw py::buffer_error("a packed layout has no form in DLPack");
  if (!device.is_none() && device.cast<std::pair<int, int>>() != std::make_pair(1, 0))
    throw py::buffer_error("only device (1, 0), the CPU, is there");
  if (!copy.is_none() && copy.cast<bool>()) throw py::buffer_error("copy=True is not supported");
  const bool versioned =
      !max_version.is_none() && max_version.cast<std::pair<int, int>>().first >= 1;
  if (s.readonly && !versioned) throw py::buffer_error("the memory is read-only");

  auto e = std::make_unique<DlpackExport>();
  e->block = t.block;
  int64_t stride = 1;
  for (size_t i = t.rank; i-- > 0;) {
    e->shape[i] = t.shape[i];
    e->strides[i] = stride;
    stride *= t.shape[i];
  }
  const DTypeInfo &info = kDTypes[t.dtype];
  DLTensor tensor{};
  tensor.data = t.data;
  tensor.device = {1, 0};
  tensor.ndim = t.rank;
  tensor.dtype = {info.dlpack_code, static_cast<uint8_t>(info.itemsize * 8), 1};
  tensor.shape = e->shape;
  tensor.strides = e->strides;
  PyObject *capsule;
  if (versioned) {
    e->versioned = {{1, 0},
                    e.get(),
                    delete_export<DLManagedTensorVersioned>,
                    s.readonly ? kDLPackReadOnly : 0,
                    tensor};
    capsule = PyCapsule_New(&e->versioned, "dltensor_versioned", [](PyObject *c) {
      drop_capsule<DLManagedTensorVersioned>(c, "dltensor_versioned");
    });
  } else {
    e->plain = {tensor, e.get(), delete_export<DLManagedTensor>};
    capsule = PyCapsule_New(&e->plain, "dltensor",
                            [](PyObject *c) { drop_capsule<DLManagedTensor>(c, "dltensor"); });
  }
  if (!capsule) throw py::error_already_set();
  e.release();
  return py::reinterpret_steal<py::object>(capsule);
}

template <class Managed>
void release_managed(void *managed) {
  if (!Py_IsInitialized()) return;
  py::gil_scoped_acquire gil;  // producers written in Python expect it
  auto *m = static_cast<Managed *>(managed);
  if (m->deleter) m->deleter(m);
}

template <class Managed>
std::unique_ptr<Storage> adopt(PyObject *capsule, const char *name, const char *used,
                               bool readonly) {
  auto *managed = static_cast<Managed *>(PyCapsule_GetPointer(capsule, name));
  if (!managed) throw py::error_already_set();
  const DLTensor &d = managed->dl_tensor;
  const auto refuse = [](const std::string &why) { throw py::buffer_error("DLPack: " + why); };
  if (d.device.type != 1) refuse("expected a tensor in the CPU's memory");
  if (d.ndim < 0 || d.ndim > static_cast<int>(kMaxRank)) refuse("its rank is above 16");
  auto s = std::make_unique<Storage>();
  TensorRef &t = s->tensor;
  t.dtype = kDTypeCount;
  for (uint8_t k = 0; k < kDTypeCount; ++k)
    if (kDTypes[k].dlpack_code == d.dtype.code && kDTypes[k].itemsize * 8 == d.dtype.bits &&
        d.dtype.lanes == 1)
      t.dtype = k;
  if (t.dtype == kDTypeCount) refuse("nir has no such dtype");
  t.rank = static_cast<uint8_t>(d.ndim);
  int64_t stride = 1;
  bool dense = true;
  for (size_t i = t.rank; i-- > 0;) {
    t.shape[i] = d.shape[i];
    if (d.strides && d.shape[i] != 1) dense &= d.strides[i] == stride;
    stride *= d.shape[i];
  }
  if (!dense && stride != 0) refuse("expected a dense row-major tensor");
  t.data = static_cast<uint8_t *>(d.data) + d.byte_offset;
  s->readonly = readonly;
  t.block =
      foreign_block(t.data, static_cast<size_t>(bytes_of(t)), release_managed<Managed>, managed);
  PyCapsule_SetName(capsule, used);
  return s;
}

std::unique_ptr<Storage> from_dlpack(const py::capsule &capsule) {
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    auto *m = static_cast<DLManagedTensorVersioned *>(
        PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    if (m->version.major != 1) throw py::buffer_error("DLPack: expected version 1");
    return adopt<DLManagedTensorVersioned>(capsule.ptr(), "dltensor_versioned",
                                           "used_dltensor_versioned", m->flags & kDLPackReadOnly);
  }
  return adopt<DLManagedTensor>(capsule.ptr(), "dltensor", "used_dltensor", false);
}

}  // namespace

const TensorRef &Storage::live() const {
  if (!tensor.block)
    throw Error(ErrorKind::kStale, describe(tensor) + ": its buffer was donated to a run");
  return tensor;
}

int64_t Storage::elements() const { return size_of(tensor); }

void bind_storage(py::module_ &m) {
  py::class_<Storage>(m, "Storage", py::custom_type_setup([](PyHeapTypeObject *heap) {
                        heap->as_buffer.bf_getbuffer = get_buffer;
                        heap->as_buffer.bf_releasebuffer = release_buffer;
                        heap->ht_type.tp_as_buffer = &heap->as_buffer;
                      }),
                      "A dense tensor in memory, reference-counted and 64-byte aligned.")
      .def_static("empty", &empty, py::arg("dtype"), py::arg("shape"), py::arg("layout") = "",
                  py::arg("nbytes") = py::none(),
                  "A new storage from the recycling pool; its bytes are arbitrary.")
      .def_static("wrap", &wrap, py::arg("address"), py::arg("dtype"), py::arg("shape"),
                  py::arg("owner"), py::arg("readonly") = false, py::arg("layout") = "",
                  py::arg("nbytes") = py::none(),
                  "Memory of `owner`, which is kept alive; never overwritten by a run.")
      .def_static("from_dlpack", &from_dlpack, py::arg("capsule"),
                  "Takes over a DLPack capsule of a dense CPU tensor.")
      .def("view", &view, py::arg("shape") = py::none(),
           "Another Storage on the same memory, possibly of another shape.")
      .def_static("from_numpy", &from_numpy, py::arg("array"), py::arg("copy") = true,
                  "The elements of an array; without a copy the array's own memory where it is "
                  "dense, which no run overwrites.")
      .def("raw_bytes", &raw_bytes, py::arg("bytes"),
           "The bytes of the buffer in the tensor's own layout.")
      .def("numpy", &to_numpy, py::arg("dtype") = py::none(), py::arg("shape") = py::none(),
           py::arg("writable") = true, "A numpy array on the same memory; it counts as a view.")
      .def(
          "__array__",
          [](const Storage &s, const py::object &dtype, const py::object &copy) {
            py::array out = to_numpy(s, py::none(), py::none(), true);
            if (!dtype.is_none() && !out.dtype().is(py::dtype::from_args(dtype))) {
              if (!copy.is_none() && !copy.cast<bool>())
                throw py::value_error("another dtype needs a copy");
              return py::array(out.attr("astype")(dtype));
            }
            const bool wanted = !copy.is_none() && copy.cast<bool>();
            return wanted ? py::array(out.attr("copy")()) : out;
          },
          py::arg("dtype") = py::none(), py::arg("copy") = py::none())
      .def(
          "drop", [](Storage &s) { s.tensor.block.reset(); },
          "Gives the memory up; the Storage is stale afterwards.")
      .def("__dlpack__", &to_dlpack, py::kw_only(), py::arg("stream") = py::none(),
           py::arg("max_version") = py::none(), py::arg("dl_device") = py::none(),
           py::arg("copy") = py::none())
      .def("__dlpack_device__", [](const Storage &) { return std::make_pair(1, 0); })
      .def("__repr__",
           [](const Storage &s) {
             return "Storage(" + describe(s.tensor) + (s.tensor.block ? ")" : ", stale)");
           })
      .def_property_readonly("dtype", [](const Storage &s) { return kDTypes[s.tensor.dtype].name; })
      .def_property_readonly("shape", [](const Storage &s) { return shape_tuple(s.tensor); })
      .def_property_readonly("layout", [](const Storage &s) { return s.tensor.layout; })
      .def_property_readonly("readonly", [](const Storage &s) { return s.readonly; })
      .def_property_readonly("nbytes",
                             [](const Storage &s) {
                               return s.tensor.layout.empty()
                                          ? bytes_of(s.tensor)
                                          : static_cast<int64_t>(s.live().block->capacity);
                             })
      .def_property_readonly(
          "address", [](const Storage &s) { return reinterpret_cast<uintptr_t>(s.live().data); })
      .def_property_readonly("stale", [](const Storage &s) { return !s.tensor.block; })
      .def_property_readonly(
          "views", [](const Storage &s) { return s.live().block->refs.load() - 1; },
          "Views of the memory besides this Storage.");
}

}  // namespace nir
