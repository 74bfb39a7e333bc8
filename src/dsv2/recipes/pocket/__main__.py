"""``python -m dsv2.recipes.pocket``: build pocket from nothing, each step once.

Run it again to go on where it stopped; remove a step's ``.done`` file to do that step again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from dsv2.checkpoint import load_model
from dsv2.engine.llm import LLM
from dsv2.recipes.pocket.card import write_card
from dsv2.recipes.pocket.conversations import read_functions, write_conversations
from dsv2.recipes.pocket.corpus import texts_of, write_corpus
from dsv2.recipes.pocket.score import score
from dsv2.tokenizer import Tokenizer
from dsv2.tokenizer.train import train_bpe
from dsv2.training.config import load_recipe
from dsv2.training.filters import FilterConfig
from dsv2.training.loop import run
from dsv2.training.prepare import PrepareConfig, Source, prepare

VOCAB_SIZE = 8192
CONTEXT = 2048
SCORES = "scores.json"
FILES = "files.tsv"


class Build:
    """The steps, each of which leaves its result in a folder of its own."""

    def __init__(self, out: Path, device: str) -> None:
        self.out, self.device = out, device

    def corpus(self) -> None:
        """Collect the texts and the list of their files."""
        write_corpus(self.out / "corpus")

    def tokenizer(self) -> None:
        """Train the vocabulary on a third of the code and on all prose."""
        train = self.out / "corpus" / "train"
        parts = (("code", 3), ("prose", 1), ("arithmetic", 20))
        texts = (
            text
            for kind, every in parts
            for place, text in enumerate(texts_of(train / f"{kind}.jsonl"))
            if place % every == 0
        )
        train_bpe(texts, VOCAB_SIZE, self.out / "tokenizer", model_max_length=CONTEXT)

    def shards(self) -> None:
        """Tokenise; validation comes first, so that its near-duplicates leave the training set."""
        corpus = self.out / "corpus"

        def source(split: str, kind: str, **options: Any) -> Source:
            return Source.model_validate(
                {"path": corpus / split / f"{kind}.jsonl", "split": split} | options
            )

        config = PrepareConfig(
            sources=(
                source("validation", "code"),
                source("validation", "prose"),
                source("train", "code", fim_rate=0.3),
                source("train", "prose", weight=2.0),
                source("train", "arithmetic"),
            ),
            tokenizer=self.out / "tokenizer",
            split_chars=6000,
            filters=FilterConfig(
                min_chars=200, max_line_chars=200, max_repeated_lines=0.7, near_duplicate=0.8
            ),
        )
        prepare(config, self.out / "shards", overwrite=True)

    def pretrain(self) -> None:
        """Pre-train pocket."""
        self._train("pretrain")

    def dense(self) -> None:
        """Pre-train its dense twin on the same tokens."""
        self._train("dense")

    def conversations(self) -> None:
        """Build the conversations and their shards."""
        functions = read_functions(self.out / "corpus" / "train" / "code.jsonl")
        written = self.out / "conversations.jsonl"
        write_conversations(functions, written)
        config = PrepareConfig(
            sources=(Source(path=written),),
            tokenizer=self.out / "tokenizer",
            stage="sft",
            validation=0.01,
            max_tokens=CONTEXT,
        )
        prepare(config, self.out / "conversations", overwrite=True)

    def sft(self) -> None:
        """Fine-tune on them."""
        self._train("sft")

    def scores(self) -> None:
        """Measure what the card states."""
        bases = {
            name: load_model(self.out / name / "model", dtype="float32")
            for name in ("pretrain", "dense")
        }
        chat = LLM(self.out / "sft" / "model", device="cpu", dtype="float32", max_sequences=64)
        tokenizer = Tokenizer.from_folder(self.out / "tokenizer")
        found = score(self.out / "corpus", tokenizer, bases, chat)
        (self.out / "scores").mkdir(exist_ok=True)
        path = self.out / "scores" / SCORES
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    def card(self) -> None:
        """Put the tuned model, its card and the list of files into one folder."""
        final = self.out / "card"
        shutil.copytree(self.out / "sft" / "model", final, dirs_exist_ok=True)
        shutil.copy(self.out / "corpus" / FILES, final)
        scores = json.loads((self.out / "scores" / SCORES).read_text(encoding="utf-8"))
        runs = {name: self.out / name for name in ("pretrain", "dense", "sft")}
        write_card(final, scores, runs)

    def _train(self, name: str) -> None:
        recipe = Path(__file__).with_name(f"{name}.yaml")
        moved = {
            "pretrain": {"data.train": "shards/train", "data.validation": "shards/validation"},
            "sft": {
                "data.train": "conversations/train",
                "data.validation": "conversations/validation",
                "start_from": "pretrain/model",
            },
        }
        places = moved["sft" if name == "sft" else "pretrain"] | {"tokenizer": "tokenizer"}
        changes = [f"{key}={json.dumps(str(self.out / place))}" for key, place in places.items()]
        run(load_recipe(recipe, [*changes, f"device={self.device}"]), self.out / name)

    def marker(self, name: str) -> Path:
        """The file that says a step ended; a step that was cut off has none and is done again."""
        return self.out / f"{name}.done"


STEPS: tuple[tuple[str, Callable[[Build], None]], ...] = (
    ("corpus", Build.corpus), ("tokenizer", Build.tokenizer), ("shards", Build.shards),
    ("pretrain", Build.pretrain), ("dense", Build.dense), ("conversations", Build.conversations),
    ("sft", Build.sft), ("scores", Build.scores), ("card", Build.card),
)  # fmt: skip


def main(
    out: Annotated[Path, typer.Option(help="Folder of all steps.")] = Path("runs/pocket"),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda, for training.")] = "auto",
    until: Annotated[str, typer.Option(help="The last step to do.")] = "card",
) -> None:
    """Build pocket; the model with its card is then in OUT/card."""
    names = [name for name, _ in STEPS]
    if until not in names:
        raise typer.BadParameter(f"{until!r}, allowed are {', '.join(names)}")
    build = Build(out, device)
    out.mkdir(parents=True, exist_ok=True)
    for name, step in STEPS[: names.index(until) + 1]:
        if build.marker(name).exists():
            typer.echo(f"{name}: there already")
            continue
        typer.echo(f"{name}: {(step.__doc__ or '').splitlines()[0]}")
        step(build)
        build.marker(name).touch()


if __name__ == "__main__":
    typer.run(main)
