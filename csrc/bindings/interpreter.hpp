// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cxxabi.h>
#include <pybind11/pybind11.h>

// The interpreter may be gone before our threads are, may have forked, and may ask for objects that nobody
// initialised. What has to be done about that is here, once for all bindings.
namespace vhost_ioat::bindings {

namespace py = pybind11;

/// Stops this thread for good, without unwinding it: what is left of a thread whose interpreter has ended.
[[noreturn]] void park() noexcept;

/// Lets other threads run Python while this one waits; nothing where the GIL is not held.
///
/// At the end of the process the interpreter goes while daemon threads still wait. When such a thread then asks for the
/// GIL, CPython up to 3.13 ends it by pthread_exit(), which unwinds through C++ frames and aborts the process at the
/// first one that is noexcept. The thread stops here instead, as CPython 3.14 does by itself.
class Unlocked {
 public:
  Unlocked() : state_(PyGILState_Check() ? PyEval_SaveThread() : nullptr) {}
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;
  ~Unlocked() { take_back(); }

 private:
  friend class Locked;
  void take_back() noexcept;
  PyThreadState* state_;
};

/// A piece of Python within what an Unlocked of this thread covers. (Not PyGILState_Ensure(), which crashes when the
/// interpreter has gone.)
class Locked {
 public:
  explicit Locked(Unlocked& outer) : outer_(outer) { outer_.take_back(); }
  Locked(const Locked&) = delete;
  Locked& operator=(const Locked&) = delete;
  ~Locked() { outer_.state_ = PyEval_SaveThread(); }

 private:
  Unlocked& outer_;
};

/// For functions that Python calls without pybind11: the Python error of what was thrown, and null.
void set_python_error() noexcept;

template <typename Body>
PyObject* guarded(Body&& body) noexcept {
  try {
    return body();
  } catch (abi::__forced_unwind&) {  // Python code that we called met the end of the interpreter, see Unlocked
    park();
  } catch (...) {
    set_python_error();
    return nullptr;
  }
}

/// Guards every class of `m` and its submodules, now and in children of fork():
///
/// * pybind11 makes room for the C++ object of an instance that was never initialised, and calls its methods on what is
///   there. Here that raises VhostIoatError.
/// * A child of fork() has the parent's instances, but not the threads, sessions and mappings behind them. In the child
///   they become instances without a C++ object: methods raise, and destructors do not run.
void guard_instances(const py::module_& m);

/// Exempts a class of plain values, which a child may go on reading, from the second one.
void keep_over_fork(py::handle type);

/// The object belongs to the parent process.
bool left_to_parent(py::handle object);

/// Throws what a method of an object without a C++ object raises.
[[noreturn]] void refuse_empty_instance();

}  // namespace vhost_ioat::bindings
