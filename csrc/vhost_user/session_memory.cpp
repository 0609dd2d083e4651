// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <cinttypes>
#include <utility>

#include "base/error.hpp"
#include "memory/guest_mapping.hpp"
#include "vhost_user/session.hpp"

namespace vhost_ioat::vhost_user {
namespace {

/// Before anything is mapped: a claim of terabytes must not cost more than a message.
void check_total(uint64_t total, uint64_t more, uint64_t limit) {
  if (total <= limit && more <= limit - total) return;
  throw Error(format("memory regions of 0x%" PRIx64 " + 0x%" PRIx64 " bytes are more than max_guest_mem, 0x%" PRIx64,
                     total, more, limit));
}

memory::Region map_region(const wire::MemRegion& region, const UniqueFd& fd) {
  auto mapping = memory::GuestMapping::from_fd(fd.get(), region.mmap_offset, region.size);
  uint8_t* const host = mapping->data();
  return {region.gpa, region.size, region.uva, host, std::move(mapping)};
}

bool is_there(const memory::RegionTable& table, const wire::MemRegion& wanted) {
  return std::ranges::any_of(table.regions(), [&](const memory::Region& region) {
    return region.gpa == wanted.gpa && region.uva == wanted.uva && region.size == wanted.size;
  });
}

bool is_free(const memory::RegionTable& table, const wire::MemRegion& wanted) {
  return std::ranges::none_of(table.regions(), [&](const memory::Region& region) {
    return region.gpa < wanted.gpa ? wanted.gpa - region.gpa < region.size : region.gpa - wanted.gpa < wanted.size;
  });
}

}  // namespace

/// The whole table anew. The old one stays with whoever still reads it.
void BackendSession::set_mem_table() {
  const auto table = request_->body<wire::MemTable>();
  uint64_t total = 0;
  for (uint32_t i = 0; i < table.count; ++i) {
    check_total(total, table.regions[i].size, config_.max_guest_mem);
    total += table.regions[i].size;
  }
  std::vector<memory::Region> regions;
  for (uint32_t i = 0; i < table.count; ++i) regions.push_back(map_region(table.regions[i], request_->fds[i]));
  change_memory(memory::RegionTable(std::move(regions)));
}

/// QEMU 7.2 says each addition and each removal once for every queue pair; the first time does it.
void BackendSession::add_mem_region() {
  const auto region = request_->body<wire::SingleMemRegion>().region;
  if (config_.queue_pairs > 1 && is_there(*state_.memory, region)) return;
  const auto present = state_.memory->regions();
  if (present.size() >= memory::RegionTable::max_regions) {
    throw Error(format("all %zu memory slots are taken", memory::RegionTable::max_regions));
  }
  uint64_t total = 0;
  for (const memory::Region& other : present) total += other.size;
  check_total(total, region.size, config_.max_guest_mem);
  change_memory(state_.memory->with(map_region(region, request_->fds[0])));
}

/// A front end may send an fd along; it is closed with the message. The mmap offset says nothing here.
void BackendSession::remove_mem_region() {
  const auto region = request_->body<wire::SingleMemRegion>().region;
  if (config_.queue_pairs > 1 && is_free(*state_.memory, region)) return;
  change_memory(state_.memory->without(region.gpa, region.uva, region.size));
}

/// Every ring is held: any of them may have copies in flight to what goes away.
void BackendSession::change_memory(memory::RegionTable table) {
  auto next = std::make_shared<const memory::RegionTable>(std::move(table));
  when_held(every_ring(), [this, next] { state_.memory = next; });
}

}  // namespace vhost_ioat::vhost_user
