// SPDX-License-Identifier: BSD-3-Clause
#include "dma/ioat_spec.hpp"

#include <array>

#include "base/error.hpp"

namespace vhost_ioat::dma::spec {

std::string describe_chanerr(uint32_t chanerr) {
  static constexpr std::array<const char*, 19> names = {"source address",
                                                        "destination address",
                                                        "next descriptor address",
                                                        "descriptor alignment",
                                                        "chain address",
                                                        "channel command",
                                                        "chipset data integrity",
                                                        "DMA data integrity",
                                                        "read data",
                                                        "write data",
                                                        "descriptor control",
                                                        "descriptor length",
                                                        "completion address",
                                                        "interrupt setting",
                                                        "soft error",
                                                        "unaffiliated error",
                                                        "CRC or XOR P",
                                                        "XOR Q",
                                                        "descriptor count"};
  if (chanerr == 0) return "no error bit";
  std::string text;
  for (unsigned bit = 0; bit < 32; ++bit) {
    if (!(chanerr >> bit & 1)) continue;
    const char* name = bit < names.size() ? names[bit] : bit <= 27 ? "data integrity field" : "unknown";
    text += format("%s%s (bit %u)", text.empty() ? "" : ", ", name, bit);
  }
  return text;
}

}  // namespace vhost_ioat::dma::spec
