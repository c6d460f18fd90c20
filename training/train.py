"""Trains the model on one GPU for a given time; the schedule follows the clock and always ends."""

import argparse
import json
import logging
import lzma
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from model import ModelConfig, MoEModel
from muon import Optimizer, OptimizerOptions
from tokenizers import Tokenizer
from torch import Tensor

logger = logging.getLogger("train")
MIX = {"coding": 0.33, "writing": 0.17, "math": 0.10, "chat": 0.29, "extra": 0.11}
WHOLE = frozenset({"math", "chat", "extra"})
END_OF_TEXT = 0
BALANCE_WEIGHT = 1e-3


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How long and how: seconds of training after compilation, batch, sequence."""

    seconds: float = 400.0
    rows: int = 64
    length: int = 2048
    warmup: float = 0.02
    quantized_from: float = 0.85
    seed: int = 0

    def rate(self, progress: float) -> float:
        """Return the learning rate's share of its peak: linear warm-up, then a cosine to 2 %."""
        if progress < self.warmup:
            return max(progress / self.warmup, 0.01)
        done = (progress - self.warmup) / (1 - self.warmup)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


class Stream:
    """One domain's documents on the device, in a new order at every epoch."""

    def __init__(self, tokens: Tensor, whole: bool, generator: torch.Generator) -> None:
        """Find the documents in `tokens`; `whole` streams give windows that begin at one."""
        self.tokens, self.whole, self.generator = tokens, whole, generator
        ends = (tokens == END_OF_TEXT).nonzero().flatten()
        self.starts = torch.cat([ends.new_zeros(1), ends[:-1] + 1])
        self.sizes = ends + 1 - self.starts
        self.epoch = -1
        self.position = 0
        self.shuffled = tokens
        self.boundaries = self.starts

    def reshuffle(self) -> None:
        """Lay the documents out in a new order."""
        device = self.tokens.device
        order = torch.randperm(len(self.starts), generator=self.generator).to(device)
        sizes, starts = self.sizes[order], self.starts[order]
        begins = sizes.cumsum(0) - sizes
        offsets = torch.arange(int(sizes.sum()), device=device)
        source = offsets + torch.repeat_interleave(starts - begins, sizes)
        self.shuffled, self.boundaries = self.tokens[source], begins
        self.epoch, self.position = self.epoch + 1, 0

    def rows(self, count: int, length: int) -> Tensor:
        """Return the next `count` windows of `length` + 1 tokens; some begin at a document."""
        if self.epoch < 0 or self.position + (count + 1) * length + 1 >= len(self.shuffled):
            self.reshuffle()
        first = self.position + torch.arange(count, device=self.tokens.device) * length
        self.position += count * length
        if self.whole:
            slot = torch.searchsorted(self.boundaries, first).clamp_max(len(self.boundaries) - 1)
            first = self.boundaries[slot].clamp_max(len(self.shuffled) - length - 1)
        span = torch.arange(length + 1, device=self.tokens.device)
        return self.shuffled[first.unsqueeze(-1) + span].long()


def load_streams(folder: Path, device: torch.device, seed: int) -> dict[str, Stream]:
    """Return the streams of `MIX`, read from the compressed tokens."""
    generator = torch.Generator().manual_seed(seed)
    streams = {}
    for name in MIX:
        raw = lzma.decompress((folder / f"{name}.u16.xz").read_bytes())
        tokens = torch.from_numpy(np.frombuffer(raw, dtype=np.uint16).astype(np.int32)).to(device)
        streams[name] = Stream(tokens, name in WHOLE, generator)
        logger.info("%-8s %10d tokens %7d documents", name, len(tokens), len(streams[name].starts))
    return streams


def row_counts(rows: int) -> dict[str, int]:
    """Return how many rows of a batch each stream gives; they add up to `rows`."""
    counts = {name: max(1, int(share * rows)) for name, share in MIX.items()}
    counts["chat"] += rows - sum(counts.values())
    return counts


def heldout_rows(folder: Path, tokenizer: Tokenizer, length: int) -> dict[str, Tensor]:
    """Return each domain's held-out text as windows of `length` + 1 tokens."""
    rows = {}
    for path in sorted(folder.glob("*.txt")):
        ids = tokenizer.encode(path.read_text(encoding="utf-8")).ids
        count = (len(ids) - 1) // length
        windows = [ids[n * length : (n + 1) * length + 1] for n in range(count)]
        rows[path.stem] = torch.tensor(windows)
    return rows


@torch.no_grad()
def evaluate(model: MoEModel, heldout: dict[str, Tensor], device: torch.device) -> dict[str, float]:
    """Return the mean loss per domain in nats a token."""
    losses = {}
    for domain, rows in heldout.items():
        total = 0.0
        for row in rows.split(8):
            row = row.to(device)
            loss, _ = model(row[:, :-1], row[:, 1:])
            total += loss.item() * len(row)
        losses[domain] = total / len(rows)
    return losses


class Trainer:
    """Trains a model; `log` holds what was measured on the way."""

    def __init__(self, config: ModelConfig, options: TrainOptions, device: torch.device) -> None:
        """Make the model on the device, in bf16, with its optimizer."""
        self.options, self.device = options, device
        self.model = MoEModel(config)
        self.model.initialise(options.seed)
        self.model.to(device)
        self.optimizer = Optimizer(self.model, OptimizerOptions())
        for weight in self.model.parameters():
            weight.data = weight.data.bfloat16()
        self.forward = torch.compile(self.model) if device.type == "cuda" else self.model
        self.log: list[dict[str, object]] = []

    def train(self, streams: dict[str, Stream], heldout: dict[str, Tensor]) -> int:
        """Train until the time is over; return the number of steps."""
        counts = row_counts(self.options.rows)
        started, step, next_report = time.perf_counter(), 0, 0.0
        compiled_s = 0.0
        while True:
            if step == 3:
                compiled_s = time.perf_counter() - started
                started = time.perf_counter()
                logger.info("compiled after %.1f s", compiled_s)
            elapsed = time.perf_counter() - started if step >= 3 else 0.0
            progress = elapsed / self.options.seconds
            if progress >= 1.0:
                return step
            loss = self._step(streams, counts, progress)
            if progress >= next_report and step >= 4:
                next_report += 0.1
                epochs = {name: stream.epoch for name, stream in streams.items()}
                self._report(step, elapsed, loss.item(), epochs, heldout)
            step += 1

    def _step(self, streams: dict[str, Stream], counts: dict[str, int], progress: float) -> Tensor:
        length = self.options.length
        batch = torch.cat([streams[name].rows(count, length) for name, count in counts.items()])
        loss, balance = self.forward(batch[:, :-1], batch[:, 1:])
        (loss + BALANCE_WEIGHT * balance).backward()
        quantized = progress >= self.options.quantized_from
        self.optimizer.step(self.options.rate(progress), quantized)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return loss.detach()

    def _report(
        self,
        step: int,
        elapsed: float,
        loss: float,
        epochs: dict[str, int],
        heldout: dict[str, Tensor],
    ) -> None:
        losses = evaluate(self.model, heldout, self.device)
        tokens = step * self.options.rows * self.options.length
        row = {"step": step, "elapsed_s": round(elapsed, 1), "tokens": tokens, "loss": loss}
        self.log.append({**row, "epochs": epochs, "heldout": losses})
        shown = " ".join(f"{domain} {value:.3f}" for domain, value in losses.items())
        logger.info("%5d %6.1f s %11d tokens loss %.3f | %s", step, elapsed, tokens, loss, shown)

    def finish(self, heldout: dict[str, Tensor], steps: int) -> dict[str, object]:
        """Return the run's figures; the model is left with its bf16 weights."""
        self.optimizer.write_back(quantized=True)
        quantized = evaluate(self.model, heldout, self.device)
        self.optimizer.write_back(quantized=False)
        return {
            "steps": steps,
            "tokens": steps * self.options.rows * self.options.length,
            "seconds": self.options.seconds,
            "heldout_bf16": evaluate(self.model, heldout, self.device),
            "heldout_quantized": quantized,
            "log": self.log,
        }


def main(argv: Iterable[str] | None = None) -> None:
    """Train, then write the checkpoint and the figures of the run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=Path, default=Path(".train/tokens"))
    parser.add_argument("--heldout", type=Path, default=Path("tests/data/heldout"))
    parser.add_argument("--out", type=Path, default=Path(".train/checkpoint"))
    for group in (ModelConfig, TrainOptions):
        for item in fields(group):
            flag = "--" + item.name.replace("_", "-")
            parser.add_argument(flag, type=type(item.default), default=item.default)
    given = vars(parser.parse_args(None if argv is None else list(argv)))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_float32_matmul_precision("high")
    config = ModelConfig(**{item.name: given[item.name] for item in fields(ModelConfig)})
    options = TrainOptions(**{item.name: given[item.name] for item in fields(TrainOptions)})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = Tokenizer.from_file(str(given["tokens"] / "tokenizer.json"))
    heldout = heldout_rows(given["heldout"], tokenizer, options.length)
    trainer = Trainer(config, options, device)
    steps = trainer.train(load_streams(given["tokens"], device, options.seed), heldout)
    figures = trainer.finish(heldout, steps)
    figures["config"] = config.to_json()
    given["out"].mkdir(parents=True, exist_ok=True)
    torch.save(trainer.model.state_dict(), given["out"] / "model.pt")
    (given["out"] / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    logger.info("bf16 %s", figures["heldout_bf16"])
    logger.info("quantized %s", figures["heldout_quantized"])


if __name__ == "__main__":
    main()
