# SPDX-License-Identifier: BSD-3-Clause
from pathlib import Path
from tempfile import TemporaryDirectory

from vhost_ioat import EthVhost
from vhost_ioat.testing.stateful import SessionMachine


class PortSessionMachine(SessionMachine):
    """A port in this process."""

    def open_backend(self):
        self.directory = TemporaryDirectory(prefix="vhost")
        path = str(Path(self.directory.name) / "v.sock")
        self.port = EthVhost(path, queues=2)
        self.port.start()
        return path

    def close_backend(self):
        self.port.close()
        del self.port  # its fds must not be counted with the next one's
        self.directory.cleanup()


TestPort = PortSessionMachine.TestCase
