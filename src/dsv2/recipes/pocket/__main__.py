"""``python -m dsv2.recipes.pocket``: build pocket from nothing, each step once.

Run it again to go on where it stopped; remove a step's ``.done`` file to do that step again.
``--earlier`` goes on from a build whose runs are gone: put its models where the steps leave theirs.
"""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from dsv2.checkpoint import load_model
from dsv2.engine.llm import LLM
from dsv2.recipes.pocket.card import run_figures, write_card
from dsv2.recipes.pocket.conversations import read_functions, write_conversations
from dsv2.recipes.pocket.corpus import SPLITS, texts_of, write_corpus
from dsv2.recipes.pocket.gaps import write_gaps
from dsv2.recipes.pocket.score import score_bases, score_tuned
from dsv2.tokenizer import Tokenizer
from dsv2.tokenizer.train import train_bpe
from dsv2.training.config import load_recipe
from dsv2.training.filters import FilterConfig
from dsv2.training.loop import run
from dsv2.training.metrics import METRICS_FILE
from dsv2.training.prepare import PrepareConfig, Source, prepare

VOCAB_SIZE = 8192
CONTEXT = 2048
SCORES = "scores.json"
FILES = "files.tsv"
BASES = ("pretrain", "dense")
RUNS = (*BASES, "sft", "fill")


class Build:
    """The steps, each of which leaves its result in a folder of its own."""

    def __init__(self, out: Path, device: str, earlier: Path | None = None) -> None:
        self.out, self.device, self.earlier = out, device, earlier

    def corpus(self) -> None:
        """Collect the texts and the list of their files."""
        write_corpus(self.out / "corpus", None if self.earlier is None else self.earlier / FILES)

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

    def gaps(self) -> None:
        """Draw gaps from the code and make shards of them and of the conversations."""
        written = {split: self.out / f"gaps-{split}.jsonl" for split in SPLITS}
        for split, path in written.items():
            write_gaps(self.out / "corpus", split, path)
        config = PrepareConfig(
            sources=(
                *(Source.model_validate({"path": written[s], "split": s}) for s in SPLITS),
                Source(path=self.out / "conversations.jsonl"),
            ),
            tokenizer=self.out / "tokenizer",
            stage="sft",
            validation=0.01,
            max_tokens=CONTEXT,
        )
        prepare(config, self.out / "gaps", overwrite=True)

    def fill(self) -> None:
        """Go on with the gaps, which fine-tuning on conversations alone made pocket forget."""
        self._train("fill")

    def before(self) -> None:
        """Measure the model that the gaps are to change."""
        self._measure("sft")

    def scores(self) -> None:
        """Measure what the card states."""
        self._measure("fill")
        earlier = {} if self.earlier is None else _json(self.earlier / SCORES)
        folders = {name: self.out / name / "model" for name in BASES}
        if self.earlier is None or all(folder.exists() for folder in folders.values()):
            bases = {name: load_model(folder, dtype="float32") for name, folder in folders.items()}
            tokenizer = Tokenizer.from_folder(self.out / "tokenizer")
            of_bases = {"measured": _today()} | score_bases(self.out / "corpus", tokenizer, bases)
        else:
            of_bases = earlier["bases"]
        runs = {}
        for name in RUNS:
            is_here = self.earlier is None or (self.out / name / METRICS_FILE).exists()
            runs[name] = run_figures(self.out / name) if is_here else earlier["runs"][name]
        path = self.out / "scores" / SCORES
        tuned = {name: _json(path.with_name(f"{name}.json")) for name in ("sft", "fill")}
        found = {"runs": runs, "bases": of_bases, **tuned}
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    def card(self) -> None:
        """Put the tuned model, its card and the list of files into one folder."""
        final = self.out / "card"
        shutil.copytree(self.out / "fill" / "model", final, dirs_exist_ok=True)
        shutil.copy((self.earlier or self.out / "corpus") / FILES, final)
        write_card(final, _json(self.out / "scores" / SCORES))

    def _measure(self, name: str) -> None:
        llm = LLM(self.out / name / "model", device="cpu", dtype="float32", max_sequences=64)
        found = {"measured": _today()} | score_tuned(self.out / "corpus", llm)
        (self.out / "scores").mkdir(exist_ok=True)
        path = self.out / "scores" / f"{name}.json"
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    def _train(self, name: str) -> None:
        recipe = Path(__file__).with_name(f"{name}.yaml")
        moved = {
            "pretrain": {"data.train": "shards/train", "data.validation": "shards/validation"},
            "sft": {
                "data.train": "conversations/train",
                "data.validation": "conversations/validation",
                "start_from": "pretrain/model",
            },
            "fill": {
                "data.train": "gaps/train",
                "data.validation": "gaps/validation",
                "start_from": "sft/model",
            },
        }
        moved["dense"] = moved["pretrain"]
        places = moved[name] | {"tokenizer": "tokenizer"}
        changes = [f"{key}={json.dumps(str(self.out / place))}" for key, place in places.items()]
        run(load_recipe(recipe, [*changes, f"device={self.device}"]), self.out / name)

    def marker(self, name: str) -> Path:
        """The file that says a step ended; a step that was cut off has none and is done again."""
        return self.out / f"{name}.done"


STEPS: tuple[tuple[str, Callable[[Build], None]], ...] = (
    ("corpus", Build.corpus), ("tokenizer", Build.tokenizer), ("shards", Build.shards),
    ("pretrain", Build.pretrain), ("dense", Build.dense), ("conversations", Build.conversations),
    ("sft", Build.sft), ("before", Build.before), ("gaps", Build.gaps), ("fill", Build.fill),
    ("scores", Build.scores), ("card", Build.card),
)  # fmt: skip


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def main(
    out: Annotated[Path, typer.Option(help="Folder of all steps.")] = Path("runs/pocket"),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda, for training.")] = "auto",
    until: Annotated[str, typer.Option(help="The last step to do.")] = "card",
    earlier: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a finished model that OUT goes on from. Only files that it lists are "
            "taken, and what only its runs could tell is taken from its scores."
        ),
    ] = None,
) -> None:
    """Build pocket; the model with its card is then in OUT/card."""
    names = [name for name, _ in STEPS]
    if until not in names:
        raise typer.BadParameter(f"{until!r}, allowed are {', '.join(names)}")
    build = Build(out, device, earlier)
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
