"""Rules for the section `output`: nothing is ever overwritten."""

from __future__ import annotations

from pathlib import Path

from warmstart.config.schema import Config
from warmstart.errors import UserError


def output_problems(config: Config) -> list[UserError]:
    found = []
    output = config.output
    if output.output_dir is not None:
        folder = Path(output.output_dir)
        if folder.is_dir() and any(folder.iterdir()):
            found.append(
                UserError(
                    f"the output directory {folder} is not empty",
                    "a new or empty directory; nothing is ever overwritten",
                    f"choose another --output-dir, or, if it is an interrupted run, `warmstart resume {folder}`",
                )
            )
        elif folder.exists() and not folder.is_dir():
            found.append(UserError(f"the output directory {folder} is a file", "a new or empty directory"))
    if output.name is not None and (Path(output.name).name != output.name or output.name == ".."):
        found.append(
            UserError(f"--name {output.name} is a path", "a name; the folder that holds it is --runs-dir")
        )
    if output.save_as is not None:
        target = Path(output.save_as)
        if target.exists():
            found.append(
                UserError(
                    f"--save-as {target} exists already",
                    "a new file; a round of tuning never overwrites the one before",
                    "choose another name, or remove the file first",
                )
            )
        above = next(folder for folder in target.absolute().parents if folder.exists())
        if not above.is_dir():
            found.append(UserError(f"--save-as {target}: {above} is a file", "a folder to write to"))
        if target.suffix not in (".pt", ".pth", ".safetensors"):
            found.append(
                UserError(
                    f"--save-as {target} has the suffix {target.suffix!r}",
                    "NAME.pt or NAME.pth for tensors alone, NAME.safetensors for a model that describes itself",
                )
            )
    return found
