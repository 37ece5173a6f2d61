"""What `evaluate` measures by the pipeline's scorer, against loops over pictures and captions."""

from __future__ import annotations

import numpy as np
import pytest
from test_features import COUNT, evaluation, few, files, inputs  # noqa: F401
from test_train_scorer import SMALL, train

from omniloom.infra.errors import InputError
from omniloom.stages.checkpoints.scorer import load_scorer
from omniloom.stages.evaluate import drawing, measures, writing
from omniloom.stages.evaluate import report as evaluation_report
from omniloom.stages.evaluate.config import EvaluateConfig
from omniloom.stages.evaluate.features import distances, measuring
from omniloom.stages.evaluate.gate import judge
from omniloom.stages.evaluate.stage import check
from omniloom.stages.scorer.stage import Config
from omniloom.stages.train.config import TrainConfig


@pytest.fixture(scope="module")
def with_scorer(tmp_path_factory, inputs, process_group):  # noqa: F811
    """The inputs, and a scorer of two folds that has hardly learnt anything."""
    own = Config.model_validate({**SMALL, "folds": 2, "steps": 3, "batch": 8})
    return {**inputs, "scorer": train(tmp_path_factory.mktemp("scorer"), inputs["records"], own)}


def test_figures_by_the_scorer(with_scorer, few, monkeypatch):  # noqa: F811
    found = evaluation(with_scorer, None, captions=6, retrieval_captions=3)
    seen = []
    of_drawn = measuring.of_drawn
    monkeypatch.setattr(measuring, "of_drawn", lambda *told: (seen.append(told[1:3]), of_drawn(*told)))
    drawing.draw(found)
    ((plain, made),) = seen
    writing.retrieve(found)
    found.close()
    known = {name for name, figure in measures.measured(found.config, found.objectives, True).items() if figure.network}
    assert known <= set(found.metrics) and "scorer_score_low" in found.metrics
    scorer = load_scorer(with_scorer["scorer"])
    captions = [found.caption(i) for i in plain]
    texts = scorer.texts(captions)
    real = scorer.pictures([found.images[i][0] for i in plain])
    drawn = scorer.pictures(made)

    def mean(pictures, pairs):
        return 100 * np.mean([np.mean([pictures[i, f] @ texts[j, f] for f in range(2)]) for i, j in pairs])

    own = [(i, i) for i in range(COUNT)]
    others = [(i, j) for i in range(COUNT) for j in range(COUNT) if captions[i] != captions[j]]
    assert others
    assert found.metrics["scorer_score"] == pytest.approx(mean(drawn, own), abs=1e-3)
    assert found.metrics["scorer_score_real"] == pytest.approx(mean(real, own), abs=1e-3)
    assert found.metrics["scorer_score_shuffled"] == pytest.approx(mean(real, others), abs=1e-3)
    joined = [rows.reshape(len(rows), -1) / 2**0.5 for rows in (real, drawn)]
    assert found.metrics["scorer_mmd"] == pytest.approx(distances.cmmd(*joined).value, rel=1e-3, abs=1e-5)
    titles = [
        section["title"] for section in evaluation_report.content(found, judge(found.config.gate, {}, None))["sections"]
    ]
    assert "Feature networks" in titles


def test_own_captions_among_the_models_own_choice(with_scorer):
    """Of the same captions that the model's retrieval is measured by."""
    found = evaluation(with_scorer, None, captions=6, retrieval_captions=3)
    writing.retrieve(found)
    distinct = list(dict.fromkeys(found.caption(i) for i in found.captioned))
    chosen = found.captioned[:6]
    asked = writing._asked(found, distinct, chosen)
    assert asked.shape == (len(chosen), min(3, len(distinct)))
    scorer = load_scorer(with_scorer["scorer"])
    right = []
    for i, numbers in zip(chosen, asked, strict=True):
        picture = scorer.pictures([found.images[i][0]])[0]
        scores = [sum(picture[f] @ scorer.texts([distinct[n]])[0, f] for f in range(2)) for n in numbers]
        right.append(distinct[numbers[0]] == found.caption(i) and all(scores[0] > other for other in scores[1:]))
    assert found.metrics["scorer_recall_at_1"] == pytest.approx(np.mean(right))


def test_a_gate_may_ask_for_them_where_a_scorer_is():
    model = TrainConfig(objectives={"next_code": 1.0})
    asked = EvaluateConfig.model_validate({"gate": {"scorer_score": 1.0}, "drawings": 200})
    check(asked, {"model": model, "scorer": None})
    with pytest.raises(InputError, match="scorer_score"):
        check(asked, {"model": model})
