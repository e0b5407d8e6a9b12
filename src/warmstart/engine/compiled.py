"""torch.compile for the steps of training; evaluation, saving and averaging never see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from warmstart.errors import UserError

_EXPECTED = "what torch.compile needs: a C++ compiler (g++, clang) on a CPU, Triton and a C compiler on a GPU"


class CompiledPart(nn.Module):
    """The part of a model that trains, compiled; `part_of` a module hands it out (the whole, or what is behind a cut).

    Only the call is compiled: modules, names and hooks stay those of the model. The number of images is a variable
    of the compiled code, as the last batch of an epoch is a short one: so there is one compilation per stage, and a
    resumed run computes what it would have computed.
    """

    def __init__(
        self, module: nn.Module, part_of: Callable[[nn.Module], nn.Module], backend: Any = "inductor"
    ) -> None:
        super().__init__()
        self.part = part_of(cast(nn.Module, torch.compile(module, backend=backend)))

    def forward(self, inputs: torch.Tensor, *others: Any) -> torch.Tensor:
        """Raises UserError where the model cannot be compiled."""
        from torch._dynamo import config, maybe_mark_dynamic
        from torch._dynamo.exc import BackendCompilerFailed

        maybe_mark_dynamic(inputs, 0)
        try:
            # The features of a frozen prefix come in by a module's hook, and may be fewer, too.
            with config.patch(force_nn_module_property_static_shapes=False):
                return self.part(inputs, *others)
        except BackendCompilerFailed as error:
            raise _refusal("--compile: this model cannot be compiled", error) from error


def forget_compiled() -> None:
    """Code for other trained blocks is of no use any more, and torch keeps only a few compilations of a function."""
    torch.compiler.reset()


def check_compiler(device: torch.device) -> None:
    """Compile a small function on the device: whatever is missing is missed before anything else is done.

    Raises:
        UserError: it does not work.
    """
    try:
        torch.compile(_small)(torch.ones(8, device=device))
    except RuntimeError as error:
        raise _refusal("--compile does not work here", error) from error


def _small(numbers: torch.Tensor) -> torch.Tensor:
    return numbers.sin() + 1


def _refusal(what: str, error: RuntimeError) -> UserError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # "backend='inductor' raised:" says nothing without the line below it.
    reason = " ".join(lines[:2]) if lines[0].endswith("raised:") else lines[0]
    return UserError(f"{what}: {reason}", _EXPECTED, "install it, or train without --compile")
