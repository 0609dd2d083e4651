// SPDX-License-Identifier: BSD-3-Clause
#include "bindings/interpreter.hpp"

#include <unistd.h>

#include <unordered_set>
#include <vector>

#include "base/error.hpp"

namespace vhost_ioat::bindings {

using py::detail::instance;
using py::detail::type_info;
using py::detail::value_and_holder;

void park() noexcept {
  for (;;) ::pause();
}

void Unlocked::take_back() noexcept {
  if (!state_) return;
  try {
    PyEval_RestoreThread(state_);
  } catch (...) {  // the unwinding of pthread_exit(), which may not be ended, but need not go on either
    park();
  }
}

namespace {

bool in_child = false;                               // of a fork(), of a process that had loaded this module
std::unordered_set<const type_info*>* left_at_fork;  // classes whose instances stay the parent's; never destroyed

template <typename Visit>
void visit_instances(Visit&& visit) {
  auto& internals = py::detail::get_internals();
#ifdef Py_GIL_DISABLED
  for (size_t i = 0; i <= internals.instance_shards_mask; ++i)
    for (auto& [address, object] : internals.instance_shards[i].registered_instances) visit(object);
#else
  for (auto& [address, object] : internals.registered_instances) visit(object);
#endif
}

/// In the child, on its only thread.
void leave_instances_to_parent() {
  in_child = true;
  std::unordered_set<instance*> instances;
  visit_instances([&](instance* object) { instances.insert(object); });
  for (instance* object : instances) {  // NOLINT(bugprone-nondeterministic-pointer-iteration-order): any order does
    for (value_and_holder part : py::detail::values_and_holders(object)) {
      if (!part || !left_at_fork->contains(part.type)) continue;
      if (part.instance_registered()) py::detail::deregister_instance(object, part.value_ptr(), part.type);
      part.set_instance_registered(false);
      part.set_holder_constructed(false);
      part.value_ptr() = nullptr;
      object->owned = false;  // what tells it from one that was never initialised
    }
  }
}

void* no_room_for_empty_instance(size_t) { refuse_empty_instance(); }

void guard_classes(const py::module_& m) {
  for (auto [name, value] : py::reinterpret_borrow<py::dict>(PyModule_GetDict(m.ptr()))) {
    if (PyModule_Check(value.ptr())) {
      if (std::string(py::str(value.attr("__name__"))).starts_with(std::string(py::str(m.attr("__name__"))) + "."))
        guard_classes(py::reinterpret_borrow<py::module_>(value));
    } else if (PyType_Check(value.ptr())) {
      type_info* type = py::detail::get_type_info(reinterpret_cast<PyTypeObject*>(value.ptr()));
      if (!type) continue;
      type->operator_new = &no_room_for_empty_instance;
      left_at_fork->insert(type);
    }
  }
}

std::vector<const type_info*> plain_values;

}  // namespace

void refuse_empty_instance() {
  if (in_child)
    throw Error(
        "this object was made before fork() and belongs to the parent process, or it was not initialised; make a new "
        "one in this process");
  throw Error(
      "this object was not initialised: create objects by calling the class, and call super().__init__() first");
}

void keep_over_fork(py::handle type) {
  plain_values.push_back(py::detail::get_type_info(reinterpret_cast<PyTypeObject*>(type.ptr())));
}

bool left_to_parent(py::handle object) {
  const auto* self = reinterpret_cast<const instance*>(object.ptr());
  return in_child && !self->owned;
}

void guard_instances(const py::module_& m) {
  left_at_fork = new std::unordered_set<const type_info*>;
  guard_classes(m);
  for (const type_info* type : plain_values) left_at_fork->erase(type);
  py::module_::import("os").attr("register_at_fork")(py::arg("after_in_child") =
                                                         py::cpp_function(&leave_instances_to_parent));
}

}  // namespace vhost_ioat::bindings
