"""Transformers' Trainer with atomic checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel, Trainer
from transformers.trainer import TRAINER_STATE_NAME

from labo import distributed
from labo.integrations import checkpoint_files
from labo.integrations.checkpoint_files import PREFIX


class WholeCheckpoints(Trainer):
    """Writes each checkpoint to a temporary folder and renames it, so that a folder checkpoint-N is always complete."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._staging: Path | None = None

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return folder if self._staging is None else str(self._staging)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        home = Path(self._get_output_dir(trial))
        name = f"{PREFIX}{self.state.global_step}"
        self._staging = home / ".saving"
        if self.args.should_save:
            shutil.rmtree(self._staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self._complete(self._staging / name, home)
        except (OSError, SafetensorError, RuntimeError) as error:  # each writer has its own error for a full disk
            if distributed.is_peer_failure(error):
                raise
            shutil.rmtree(self._staging, ignore_errors=True)
            raise checkpoint_files.write_error(home, error) from error
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        model: Any = self.model
        if state_dict is None and not isinstance(model, PreTrainedModel):
            # safetensors needs contiguous memory, unlike that of channels-last weights.
            state_dict = {name: value.contiguous() for name, value in model.state_dict().items()}
        super()._save(output_dir, state_dict)

    def _write_extra(self, folder: Path) -> None:
        """Write additional files into the folder of a checkpoint."""

    def _complete(self, staged: Path, home: Path) -> None:
        self._write_extra(staged)
        best = self.state.best_model_checkpoint
        if best is not None and Path(best).parent == staged.parent:
            self.state.best_model_checkpoint = str(home / Path(best).name)
            self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
        checkpoint_files.move_into_place(staged, home / staged.name)
        shutil.rmtree(staged.parent, ignore_errors=True)
        self._delete_old(home, newest=staged.name)

    def _delete_old(self, home: Path, newest: str) -> None:
        limit = self.args.save_total_limit
        if not limit or limit < 1:
            return
        best = Path(self.state.best_model_checkpoint or "").name
        # The best and the newest come last and are kept, even if that exceeds the limit by one.
        folders = sorted(checkpoint_files.checkpoints(home), key=lambda folder: folder.name in (best, newest))
        for folder in folders[: len(folders) - limit]:
            if folder.name not in (best, newest):
                shutil.rmtree(folder, ignore_errors=True)
