"""The files of a tokenizer and an image processor: found beside a model, kept with a run, and used from there.

Shapes: P texts, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from warmstart.errors import UserError
from warmstart.models.hf_package import import_transformers, quiet
from warmstart.models.sizes import first_line

# Without one of these transformers would make a tokenizer with an empty vocabulary, and not say so.
_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))
_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "spiece.model", "preprocessor_config.json", "processor_config.json"),
)


@dataclass(frozen=True)
class Tokens:
    """Texts as the text tower takes them: `ids`, and `mask` where the tokenizer gives one, are P rows of L numbers."""

    ids: tuple[tuple[int, ...], ...]
    mask: tuple[tuple[int, ...], ...] | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Tokens:
        rows = {key: None if value is None else tuple(map(tuple, value)) for key, value in values.items()}
        return cls(rows["ids"] or (), rows["mask"])


def processor_files(place: str | Path, names: Sequence[str] = _FILES) -> dict[str, bytes]:
    """Those of the files of save_pretrained that are there, in a folder or for a name of the hub."""
    folder = Path(place)
    if folder.is_dir() or folder.is_absolute():
        return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    import_transformers()
    from transformers.utils import cached_file

    options: dict[str, Any] = {f"_raise_exceptions_for_{what}": False for what in _NOT_RAISED}
    with quiet():
        found = {name: cached_file(folder.as_posix(), name, **options) for name in names}
    return {name: Path(path).read_bytes() for name, path in found.items() if path is not None}


_NOT_RAISED = ("gated_repo", "missing_entries", "connection_errors")


def tokenise(
    texts: Sequence[str], files: Mapping[str, bytes], config: Mapping[str, Any], name: str, pads: bool
) -> Tokens:
    """The texts as tokens; `pads`: every text as long as the text tower reads at most, as SigLIP was trained.

    UserError: no tokenizer, one of another model, or a text that is too long.
    """
    tokenizer = _load(files, config, name)
    limits = import_transformers().AutoConfig.for_model(**config).text_config
    most = int(limits.max_position_embeddings)
    padding: dict[str, Any] = {"padding": "max_length", "max_length": most} if pads else {"padding": True}
    found = tokenizer(list(texts), **padding)
    for text, ids in zip(texts, found["input_ids"], strict=True):
        if len(ids) > most:
            worst = max(texts, key=len)
            raise UserError(
                f"a text of {len(ids)} tokens is longer than {name} reads: {worst[:80]!r}",
                f"at most {most} tokens",
                "shorten the prompts",
            )
        if max(ids) >= limits.vocab_size:
            raise UserError(
                f"the tokenizer of {name} makes token {max(ids)} of {text!r}, and its text tower knows "
                f"{limits.vocab_size}",
                "the tokenizer that the model was trained with",
                "copy it again from where the weights come from",
            )
    mask = found.get("attention_mask")
    return Tokens(tuple(map(tuple, found["input_ids"])), None if mask is None else tuple(map(tuple, mask)))


def _load(files: Mapping[str, bytes], config: Mapping[str, Any], name: str) -> Any:
    if not any(all(part in files for part in group) for group in _VOCABULARIES):
        raise UserError(
            f"{name} has no tokenizer, which turns class names into texts",
            "tokenizer.json (or vocab.json and merges.txt) beside its config.json, or in the run's folder",
            "copy these files there from where the weights come from",
        )
    transformers = import_transformers()
    with TemporaryDirectory() as place, quiet():
        for file, content in files.items():
            (Path(place) / file).write_bytes(content)
        transformers.AutoConfig.for_model(**config).save_pretrained(place)  # says which tokenizer it is
        try:
            return transformers.AutoTokenizer.from_pretrained(place)
        except Exception as error:  # whatever the files can be wrong in
            raise UserError(
                f"the tokenizer of {name} cannot be read: {first_line(error)}",
                "the files that save_pretrained writes",
                "copy them again from where the weights come from",
            ) from error
