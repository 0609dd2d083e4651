// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace vhost_ioat::port {

/// The statistics of a port by the names of rte_eth_stats. What is in the tables below is subtracted by a reset and
/// given to Python; a field that is not there is neither.
struct PortStats {
  uint64_t ipackets = 0, opackets = 0, ibytes = 0, obytes = 0, imissed = 0, ierrors = 0, oerrors = 0, rx_nombuf = 0;
  struct Queue {
    uint64_t ipackets = 0, opackets = 0, ibytes = 0, obytes = 0, errors = 0;
  };
  std::vector<Queue> queues;

  static constexpr std::pair<const char*, uint64_t PortStats::*> fields[] = {
      {"ipackets", &PortStats::ipackets}, {"opackets", &PortStats::opackets},   {"ibytes", &PortStats::ibytes},
      {"obytes", &PortStats::obytes},     {"imissed", &PortStats::imissed},     {"ierrors", &PortStats::ierrors},
      {"oerrors", &PortStats::oerrors},   {"rx_nombuf", &PortStats::rx_nombuf},
  };
  static constexpr std::pair<const char*, uint64_t Queue::*> queue_fields[] = {
      {"q_ipackets", &Queue::ipackets}, {"q_opackets", &Queue::opackets}, {"q_ibytes", &Queue::ibytes},
      {"q_obytes", &Queue::obytes},     {"q_errors", &Queue::errors},
  };

  /// What was counted since `base`, a state of the same port.
  PortStats since(const PortStats& base) const {
    PortStats s = *this;
    for (const auto& [name, field] : fields) s.*field -= base.*field;
    for (size_t q = 0; q < base.queues.size(); ++q)
      for (const auto& [name, field] : queue_fields) s.queues[q].*field -= base.queues[q].*field;
    return s;
  }
};

}  // namespace vhost_ioat::port
