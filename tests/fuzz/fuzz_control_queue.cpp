// SPDX-License-Identifier: BSD-3-Clause
// Commands of any content, cut into pieces of any length: bounds hold, refused commands change nothing, and what is in
// the driver's memory changes in the one byte of the answer only.
#include <algorithm>
#include <vector>

#include "input.hpp"
#include "virtio/control_queue.hpp"

using namespace vhost_ioat;
using virtio::ControlQueue;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  ControlQueue queue;
  const uint32_t pairs = 1 + input.take<uint8_t>() % 128;
  queue.reset(virtio::FeatureSet(input.take<uint64_t>()), pairs);
  while (!input.empty()) {
    const auto content = input.take_bytes(input.take<uint16_t>());
    std::vector<uint8_t> command(content.begin(), content.end());
    const auto before = command;
    std::vector<memory::Piece> pieces;
    for (size_t at = 0; at < command.size() && pieces.size() < 1024;) {
      const size_t n = std::min<size_t>(input.take<uint8_t>(), command.size() - at);
      pieces.push_back({command.data() + at, n});
      at += n;
    }
    uint8_t reply[3] = {7, 7, 7};
    const auto room = input.take<uint8_t>();
    const memory::Piece out[] = {{reply, room & 1u}, {reply + 1, room & 2u}};
    const auto state = queue.state();
    const auto answer = queue.handle(pieces, out);
    if (command != before) __builtin_trap();
    if (answer.acknowledged != ((room & 3) != 0)) __builtin_trap();
    if (!answer.acknowledged && (reply[0] != 7 || reply[1] != 7 || reply[2] != 7)) __builtin_trap();
    if (room & 1 && reply[0] != answer.ack) __builtin_trap();
    if (reply[2] != 7 || (room & 1 && reply[1] != 7)) __builtin_trap();
    if (answer.ack != ControlQueue::ok) {
      if (!answer.change.empty() || queue.state().vlans != state.vlans || queue.state().mac != state.mac ||
          queue.state().queue_pairs != state.queue_pairs || queue.state().unicast != state.unicast ||
          queue.state().multicast != state.multicast || queue.state().guest_offloads != state.guest_offloads)
        __builtin_trap();
    }
    if (queue.state().queue_pairs < 1 || queue.state().queue_pairs > pairs) __builtin_trap();
    if (queue.state().unicast.size() > ControlQueue::max_macs) __builtin_trap();
    if (queue.state().multicast.size() > ControlQueue::max_macs) __builtin_trap();
  }
  return 0;
}
