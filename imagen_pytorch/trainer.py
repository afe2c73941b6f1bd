"""The trainer of cascades: every U-Net in turn, with averages, schedules, checkpoints and data."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .cascade.batch import TrainingBatch
from .cascade.cascade import Cascade
from .cascade.inputs import as_tensor
from .cascade.module_state import compile_once, evaluating
from .checkpoints import read_checkpoint
from .checkpoints.model import described_model
from .tensors import Share
from .training.arguments import PER_UNET, check_arguments
from .training.batches import apart_from_its_graph, check_images, check_keywords, check_tuple
from .training.choosing import USUAL_DECAY, chosen_optimizer
from .training.copying import copied
from .training.data import TrainerData
from .training.distributed import Distributed, Rows, lost_connections_named, without_sync
from .training.ema import make_average
from .training.identity import facts_of_model, facts_of_trainer
from .training.loaders import BatchStream, named_batch
from .training.options import forwarded, warn_of_lion
from .training.posthoc import PowerAverages
from .training.precision import Precision, chosen_precision
from .training.rng import TrainingRandomness
from .training.sampling import TrainerSampling
from .training.saving import TrainerCheckpoints
from .training.settings import remembers_stated, settings_per_unet
from .training.sharded_state import ShardedState, shard_model
from .training.snapshots import Snapshots, posthoc_options
from .training.state import TrainingState
from .training.status import TrainerStatus
from .training.tracking import Tracking
from .training.unet_trainer import UnetTrainer

#: names under which the parts of a `UnetTrainer` are known to users: optim0, scaler1 ...
_PARTS = {"optim": "optimizer", "scaler": "scaler", "scheduler": "scheduler", "warmup": "warmup"}
#: what looks at the times and the losses of the items of a validation batch
Observer = Callable[[Tensor, Tensor], None]
_PART = re.compile(rf"^({'|'.join(_PARTS)})(\d+)$")


def _check_model(imagen: Any, path: str | Path | None) -> None:
    if (imagen is None) == (path is None):
        raise ValueError("give the trainer either imagen or imagen_checkpoint_path")
    if imagen is not None and not hasattr(imagen, "unets"):
        raise TypeError(f"imagen must be an Imagen or ElucidatedImagen, got {type(imagen).__name__}")
    for number, unet in enumerate(imagen.unets if imagen is not None else (), start=1):
        for name, item in unet.named_parameters():
            if item.requires_grad and item.is_floating_point() and item.itemsize < 4:
                kind = str(item.dtype).removeprefix("torch.")
                raise ValueError(
                    f"U-Net {number} has weights in {kind} ({name}), in which small updates are lost: call float() on "
                    'the model; precision="bf16" or "fp16" computes in half precision all the same'
                )


class ImagenTrainer(TrainerStatus, TrainerData, TrainerCheckpoints, TrainerSampling, nn.Module):
    """Trains the U-Nets of a cascade, one at a time, in any order, each with its own optimizer, schedule and average.

    "per-unet" arguments are one value or one per U-Net.

    Args:
        imagen: the model; it is moved to the trainer's device.
        imagen_checkpoint_path: take the model from this checkpoint instead, with its weights and averages.
        use_ema: keep exponential moving averages of the weights and sample from them.
        posthoc_ema: track averages of the weights from which, after the training, an average of any length is made
            (Karras et al. 2023): `imagen export --ema-width`. True, or options by name: ``folder`` of the snapshots
            (by default "posthoc" in ``checkpoint_path``), ``widths``, ``every``, ``dtype``; see `PostHoc`.
        optimizer: "adam" (AdamW where there is a ``weight_decay``), "adamw" (with a weight decay of 0.01 unless another
            is given), "muon" (`Muon` for matrices and kernels, AdamW for the rest), "package.module.Class", or a class
            or function that takes groups of parameters and ``lr``. What such a one takes beside them is bound with
            ``functools.partial``.
        lr, eps: per-unet learning rate and Adam's epsilon.
        beta1, beta2: of Adam.
        max_grad_norm: scale gradients down to this norm.
        group_wd_params: with ``weight_decay``, decay matrices and convolutions only.
        warmup_steps: per-unet; the rate rises linearly and is full from this update on.
        cosine_decay_max_steps: per-unet; the rate falls to 0 at this update and stays there. The fall is a half cosine
            from the first update on.
        cooldown_steps: per-unet; keep the rate constant and let it fall over this number of last updates only, so that
            a run can be prolonged. Without ``cosine_decay_max_steps`` it falls once `set_decay` names an end.
        only_train_unet_number: refuse training any other U-Net.
        fp16, precision: mixed precision: "no", "fp16" (with loss scaling) or "bf16"; ``fp16=True`` is short for "fp16".
        split_batches: for runs on several processes: the loader's batch is that of all of them together, so that their
            number changes nothing but the speed; False: each has as many.
        dl_tuple_output_keywords_names: names of the entries of a loader's tuples.
        verbose: whether `print` says anything.
        split_valid_from_train, split_valid_fraction, split_random_seed: set a part of the training data aside.
        checkpoint_path, checkpoint_every: folder, a path or any fsspec URL, and period in updates of all U-Nets
            together. Training goes on from the newest checkpoint that the folder holds.
        checkpoint_fs, fs_kwargs: a ready fsspec filesystem, or arguments for making it.
        max_checkpoints_keep: number of newest checkpoints to keep; 0 or less keeps all.
        strategy: how several processes share the work: "ddp" (each has the whole model), "fsdp2" (each has a part of
            weights, averages and moments; all of them together sample and save), or "auto".
        compile: whether `torch.compile` compiles the networks that are trained; or its mode.
        save_in_background: write the periodic checkpoints while training goes on, from a copy of the state.
        on_save_error: "stop" the training when a checkpoint cannot be written, or "warn" and go on.
        max_skipped_steps: how many updates in a row may be skipped because a loss or gradient is not finite.
        seed: start of all random draws of training; by default torch's global random state decides.
        use_lion: no longer supported.
        options: ``ema_*`` for ema-pytorch's ``EMA``, ``accelerate_*`` for Accelerate's ``Accelerator``, and everything
            that ``torch.optim.Adam`` takes.

    Raises:
        ValueError: contradicting or impossible choices, each with a sentence.
        TypeError: an unknown argument.
    """

    @remembers_stated
    def __init__(
        self,
        imagen: Cascade | None = None,
        imagen_checkpoint_path: str | Path | None = None,
        *,
        use_ema: bool = True,
        posthoc_ema: bool | Mapping[str, Any] = False,
        optimizer: str | Callable[..., Any] = "adam",
        lr: float | Sequence[float] = 1e-4,
        eps: float | Sequence[float] = 1e-8,
        beta1: float = 0.9,
        beta2: float = 0.99,
        max_grad_norm: float | None = None,
        group_wd_params: bool = True,
        warmup_steps: int | Sequence[int | None] | None = None,
        cosine_decay_max_steps: int | Sequence[int | None] | None = None,
        cooldown_steps: int | Sequence[int | None] | None = None,
        only_train_unet_number: int | None = None,
        fp16: bool = False,
        precision: str | None = None,
        split_batches: bool = True,
        dl_tuple_output_keywords_names: Sequence[str] = ("images", "text_embeds", "text_masks", "cond_images"),
        verbose: bool = True,
        split_valid_from_train: bool = False,
        split_valid_fraction: float = 0.025,
        split_random_seed: int = 42,
        checkpoint_path: str | Path | None = None,
        checkpoint_every: int | None = None,
        checkpoint_fs: Any = None,
        fs_kwargs: Mapping[str, Any] | None = None,
        max_checkpoints_keep: int = 20,
        strategy: str = "auto",
        compile: bool | str = False,
        save_in_background: bool = True,
        on_save_error: str = "stop",
        max_skipped_steps: int = 50,
        seed: int | None = None,
        use_lion: bool = False,
        **options: Any,
    ) -> None:
        given = {**locals(), **options}
        check_arguments(given)
        super().__init__()
        _check_model(imagen, imagen_checkpoint_path)
        if on_save_error not in ("stop", "warn"):
            raise ValueError(f'on_save_error must be "stop" or "warn", got {on_save_error!r}')
        warn_of_lion(use_lion)
        others = forwarded(options, tuple(inspect.signature(type(self)).parameters))
        asked = others.accelerate.pop("mixed_precision", None)  # accelerate has one for the whole process
        self.processes, self.split_batches = Distributed(others.accelerate, strategy), split_batches
        self.precision = Precision(chosen_precision(fp16, precision, self.processes.precision, asked), self.device)
        self.tracking = Tracking(self.processes, others.accelerate.get("log_with"))
        self.verbose, self.seed, self.max_grad_norm = verbose, seed, max_grad_norm
        self.dl_tuple_output_keywords_names = tuple(dl_tuple_output_keywords_names)
        self.split_valid_from_train, self.split_valid_fraction = split_valid_from_train, split_valid_fraction
        self.split_random_seed, self.max_checkpoints_keep = split_random_seed, max_checkpoints_keep
        self.compile_mode = compile
        self.save_in_background, self.on_save_error = save_in_background, on_save_error
        self._fs, self._fs_kwargs = checkpoint_fs, fs_kwargs
        self.posthoc_ema = posthoc_options(posthoc_ema, checkpoint_path, self.processes.sharded)
        self.snapshots = self.posthoc_ema and Snapshots(self.posthoc_ema, checkpoint_fs, fs_kwargs)
        contents = None
        if imagen is None:
            contents = read_checkpoint(imagen_checkpoint_path, checkpoint_fs, fs_kwargs)
            imagen = described_model(contents, imagen_checkpoint_path, compare=True)
        self._same_model(imagen)
        self.imagen = imagen.to(self.device)
        self.processes.broadcast_parameters(self.imagen)
        self.num_unets = len(imagen.unets)
        self.only_train_unet_number = only_train_unet_number
        if only_train_unet_number is not None:
            self.validate_unet_number(only_train_unet_number)
        self.use_ema = use_ema
        self.ema_unets = nn.ModuleList(make_average(unet, others.ema) for unet in imagen.unets) if use_ema else None
        if self.processes.sharded:
            shard_model(imagen, self.ema_unets, self.processes, self.precision)
        self.steps = torch.zeros(self.num_unets, dtype=torch.long)
        per_unet = {name: given[name] for name in PER_UNET}
        if optimizer == "adamw" and "weight_decay" not in others.adam:
            others.adam["weight_decay"], self.stated = USUAL_DECAY, self.stated | {"weight_decay"}
        shared = {"beta1": beta1, "beta2": beta2, "group_wd_params": group_wd_params, **others.adam}
        shared["optimizer"] = chosen_optimizer(optimizer, others.adam, self.stated, self.processes.sharded)
        settings = enumerate(settings_per_unet(self.num_unets, per_unet, shared), start=1)
        self.unet_trainers = tuple(self._lane(number, each, max_skipped_steps) for number, each in settings)
        advice = "give every process the same arguments"
        self.processes.check_same("the arguments of their trainer", facts_of_trainer(self, others.ema), advice)
        broadcast = self.processes.broadcast if self.is_distributed else None
        self.randomness = TrainingRandomness(seed, self.device, broadcast)
        kind = ShardedState if self.processes.sharded else TrainingState
        self.state = kind(imagen, self.unet_trainers, self.ema_unets, self.steps)
        self.prepared = False
        self.unet_being_trained = -1
        self._init_data()
        self.resume_notes: list[str] = []
        if contents is not None:
            self.take_over(contents, imagen_checkpoint_path, only_model=True, strict=True)
        self._init_checkpoints(checkpoint_path, checkpoint_every)
        if self.store is not None:
            self.load_from_checkpoint_folder()

    def _same_model(self, imagen: Cascade) -> None:
        """See that all processes have made the same model."""
        if self.processes.count > 1:
            advice = "make it from the same configuration and seed on each of them"
            self.processes.check_same("their model", facts_of_model(imagen, self.seed), advice)

    def _lane(self, number: int, settings: Mapping[str, Any], max_skipped: int) -> UnetTrainer:
        unet_trainer = UnetTrainer(
            number,
            self.imagen.unets[number - 1],
            settings=settings,
            stated=self.stated,
            scaler=self.precision.scaler(),
            average=None if self.ema_unets is None else self.ema_unets[number - 1],
            max_skipped=max_skipped,
            batches=self.accelerator.gradient_accumulation_steps,
            all_true=self.processes.all_true,
        )
        if self.posthoc_ema is not None:
            unet_trainer.posthoc = PowerAverages(unet_trainer.unet, self.posthoc_ema.widths)
        return unet_trainer

    def __deepcopy__(self, memo: dict[Any, Any]) -> ImagenTrainer:
        """A trainer of a copy of the model, which trains on by itself; without a checkpoint folder."""
        return copied(self, memo)

    def __getattr__(self, name: str) -> Any:
        found = _PART.match(name)
        if found and int(found[2]) < len(self.unet_trainers):
            return getattr(self.unet_trainers[int(found[2])], _PARTS[found[1]])
        return super().__getattr__(name)

    # -- training -----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Close the set-up; called by the first step.

        Raises:
            CheckpointLocked: another run saves into the checkpoint folder.
        """
        if not self.prepared:
            self._claim_folder()
        self.prepared = True

    def wrap_unet(self, unet_number: int | None = None) -> None:
        """Make a U-Net ready to be trained: compiled if asked for, and known to all processes; its first loss does it.

        All processes call this.
        """
        unet_trainer = self.unet_trainers[self.validate_unet_number(unet_number) - 1]
        if unet_trainer.network is None:
            compile_once(unet_trainer.unet, self.compile_mode)
            unet_trainer.network = self.processes.wrap(unet_trainer.unet)

    def set_decay(self, unet_number: int, cosine_decay_max_steps: int | None) -> None:
        """Change the end of the decay of one U-Net; its present rate becomes that of the new schedule.

        Args:
            unet_number: 1-based.
            cosine_decay_max_steps: the rate falls to 0 at this update, counted from the first; None: no decay.

        Raises:
            TypeError, ValueError: no such U-Net, or no number of updates; nothing is changed.
        """
        number = self.validate_unet_number(unet_number)
        check_arguments({"cosine_decay_max_steps": cosine_decay_max_steps}, per_unet=False)
        self.unet_trainers[number - 1].set_decay(cosine_decay_max_steps, self.num_steps_taken(number))

    def set_accelerator_scaler(self, unet_number: int | None = None) -> None:
        """Let the accelerator use the loss scaler of a U-Net, for code that calls it; the trainer does without."""
        self.accelerator.scaler = self.unet_trainers[self.validate_unet_number(unet_number) - 1].scaler

    def forward(
        self,
        images: Tensor | np.ndarray,
        text_embeds: Tensor | np.ndarray | None = None,
        *,
        texts: Sequence[str] | None = None,
        text_masks: Tensor | np.ndarray | None = None,
        cond_images: Tensor | np.ndarray | None = None,
        noise: Tensor | np.ndarray | None = None,
        unet_number: int | None = None,
        max_batch_size: int | None = None,
        **clip: Any,
    ) -> float:
        """Loss of one U-Net; in training mode its gradient is added to those that wait for `update`.

        On several processes each gives its own part of a batch, all parts of one size; the gradient is that of all
        parts together, and so is the mean of the losses.

        Args:
            images, texts, text_embeds, text_masks, cond_images, noise: as for `Cascade.training_batch`.
            clip: what `Cascade.training_batch` takes for clips, such as ``fps`` and ``ignore_time``.
            unet_number: 1-based; may be omitted if only one can be meant.
            max_batch_size: images in memory at once. All draws are made before the batch is split, so the gradient
                is that of the whole.

        Raises:
            ValueError, TypeError: as `Cascade.training_batch`; nothing of the batch is added then.
        """
        data = {
            "images": as_tensor(images, "images"),
            "texts": texts,
            "text_embeds": text_embeds,
            "text_masks": text_masks,
            "cond_images": cond_images,
            "noise": noise,
            **clip,
        }
        return self._forward(data, unet_number, max_batch_size, None)

    def _forward(
        self, data: Mapping[str, Any], unet_number: int | None, max_batch_size: int | None, rows: Rows | None
    ) -> float:
        number = self.validate_and_set_unet_being_trained(unet_number)
        self.prepare()
        rows = rows or self.processes.rows(len(data["images"]))
        draws = self.randomness.step() if self.training else nullcontext()
        with draws as generator:
            batch = self._batch(data, number, generator, rows)
            return self._loss(batch, max_batch_size, rows)

    def _batch(
        self, data: Mapping[str, Any], number: int, generator: torch.Generator | None, rows: Rows
    ) -> TrainingBatch:
        """A part of a batch, with the draws that one process would make for it if it had the whole."""
        share = generator and Share(generator, rows.first, len(data["images"]), rows.total)
        return self.imagen.training_batch(**data, unet_number=number, generator=share)

    def _loss(
        self, batch: TrainingBatch, max_batch_size: int | None, rows: Rows, observe: Observer | None = None
    ) -> float:
        unet_trainer = self.unet_trainers[batch.unet_number - 1]
        if self.training:
            self.wrap_unet(batch.unet_number)
        network = unet_trainer.network if self.training else None
        total = torch.zeros((), device=self.device)
        whole = apart_from_its_graph(batch) if self.training else nullcontext(batch)
        with (
            unet_trainer.whole_batches(),
            lost_connections_named(),
            torch.set_grad_enabled(self.training),
            whole as apart,
        ):
            pieces = self.processes.pieces(apart, max_batch_size, rows.most)
            for index, (piece, share) in enumerate(pieces):
                with without_sync(network, last=index == len(pieces) - 1):
                    with self.precision.autocast():
                        if observe is None:
                            loss = self.imagen.loss(piece, network)
                        else:
                            each = self.imagen.losses(piece, network)
                            loss = each.mean()
                            if share:  # a piece without one only keeps step with the other processes
                                observe(piece.t, each.detach())
                        loss = loss * (rows.weight * share)
                    if self.training:
                        unet_trainer.backward(loss)
                total += loss.detach()
        value = float(total)
        if self.training:
            unet_trainer.finite &= bool(np.isfinite(value))
            self.tracking.take(value)
        return value

    def update(self, unet_number: int | None = None) -> bool:
        """One optimizer step from the gradients that wait; then schedule, averages, step count, checkpoint if due.

        With ``accelerate_gradient_accumulation_steps=n`` every n-th call takes a step, from the mean gradient of the
        batches since the last one.

        Returns:
            False if no step was taken: batches are missing, or a loss or gradient was not finite.

        Raises:
            ValueError: no gradient waits.
            TrainingDiverged: too many skipped steps in a row.
        """
        chosen = unet_number
        if chosen is None and self.unet_being_trained >= 0:
            chosen = self.unet_being_trained + 1
        number = self.validate_unet_number(chosen)
        rate = self.get_lr(number)
        taken = self.unet_trainers[number - 1].update(self.max_grad_norm)
        if taken:
            self.steps[number - 1] += 1
            self.tracking.log(number, rate, self.steps)
            self._snapshot_if_due(number)
            self._save_if_due()
        return taken

    def step_with_dl_iter(self, dl_iter: Iterator[Any], **kwargs: Any) -> float:
        """The loss on the next batch of a stream; keywords as for `forward`."""
        named = self._named(next(dl_iter))
        if not isinstance(dl_iter, BatchStream):
            return self(**named, **kwargs)
        chosen = {name: kwargs.pop(name, None) for name in ("unet_number", "max_batch_size")}
        return self._forward({**named, **kwargs}, **chosen, rows=dl_iter.share)

    def _named(self, batch: Any) -> dict[str, Any]:
        """Return the entries of a batch by the names of `forward`."""
        names = self.dl_tuple_output_keywords_names
        named = named_batch(batch, names)
        check_images(self.imagen, named)
        if isinstance(batch, list | tuple):
            check_tuple(named, names)
        return named

    def train_step(self, unet_number: int | None = None, *, max_batch_size: int | None = None, **batch: Any) -> float:
        """Train on the next batch of the training data: its loss, and an update.

        Args:
            unet_number, max_batch_size: as for `forward`.
            batch: further keywords of `forward`, such as ``ignore_time``, beside what the loader gives.

        Raises:
            ValueError: the trainer has no training data.
            TypeError: a keyword that `forward` does not take.
        """
        self.train()
        stream = self.create_train_iter()
        number = self.validate_and_set_unet_being_trained(unet_number)  # before a batch is taken
        check_keywords(self.imagen, batch)
        loss = self.step_with_dl_iter(stream, unet_number=number, max_batch_size=max_batch_size, **batch)
        self.update(number)
        return loss

    def valid_step(
        self,
        unet_number: int | None = None,
        *,
        max_batch_size: int | None = None,
        use_ema_unets: bool = False,
        observe: Observer | None = None,
        **batch: Any,
    ) -> float:
        """The loss on the next batch of the validation data, without dropping captions and always with the same noise.

        On several processes each validates its part of the batch; the mean of their losses is that of the whole.

        Args:
            unet_number, max_batch_size: as for `forward`.
            use_ema_unets: whether to validate the averaged weights.
            observe: is called with the times ``(b,)`` and the losses ``(b,)`` of the items, a piece at a time.
            batch: as for `train_step`.

        Raises:
            ValueError: the trainer has no validation data.
            TypeError: a keyword that `forward` does not take.
        """
        number = self.validate_unet_number(unet_number)
        stream = self._existing("valid")
        check_keywords(self.imagen, batch)
        averaged = self.use_ema_unets() if use_ema_unets else nullcontext()
        with evaluating(self), averaged:
            data = {**self._named(next(stream)), **batch}
            rows = stream.share or self.processes.rows(len(data["images"]))
            with self.randomness.validation(number, stream.position) as generator:
                batch = self._batch(data, number, generator, rows)
                return self._loss(batch, max_batch_size, rows, observe)
