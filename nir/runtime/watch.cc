#include "watch.h"

#include <memory>
#include <vector>

namespace py = pybind11;

namespace nir {

namespace {

class Watch {
 public:
  // `owners` are objects whose class must stay, `maps` dicts and `lists` lists whose elements must.
  Watch(const py::list &owners, const py::list &maps, const py::list &lists)
      : owners_(owners), maps_(maps), lists_(lists) {
    for (const py::handle o : owners_) held_.push_back(type_of(o));
    visit([this](PyObject *x) {
      held_.push_back(py::reinterpret_borrow<py::object>(x));
      return true;
    });
  }

  // Whether classes, keys, values and elements are the same objects in the same order.
  bool same() const {
    size_t at = 0;
    for (const py::handle o : owners_)
      if (held_[at++].ptr() != reinterpret_cast<PyObject *>(Py_TYPE(o.ptr()))) return false;
    const bool equal =
        visit([&](PyObject *x) { return at < held_.size() && held_[at++].ptr() == x; });
    return equal && at == held_.size();
  }

 private:
  static py::object type_of(py::handle o) {
    return py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject *>(Py_TYPE(o.ptr())));
  }

  // `f` on each key, value and element, while it says true. A container's own object comes before
  // its elements, so that one that grows cannot pass for the next one's start.
  template <class F>
  bool visit(const F &f) const {
    for (const py::handle m : maps_) {
      if (!f(m.ptr())) return false;
      PyObject *key, *value;
      Py_ssize_t at = 0;
      while (PyDict_Next(m.ptr(), &at, &key, &value))
        if (!f(key) || !f(value)) return false;
    }
    for (const py::handle x : lists_) {
      if (!f(x.ptr())) return false;
      const Py_ssize_t n = PyList_GET_SIZE(x.ptr());
      for (Py_ssize_t i = 0; i < n; ++i)
        if (!f(PyList_GET_ITEM(x.ptr(), i))) return false;
    }
    return true;
  }

  py::list owners_, maps_, lists_;
  std::vector<py::object> held_;
};

// (cells, data, alone) of `tensors`: each one's `_cell`, that cell's `data`, and whether nothing
// but the Tensor holds the cell, and nothing but the cell its data. Counts are compared with the
// two references that there are here: the attribute's and this function's own.
py::tuple holdings(const py::sequence &tensors) {
  static PyObject *const cell_name = PyUnicode_InternFromString("_cell");
  static PyObject *const data_name = PyUnicode_InternFromString("data");
  const auto n = static_cast<Py_ssize_t>(tensors.size());
  py::list cells(n), data(n), alone(n);
  for (Py_ssize_t i = 0; i < n; ++i) {
    const py::object tensor = tensors[static_cast<size_t>(i)];
    PyObject *const c = PyObject_GetAttr(tensor.ptr(), cell_name);
    if (!c) throw py::error_already_set();
    PyList_SET_ITEM(cells.ptr(), i, c);
    PyObject *const d = PyObject_GetAttr(c, data_name);
    if (!d) throw py::error_already_set();
    PyList_SET_ITEM(data.ptr(), i, d);
    PyObject *const sole = Py_REFCNT(c) == 2 && Py_REFCNT(d) == 2 ? Py_True : Py_False;
    Py_INCREF(sole);
    PyList_SET_ITEM(alone.ptr(), i, sole);
  }
  return py::make_tuple(cells, data, alone);
}

}  // namespace

void bind_watch(py::module_ &m) {
  py::class_<Watch>(m, "Watch", "What containers hold, compared by identity.")
      .def(py::init<py::list, py::list, py::list>(), py::arg("owners"), py::arg("maps"),
           py::arg("lists"))
      .def("same", &Watch::same, "Whether they hold the same objects in the same order.");
  m.def("holdings", &holdings, py::arg("tensors"),
        "(cells, data, alone): who else holds the cells of tensors, and their data.");
}

}  // namespace nir
