"""CUDA graphs behind a small interface: GPU work that is recorded once and then repeated in one launch.

A network this small leaves a GPU waiting for Python, which launches some 200 kernels of a few microseconds per training
step. A CUDA graph launches them all at once.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

REHEARSALS = 3  # calls before the recording: libraries initialise, the optimiser makes its state


class Recorder(ABC):
    """Records the work of a function without arguments, on tensors at fixed addresses, and repeats it."""

    @abstractmethod
    def rehearse(self, function: Callable[[], None]) -> bool:
        """Call the function as usual; returns whether the host waited for the device, which a recording cannot."""

    @abstractmethod
    def record(self, function: Callable[[], None]) -> None:
        """Record the work of a call without doing it."""

    @abstractmethod
    def repeat(self) -> None:
        """Do the recorded work again, without running the function's Python."""


class CUDAGraph(Recorder):
    """A CUDA graph. Rehearsals run on the stream that it is captured on, as torch.cuda's documentation asks for.

    Random numbers differ from one repetition to the next, and are those of the same calls without a graph.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream, self.graph = device, torch.cuda.Stream(device), torch.cuda.CUDAGraph()

    def rehearse(self, function: Callable[[], None]) -> bool:
        """See `Recorder.rehearse`."""
        main, mode = torch.cuda.current_stream(self.device), torch.cuda.get_sync_debug_mode()
        self.stream.wait_stream(main)
        with warnings.catch_warnings(record=True) as heard, torch.cuda.stream(self.stream):
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                function()
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        main.wait_stream(self.stream)
        waits = ["synchronizing" in str(warning.message) for warning in heard]
        # torch's own, on the debug mode and on capturable optimisers outside a capture
        expected = ("synchroniz", "Synchronization debug mode", "capturable=True")
        for warning in heard:
            if not any(part in str(warning.message) for part in expected):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        return any(waits)

    def record(self, function: Callable[[], None]) -> None:
        """See `Recorder.record`.

        Raises:
            RuntimeError: CUDA cannot capture it. Later work on the device may fail, too.
        """
        try:
            with torch.cuda.graph(self.graph, stream=self.stream):
                function()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise RuntimeError(f"CUDA cannot capture the training step ({reason}): --model.cuda_graph false") from error

    def repeat(self) -> None:
        """See `Recorder.repeat`."""
        self.graph.replay()


def recorder_for(device: torch.device) -> Recorder | None:
    """A new recorder for a device; None where there is none."""
    return CUDAGraph(device) if device.type == "cuda" else None


class Recorded:
    """A function of tensors whose work is recorded after `REHEARSALS` calls and repeated from then on.

    Its results are valid until the next call, and detached. What the function does in Python, such as counting, it does
    while it is rehearsed and recorded, but not when it is repeated.

    Args:
        function: tensors to tensors.
        recorder: a recorder for the tensors' device.
        inputs: examples; later inputs must have the same shapes and dtypes.

    Attributes:
        waits: whether the last rehearsal had to wait for the device, so that it cannot be recorded.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], recorder: Recorder, inputs: Sequence[Tensor]) -> None:
        self.function, self.recorder = function, recorder
        self.inputs, self.outputs = [x.clone() for x in inputs], ()
        self.calls, self.waits = 0, False

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Return the function's results."""
        for kept, given in zip(self.inputs, inputs, strict=True):
            kept.copy_(given)
        if self.calls < REHEARSALS:
            self.waits = self.recorder.rehearse(self._run)
        else:
            if self.calls == REHEARSALS:
                self.recorder.record(self._run)
            self.recorder.repeat()
        self.calls += 1
        return self.outputs

    def _run(self) -> None:
        self.outputs = tuple(x.detach() for x in self.function(*self.inputs))
