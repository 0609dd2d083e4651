# SPDX-License-Identifier: BSD-3-Clause
from vhost_ioat import DmaError
from vhost_ioat.dma import IoatChannel, IoatModel
from vhost_ioat.testing.stateful import DmaMachine

LENGTH_ERROR = 10  # a bit of CHANERR


class ModelMachine(DmaMachine):
    """The channel driver of this package over the software device."""

    REFUSALS = (DmaError,)
    MODE = "inline"
    FIRST_INDEX = 0

    def open_channel(self, memory, base):
        self.model = IoatModel(mode=self.MODE)
        self.model.map(base, memory)
        return IoatChannel(self.model, ring_size=64, first_index=self.FIRST_INDEX)

    def fail_next(self, after):
        self.model.inject("error", nth=after, value=LENGTH_ERROR)
        return True


class ThreadedMachine(ModelMachine):
    """With a worker that copies meanwhile."""

    MODE = "threaded"


class WrappingMachine(ModelMachine):
    """With an index that is about to wrap, 16 bits and 32."""

    FIRST_INDEX = 2**32 - 40


TestInline = ModelMachine.TestCase
TestThreaded = ThreadedMachine.TestCase
TestWrapping = WrappingMachine.TestCase
