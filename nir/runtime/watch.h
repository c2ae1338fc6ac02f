// Watch: what Python containers hold, compared by identity. A compiled step asks before each run
// whether its state is still what it was traced for; in Python that costs more than a small step.
#ifndef NIR_RUNTIME_WATCH_H
#define NIR_RUNTIME_WATCH_H

#include <pybind11/pybind11.h>

namespace nir {

void bind_watch(pybind11::module_ &m);

}  // namespace nir

#endif  // NIR_RUNTIME_WATCH_H
