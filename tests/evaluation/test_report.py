"""What is written for people and other tools."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from evaluation.export import llm_comparator, samples_csv, write_exports
from evaluation.findings import Counts, Departure, Judgement, JudgeReport, ProbeReport
from evaluation.html_report import html_report
from evaluation.judge_scores import preferences
from evaluation.leaderboard import leaderboard_text, leaderboards
from evaluation.report import EvalReport, Sample, read_report, table
from evaluation.scoring import score
from evaluation.verdict import verdict
from finetune.run import Run, create_job

EVIL = '</pre><script>alert("x")</script> & "quoted", <b>'


def a_sample(at: int, text: str = "answer") -> Sample:
    return Sample(
        instruction=f"Question {at} {text}",
        context=text,
        reference=text,
        category="open_qa" if at % 2 else "closed_qa",
        leak="near" if at == 0 else "",
        answers=[f"base {text}", f"tuned {text}"],
        stops=["length", "end"],
        nll=[20.0 + at % 3, 15.0 + at % 5],
        tokens=10,
        bytes=30,
        values={"loss": [2.0 + at % 3 / 10, 1.5 + at % 5 / 10], "rouge_l": [0.25, 0.75], "bleu": [5.0, 9.0]},
    )


def a_report(samples: list[Sample], run: str = "run", **changed: Any) -> EvalReport:
    scores = score(samples)
    values: dict[str, Any] = {
        "run": run,
        "columns": ["base", "tuned"],
        "model": EVIL,
        "model_sha256": "0" * 64,
        "data": "file rows.jsonl",
        "examples_sha256": "same",
        "template": "chat",
        "dtype": "float32",
        "rows": len(samples),
        "dropped": 0,
        "max_new_tokens": 8,
        "versions": {"torch": "2"},
        "seconds": 1.0,
        "notes": [EVIL],
        "verdict": verdict(scores),
        "scores": scores,
    }
    return EvalReport(**values | changed)


def test_the_page_stands_alone_and_escapes_everything() -> None:
    samples = [a_sample(at, EVIL) for at in range(20)]
    page = html_report(a_report(samples, run=EVIL), samples)
    assert "<script" not in page and "<b>" not in page and "alert(&quot;x&quot;)" in page
    assert not re.search(r"(src|href)\s*=|url\(|@import|https?://", page)
    assert "prefers-color-scheme: dark" in page
    assert page.count("<svg") == 2  # loss and ROUGE-L are there and are headlines; BLEU is in the table alone
    assert (
        "<td" in page and "trained on (near)" in page and "answer" not in re.findall(r"<title>(.*?)</title>", page)[0]
    )


def test_a_whisker_spans_its_interval() -> None:
    samples = [a_sample(at) for at in range(20)]
    report = a_report(samples)
    page = html_report(report, samples)
    overall = report.scores[0]
    assert f"{overall.difference:+.4f} [{overall.low:+.4f}, {overall.high:+.4f}], better" in page
    first = re.search(r'<g class="mark better">.*?x1="([\d.]+)" x2="([\d.]+)".*?cx="([\d.]+)"', page)
    assert first is not None
    low, high, middle = map(float, first.groups())
    assert low < middle < high


def test_the_table_of_examples() -> None:
    samples = [a_sample(at, 'comma, "quote"\nline') for at in range(3)]
    lines = list(csv.DictReader(io.StringIO(samples_csv(a_report(samples), samples))))
    assert [line["answer_tuned"] for line in lines] == ['tuned comma, "quote"\nline'] * 3
    assert [float(line["rouge_l_tuned"]) for line in lines] == [0.75] * 3 and lines[0]["leak"] == "near"


def test_llm_comparator_has_every_field_that_the_tool_requires() -> None:
    samples = [a_sample(at) for at in range(3)]
    exported = llm_comparator(a_report(samples), samples)
    assert set(exported) >= {"metadata", "models", "examples"}
    assert exported["models"] == [{"name": "base"}, {"name": "tuned"}]
    kinds = {field["name"]: field["type"] for field in exported["metadata"]["custom_fields_schema"]}
    for example in exported["examples"]:
        assert set(example) == {
            "input_text", "tags", "output_text_a", "output_text_b", "score", "individual_rater_scores", "custom_fields",
        }  # fmt: skip
        assert example["score"] == pytest.approx(-0.75)  # B, the tuned one, is better: negative, within ±1.5
        assert set(example["custom_fields"]) <= set(kinds) and kinds["ROUGE-L"] == "per_model_number"


def judged_report(text: str) -> tuple[EvalReport, list[Sample]]:
    """A report with a judge and a probe whose every text is `text`."""
    won = Judgement(outcome="win", choices=["second", "first"], reasons=[text, text])
    turned = Judgement(outcome="tie", choices=["first", "first"], reasons=["", ""])
    samples = [a_sample(at, text).model_copy(update={"judgements": [won if at else turned]}) for at in range(12)]
    judge = JudgeReport(
        judge=text,
        address="http://here/v1",
        prompt="1",
        with_reference=True,
        counts=Counts(calls=24),
        cost=0.5,
        preferences=preferences(samples, ["base", "tuned"]),
    )
    kl, loss = {"kl": 0.1, "kl_low": 0.05, "kl_high": 0.2, "kl_p99": 1.0}, {"loss_base": 2.0, "loss_column": 2.5}
    far = Departure(column="tuned", kind="all", passages=3, tokens=9, loss_low=0.4, loss_high=0.6, **kl, **loss)
    probe = ProbeReport(text=text, text_sha256="0", departures=[far, far.model_copy(update={"kind": "news"})])
    report = a_report(samples, judge=judge, probe=probe)
    return report.model_copy(update={"verdict": verdict(report.scores, judge, probe)}), samples


def test_judge_and_probe_are_in_every_form_of_the_report(tmp_path: Path) -> None:
    report, samples = judged_report(EVIL)
    assert "preferred tuned to base in 100 % of the 11 examples" in report.verdict
    assert "rose by 0.500 (2.000 → 2.500" in report.verdict
    write_exports(tmp_path, report, samples)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and page.count("alert(&quot;x&quot;)") > 30
    assert "<h2>The judge</h2>" in page and "100 % [72, 100]" in page and "cost 0.5000" in page
    assert "<h2>Text that is no instruction</h2>" in page and "0.1000 [0.0500, 0.2000]" in page
    assert "the judge on tuned: better" in page and "base first: tuned\n" in page and "tuned first: tuned\n" in page
    assert read_report(tmp_path / "report.json") == report
    lines = list(csv.DictReader((tmp_path / "samples.csv").open(newline="")))
    assert [line["judged_tuned"] for line in lines[:2]] == ["tie", "win"]
    compared = json.loads((tmp_path / "llm_comparator.json").read_text())
    tie, win = compared["examples"][:2]
    assert tie["score"] == 0 and [r["score"] for r in tie["individual_rater_scores"]] == [1, -1]
    assert win["score"] == -1 and [r["rating_label"] for r in win["individual_rater_scores"]] == ["B is better"] * 2
    assert "the judge" in compared["metadata"]["source_path"]


def test_older_reports_are_read_and_newer_ones_are_not(tmp_path: Path) -> None:
    report = a_report([a_sample(at) for at in range(12)])
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report.model_dump(exclude={"judge", "probe"}) | {"schema_version": 2}))
    assert read_report(file) == report.model_copy(update={"schema_version": 2})
    file.write_text(json.dumps(report.model_dump() | {"schema_version": 99}))
    with pytest.raises(ValueError, match="of version 99, and this program reads up to 3"):
        read_report(file)
    for broken in ("{", "[]", "{}", '{"schema_version": "x"}'):
        file.write_text(broken)
        with pytest.raises(ValueError, match="no report that can be read"):
            read_report(file)


def test_bleu_is_that_of_the_corpus_too() -> None:
    bleu = next(s for s in score([a_sample(at, "one two three four five") for at in range(3)]) if s.metric == "bleu")
    assert bleu.base == 5.0 and bleu.corpus_base is not None and bleu.corpus_base > 50


def test_a_report_of_the_first_schema_is_still_read() -> None:
    old = a_report([a_sample(at) for at in range(12)]).model_dump(
        include={"run", "columns", "model", "model_sha256", "data", "template", "dtype", "rows", "dropped", "versions"}
        | {"max_new_tokens", "seconds", "verdict"}
    )
    keys = ("metric", "category", "examples", "base", "tuned", "difference", "low", "high", "higher_is_better")
    values = ("loss", "all", 20, 2.0, 1.5, -0.5, -0.6, -0.4, False)
    report = EvalReport.model_validate(old | {"schema_version": 1, "scores": [dict(zip(keys, values, strict=True))]})
    assert report.scores[0].verdict == "better" and table(report.scores)[0]["p"] == ""


def test_the_leaderboard_sets_side_by_side_only_what_was_asked_the_same(runs: Path) -> None:
    samples = [a_sample(at) for at in range(12)]
    worse = [s.model_copy(update={"values": s.values | {"loss": [2.0, 1.9]}}) for s in samples]
    for label, chosen, rows in [("worse", worse, "same"), ("better", samples, "same"), ("other", samples, "other")]:
        job, _ = create_job(runs, label, {"label": label}, Run)
        folder = job.path / "evals" / "20260101-000000-evaluation"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        report = a_report(chosen, job.id, examples_sha256=rows)
        (folder / "report.json").write_text(report.model_dump_json())
    first, second = leaderboards()
    assert [line.run.rsplit("-")[-1] for line in first.lines] == ["better", "worse"] and len(second.lines) == 1
    text = leaderboard_text([first, second])
    assert text.index("better") < text.index("worse") and "12 rows of file rows.jsonl" in text
    assert "No run has a report yet" in leaderboard_text([])
