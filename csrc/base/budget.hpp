// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>

/// Everything a peer can give or make this process do has a limit, and all limits stand here. Who is over one is told
/// the value and the limit: by a fault of the ring, an event of the port, or an answer that says no.
namespace vhost_ioat::budget {

// --- The control thread: what one port may take of it before others have their turn
constexpr int messages_a_turn = 16;
constexpr auto time_a_turn = std::chrono::microseconds(500);  // looked at between messages and between queues
constexpr uint32_t packets_a_visit = 64;  // reaped from one tx queue, so that its caller is never kept out for long

constexpr uint32_t commands_a_turn = 16;           // of a control queue
constexpr uint32_t pieces_of_control_buffer = 16;  // guest memory a command, or the room for its answer, may lie in

// --- A session
constexpr size_t fds_kept = 2048;  // received and not closed yet; a full set of rings holds 3 * 257
constexpr size_t fds_a_message = 8;
/// Bytes of guest memory that may be mapped, unless a port says otherwise.
inline uint64_t physical_memory() {
  return static_cast<uint64_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}
constexpr size_t files_of_card = 1024;  // guest memory may lie in, each of which is mapped once and whole
constexpr size_t fds_of_card = 1024;    // as fds_kept, of a machine that has the virtual card; above it nothing is read
/// Jobs (unmapping, closing) of a session that wait for the helper; above it no message is read.
constexpr size_t helper_jobs = 64;
/// Former sessions of a port whose fds or mappings are still being let go of; above it no front end is accepted.
constexpr size_t former_sessions = 16;
/// How long stop() and close() wait for what blocks; it is left to the helper after that.
constexpr auto patience_at_stop = std::chrono::seconds(2);

/// Time that a thread may need to wake whoever waits for an fd or a socket of the peer. With so many of them over it in
/// a row, after a suspicious one, the front end is dropped, and the next one waits, longer each time.
constexpr auto wake_up = std::chrono::milliseconds(1);
constexpr int costly_wake_ups = 2;
constexpr auto first_penalty = std::chrono::seconds(1);
constexpr auto last_penalty = std::chrono::seconds(64);

// --- Connections
constexpr auto half_open = std::chrono::milliseconds(5000);   // without SET_OWNER, while another front end waits
constexpr auto first_retry = std::chrono::milliseconds(100);  // of accept, connect and listen; doubled each time
constexpr auto last_retry = std::chrono::milliseconds(1000);

// --- Advice
constexpr auto advice_after = std::chrono::seconds(1);  // a kick for a ring that does not run: something may yet come
constexpr int kicks_in_vain = 8;                        // for a ring that was never filled: its memory is not shared

// --- Waiting on behalf of users
constexpr auto kick_poll_interval = std::chrono::milliseconds(1);  // of rings without a kick fd that somebody waits for

// --- Rings

/// Descriptors of one chain, tables included (VIRTIO 1.2, 2.7.5.2 and 2.7.5.3.1: "a descriptor chain longer than the
/// Queue Size" must not be made). Over it: the ring is broken, Fault::Kind::chain_length or indirect_length.
constexpr uint32_t descriptors_of_chain(uint32_t ring_size) { return ring_size; }

/// Host ranges that one packet may lie in: a descriptor is one, and one more for each region border inside it. Chains
/// of up to 4096 descriptors fit whatever they hold, and so does the longest packet in the shortest merged buffers (12
/// bytes: 5464 of them). Others stop much earlier: Linux' vhost at 1024, DPDK's at 256. Over it: the packet is dropped
/// and counted (rx: "pieces_dropped", tx: "oversize_dropped"), and the queue goes on.
constexpr uint32_t pieces_of_packet(uint32_t ring_size) { return std::min(ring_size, 4096u) + 2048; }

/// Steps of one rx_burst or tx_burst along chains: descriptors, empty ones too, and region borders. Single descriptors
/// that hold their packet are not counted, they are as many as packets. A step may cost four cache misses (descriptor,
/// region, buffer, and the buffer again), chosen by the guest: so this many are most of a millisecond.
///
/// - A call that has got somewhere ends early, and the next one goes on. So does every rx_burst: it consumes at least
///   one chain, since one that needs the whole budget is dropped ("pieces_dropped").
/// - A tx_burst that has used all of it up for its first packet finds nothing better next time: the ring is broken,
///   Fault::Kind::walk. An honest driver never gets there: before the steps are used up, either pieces_of_packet() were
///   found, and the packet is dropped; or more than 2048 descriptors were empty. Buffers that are too short for any
///   packet are given back, which is getting somewhere.
constexpr uint32_t steps_of_call(uint32_t ring_size) { return pieces_of_packet(ring_size) + 2048; }

}  // namespace vhost_ioat::budget
