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

MemoryWork::MemoryWork(std::vector<wire::MemRegion> wanted, std::vector<UniqueFd> fds,
                       std::shared_ptr<const memory::RegionTable> known, bool adds)
    : wanted_(std::move(wanted)), fds_(std::move(fds)), known_(std::move(known)), adds_(adds) {}

void MemoryWork::run(const std::shared_ptr<HelperLane>& lane) noexcept {
  try {
    map(lane);
  } catch (...) {
    problem_ = std::current_exception();
  }
}

/// A file that is mapped already at the same place is not mapped again: front ends say the whole table anew when a
/// region is added, and what did not change goes on. A region that cannot be shared keeps its place in the table, and
/// costs no other; only a table of nothing else is refused.
void MemoryWork::map(const std::shared_ptr<HelperLane>& lane) {
  std::vector<memory::Region> regions;
  if (adds_) regions.assign(known_->regions().begin(), known_->regions().end());
  for (size_t i = 0; i < wanted_.size(); ++i) {
    const wire::MemRegion& wanted = wanted_[i];
    const auto known = std::ranges::find_if(known_->regions(), [&](const memory::Region& region) {
      return region.size == wanted.size && region.mapping &&
             region.mapping->is_of(fds_[i].get(), wanted.mmap_offset, wanted.size);
    });
    try {
      auto mapping = known != known_->regions().end()
                         ? known->mapping
                         : memory::GuestMapping::from_fd(fds_[i].get(), wanted.mmap_offset, wanted.size, lane);
      uint8_t* const host = mapping->data();
      regions.push_back({wanted.gpa, wanted.size, wanted.uva, host, std::move(mapping)});
    } catch (const memory::NotShared& why) {
      regions.push_back({wanted.gpa, wanted.size, wanted.uva, nullptr, nullptr, why.what()});
      if (remark_.empty()) {
        remark_ = format("the memory region of 0x%" PRIx64 " bytes at GPA 0x%" PRIx64 " cannot be used: %s",
                         wanted.size, wanted.gpa, why.what());
      }
    }
  }
  table_ = std::make_shared<const memory::RegionTable>(std::move(regions));
  if (table_->regions().empty()) {
    remark_ = "the front end shared no memory; QEMU shares it with memory-backend-memfd,share=on";
  } else if (!adds_ && !table_->shares_memory()) {
    throw Error(remark_);
  }
  fds_.clear();
}

/// The whole table anew. The old one stays with whoever still reads it.
void BackendSession::set_mem_table() {
  const auto table = request_->body<wire::MemTable>();
  uint64_t total = 0;
  for (uint32_t i = 0; i < table.count; ++i) {
    check_total(total, table.regions[i].size, config_.max_guest_mem);
    total += table.regions[i].size;
  }
  work_ = std::make_shared<MemoryWork>(std::vector(table.regions, table.regions + table.count),
                                       std::move(request_->fds), state_.memory, false);
}

/// QEMU 7.2 says each addition and each removal once for every queue pair; the first time does it.
void BackendSession::add_mem_region() {
  const auto region = request_->body<wire::SingleMemRegion>().region;
  if (config_.queue_pairs > 1 && is_there(*state_.memory, region)) return;
  const auto present = state_.memory->regions();
  if (present.size() >= memory::RegionTable::max_regions) {
    throw Error(format("all %zu memory slots are in use", memory::RegionTable::max_regions));
  }
  uint64_t total = 0;
  for (const memory::Region& other : present) total += other.size;
  check_total(total, region.size, config_.max_guest_mem);
  work_ = std::make_shared<MemoryWork>(std::vector{region}, std::move(request_->fds), state_.memory, true);
}

/// A front end may send an fd along; it is closed with the message. The mmap offset says nothing here.
void BackendSession::remove_mem_region() {
  const auto region = request_->body<wire::SingleMemRegion>().region;
  if (config_.queue_pairs > 1 && is_free(*state_.memory, region)) return;
  change_memory(
      std::make_shared<const memory::RegionTable>(state_.memory->without(region.gpa, region.uva, region.size)));
}

/// Rings have copies in flight to what goes away; what is merely added disturbs none.
void BackendSession::change_memory(std::shared_ptr<const memory::RegionTable> table) {
  const bool keeps_all = std::ranges::all_of(state_.memory->regions(), [&](const memory::Region& old) {
    return std::ranges::any_of(table->regions(), [&](const memory::Region& now) { return now == old; });
  });
  if (keeps_all && table->regions().size() == state_.memory->regions().size()) return;
  next().memory = std::move(table);
  touch(started_rings(), keeps_all ? Hold::owned : Hold::drained);
}

}  // namespace vhost_ioat::vhost_user
