"""The trainer of cascades: every U-Net in turn, with averages, schedules, checkpoints and data."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .cascade.batch import TrainingBatch
from .cascade.cascade import Cascade
from .cascade.inputs import as_tensor
from .cascade.limits import check_unet_number
from .cascade.module_state import device_of, evaluating
from .checkpoints import read_checkpoint
from .checkpoints.model import described_model
from .imagen import ElucidatedImagen
from .tensors import BatchShard
from .training.arguments import PER_UNET, check_arguments, check_model, forwarded, warn_of_lion
from .training.batches import check_keywords, entries_of
from .training.checkpointing import Checkpointing
from .training.data import TrainingData
from .training.delegation import arguments_of, attributes_of, methods_of
from .training.distributed import Distributed
from .training.ema import make_average
from .training.fsdp import shard_model
from .training.identity import facts_of_model, facts_of_trainer
from .training.loaders import BatchStream
from .training.optim import USUAL_DECAY, chosen_optimizer
from .training.precision import Precision, chosen_precision
from .training.rng import TrainingRandomness
from .training.sampling import TrainerSampling, untrained
from .training.settings import remembers_stated, settings_per_unet
from .training.snapshots import Snapshots, posthoc_options
from .training.state import TrainingState
from .training.tracking import Tracking
from .training.unet_trainer import Observer, UnetTrainer

#: attributes of a `UnetTrainer` by their names in the trainer, before the index of the U-Net: optim0, scaler1 ...
_PER_UNET = {"optim": "optimizer", "scaler": "scaler", "scheduler": "scheduler", "warmup": "warmup"}
_NUMBERED = re.compile(rf"^({'|'.join(_PER_UNET)})(\d+)$")


class ImagenTrainer(nn.Module):
    """Trains the U-Nets of a cascade, one at a time, in any order, each with its own optimizer, schedule and average.

    Its parts: ``unet_trainers``, one for each U-Net; ``data``; ``sampling``; ``state``, all that outlives the process;
    ``checkpoints``. "per-unet" arguments are one value or one per U-Net.

    Args:
        imagen: the model; it is moved to the trainer's device.
        imagen_checkpoint_path: take the model from this checkpoint instead, with its weights and averages.
        use_ema: keep exponential moving averages of the weights and sample from them.
        posthoc_ema: track averages of the weights from which, after the training, an average of any length is made
            (Karras et al. 2023): `imagen export --ema-width`. True, or the options of `PostHoc` by name.
        optimizer: "adam" (AdamW with a ``weight_decay``), "adamw" (weight decay 0.01 unless given), "muon" (`Muon`
            for matrices and kernels, AdamW for the rest), "package.module.Class", or a class or function that takes
            groups of parameters and ``lr``; other arguments of it are bound with ``functools.partial``.
        lr, eps: per-unet learning rate and Adam's epsilon.
        beta1, beta2: of Adam.
        max_grad_norm: scale gradients down to this norm.
        group_wd_params: with ``weight_decay``, decay matrices and convolutions only.
        warmup_steps: per-unet; the rate rises linearly and is full from this update on.
        cosine_decay_max_steps: per-unet; the rate falls as a half cosine to 0 at this update and stays there.
        cooldown_steps: per-unet; the rate is constant and falls over this number of last updates only, so that a run
            can be prolonged. Without ``cosine_decay_max_steps`` it falls once `set_decay` names an end.
        only_train_unet_number: refuse training any other U-Net.
        fp16, precision: "no", "fp16" (mixed, with loss scaling) or "bf16"; ``fp16=True`` is short for "fp16".
        split_batches: the loader's batch is that of all processes together; False: each process has as many.
        dl_tuple_output_keywords_names: names of the entries of a loader's tuples.
        verbose: whether `print` prints.
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
        max_skipped_steps: number of updates in a row that may be skipped because a loss or gradient is not finite.
        seed: start of all random draws of training; by default torch's global random state decides.
        use_lion: no longer supported.
        options: of ema-pytorch's ``EMA`` as ``ema_*``, of ``Accelerator`` as ``accelerate_*``, of ``torch.optim.Adam``.

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
        check_model(imagen, imagen_checkpoint_path)
        warn_of_lion(use_lion)
        others = forwarded(options, tuple(inspect.signature(type(self)).parameters))
        asked = others.accelerate.pop("mixed_precision", None)  # accelerate has one for the whole process
        self.processes = Distributed(others.accelerate, strategy)
        self.precision = Precision(chosen_precision(fp16, precision, self.processes.precision, asked), self.device)
        self.tracking = Tracking(self.processes, others.accelerate.get("log_with"))
        self.verbose, self.seed, self.compile_mode = verbose, seed, compile
        self.dl_tuple_output_keywords_names = tuple(dl_tuple_output_keywords_names)
        self.posthoc_ema = posthoc_options(posthoc_ema, checkpoint_path, self.processes.sharded)
        if imagen is None:
            contents = read_checkpoint(imagen_checkpoint_path, checkpoint_fs, fs_kwargs)
            imagen = described_model(contents, imagen_checkpoint_path, compare=True)
        if self.processes.count > 1:
            advice = "make it from the same configuration and seed on each of them"
            self.processes.check_same("their model", facts_of_model(imagen, seed), advice)
        self.imagen = imagen.to(self.device)
        self.processes.broadcast_parameters(self.imagen)
        self.num_unets, self.only_train_unet_number = len(imagen.unets), only_train_unet_number
        if only_train_unet_number is not None:
            self.validate_unet_number(only_train_unet_number)
        self.use_ema, self.unet_being_trained = use_ema, -1
        self.ema_unets = nn.ModuleList(make_average(unet, others.ema) for unet in imagen.unets) if use_ema else None
        if self.processes.sharded:
            shard_model(imagen, self.ema_unets, self.processes, self.precision)
        if optimizer == "adamw" and "weight_decay" not in others.adam:
            others.adam["weight_decay"], self.stated = USUAL_DECAY, self.stated | {"weight_decay"}
        shared = {"beta1": beta1, "beta2": beta2, "group_wd_params": group_wd_params, **others.adam}
        shared["optimizer"] = chosen_optimizer(optimizer, others.adam, self.stated, self.processes.sharded)
        settings = settings_per_unet(self.num_unets, {name: given[name] for name in PER_UNET}, shared)
        averages, widths = self.ema_unets or [None] * self.num_unets, self.posthoc_ema and self.posthoc_ema.widths
        self.unet_trainers = tuple(
            UnetTrainer(imagen, number, self.processes, self.precision, *pair, self.stated, widths, max_skipped_steps)
            for number, pair in enumerate(zip(settings, averages, strict=True), start=1)
        )
        self.data = TrainingData(self.processes, **arguments_of(TrainingData, given))
        broadcast = self.processes.broadcast if self.is_distributed else None
        self.randomness = TrainingRandomness(seed, self.device, broadcast)
        weights, streams = (imagen, self.ema_unets, self.unet_trainers), (self.randomness, self.data)
        self.state = TrainingState(*weights, *streams, self.processes, max_grad_norm, self.stated)
        self.sampling = TrainerSampling(imagen, self.ema_unets, self.state.steps)
        snapshots = self.posthoc_ema and Snapshots(self.posthoc_ema, checkpoint_fs, fs_kwargs)
        self.checkpoints = Checkpointing(self.state, self.print, snapshots, **arguments_of(Checkpointing, given))
        advice = "give every process the same arguments"
        self.processes.check_same("the arguments of their trainer", facts_of_trainer(self, others.ema), advice)
        if imagen_checkpoint_path is not None:
            self.take_over(contents, imagen_checkpoint_path, only_model=True, strict=True)
        if self.can_checkpoint:
            self.load_from_checkpoint_folder()

    def __deepcopy__(self, memo: dict[Any, Any]) -> ImagenTrainer:
        """Return a trainer of a copy of the model, at the same place of the same data, without a checkpoint folder."""
        if self.processes.sharded:
            raise ValueError('a trainer with strategy "fsdp2" cannot be copied: save it, and load it into another run')
        new = memo[id(self)] = object.__new__(type(self))
        new.__dict__ |= {name: copy.deepcopy(value, memo) for name, value in vars(self).items()}
        return new

    def __getattr__(self, name: str) -> Any:
        found = _NUMBERED.match(name)
        if found and int(found[2]) < len(self.unet_trainers):
            return getattr(self.unet_trainers[int(found[2])], _PER_UNET[found[1]])
        return super().__getattr__(name)

    # -- parts, by their names in the trainer -------------------------------------------------------------------------

    accelerator, device = attributes_of("processes", "accelerator device")
    is_main, is_local_main = attributes_of("accelerator", "is_main_process is_local_main_process")
    is_distributed = property(lambda self: self.processes.count > 1, doc="Whether several processes train together.")
    is_elucidated = property(lambda self: isinstance(self.imagen, ElucidatedImagen), doc="Which class the model has.")
    steps, max_grad_norm, resume_notes = attributes_of("state", "steps max_grad_norm notes")

    (encode_text,) = methods_of(Cascade, "imagen", "encode_text")
    (unets,) = attributes_of("sampling", "unets")
    use_ema_unets, sample = methods_of(TrainerSampling, "sampling", "use_ema_unets sample")

    train_dl, train_dl_iter, valid_dl, valid_dl_iter, prepared, reading_share = attributes_of(
        "data", "train_dl train_dl_iter valid_dl valid_dl_iter prepared reading_share"
    )
    split_batches, split_valid_from_train, split_valid_fraction, split_random_seed = attributes_of(
        "data", "split_batches split_valid_from_train split_valid_fraction split_random_seed"
    )
    add_train_dataset, add_train_dataloader, add_valid_dataset, add_valid_dataloader = methods_of(
        TrainingData, "data", "add_train_dataset add_train_dataloader add_valid_dataset add_valid_dataloader"
    )
    create_train_iter, create_valid_iter = methods_of(TrainingData, "data", "create_train_iter create_valid_iter")

    store, fs, can_checkpoint, all_checkpoints_sorted, checkpoint_path, checkpoint_every = attributes_of(
        "checkpoints", "store fs can_checkpoint all_checkpoints_sorted checkpoint_path checkpoint_every"
    )
    max_checkpoints_keep, save_in_background, on_save_error = attributes_of(
        "checkpoints", "max_checkpoints_keep save_in_background on_save_error"
    )
    save, load, take_over, wait_for_saves, writes_folder = methods_of(
        Checkpointing, "checkpoints", "save load take_over wait_for_saves writes_folder"
    )
    save_to_checkpoint_folder, load_from_checkpoint_folder = methods_of(
        Checkpointing, "checkpoints", "save_to_checkpoint_folder load_from_checkpoint_folder"
    )

    # -- U-Nets -------------------------------------------------------------------------------------------------------

    unwrapped_unet = property(
        lambda self: self.imagen.unets[max(self.unet_being_trained, 0)], doc="The U-Net that is being trained."
    )
    skipped_steps = property(
        lambda self: [each.skipped for each in self.unet_trainers],
        doc="The number of skipped updates of each U-Net, because a loss or gradient was not finite.",
    )

    def validate_unet_number(self, unet_number: int | None = None) -> int:
        """Return the number of the U-Net that is meant: the given one, the only one, or the only one to be trained. A
        TypeError or ValueError if it is not clear, or the U-Net does not exist."""
        number = unet_number
        if number is None:  # 0 is a mistake, no absence
            number = self.only_train_unet_number or self.imagen.only_train_unet_number
        if number is None:
            if self.num_unets > 1:
                raise ValueError(f"name the U-Net: unet_number=1 to {self.num_unets}")
            number = 1
        return check_unet_number(number, self.num_unets)

    def validate_and_set_unet_being_trained(self, unet_number: int | None = None) -> int:
        """Return the number of the U-Net that is trained from now on; another one may follow at any time. A ValueError
        as `validate_unet_number`, or if another one only is to be trained."""
        number = self.validate_unet_number(unet_number)
        if self.only_train_unet_number not in (None, number):
            raise ValueError(f"this trainer trains U-Net {self.only_train_unet_number} only, got {number}")
        self.unet_being_trained = number - 1
        return number

    def _of_unet(self, unet_number: int | None) -> UnetTrainer:
        return self.unet_trainers[self.validate_unet_number(unet_number) - 1]

    def num_steps_taken(self, unet_number: int | None = None) -> int:
        """Return the number of updates of a U-Net so far."""
        return int(self.steps[self.validate_unet_number(unet_number) - 1])

    def get_lr(self, unet_number: int) -> float:
        """Return the present learning rate of a U-Net."""
        return float(self._of_unet(unet_number).optimizer.param_groups[0]["lr"])

    def decay_steps(self, unet_number: int) -> int | None:
        """Return the update at which the rate of a U-Net reaches 0, counted from its first; None if it never does."""
        return self._of_unet(unet_number).settings["cosine_decay_max_steps"]

    def cooldown_steps(self, unet_number: int) -> int | None:
        """Return the number of last updates over which the rate of a U-Net falls; None if it falls from the first."""
        return self._of_unet(unet_number).settings["cooldown_steps"]

    def get_ema_unet(self, unet_number: int | None = None) -> nn.Module:
        """Return the U-Net with averaged weights, or the trained one without averages."""
        return self.unets[self.validate_unet_number(unet_number) - 1]

    def reset_ema_unets_all_one_device(self, device: torch.device | str | None = None) -> None:
        """Move all averages to one device, by default the trainer's."""
        if self.ema_unets is not None:
            self.ema_unets.to(device or self.device)

    def print(self, message: str) -> None:
        """Print a line on the main process, if the trainer is verbose."""
        if self.verbose:
            self.accelerator.print(message)

    def print_unet_devices(self) -> None:
        """Print the device of every U-Net."""
        for number, unet in enumerate(self.imagen.unets, start=1):
            self.print(f"U-Net {number}: {device_of(unet)}")

    def print_untrained_unets(self) -> None:
        """Print which U-Nets have not been trained yet."""
        for number, (unet, steps) in enumerate(zip(self.imagen.unets, self.steps, strict=True), start=1):
            if not steps and untrained(unet):
                self.print(f"U-Net {number} has not been trained yet")

    # -- training -----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Close the set-up; called by the first step. A CheckpointLocked if another run saves into the checkpoint
        folder."""
        if not self.prepared:
            self.checkpoints.lock()
        self.prepared = True

    def wrap_unet(self, unet_number: int | None = None) -> None:
        """Make a U-Net ready to be trained: compiled if asked for, and known to all processes; its first loss does it.

        All processes call this.
        """
        self._of_unet(unet_number).wrap(self.compile_mode)

    def set_decay(self, unet_number: int, cosine_decay_max_steps: int | None) -> None:
        """Change the end of the decay of one U-Net; its present rate becomes that of the new schedule.

        Args:
            unet_number: 1-based.
            cosine_decay_max_steps: the rate falls to 0 at this update, counted from the first; None: no decay.

        Raises:
            TypeError, ValueError: no such U-Net, or no number of updates; nothing is changed.
        """
        number = self.validate_unet_number(unet_number)
        self.unet_trainers[number - 1].set_decay(cosine_decay_max_steps, self.num_steps_taken(number))

    def set_accelerator_scaler(self, unet_number: int | None = None) -> None:
        """Let the accelerator use the loss scaler of a U-Net, for code that calls it; the trainer does without."""
        self.accelerator.scaler = self._of_unet(unet_number).scaler

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
        """Return the loss of one U-Net; in training mode its gradient is added to those that wait for `update`.

        On several processes each gives its own part of a batch, all parts of one size; the gradient is that of all
        parts together, and so is the mean of the losses.

        Args:
            images, texts, text_embeds, text_masks, cond_images, noise: as for `Cascade.training_batch`.
            clip: what `Cascade.training_batch` takes for clips, such as ``fps`` and ``ignore_time``.
            unet_number: 1-based; may be omitted if only one can be meant.
            max_batch_size: images in memory at once. The gradient is that of the whole batch.

        Raises:
            ValueError, TypeError: as `Cascade.training_batch`; nothing of the batch is added then.
        """
        data = {"images": as_tensor(images, "images"), "texts": texts, "text_embeds": text_embeds}
        data |= {"text_masks": text_masks, "cond_images": cond_images, "noise": noise, **clip}
        return self._forward(data, unet_number, max_batch_size, None)

    def _forward(
        self, data: Mapping[str, Any], unet_number: int | None, max_batch_size: int | None, shard: BatchShard | None
    ) -> float:
        number = self.validate_and_set_unet_being_trained(unet_number)
        self.prepare()
        shard = shard or self.processes.shard(len(data["images"]))
        draws = self.randomness.step() if self.training else nullcontext()
        with draws as generator:
            batch = self._batch(data, number, generator, shard)
            if self.training:
                self.wrap_unet(number)
            loss = self.unet_trainers[number - 1].loss(batch, shard, max_batch_size, backward=self.training)
        if self.training:
            self.tracking.take(loss)
        return loss

    def _batch(
        self, data: Mapping[str, Any], number: int, generator: torch.Generator | None, shard: BatchShard
    ) -> TrainingBatch:
        """Return a part of a batch, with the draws that one process would make for the global batch."""
        source = generator and replace(shard, count=len(data["images"]), generator=generator)
        return self.imagen.training_batch(**data, unet_number=number, generator=source)

    def update(self, unet_number: int | None = None) -> bool:
        """Take one optimizer step from the gradients that wait; then schedule, averages, count, checkpoint if due.

        With ``accelerate_gradient_accumulation_steps=n`` every n-th call takes a step, from the mean gradient of the
        batches since the last one.

        Returns:
            False if no step was taken: batches are missing, or a loss or gradient was not finite.

        Raises:
            ValueError: no gradient waits.
            TrainingDiverged: too many skipped steps in a row.
        """
        if unet_number is None and self.unet_being_trained >= 0:
            unet_number = self.unet_being_trained + 1
        number = self.validate_unet_number(unet_number)
        rate = self.get_lr(number)
        taken = self.unet_trainers[number - 1].update(self.max_grad_norm)
        if taken:
            self.steps[number - 1] += 1
            self.tracking.log(number, rate, self.steps)
            self.checkpoints.after_update(number)
        return taken

    def step_with_dl_iter(self, dl_iter: Iterator[Any], **kwargs: Any) -> float:
        """Return the loss on the next batch of a stream; keywords as for `forward`."""
        named = entries_of(next(dl_iter), self.imagen, self.dl_tuple_output_keywords_names)
        if not isinstance(dl_iter, BatchStream):
            return self(**named, **kwargs)
        chosen = {name: kwargs.pop(name, None) for name in ("unet_number", "max_batch_size")}
        return self._forward({**named, **kwargs}, **chosen, shard=dl_iter.shard)

    def train_step(self, unet_number: int | None = None, *, max_batch_size: int | None = None, **batch: Any) -> float:
        """Train on the next batch of the training data, with an update; return its loss.

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
        """Return the loss on the next batch of the validation data, with all captions and always with the same noise.

        On several processes each validates its part of the batch; the mean of their losses is that of the whole.

        Args:
            unet_number, max_batch_size: as for `forward`.
            use_ema_unets: whether to validate the averaged weights.
            observe: is called with the times ``(b,)`` and the losses ``(b,)`` of the items, a microbatch at a time.
            batch: as for `train_step`.

        Raises:
            ValueError: the trainer has no validation data.
            TypeError: a keyword that `forward` does not take.
        """
        number = self.validate_unet_number(unet_number)
        stream = self.data.existing("valid")
        check_keywords(self.imagen, batch)
        averaged = self.use_ema_unets() if use_ema_unets else nullcontext()
        with evaluating(self), averaged:
            data = entries_of(next(stream), self.imagen, self.dl_tuple_output_keywords_names) | batch
            shard = stream.shard or self.processes.shard(len(data["images"]))
            with self.randomness.validation(number, stream.position) as generator:
                batch = self._batch(data, number, generator, shard)
                return self.unet_trainers[number - 1].loss(batch, shard, max_batch_size, False, observe)
