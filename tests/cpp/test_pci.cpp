// SPDX-License-Identifier: BSD-3-Clause
#include "base/error.hpp"
#include "dma/pci.hpp"
#include "doctest/doctest.h"
#include "fake_pci.hpp"

using namespace vhost_ioat;
using dma::probe;

namespace {

std::string missing(const test::FakeTree& tree) { return dma::inspect("0000:00:04.0", tree.tree()).missing; }
bool says(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("a PCI address is accepted with and without its domain, and nothing else is") {
  CHECK(dma::normalise_address("04:00.0") == "0000:04:00.0");
  CHECK(dma::normalise_address("0001:AF:1f.7") == "0001:af:1f.7");
  for (const char* bad :
       {"", "4:0.0", "00:04.8", "0000:00:04", "0000-00:04.0", "00:04.0 ", "../../../etc", "0000:0g:04.0"})
    CHECK_THROWS_AS(dma::normalise_address(bad), ConfigError);
}

TEST_CASE("probe lists I/OAT channels by address and leaves out other devices") {
  test::FakeTree tree;
  tree.device("0000:80:04.1", "8086:2021", "ioatdma", 7);
  tree.device("0000:00:04.0", "8086:0b00", "vfio-pci", 3);
  tree.device("0000:00:1f.0", "8086:2918", "", 5);
  tree.device("0000:00:05.0", "1234:0b00", "", 6);
  tree.node("vfio");
  tree.node("3");
  const auto found = probe(tree.tree());
  REQUIRE(found.size() == 2);
  CHECK(found[0].address == "0000:00:04.0");
  CHECK(found[0].device_id == 0x0b00);
  CHECK(found[0].driver == "vfio-pci");
  CHECK(found[0].numa_node == 1);
  CHECK(found[0].iommu_group == 3);
  CHECK(found[0].usable);
  CHECK(found[0].missing == "");
  CHECK(found[1].address == "0000:80:04.1");
  CHECK_FALSE(found[1].usable);
}

TEST_CASE("probe answers with an empty list where there is no PCI bus") {
  CHECK(probe({"/nonexistent/sys", "/nonexistent/dev"}).empty());
}

TEST_CASE("a channel held by the kernel's driver is reported with the commands that free it") {
  test::FakeTree tree;
  tree.device("0000:00:04.0", "8086:2021", "ioatdma", 3);
  CHECK(says(missing(tree), "bound to ioatdma"));
  CHECK(says(missing(tree), "echo 0000:00:04.0 > /sys/bus/pci/drivers/ioatdma/unbind"));
  CHECK(says(missing(tree), "echo 0000:00:04.0 > /sys/bus/pci/drivers_probe"));
}

TEST_CASE("a channel without a driver is reported") {
  test::FakeTree tree;
  tree.device("0000:00:04.0", "8086:2021", "", 3);
  CHECK(says(missing(tree), "it has no driver"));
  CHECK_FALSE(says(missing(tree), "unbind"));
}

TEST_CASE("a channel bound to uio is refused, because uio confines nothing") {
  test::FakeTree tree;
  tree.device("0000:00:04.0", "8086:2021", "uio_pci_generic", 3);
  CHECK(says(missing(tree), "bound to uio_pci_generic, which does not confine"));
}

TEST_CASE("a machine without an IOMMU is told how to turn it on") {
  test::FakeTree tree;
  tree.device("0000:00:04.0", "8086:2021", "ioatdma", -1);
  CHECK(says(missing(tree), "intel_iommu=on"));
}

TEST_CASE("no-IOMMU mode is refused") {
  test::FakeTree tree;
  tree.device("0000:00:04.0", "8086:2021", "vfio-pci", 3);
  tree.no_iommu(3);
  CHECK(says(missing(tree), "no-IOMMU mode"));
}

TEST_CASE("a group that the kernel shares is reported with the devices that hold it") {
  test::FakeTree tree;
  tree.device("0000:00:04.0", "8086:2021", "vfio-pci", 3);
  tree.device("0000:00:04.1", "8086:2021", "ioatdma", 3);
  tree.device("0000:00:1c.0", "8086:2021", "pcieport", 3);
  CHECK(missing(tree) ==
        "IOMMU group 3 is not viable because kernel drivers hold 0000:00:04.1 (ioatdma): unbind them or bind them to "
        "vfio-pci");
}

TEST_CASE("missing VFIO nodes are reported one by one") {
  test::FakeTree tree;
  tree.device("0000:00:04.0", "8086:2021", "vfio-pci", 3);
  CHECK(says(missing(tree), "vfio/vfio does not exist; as root: modprobe vfio-pci"));
  tree.node("vfio");
  CHECK(says(missing(tree), "vfio/3 does not exist"));
  tree.node("3");
  CHECK(missing(tree) == "");
}

TEST_CASE("an address without a device, or with another device, says so") {
  test::FakeTree tree;
  tree.device("0000:00:1f.0", "8086:2918", "", 5);
  CHECK_THROWS_WITH_AS(dma::inspect("0000:00:09.0", tree.tree()),
                       "0000:00:09.0: there is no such PCI device here; `vhost-ioat devices` lists the I/OAT channels",
                       DmaError);
  CHECK_THROWS_WITH_AS(dma::inspect("0000:00:1f.0", tree.tree()),
                       "0000:00:1f.0: 8086:2918 is not an I/OAT channel; `vhost-ioat devices` lists the I/OAT channels",
                       DmaError);
}
