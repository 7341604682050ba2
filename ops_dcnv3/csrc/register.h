// Registration with PyTorch that fails as a Python import does.
#pragma once

#include <Python.h>
#include <c10/util/Exception.h>

#include <string>

namespace dcnv3 {

// Why a registration of this extension failed; empty if none did. Defined once in each extension.
std::string& registration_error();

// For the bodies of TORCH_LIBRARY_IMPL, which run while the extension is loaded, where an exception
// ends the process. PyTorch throws one if registration.py declares other operators than these
// functions have been compiled for: the sources changed and nobody has built them again.
template <typename Body>
void registering(Body body) {
  try {
    body();
  } catch (const c10::Error& error) {
    const std::string text = error.what_without_backtrace();
    registration_error() = text.substr(0, text.find('\n'));
  }
}

// A Python module without contents, because loading it does all; or ImportError.
inline PyObject* make_module(PyModuleDef* definition) {
  if (registration_error().empty()) return PyModule_Create(definition);
  PyErr_Format(PyExc_ImportError, "it was built from other sources (%s)",
               registration_error().c_str());
  return nullptr;
}

}  // namespace dcnv3
