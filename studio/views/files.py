"""What is offered as a download: a copy under a name of ours, in a folder of this process that goes when it ends."""

import atexit
import json
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

from evaluation.export import llm_comparator, samples_csv
from evaluation.html_report import html_report
from evaluation.measures import MEASURES
from evaluation.report import EvalReport, Sample
from finetune.run import Job

DOWNLOAD_LIMIT = 400 * 2**20  # bytes; what is larger is quicker taken from its folder
EVALUATION_FILES = {
    "report": ("report.json", "report.json"),
    "examples": ("samples.csv", "examples.csv"),
    "page": ("report.html", "report.html"),
    "comparator": ("llm_comparator.json", "llm-comparator.json"),
}


def evaluation_file(job: Job, report: EvalReport, column: int, kind: str) -> Path:
    """One of an evaluation's files for a download; made here where the evaluation did not write it itself.

    Args:
        job: the evaluation.
        report: its report.
        column: which column LLM Comparator's file sets beside the first.
        kind: a key of EVALUATION_FILES.

    Raises:
        ValueError: there is no such file to be had.
    """
    source, name = EVALUATION_FILES[kind]
    if kind == "comparator" and column > 1:
        source = f"llm_comparator-{column}.json"
    made = job.path / source
    name = f"{job.path.parents[1].name}-{name}"
    return offered(made, name) if made.exists() else _written(job, report, column, kind, name)


def _written(job: Job, report: EvalReport, column: int, kind: str, name: str) -> Path:
    samples = [Sample.model_validate_json(line) for line in (job.path / "samples.jsonl").read_bytes().splitlines()]
    if kind == "comparator" and not (samples and samples[0].answers):
        raise ValueError(f"LLM Comparator compares answers, and none were asked for ({MEASURES['loss'].name} alone).")
    text = {
        "report": lambda: report.model_dump_json(indent=2),
        "examples": lambda: samples_csv(report, samples),
        "page": lambda: html_report(report, samples),
        "comparator": lambda: json.dumps(llm_comparator(report, samples, column), ensure_ascii=False, indent=1),
    }[kind]()
    file = Path(tempfile.mkdtemp(dir=_folder())) / name
    file.write_text(text)
    return file


def offered(file: Path, name: str) -> Path:
    """A copy of a file of ours to send on. Raises ValueError where it is too large, and says where it lies."""
    size = file.stat().st_size
    if size > DOWNLOAD_LIMIT:
        raise ValueError(
            f"{file.name} has {size / 2**20:.0f} MB, which is too much for the page: it lies in {file.parent}."
        )
    copy = Path(tempfile.mkdtemp(dir=_folder())) / name
    try:
        copy.hardlink_to(file)
    except OSError:  # another disk, or one that knows no links
        shutil.copyfile(file, copy)
    return copy


@lru_cache(maxsize=1)
def _folder() -> str:
    folder = tempfile.mkdtemp(prefix="tandem-downloads-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
