"""The training loop: ordinary torch, a log, a test and a checkpoint now and then, and a way back after a kill."""

from __future__ import annotations

import math
import random
import threading
import time
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import regrow
from regrow.app.tasks import Carried
from regrow.app.training import text
from regrow.app.training.build import Setup, fuse, seed_everything
from regrow.app.training.checkpoint import restoring
from regrow.app.training.evaluation import Evaluation, evaluate
from regrow.app.training.folder import RunFolder
from regrow.app.training.keep import Outcome
from regrow.app.training.pixels import PixelMap, describe
from regrow.app.training.progress import Progress, Status
from regrow.app.training.stopping import Interrupted, stop_signals
from regrow.app.training.summary import as_text, judge, summarize
from regrow.errors import RegrowError, RegrowRuntimeError
from regrow.optim import NTASGD


def train(setup: Setup, folder: RunFolder, progress: Progress) -> dict[str, Any]:
    """Train `setup` in `folder`, from its last checkpoint where it has one, to the end.

    Returns:
        What ``summary.json`` holds.

    Raises:
        Interrupted: after Ctrl-C, SIGTERM or SIGHUP, with a checkpoint written; after a second Ctrl-C, without.
        RegrowRuntimeError: loss or weights that are not finite, or a disk that is full; the last
            checkpoint is whole.
    """
    run = _Run(setup, folder, progress)
    try:
        return run.to_the_end()
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"stopped at once, at step {run.status.step:,} of {run.status.total:,}; "
            + (
                f"kept is the checkpoint of step {run.saved:,}"
                if run.saved
                else "no checkpoint was written yet"
            )
            + f"\n{'Continue' if run.saved else 'Begin again'} with `regrow train --resume {folder.path}`."
        ) from error


class _Run:
    """One run: what it is made of, and where it stands."""

    def __init__(self, setup: Setup, folder: RunFolder, progress: Progress) -> None:
        self.setup, self.folder, self.progress = setup, folder, progress
        recipe, device = setup.recipe, setup.device
        self.model, self.optimizer, self.keeper = setup.model, setup.optimizer, setup.keeper
        self.log_every = recipe.log_every
        self.evaluate_every = recipe.evaluate_every or setup.steps_per_epoch
        self.checkpoint_every = recipe.checkpoint_every or setup.steps_per_epoch
        self.carried = [one for one in setup.passes if isinstance(one, Carried)]
        self.pixels = PixelMap.of(self.model, setup.batches.example())
        self.losses: list[Tensor] = []  # of the steps since `logged`, read together
        self.logged = recipe.first_step
        self.saved = 0
        measures = setup.batches.task.measures
        first = recipe.first_step
        self.status = Status(first, setup.total_steps, regrow.summary(self.model).sparsity, measures=measures)
        # set by the schedule at every step, so that what the optimizer holds now is the last one's
        self.rate = self.optimizer.defaults.get("lr")
        if checkpoint := setup.checkpoint:
            text.check_vocabulary(setup, folder)
            self.status = Status.from_dict(checkpoint["status"], measures)
            self.losses = [torch.tensor(loss, device=device) for loss in checkpoint["losses"]]
            self.logged = self.status.step - len(self.losses)
            self.saved = self.status.step
            _set_random(checkpoint["random"])
        else:
            self.status.seconds = setup.tricks.seconds
            seed_everything(recipe.seed)  # building data and model used it up by an amount of their own
            folder.write_json("data.json", describe(setup.data, recipe.data.name))
            text.write_vocabulary(setup, folder)
            if self.pixels:
                folder.append("maps.jsonl", self.pixels.record(0))
        if setup.method is not None:
            setup.method.register_update_hook(self.updated)

    def to_the_end(self) -> dict[str, Any]:
        """Train what is left, test, and write the final model and the summary."""
        with stop_signals(
            "stopping after this step, with a checkpoint; Ctrl-C again stops at once, without"
        ) as stop:
            self.steps(stop)
        if isinstance(self.optimizer, NTASGD):
            self.optimizer.swap_in()  # nothing is trained any more
        outcome = self.keeper.finish(self.folder)
        if any(outcome.network is part for part in outcome.parts):  # and not what puts several together
            self.folder.save_model("model.safetensors", outcome.network)
        text.write_samples(self.setup, outcome.network, self.folder)
        verdict = judge(outcome, self.setup, self.known(outcome))
        records = self.folder.records("metrics.jsonl")
        result = summarize(self.setup, outcome, verdict, self.status, records)
        self.folder.write("summary.txt", (as_text(result) + "\n").encode())
        self.folder.write_json("summary.json", result)
        return result

    def known(self, outcome: Outcome) -> Evaluation | None:
        """Return the last test, where it was the one that the result is of."""
        status, batches = self.status, self.setup.batches
        known = outcome.network is self.model and batches.during is batches.final
        return status.found if known else None

    def steps(self, stop: threading.Event) -> None:
        """Run the loop."""
        status = self.status
        self.model.train()
        clock = shown = time.perf_counter()
        while status.step < status.total:
            self.one_step(*self.setup.batches.train(status.step))
            status.step += 1
            if self.setup.tricks.gone():
                fuse(self.model)

            end, stopped = status.step == status.total, stop.is_set()
            due = self.keeper.due(status.step)
            log = end or status.step % self.log_every == 0 or self.keeper.logs(status.step)
            test = end or status.step % self.evaluate_every == 0 or due
            save = end or status.step % self.checkpoint_every == 0 or stopped
            if log or test or save:
                self.check_losses()  # waits for the device, so that the time below is all of it
                status.seconds += time.perf_counter() - clock
                if log:
                    self.log()
                if test:
                    self.evaluate()
                if due:
                    status.seconds += self.keeper.collect(status.step, self.folder)
                if self.keeper.over and not end:
                    end, save, status.total = True, True, status.step
                if save:
                    self.save_checkpoint()
                clock = time.perf_counter()
            if test or time.perf_counter() - shown > 0.2:
                shown = time.perf_counter()
                status.seconds, clock = status.seconds + shown - clock, shown
                self.progress(status, tested=test)
            if stopped and not end:
                raise Interrupted(
                    f"stopped at step {status.step:,} of {status.total:,}; its checkpoint is written\n"
                    f"Continue with `regrow train --resume {self.folder.path}`."
                )

    def one_step(self, inputs: Tensor, targets: Tensor) -> None:
        """Take an ordinary step of torch."""
        if self.rate is not None:
            rate = self.rate * self.setup.rate(self.status.step)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
        self.optimizer.zero_grad()
        if self.status.step % self.setup.steps_per_epoch == 0:
            for one in self.carried:  # an epoch begins at another place of the text
                one.state = None
        recipe, setup = self.setup.recipe, self.setup
        objective = setup.tricks.objective(setup.objective, self.status.step)
        total = torch.zeros((), device=inputs.device)
        parts = zip(inputs.chunk(recipe.accumulate), targets.chunk(recipe.accumulate), strict=True)
        for forward, (some, wanted) in zip(self.setup.passes, parts, strict=False):
            share = len(inputs) / len(some)  # `accumulate`, but where the last batch of an epoch is smaller
            with torch.autocast(
                self.setup.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"
            ):
                loss = objective.step(forward, some, wanted) / share
            loss.backward()
            total += loss.detach()
        self.losses.append(total)
        if recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        try:
            self.optimizer.step()
        except RegrowError:
            self.check_losses()  # a gradient that is not finite comes from a loss that is not
            raise

    def updated(self, update: dict[str, Any]) -> None:
        """Log an update of the topology; a method's update hook."""
        layers = update["layers"].values()
        grown = sum(layer["grown"] for layer in layers)
        self.status.moved += grown
        self.status.sparsity = regrow.summary(self.model).sparsity
        step = self.setup.recipe.first_step + update["step"]  # a method counts its own
        record = {"kind": "update", "step": step, "fraction": update["fraction"], "grown": grown}
        self.folder.append("metrics.jsonl", {**record, "layers": update["layers"]})
        if self.pixels:
            self.folder.append("maps.jsonl", self.pixels.record(step))

    def log(self) -> None:
        """Write the mean loss of the steps since the last time."""
        status = self.status
        status.loss = sum(float(loss) for loss in self.losses) / len(self.losses)
        self.losses.clear()
        self.logged = status.step
        record = {"kind": "train", "step": status.step, "epoch": status.step / self.setup.steps_per_epoch}
        rate = self.optimizer.param_groups[0].get("lr")
        self.folder.append(
            "metrics.jsonl", {**record, "loss": status.loss, "rate": rate, "seconds": status.seconds}
        )

    def evaluate(self) -> None:
        """Test the model on all that is tested during the run, and write what came out."""
        status, setup = self.status, self.setup
        averaging = self.optimizer if isinstance(self.optimizer, NTASGD) else None
        averaged = {"averaged": averaging.averages} if averaging else {}
        with averaging.averaged() if averaging else nullcontext():
            found = evaluate(setup.batches.task, self.model, setup.batches.test(), setup.recipe.precision)
            self.keeper.tested(status.step, found)
        status.found = found
        record = {
            "kind": "test",
            "step": status.step,
            "seconds": status.seconds,  # of training: tests are not timed
            "on": setup.batches.during.name,
            **averaged,
        }
        # the loss first, as in the records of training
        metrics = sorted(setup.batches.task.measures.metrics, key=lambda metric: not metric.is_loss)
        logged = {metric.logged: found[metric.name] for metric in metrics}
        self.folder.append("metrics.jsonl", {**record, **logged})
        if averaging:
            if math.isnan(logged["loss"]):
                raise self.diverged(f"the validation loss is nan after step {status.step:,}")
            averaging.trigger(logged["loss"])

    def check_losses(self) -> None:
        """Read the losses since the last log all at once.

        Raises:
            RegrowRuntimeError: naming the step of the first that is not finite.
        """
        values = torch.stack(self.losses).tolist() if self.losses else []
        for step, value in enumerate(values, self.logged):
            if not math.isfinite(value):
                raise self.diverged(f"the loss is {value} at step {step:,}")

    def diverged(self, what: str) -> RegrowRuntimeError:
        kept = (self.folder.path / "checkpoint.pt").is_file()
        return RegrowRuntimeError(
            f"{what}: the training has diverged"
            + (f"; the checkpoint before it is whole, in {self.folder.path}" if kept else "")
            + f"\nTrain again with a lower `optimizer.lr` (now {self.rate}) or a longer `schedule.warmup_steps`."
        )

    def save_checkpoint(self) -> None:
        """Write everything that the steps after this one depend on."""
        model = self.model.state_dict()
        for name, value in model.items():
            if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
                raise self.diverged(
                    f"`{name}` holds values that are not finite after step {self.status.step:,}"
                )
        self.folder.save_checkpoint(
            {
                "model": model,
                "optimizer": self.optimizer.state_dict(),
                "status": self.status.to_dict(),
                "losses": [float(loss) for loss in self.losses],
                "random": _get_random(),
                "keeper": self.keeper.state_dict(),
                "tricks": self.setup.tricks.state_dict(),
                "carried": [one.saved() for one in self.carried],
            }
        )
        self.saved = self.status.step


def _get_random() -> dict[str, Any]:
    """Return the state of every generator that a model or a method may draw from, in types that torch loads safely."""
    kind, keys, *rest = np.random.get_state()
    version, words, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, [int(key) for key in keys], *rest],
        "python": [version, list(words), gauss],
    }


def _set_random(state: dict[str, Any]) -> None:
    with restoring("random"):
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])
        kind, keys, *rest = state["numpy"]
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
