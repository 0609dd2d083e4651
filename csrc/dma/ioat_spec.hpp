// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

/// Registers and descriptors of Intel I/OAT (CBDMA, QuickData) 3.x, as its public drivers use them: one channel per PCI
/// function, 16 KiB of BAR0. Names are those of Intel's data sheets.
namespace vhost_ioat::dma::spec {

constexpr uint16_t vendor_id = 0x8086;
constexpr uint32_t bar_size = 0x4000;
constexpr uint32_t msix_table = 0x2000;
constexpr uint32_t msix_pba = 0x3000;

// General registers.
constexpr uint32_t CHANCNT = 0x00;        // u8, ro: channels
constexpr uint32_t XFERCAP = 0x01;        // u8, ro: log2 of the most bytes of one descriptor
constexpr uint32_t GENCTRL = 0x02;        // u8
constexpr uint32_t INTRCTRL = 0x03;       // u8
constexpr uint32_t ATTNSTATUS = 0x04;     // u32, cleared by reading
constexpr uint32_t CBVER = 0x08;          // u8, ro: version, major in 7:4
constexpr uint32_t INTRDELAY = 0x0c;      // u16
constexpr uint32_t DMACAPABILITY = 0x10;  // u32, ro
constexpr uint32_t PREFETCHLIMIT = 0x4c;  // u32, from 3.4

// The channel.
constexpr uint32_t CHANCTRL = 0x80;    // u16
constexpr uint32_t DMA_COMP = 0x82;    // u16, ro
constexpr uint32_t CHANCMD = 0x84;     // u8
constexpr uint32_t DMACOUNT = 0x86;    // u16: the doorbell, a free-running count of descriptors since CHAINADDR
constexpr uint32_t CHANSTS = 0x88;     // u64, ro: last completed descriptor | state
constexpr uint32_t CHAINADDR = 0x90;   // u64
constexpr uint32_t CHANCMP = 0x98;     // u64: where CHANSTS is written back
constexpr uint32_t CDAR = 0xa0;        // u64, ro: current descriptor
constexpr uint32_t CHANERR = 0xa8;     // u32, write 1 to clear
constexpr uint32_t CHANERRMSK = 0xac;  // u32
constexpr uint32_t DCACTRL = 0xb0;     // u32
constexpr uint32_t DRSCTL = 0x136;     // u16, from 3.4
constexpr uint32_t LTR_SELECT = 0x13c;
constexpr uint32_t LTR_ACTIVE = 0x140;
constexpr uint32_t LTR_IDLE = 0x144;

// PCI configuration space.
constexpr uint32_t cfg_command = 0x04;
constexpr uint16_t cfg_command_memory = 0x2;
constexpr uint16_t cfg_command_bus_master = 0x4;
constexpr uint32_t cfg_chanerr_int = 0x180;  // u32, write 1 to clear, bits as in CHANERR
constexpr uint32_t cfg_chanerrmsk_int = 0x184;

namespace intrctrl {
constexpr uint8_t master_enable = 0x1, status = 0x2, asserted = 0x4, msix_vector_control = 0x8;
}

namespace dmacap {
constexpr uint32_t page_break = 1u << 0, fill = 1u << 6;
}

namespace chanctrl {
constexpr uint16_t int_rearm = 0x1, error_completion = 0x4, any_error_abort = 0x8, error_interrupt = 0x10,
                   in_use = 0x100;
}

namespace chancmd {
constexpr uint8_t start = 0x1, append = 0x2, suspend = 0x4, abort = 0x8, resume = 0x10, reset = 0x20;
}

/// CHANSTS[2:0].
enum class State : uint8_t { active = 0, idle = 1, suspended = 2, halted = 3, armed = 4 };
constexpr uint64_t status_address_mask = ~uint64_t{0x3f};
constexpr State state_of(uint64_t status) { return static_cast<State>(status & 7); }

namespace chanerr {
constexpr unsigned source_address = 0, destination_address = 1, next_descriptor = 2, descriptor_alignment = 3,
                   chain_address = 4, command = 5, read_data = 8, write_data = 9, control = 10, length = 11,
                   completion_address = 12;
}
/// "source address (bit 0), length (bit 11)"; "no error bit" for 0. DPDK names bit 10 "length"; the data sheet says 11.
std::string describe_chanerr(uint32_t chanerr);

/// Address bits a channel of this version can use: 40 before 3.2, 46 in 3.2, 48 from 3.3.
constexpr uint8_t address_bits(uint8_t cbver) { return cbver >= 0x33 ? 48 : cbver == 0x32 ? 46 : 40; }
/// CHANERR_INT in configuration space must be cleared as well, or the channel does not leave HALTED.
constexpr bool needs_chanerr_int(uint8_t cbver) { return cbver < 0x33; }

/// One descriptor. Channels follow `next` always, so descriptors may lie anywhere.
struct Descriptor {
  uint32_t size;
  uint32_t control;
  uint64_t src;  // or the 64-bit pattern of a fill
  uint64_t dst;
  uint64_t next;
  uint64_t next_src;  // second page, with control::src_page_break
  uint64_t next_dst;  // second page, with control::dst_page_break
  uint64_t user[2];
};
static_assert(sizeof(Descriptor) == 64);
static_assert(offsetof(Descriptor, src) == 0x08 && offsetof(Descriptor, dst) == 0x10);
static_assert(offsetof(Descriptor, next) == 0x18 && offsetof(Descriptor, next_src) == 0x20);

namespace control {
constexpr uint32_t interrupt = 1u << 0, completion_update = 1u << 3, fence = 1u << 4, null = 1u << 5,
                   src_page_break = 1u << 6, dst_page_break = 1u << 7, reserved = 0x00fff800;
constexpr uint32_t op_copy = 0x00, op_fill = 0x01;
constexpr uint32_t op(uint32_t word) { return word >> 24; }
constexpr uint32_t of_op(uint32_t op) { return op << 24; }
}  // namespace control

}  // namespace vhost_ioat::dma::spec
