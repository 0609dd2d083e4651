# SPDX-License-Identifier: BSD-3-Clause
"""A host built with scapy: python scapy_responder.py iface=/tmp/vhost0.sock.

It has the address 10.0.0.1, answers ARP and ping, echoes UDP port 7 and prints what it does not understand. scapy
dissects some ten thousand packets per second; for more, work on the bytes of a whole burst, as learning_switch.py does.
"""

import contextlib
import sys

from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

import vhost_ioat

MAC, ADDRESS = "02:00:0a:00:00:01", "10.0.0.1"


def answer(request: Packet) -> Packet | None:
    """The answer to a packet, or None."""
    ether = Ether(dst=request.src, src=MAC)
    reply: Packet | None = None
    if ARP in request and request[ARP].op == 1 and request[ARP].pdst == ADDRESS:
        arp = request[ARP]
        reply = ether / ARP(op=2, hwsrc=MAC, psrc=ADDRESS, hwdst=arp.hwsrc, pdst=arp.psrc)
    elif IP in request and request[IP].dst == ADDRESS:
        ip = IP(src=ADDRESS, dst=request[IP].src)
        if ICMP in request and request[ICMP].type == 8:
            icmp = request[ICMP]
            reply = ether / ip / ICMP(type=0, id=icmp.id, seq=icmp.seq) / icmp.payload
        elif UDP in request and request[UDP].dport == 7:
            udp = request[UDP]
            reply = ether / ip / UDP(sport=7, dport=udp.sport) / udp.payload
    return reply


def main() -> None:
    """Answer until Ctrl-C."""
    with vhost_ioat.EthVhost.from_devargs(sys.argv[1]) as port:
        while True:
            burst = port.rx_burst(0)
            requests = [Ether(burst.tobytes(index)) for index in range(len(burst))]
            replies = []
            for request in requests:
                if reply := answer(request):
                    replies.append(bytes(reply))
                else:
                    print(request.summary(), flush=True)
            if replies:
                port.tx_burst(0, replies)


if __name__ == "__main__":
    # Here and not in main(): CPython 3.13 may raise at the backward jump of a loop, which no `with` around it sees.
    with contextlib.suppress(KeyboardInterrupt):
        main()
