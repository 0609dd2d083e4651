// SPDX-License-Identifier: BSD-3-Clause
// The software I/OAT: any register accesses over descriptors of any content.
#include <memory>

#include "base/error.hpp"
#include "dma/ioat_model.hpp"
#include "input.hpp"

using namespace vhost_ioat;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  const uint8_t how = input.take<uint8_t>();
  dma::IoatModel::Options options;
  options.mode = dma::IoatModel::Mode::stepped;  // a descriptor that links to itself would run 65535 times otherwise
  options.device_id = how & 1 ? 0x2021 : 0x0b00;
  options.cbver = how & 1 ? (how & 2 ? 0x32 : 0x33) : 0x34;
  dma::IoatModel model(options);
  constexpr size_t bytes = 4096;
  auto memory = std::make_unique<uint64_t[]>(bytes / 8);
  auto* base = reinterpret_cast<uint8_t*>(memory.get());
  model.memory().map(0x10000, base, bytes);
  const auto content = input.take_bytes(input.take<uint16_t>() % bytes);
  std::copy(content.begin(), content.end(), base);
  const uint32_t sizes[] = {1, 2, 4, 8};
  while (!input.empty()) {
    const uint8_t op = input.take<uint8_t>();
    const uint32_t width = sizes[op >> 3 & 3];
    const uint32_t offset = input.take<uint16_t>() % 0x4000 & ~(width - 1);
    const uint32_t near = 0x80 + offset % 0x40 / width * width;  // most of what happens, happens here
    switch (op % 8) {
      case 0:
        model.read(offset, width);
        break;
      case 1:
      case 2:
        model.write(near, input.take<uint64_t>(), width);
        break;
      case 3:
        model.write(offset, input.take<uint64_t>(), width);
        break;
      case 4:
        model.config_write(offset % 4096 & ~3u, input.take<uint32_t>(), 4);
        break;
      case 5:
        model.config_read(offset % 4096 & ~3u, 4);
        break;
      case 6:
        model.step(input.take<uint8_t>() % 32);
        break;
      default:
        model.write(0x90, 0x10000 + offset % bytes, 8);
        model.write(0x86, input.take<uint16_t>(), 2);
    }
  }
  return 0;
}
