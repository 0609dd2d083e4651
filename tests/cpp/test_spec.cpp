// SPDX-License-Identifier: BSD-3-Clause
// Numbers that go over the wire. Both sides in the other tests take them from one place, so a wrong one would suit
// both.
#include <map>

#include "doctest/doctest.h"
#include "vhost_user/message.hpp"
#include "virtio/features.hpp"
#include "virtio/net_header.hpp"
#include "virtio/ring_layout.hpp"

using namespace vhost_ioat;

TEST_CASE("numbers: a split ring is laid out as VIRTIO 1.2, 2.7 says") {
  CHECK(virtio::DESC_F_NEXT == 1);
  CHECK(virtio::DESC_F_WRITE == 2);
  CHECK(virtio::DESC_F_INDIRECT == 4);
  CHECK(virtio::AVAIL_F_NO_INTERRUPT == 1);
  CHECK(virtio::USED_F_NO_NOTIFY == 1);
  CHECK(virtio::max_ring_size == 32768);
  CHECK(virtio::desc_align == 16);
  CHECK(virtio::avail_align == 2);
  CHECK(virtio::used_align == 4);
  CHECK(virtio::desc_bytes(256) == 4096);
  CHECK(virtio::avail_bytes(256, false) == 516);
  CHECK(virtio::avail_bytes(256, true) == 518);
  CHECK(virtio::used_bytes(256, false) == 2052);
  CHECK(virtio::used_bytes(256, true) == 2054);
}

TEST_CASE("numbers: the header of a packet is that of VIRTIO 1.2, 5.1.6") {
  CHECK(virtio::num_buffers_offset == 10);
  CHECK(virtio::FeatureSet().net_header_size() == 10);
  CHECK(virtio::FeatureSet::of(virtio::Feature::MRG_RXBUF).net_header_size() == 12);
  CHECK(virtio::FeatureSet::of(virtio::Feature::VERSION_1).net_header_size() == 12);
  CHECK(virtio::NET_HDR_F_NEEDS_CSUM == 1);
  CHECK(virtio::NET_HDR_F_DATA_VALID == 2);
  CHECK(virtio::NET_HDR_GSO_NONE == 0);
  CHECK(virtio::NET_HDR_GSO_TCPV4 == 1);
  CHECK(virtio::NET_HDR_GSO_TCPV6 == 4);
  CHECK(virtio::NET_HDR_GSO_UDP_L4 == 5);
  CHECK(virtio::NET_HDR_GSO_ECN == 0x80);
}

TEST_CASE("numbers: features have the bits of VIRTIO 1.2, 5.1.3 and 6, and protocol features those of vhost-user") {
  CHECK(virtio::supported_features.mask() == 0x01c0'0009'7867'bb8b);
  CHECK(virtio::FeatureSet::of(virtio::Feature::CTRL_GUEST_OFFLOADS, virtio::Feature::MAC).mask() == 0x24);
  CHECK(vhost_user::protocol::supported == 0x1a43d);
}

TEST_CASE("numbers: messages of vhost-user have the shape of its specification") {
  struct Shape {
    uint32_t id, size, min_fds, max_fds;
    bool has_reply;
  };
  const std::map<std::string_view, Shape> specified = {
      {"GET_FEATURES", {1, 0, 0, 0, true}},
      {"SET_FEATURES", {2, 8, 0, 0, false}},
      {"SET_OWNER", {3, 0, 0, 0, false}},
      {"RESET_OWNER", {4, 0, 0, 0, false}},
      {"SET_MEM_TABLE", {5, 8, 0, 8, false}},
      {"SET_VRING_NUM", {8, 8, 0, 0, false}},
      {"SET_VRING_ADDR", {9, 40, 0, 0, false}},
      {"SET_VRING_BASE", {10, 8, 0, 0, false}},
      {"GET_VRING_BASE", {11, 8, 0, 0, true}},
      {"SET_VRING_KICK", {12, 8, 0, 1, false}},
      {"SET_VRING_CALL", {13, 8, 0, 1, false}},
      {"SET_VRING_ERR", {14, 8, 0, 1, false}},
      {"GET_PROTOCOL_FEATURES", {15, 0, 0, 0, true}},
      {"SET_PROTOCOL_FEATURES", {16, 8, 0, 0, false}},
      {"GET_QUEUE_NUM", {17, 0, 0, 0, true}},
      {"SET_VRING_ENABLE", {18, 8, 0, 0, false}},
      {"SEND_RARP", {19, 8, 0, 0, false}},
      {"NET_SET_MTU", {20, 8, 0, 0, false}},
      {"SET_BACKEND_REQ_FD", {21, 0, 1, 1, false}},
      {"RESET_DEVICE", {34, 0, 0, 0, false}},
      {"GET_MAX_MEM_SLOTS", {36, 0, 0, 0, true}},
      {"ADD_MEM_REG", {37, 40, 1, 1, false}},
      {"REM_MEM_REG", {38, 40, 0, 1, false}},
      {"SET_STATUS", {39, 8, 0, 0, false}},
      {"GET_STATUS", {40, 0, 0, 0, true}},
  };
  CHECK(std::size(vhost_user::message_types) == specified.size());
  for (const vhost_user::MessageType& type : vhost_user::message_types) {
    CAPTURE(type.name);
    const Shape& shape = specified.at(type.name);
    CHECK(static_cast<uint32_t>(type.id) == shape.id);
    CHECK(type.size == shape.size);
    CHECK(type.min_fds == shape.min_fds);
    CHECK(type.max_fds == shape.max_fds);
    CHECK(type.has_reply == shape.has_reply);
  }
  CHECK(vhost_user::wire::version == 1);
  CHECK(vhost_user::wire::version_mask == 3);
  CHECK(vhost_user::wire::reply_flag == 4);
  CHECK(vhost_user::wire::need_reply_flag == 8);
  CHECK(vhost_user::wire::max_table_regions == 8);
  CHECK(vhost_user::wire::mem_table_size(8) == sizeof(vhost_user::wire::MemTable));
  CHECK(vhost_user::wire::vring_fd_index_mask == 0xff);
  CHECK(vhost_user::wire::vring_fd_none == 0x100);
}
