// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <sys/types.h>

#include <cstdint>
#include <map>
#include <string>

#include "port/tx_queue.hpp"
#include "virtio/features.hpp"

namespace vhost_ioat::port {

/// What a port is made of; the Python layer has parsed and checked it.
struct PortConfig {
  std::string name;
  std::string iface;  // socket path
  uint32_t queues = 1;
  bool client = false;
  mode_t socket_mode = 0600;
  size_t mempool = size_t{64} << 20;
  uint64_t max_guest_mem = 0;  // 0: physical memory
  virtio::FeatureSet features = virtio::supported_features;

  std::map<uint32_t, std::string> ioats;  // tx queue -> "sw0" or a PCI address
  uint32_t ioat_threshold = 1024;         // bytes; 0: calibrate
  bool ioat_fallback = true;
  Publish publish = Publish::cpu;
  std::string sw_mode = "threaded";
};

}  // namespace vhost_ioat::port
