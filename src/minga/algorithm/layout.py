"""The flat layout of a model: two fp32 vectors, on the wire and in shared memory.

One vector holds the parameters, the other the floating-point buffers (BatchNorm statistics), each
in the model's own order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

Entries: TypeAlias = list[tuple[str, torch.Size]]


class Layout:
    """The place of each tensor of a model in its two flat vectors.

    Args:
        model: gives names, shapes and the values of what does not travel (integer buffers).

    Attributes:
        parameters: name and shape of each parameter, in order.
        buffers: the same of each floating-point buffer.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = [(name, each.shape) for name, each in model.named_parameters()]
        rest = _rest(model)
        self.buffers = [
            (name, each.shape) for name, each in rest.items() if each.is_floating_point()
        ]
        self._constants = {
            name: each.cpu().clone() for name, each in rest.items() if not each.is_floating_point()
        }

    def flatten(self, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return ``(weights, buffers)`` of a state dict: flat fp32 copies on the CPU."""
        return _flat(state, self.parameters), _flat(state, self.buffers)

    def state_dict(self, weights: Tensor, buffers: Tensor) -> dict[str, Tensor]:
        """Return a state dict with its own memory, for the model that was built."""
        travelling = [*split(weights, self.parameters), *split(buffers, self.buffers)]
        state = {name: part.clone() for name, part in travelling}
        return state | {name: each.clone() for name, each in self._constants.items()}


def count_values(model: nn.Module) -> tuple[int, int]:
    """Return the lengths of a model's two vectors: parameters, floating-point buffers."""
    buffers = [each for each in _rest(model).values() if each.is_floating_point()]
    return sum(map(torch.numel, model.parameters())), sum(map(torch.numel, buffers))


def _rest(model: nn.Module) -> dict[str, Tensor]:
    """Return the entries of a state dict that are not parameters."""
    own = {name for name, _ in model.named_parameters()}
    return {name: each for name, each in model.state_dict().items() if name not in own}


def split(flat: Tensor, entries: Entries) -> Iterator[tuple[str, Tensor]]:
    """Yield name and view of each tensor of a flat vector."""
    parts = flat.split([shape.numel() for _, shape in entries]) if entries else ()
    for (name, shape), part in zip(entries, parts, strict=True):
        yield name, part.view(shape)


def _flat(state: Mapping[str, Tensor], entries: Entries) -> Tensor:
    parts = [state[name].detach().reshape(-1).cpu().float() for name, _ in entries]
    return torch.cat(parts) if parts else torch.empty(0)
