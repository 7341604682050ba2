// Registration with PyTorch that fails as a Python import does.
#pragma once

#include <Python.h>
#include <c10/util/Exception.h>

#include <exception>
#include <string>

#if defined(__GNUC__) && !defined(_WIN32)
#define DCNV3_HIDDEN __attribute__((visibility("hidden")))
#else
#define DCNV3_HIDDEN
#endif

namespace dcnv3 {

// Why the first registration of this extension that failed did so; empty if none did. Each
// extension defines its own; the static of an inline function would be one for the whole process.
DCNV3_HIDDEN std::string& registration_error();

// For the bodies of TORCH_LIBRARY_..., which run while the extension is loaded, where an exception
// ends the process. PyTorch throws one if functions do not fit the types of the operators that
// registration.py declares: the sources have changed, and nobody has built them again.
template <typename Body>
void registering(Body body) {
  const auto keep = [](const std::string& text) {
    if (!registration_error().empty()) return;
    const size_t start = text.find_first_not_of(" \n");  // some begin with an empty line
    registration_error() = start == std::string::npos
                               ? "no reason given"
                               : text.substr(start, text.find('\n', start) - start);
  };
  try {
    body();
  } catch (const c10::Error& error) {
    keep(error.what_without_backtrace());
  } catch (const std::exception& error) {
    keep(error.what());
  }
}

}  // namespace dcnv3

// Once in each extension: a Python module without contents, because loading it does all, or
// ImportError.
#define DCNV3_PYTHON_MODULE(name)                                                                \
  std::string& dcnv3::registration_error() {                                                     \
    static std::string error;                                                                    \
    return error;                                                                                \
  }                                                                                              \
  PyMODINIT_FUNC PyInit_##name(void) {                                                           \
    static struct PyModuleDef module = {                                                         \
        PyModuleDef_HEAD_INIT, #name, nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr}; \
    const std::string& error = dcnv3::registration_error();                                      \
    if (error.empty()) return PyModule_Create(&module);                                          \
    PyErr_Format(PyExc_ImportError, "it was built from other sources (%s)", error.c_str());      \
    return nullptr;                                                                              \
  }
