"""Reads tensors of safetensors files to a device, with little memory of its own and without mapping the files.

A mapped file that another program cuts short ends the process with SIGBUS; a read says what is wrong.
"""

from __future__ import annotations

import threading
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from idefics_cli.engine.files import TensorHeader
from idefics_cli.errors import ModelError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""By the names of the safetensors format."""
_STAGED_BYTES = 1 << 24  # of each thread: enough to keep the bus busy, little for eight threads


class TensorReader:
    """Reads tensors; from several threads at once, each with a buffer of its own."""

    def __init__(self, name: str, device: torch.device) -> None:
        """Take the checkpoint's name, for messages, and where tensors go."""
        self._name, self._device = name, device
        self._of_thread = threading.local()

    def read(self, header: TensorHeader) -> Tensor:
        """Read a tensor in its own dtype.

        Raises:
            ModelError: the file can't be read, is shorter than its header says, or holds a dtype that is not known.

        """
        dtype = _DTYPES.get(header.dtype)
        if dtype is None:
            raise ModelError(
                f"{self._name}: {header.file.name} holds a tensor in {header.dtype}, which is not supported"
            )
        # The host's memory is read into straight, and a GPU's through pinned memory; other devices get a copy.
        is_cuda = self._device.type == "cuda"
        tensor = torch.empty(header.shape, dtype=dtype, device=self._device if is_cuda else "cpu")
        if tensor.nbytes != header.size:
            raise ModelError(f"{self._name}: {header.file.name} is damaged: a tensor's size is not that of its shape")
        try:
            self._fill(tensor.view(-1).view(torch.uint8), header)
        except OSError as error:
            raise ModelError(f"{self._name}: {header.file.name} can't be read: {error.strerror}") from error
        return tensor.to(self._device)

    def _fill(self, parts: Tensor, header: TensorHeader) -> None:
        """Read bytes (n,) from the file: straight to the host, through pinned memory to a GPU."""
        with header.file.open("rb", buffering=0) as stream:
            if self._device.type != "cuda":
                self._read(stream, parts, header.start)
                return
            staged, lane = self._staging()
            # What was freed on the stream of the products may still be read there.
            lane.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(lane):
                for start in range(0, len(parts), _STAGED_BYTES):
                    part = parts[start : start + _STAGED_BYTES]
                    self._read(stream, staged[: len(part)], header.start + start)
                    part.copy_(staged[: len(part)], non_blocking=True)
                    lane.synchronize()  # the buffer is filled anew

    def _read(self, stream: FileIO, buffer: Tensor, offset: int) -> None:
        view = buffer.numpy().data
        stream.seek(offset)
        while view:
            count = stream.readinto(view)
            if not count:
                raise ModelError(f"{self._name}: {Path(str(stream.name)).name} is damaged: it ends too early")
            view = view[count:]

    def _staging(self) -> tuple[Tensor, torch.cuda.Stream]:
        """Return this thread's pinned buffer and stream."""
        if not hasattr(self._of_thread, "staging"):
            stream: torch.cuda.Stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call,unused-ignore]
            self._of_thread.staging = torch.empty(_STAGED_BYTES, dtype=torch.uint8, pin_memory=True), stream
        found: tuple[Tensor, torch.cuda.Stream] = self._of_thread.staging
        return found
