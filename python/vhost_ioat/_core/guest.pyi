from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

from . import Burst

class Guest:
    def __init__(
        self,
        path: str,
        *,
        queues: int = 1,
        server: bool = False,
        ring_size: int = 256,
        features: int | None = None,
        rx_buf: int = 2048,
        mtu: int = 1500,
    ) -> None: ...
    def connect(self, timeout: float | None = None) -> None: ...
    def send(self, q: int, pkts: Burst | Sequence[Buffer], net_hdr: NDArray[np.void] | None = None) -> int: ...
    def recv(self, q: int, n: int = 32) -> list[bytes]: ...
    def recv_burst(self, q: int, n: int = 32) -> Burst: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
