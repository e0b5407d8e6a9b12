"""The methods that change a model's layers, by name.

An editor makes a smaller copy of a subject's module, with what it did to it as edits of a recipe. The amount is the
share to remove of what the subject costs now: MACs, or weights that are not zero (sparse). It never touches the head.
"""

from __future__ import annotations

from collections.abc import Callable

from warmstart.methods.compress.factorising import factorise
from warmstart.methods.compress.prune_subject import prune_subject
from warmstart.methods.compress.qat import quantise_for_training
from warmstart.methods.compress.sparse import sparsify
from warmstart.methods.compress.subject import Edited, Subject

Editor = Callable[[Subject, float], Edited]

EDITORS: dict[str, Editor] = {
    "factorise": factorise,
    "prune": prune_subject,
    "qat": quantise_for_training,
    "sparse": sparsify,
}
