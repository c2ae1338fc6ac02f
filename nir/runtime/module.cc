// The extension module nir.runtime._core.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <cstring>

#include "blob.h"
#include "executor.h"
#include "memory.h"
#include "package.h"
#include "registry.h"
#include "storage.h"
#include "thread_pool.h"
#include "watch.h"

namespace py = pybind11;

namespace nir {

namespace {

const char *error_class(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kShape:
      return "ShapeError";
    case ErrorKind::kDType:
      return "DTypeError";
    case ErrorKind::kDevice:
      return "DeviceError";
    case ErrorKind::kStale:
      return "StaleTensorError";
    case ErrorKind::kUnsupported:
      return "UnsupportedError";
    case ErrorKind::kPackage:
      return "PackageError";
    case ErrorKind::kMemory:
      return "MemoryBudgetError";
    case ErrorKind::kNir:
      break;
  }
  return "NirError";
}

BlobView view_of(const py::bytes &data) {
  char *at;
  ssize_t size;
  if (PyBytes_AsStringAndSize(data.ptr(), &at, &size) != 0) throw py::error_already_set();
  return {reinterpret_cast<const uint8_t *>(at), static_cast<size_t>(size)};
}

uint32_t level_of(const std::string &isa) {
  const int level = isa_level(isa);
  if (level < 0) throw Error(ErrorKind::kUnsupported, "no ISA level is called '" + isa + "'");
  return static_cast<uint32_t>(level);
}

std::vector<TensorRef> tensors_of(const py::sequence &storages) {
  std::vector<TensorRef> out;
  out.reserve(storages.size());
  for (const py::handle &s : storages) out.push_back(s.cast<const Storage &>().tensor);
  return out;
}

std::unique_ptr<Executable> make_executable(const py::bytes &program, const py::sequence &constants,
                                            const py::dict &codes, const py::dict &hosts,
                                            const std::string &isa) {
  Codes code_views;
  for (const auto &[name, levels] : codes)
    for (const auto &[level, blob] : py::reinterpret_borrow<py::dict>(levels))
      code_views[name.cast<std::string>()][level_of(level.cast<std::string>())] =
          view_of(py::reinterpret_borrow<py::bytes>(blob));
  Hosts host_kernels;
  for (const auto &[name, address] : hosts) {
    const auto value = address.cast<uintptr_t>();
    std::memcpy(&host_kernels[name.cast<std::string>()], &value, sizeof(value));
  }
  const BlobView encoded = view_of(program);
  return std::make_unique<Executable>(read_program(encoded.data, encoded.size),
                                      tensors_of(constants), code_views, host_kernels, isa);
}

// Storages of `tensors`; those that have an owner already go back into it.
py::list storages_of(std::vector<TensorRef> &&tensors, const std::vector<py::object> &owners = {}) {
  py::list out(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (i < owners.size() && owners[i]) {
      owners[i].cast<Storage &>().tensor = std::move(tensors[i]);
      out[i] = owners[i];
      continue;
    }
    auto s = std::make_unique<Storage>();
    s->tensor = std::move(tensors[i]);
    out[i] = py::cast(std::move(s));
  }
  return out;
}

// "calls": (nanoseconds, count) of each; "threads": call, start, end and so on, of each thread.
void give_timeline(const Timeline &noted, const py::dict &out) {
  py::list calls, threads;
  for (const Timeline::Total &t : noted.calls)
    calls.append(py::make_tuple(t.nanoseconds, t.count));
  for (const auto &pieces : noted.threads) {
    py::list own;
    for (const Timeline::Piece &p : pieces) {
      own.append(p.call);
      own.append(p.start);
      own.append(p.end);
    }
    threads.append(std::move(own));
  }
  out["calls"] = std::move(calls);
  out["threads"] = std::move(threads);
}

py::list run(Executable &exe, const py::sequence &inputs, const py::sequence &donate,
             const py::object &timeline, bool in_place) {
  std::vector<TensorRef> in = tensors_of(inputs);
  std::vector<uint8_t> donated(in.size());
  for (const py::handle &i : donate) {
    const auto k = i.cast<size_t>();
    if (k >= in.size()) throw py::index_error("a donated input that is not there");
    donated[k] = 1;
  }
  Timeline noted;
  std::vector<TensorRef> out;
  {
    // Bound under the interpreter's lock: nobody makes a view between the check and the donation.
    Executable::Run run(exe, in, donated, out);
    for (size_t i = 0; i < in.size(); ++i)
      if (donated[i] && !in[i].block) inputs[i].cast<Storage &>().tensor.block.reset();
    // The Storage gave up its reference without dropping the block: the output holds the last one.
    try {
      py::gil_scoped_release release;
      run.execute(timeline.is_none() ? nullptr : &noted);
    } catch (const KernelError &e) {
      // What no call has touched goes back: a step that fails on its data leaves its state intact.
      for (const DonationRecord &d : exe.program().donations) {
        const TensorRef &o = out[d.output];
        if (!donated[d.input] || in[d.input].block || o.data != in[d.input].data) continue;
        if (!exe.touches_output(d.output, e.call))
          inputs[d.input].cast<Storage &>().tensor.block = o.block;
      }
      throw;
    }
  }
  if (!timeline.is_none()) give_timeline(noted, py::reinterpret_borrow<py::dict>(timeline));
  std::vector<py::object> owners(in_place ? out.size() : 0);
  if (in_place)
    for (const DonationRecord &d : exe.program().donations)
      if (donated[d.input] && !in[d.input].block && out[d.output].data == in[d.input].data)
        owners[d.output] = inputs[d.input];
  return storages_of(std::move(out), owners);
}

// Everything but the kernels: checks the inputs, evaluates sizes, takes memory and gives it back.
void bind(Executable &exe, const py::sequence &inputs) {
  std::vector<TensorRef> in = tensors_of(inputs);
  std::vector<TensorRef> out;
  Executable::Run(exe, in, std::vector<uint8_t>(in.size()), out);
}

// Runs `count` times without Python in between; the seconds that it took.
double repeat(Executable &exe, const py::sequence &inputs, int count) {
  std::vector<TensorRef> in = tensors_of(inputs);
  const std::vector<uint8_t> donated(in.size());
  std::vector<TensorRef> out;
  py::gil_scoped_release release;
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < count; ++i) Executable::Run(exe, in, donated, out).execute();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

py::list sites(const Executable &exe) {
  py::list out;
  for (const CallRecord &c : exe.program().calls) {
    py::list locs;
    for (const LocationRecord &l : c.locs) locs.append(py::make_tuple(l.file, l.line, l.backward));
    out.append(py::make_tuple(c.op, py::tuple(locs)));
  }
  return out;
}

// (executable, encoded program, IR text, metadata) of a package.
py::tuple load_package(const std::string &path, bool verify, const std::string &isa) {
  Package p = open_package(path, verify ? Verify::kAll : Verify::kSmall);
  const py::bytes encoded(reinterpret_cast<const char *>(p.encoded.data), p.encoded.size);
  auto exe = std::make_unique<Executable>(std::move(p.program), std::move(p.constants), p.codes,
                                          Hosts{}, isa);
  // Bytes: only the checksum says that it is text.
  return py::make_tuple(std::move(exe), encoded, py::bytes(p.text), py::bytes(p.metadata));
}

py::list isa_levels() {
  py::list out;
  for (int i = 0; const char *name = nir_isa_name(i); ++i) out.append(name);
  return out;
}

py::list kernel_names(const std::string &isa) {
  py::list out;
  const nir_kernel_entry *k = nir_kernel_table(isa.c_str());
  for (; k && k->name; ++k) out.append(k->name);
  return out;
}

}  // namespace

}  // namespace nir

PYBIND11_MODULE(_core, m) {
  using namespace nir;
  m.doc() = "The C++ side of nir.runtime.";

  static PyObject *kernel_error =
      PyErr_NewException("nir.runtime._core.KernelError", nullptr, nullptr);
  m.attr("KernelError") = py::reinterpret_borrow<py::object>(kernel_error);
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const KernelError &e) {
      const py::tuple args = py::make_tuple(e.status, e.call, e.detail[0], e.detail[1]);
      PyErr_SetObject(kernel_error, args.ptr());
    } catch (const Error &e) {
      const py::object type = py::module_::import("nir.errors").attr(error_class(e.kind));
      PyErr_SetObject(type.ptr(), py::str(e.what()).ptr());
    }
  });

  bind_storage(m);
  bind_watch(m);

  py::class_<Executable>(m, "Executable", "A program bound to code.")
      .def(py::init(&make_executable), py::arg("program"), py::arg("constants"), py::arg("codes"),
           py::arg("hosts"), py::arg("isa") = "")
      .def("run", &run, py::arg("inputs"), py::arg("donate") = py::tuple(),
           py::arg("timeline") = py::none(), py::arg("in_place") = false)
      .def("bind", &bind, py::arg("inputs"))
      .def("repeat", &repeat, py::arg("inputs"), py::arg("count"))
      .def("sites", &sites, "(op, ((file, line, backward), ...)) of each call.")
      .def(
          "constant",
          [](const Executable &exe, size_t i) {
            auto s = std::make_unique<Storage>();
            s->tensor = exe.constants().at(i);
            s->readonly = true;
            return s;
          },
          "The bytes of a constant.")
      .def_property_readonly("isa", &Executable::isa);

  m.def("load_package", &load_package, py::arg("path"), py::arg("verify") = false,
        py::arg("isa") = "");
  m.def("set_num_threads", [](int n) {
    py::gil_scoped_release release;
    ThreadPool::instance().resize(n);
  });
  m.def("get_num_threads", [] { return ThreadPool::instance().size(); });
  m.def("memory_stats", [] {
    const MemoryStats s = memory_stats();
    py::dict out;
    out["live_bytes"] = s.live_bytes;
    out["cached_bytes"] = s.cached_bytes;
    out["allocations"] = s.allocations;
    out["asked_bytes"] = s.asked_bytes;
    out["peak_bytes"] = s.peak_bytes;
    out["code_bytes"] = mapped_code_bytes();
    return out;
  });
  m.def("trim_memory", &trim_memory);
  m.def("reset_peak_memory", &reset_peak_memory);
  m.def("best_isa", [] { return nir_best_isa(); });
  m.def("has_isa", [](const std::string &isa) { return nir_has_isa(isa.c_str()) != 0; });
  m.def("isa_levels", &isa_levels, "The levels built into this library, best first.");
  m.def("kernel_names", &kernel_names, py::arg("isa"));
  m.def("check_blob", [](const py::bytes &blob) {
    const BlobInfo i = check_blob(view_of(blob), "a blob");
    return py::make_tuple(i.arch, isa_name(i.isa), i.text_size, i.image_size, i.entry);
  });
}
