// SPDX-License-Identifier: BSD-3-Clause
// Region tables of any shape: what is translated lies in exactly the region that holds it.
#include <vector>

#include "base/error.hpp"
#include "input.hpp"
#include "memory/region_table.hpp"

using namespace vhost_ioat;
using memory::Region;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  memory::RegionTable table;
  std::vector<Region> model;
  while (!input.empty()) {
    const uint8_t op = input.take<uint8_t>();
    const uint64_t gpa = input.take<uint64_t>() >> (op & 0x38), len = input.take<uint32_t>();
    if (op % 4 == 0) {
      // Host addresses are made up; nothing is read through them. Some regions are not shared.
      auto* const host = reinterpret_cast<uint8_t*>(uintptr_t{0x10000} + gpa % 0x100000);
      const Region region{gpa, len, gpa ^ 0x1000, op & 0x80 ? nullptr : host, nullptr};
      try {
        table = table.with(region);
        model.push_back(region);
      } catch (const Error&) {  // empty, or overlaps another, or one too many
      }
    } else if (op % 4 == 1 && !model.empty()) {
      const Region gone = model[gpa % model.size()];
      table = table.without(gone.gpa, gone.uva, gone.size);
      model.erase(model.begin() + static_cast<std::ptrdiff_t>(gpa % model.size()));
    } else if (len != 0) {
      const Region* hint = nullptr;
      const uint8_t* host = table.translate(gpa, len, hint);
      const Region* expected = nullptr;
      for (const Region& r : model)
        if (r.host && r.holds(gpa, len)) expected = &r;
      if ((host != nullptr) != (expected != nullptr)) __builtin_trap();
      if (host && host != expected->host + (gpa - expected->gpa)) __builtin_trap();
      memory::Piece pieces[16];
      const size_t n = table.pieces(gpa, len, pieces);
      uint64_t sum = 0;
      for (size_t i = 0; i < n; ++i) sum += pieces[i].len;
      if (n != 0 && sum != len) __builtin_trap();
      if (host && n == 0) __builtin_trap();
    }
  }
  return 0;
}
