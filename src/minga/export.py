"""``minga export``: a checkpoint's weights as safetensors, without any pickle."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from minga.ps import checkpoint


def export_checkpoint(path: Path, out: Path | None = None) -> Path:
    """Write ``model`` of a checkpoint as safetensors beside it, or to ``out``; return the path.

    The metadata (strings) hold run, model, classes, image size and accuracy.

    Raises:
        Refused: the checkpoint cannot be read.
    """
    content = checkpoint.read(path)
    target = out or path.with_suffix(".safetensors")
    part = target.with_name(f".{target.name}.part")
    facts = content["facts"]
    save_file(
        content["model"],
        part,
        metadata={
            "run_id": content["run_id"],
            "model": content["settings"]["model"]["name"],
            "stem": content["settings"]["model"]["stem"],
            "classes": str(facts["classes"]),
            "image_size": str(facts["image_size"]),
            "accuracy": str(content.get("accuracy")),
            "minga": content["minga"],
        },
    )
    part.replace(target)
    return target
