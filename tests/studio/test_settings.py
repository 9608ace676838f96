"""The form's way from settings to components and back, a person's own rows, and what is sent of a run that goes on."""

import json
import os
import time
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from finetune.config import TrainConfig, fields, preset, preset_help, preset_names, with_settings
from finetune.run import Reporter, Run, create_job
from finetune.samples import Look, Shown
from studio import own_rows, settings
from studio.form import checked_config, hub_id
from studio.tabs import train_watch
from studio.tabs.train_form import component
from studio.views import plan as plan_view
from studio.views import train as train_view
from studio.watched import POINTS, Watched, thinned


def through_components(config: TrainConfig) -> dict[str, Any]:
    """The settings' values as the page gets them, and gives them back untouched."""
    values = settings.shown(config)
    back = {}
    for setting in settings.settings():
        made = component(setting, values[setting.name])
        back[setting.name] = made.preprocess(json.loads(json.dumps(made.postprocess(values[setting.name]))))
    return back


@pytest.mark.parametrize("name", preset_names())
def test_an_untouched_form_is_the_preset(name: str) -> None:
    assert checked_config(name, through_components(preset(name))) == preset(name)
    assert len(preset_help(name)) > 40 and "#" not in preset_help(name)


def test_every_setting_has_its_place() -> None:
    offered = [setting.name for setting in settings.settings()]
    assert sorted([*offered, *settings.OWN_ROWS]) == sorted(fields()) and len(set(offered)) == len(offered)
    assert offered[: len(settings.EVERYDAY)] == list(settings.EVERYDAY)
    folded = [setting.name for members in settings.groups().values() for setting in members]
    assert sorted([*folded, *settings.EVERYDAY]) == sorted(offered)
    named = [name for names in settings.TRAINING.values() for name in names]
    assert sorted([*named, "steps"]) == sorted(TrainConfig().training.model_dump())  # none that only looks like one
    by_name = {setting.name: setting for setting in settings.settings()}
    assert by_name["r"].help.endswith("At least 1, at most 512.") and by_name["r"].kind == "integer"
    assert by_name["schedule"].choices == ("linear", "cosine", "constant", "constant_with_warmup")
    assert isinstance(component(by_name["dora"], False), gr.Checkbox)


def test_what_a_form_says_is_checked() -> None:
    start = settings.shown(preset("quick-demo"))
    changed = checked_config("quick-demo", start | {"targets": " q_proj,v_proj ", "minutes": "2.5", "epochs": " "})
    assert changed == with_settings(preset("quick-demo"), {"targets": ["q_proj", "v_proj"], "minutes": 2.5})
    with pytest.raises(
        ValueError, match=r"r: .*less than or equal to 512.*; minutes: .*valid number.* \(given: 'soon'\)"
    ):
        checked_config("quick-demo", start | {"r": 600, "minutes": "soon"})


@pytest.mark.parametrize("typed", ["/etc/passwd", "../x", "assets/presets", "a/b.jsonl", "~/rows", "a b/c"])
def test_a_data_set_on_the_page_is_no_path(typed: str) -> None:
    with pytest.raises(ValueError, match="is named owner/name"):
        hub_id(typed)
    with pytest.raises(ValueError, match="is named owner/name"):
        checked_config("quick-demo", settings.shown(preset("quick-demo")), hub=typed)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("rows.parquet", b"PK\x03\x04 a zip", "rows.parquet is not Parquet"),
        ("rows.parquet", b"PAR1 and no end", "rows.parquet is not Parquet"),
        ("rows.json", b"\x89PNG\r\n\x1a\n", "rows.json can't be read: it is not UTF-8"),
        ("rows.json", b'{"instruction": "a"}', "rows.json must hold a list"),
        ("rows.jsonl", b"<html></html>", "Line 1 of rows.jsonl is not JSON"),
        ("rows.csv", b'a,b\n"1,2\n', "rows.csv is not CSV"),
        ("rows.csv", b"", "There are no rows in rows.csv"),
        ("rows.py", b"[]", "rows.py is none of"),
    ],
)
def test_an_upload_is_known_by_its_content(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as refused:
        own_rows.look(str(tmp_path / name), "")
    assert sentence in str(refused.value) and str(tmp_path) not in str(refused.value)


def test_columns_are_found_or_chosen(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"question": "q", "answer": "a", "note": "n", "x, y": "z"}, {"question": "q2", "answer": ""}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = own_rows.look(str(file), None)
    assert found and found.rows == 2 and found.columns == ["question", "answer", "note", "x, y"]
    assert found.usual == {"instruction": "question", "response": "answer"}
    assert own_rows.columns_setting(found, found.usual | {"context": ""}) is None  # nothing to say
    assert own_rows.columns_setting(found, dict.fromkeys(own_rows.PARTS)) is None  # started before they were shown
    usual = own_rows.preview(found, found.usual)
    assert "Row 2 of rows.jsonl has no response" in usual.sentence and usual.rows[0].response == "a"
    chosen = own_rows.preview(found, {"instruction": "answer", "context": "note", "response": "question"})
    assert chosen.rows[0][:3] == ("a", "n", "q")
    assert "has a comma" in own_rows.preview(found, {"instruction": "question", "response": "x, y"}).sentence
    talk = tmp_path / "talk.jsonl"
    messages = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "b"}]
    talk.write_text(json.dumps({"talk": messages}))
    spoken = own_rows.look(str(talk), None)
    assert spoken and spoken.usual == {}
    assert own_rows.columns_setting(spoken, {"messages": "talk"}) == "messages=talk"
    assert own_rows.preview(spoken, {"messages": "talk"}).rows[0][:3] == ("u", "", "b")


def test_rows_and_answers_are_text_and_never_html() -> None:
    evil = '<img src=x onerror="x">\x1b[31m'
    shown = plan_view.example([(evil, True)], "chat") + train_view.answers(Look(0, [Shown(*[evil] * 5)]))
    assert "<img" not in shown and "\x1b" not in shown and shown.count("&lt;img src=x onerror=&quot;x&quot;&gt;") == 6
    assert '<span class="loss">&lt;img' in shown


def made_run(runs: Path, **status: Any) -> tuple[Run, Reporter]:
    record = {
        "label": "test",
        "config": TrainConfig().model_dump(),
        "data": {"source": "file x", "sha256": "", "rows": 3},
    }
    job, lock = create_job(runs, "test", record, Run)
    os.close(lock)
    reporter = Reporter(job)
    reporter.status(state="finished", max_steps=10, **status)
    return Run(job.path), reporter


def sent(run: Run, seen: Watched, at: float = 1) -> list[int]:
    """Places of what an update sends."""
    updates = train_watch._watch(run.id, at, seen, True)
    assert len(updates) == train_watch.SHOWN
    return [n for n, update in enumerate(updates[:-1]) if not _is_skip(update)]


def _is_skip(update: Any) -> bool:
    return isinstance(update, dict) and set(update) == {"__type__"}


def test_an_update_sends_what_is_new_and_nothing_else(runs: Path) -> None:
    run, reporter = made_run(runs, step=1)
    seen = Watched()
    assert len(sent(run, seen)) > 8  # all there is, once
    assert sent(run, seen) == []
    reporter.status(step=2)
    assert sent(run, seen) == [1]
    reporter.metric(step=1, loss=2.0, learning_rate=1e-3, gpu_power_watts=250.4, gpu_memory_bytes=2**31)
    assert sent(run, seen) == [3, 4, 5]  # figures and both plots
    assert seen.losses().values.tolist() == [[1, 2.0, "training"]]
    figures = train_view.figures(run.status(), seen.sample)
    assert "250 W" in figures and "2.0 GiB" in figures and "°C" not in figures
    reporter.rewind(0)  # a resumed run goes back, and has written as much again before the next look
    reporter.metric(step=1, loss=3.0, learning_rate=1e-3)
    reporter.metric(step=2, loss=None, learning_rate=1e-3)
    sent(run, seen)
    assert seen.losses().values.tolist() == [[1, 3.0, "training"]]
    (run.path / "run.log").write_text("a line\n")
    assert sent(run, seen) == [9]
    other, _ = made_run(runs)
    assert len(sent(other, seen)) > 8 and seen.losses().empty
    assert all(_is_skip(update) for update in train_watch._watch(other.id, 1, seen, False))  # no one looks


def test_the_last_look_is_shown_until_a_person_goes_back(runs: Path) -> None:
    run, _ = made_run(runs)
    seen, file = Watched(), run.path / "answers.jsonl"

    def look(at: float, *steps: int) -> list[Any]:
        with file.open("a") as lines:
            for step in steps:
                answer = Shown("q", "", "r", "b", f"t{step}")._asdict()
                lines.write(json.dumps({"time": 0, "step": step, "answers": [answer]}) + "\n")
        return train_watch._watch(run.id, at, seen, True)[6:9]

    _, slider, html = look(1, 0)
    assert "before the first step" in html and slider["visible"] == "hidden"
    _, slider, html = look(1, 5, 10)
    assert "after step 10" in html and slider["value"] == 3 and slider["maximum"] == 3
    # What is sent to a slider that is just being shown can get lost: it is told again, until it stands there.
    assert look(1)[1]["value"] == 3 and "after step 10" in look(1)[2] and _is_skip(look(3)[1])
    assert "after step 5" in look(2)[2]  # the person goes back
    _, slider, html = look(2, 15)
    assert "after step 5" in html and slider["value"] == 2 and slider["maximum"] == 4
    assert _is_skip(look(2)[2])


def test_long_lines_are_thinned_and_end_where_they_end() -> None:
    points = [(n, float(n)) for n in range(1, 10_001)]
    assert POINTS // 2 < len(thinned(points)) <= POINTS + 1
    assert thinned(points)[0] == points[0] and thinned(points)[-1] == points[-1]
    assert thinned(points[:5]) == points[:5] and thinned([]) == []


def test_an_update_is_quick_with_many_runs_and_many_steps(runs: Path) -> None:
    for _ in range(90):  # a hundred of one second have no names
        run, reporter = made_run(runs)
    for step in range(5000):
        reporter.metric(step=step, loss=2.0, learning_rate=1e-3)
    seen = Watched()
    train_watch._watch(run.id, 1, seen, True)
    reporter.metric(step=5000, loss=2.0, learning_rate=1e-3)
    started = time.process_time()  # of this process alone: others on the machine do not count
    train_watch._watch(run.id, 1, seen, True)
    assert time.process_time() - started < 0.1
