"""The example of a quantizer: installed as a distribution of its own, it works without an edit of the tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributions import EXAMPLES, install, omniloom

EXAMPLE = EXAMPLES / "simvq_quantizer"
# The family's own tests, over a table of cases that has SimVQ's as well.
FAMILY = """
import sys
import pytest, quantizer_cases
from simvq_quantizer import SimVQConfig
quantizer_cases.CASES.clear()
quantizer_cases.CASES["simvq"] = SimVQConfig(codebook_size=32, latent_dim=4)
quantizer_cases.WITH_CODES[:] = ["simvq"]
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-k", "simvq", *sys.argv[1:]]))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the example as pip installs it."""
    return install(EXAMPLE, tmp_path_factory.mktemp("site"))


@pytest.fixture
def simvq(monkeypatch):
    """The example's modules, for its arithmetic."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    import simvq_module
    import simvq_quantizer

    return lambda **fields: simvq_module.SimVectorQuantizer(simvq_quantizer.SimVQConfig(**fields))


def python(installed: Path, *arguments: str) -> subprocess.CompletedProcess:
    tests = Path(__file__).parents[1]
    path = os.pathsep.join(map(str, (installed, tests, tests / "models")))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "300"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300)


def test_the_loss_is_the_sum_that_is_said_and_trains_the_matrix_alone(simvq):
    """By distances to all of C W, a token at a time."""
    torch.manual_seed(0)
    quantizer = simvq(codebook_size=16, latent_dim=3, codebook_weight=0.7, commitment=0.4).train()
    with torch.no_grad():
        quantizer.matrix.normal_()
    z = torch.randn(20, 3, requires_grad=True)
    out = quantizer(z, update=True)
    vectors = quantizer.frozen @ quantizer.matrix.detach()
    nearest = [min(range(16), key=lambda code: float((row - vectors[code]).square().sum())) for row in z.detach()]
    assert out.codes.tolist() == nearest
    distance = (z.detach() - vectors[nearest]).square().mean()
    torch.testing.assert_close(out.loss, 1.1 * distance)
    out.loss.backward()
    torch.testing.assert_close(z.grad, 0.4 * 2 * (z.detach() - vectors[nearest]) / 60)
    by_vectors = 0.7 * 2 * (vectors[nearest] - z.detach()) / 60
    torch.testing.assert_close(quantizer.matrix.grad, quantizer.frozen[nearest].T @ by_vectors)
    assert [name for name, _ in quantizer.named_parameters()] == ["matrix"]


def test_it_holds_what_every_quantizer_promises_and_a_tokenizer_learns_with_it(installed):
    file = Path(__file__).parents[1] / "models" / "test_tokenizer_quantize.py"
    done = python(installed, "-c", FAMILY, str(file))
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout and "no tests ran" not in done.stdout


def test_it_is_in_plan_schema_and_errors(installed, tmp_path):
    where = "stages.tokenizer_image.model.quantizer"
    wrong = (
        ("{kind: simvq, codebook_size: 1}", "codebook_size", "expected an integer of at least 2, got 1"),
        ("{kind: simvq, bits: 9}", "bits", "kind simvq takes codebook_size, latent_dim, codebook_weight"),
        ("{kind: simvqq}", "kind", "'kl', 'simvq' (got 'simvqq'); did you mean 'simvq'?"),
    )
    quantizers = ["{kind: simvq, codebook_size: 512}", *(quantizer for quantizer, _, _ in wrong)]
    plans = (["plan", "demo", f"storage={tmp_path}", f"{where}={quantizer}"] for quantizer in quantizers)
    schema, right, *refused = omniloom(installed, ["schema"], *plans)
    options = json.loads(schema.stdout)["$defs"]["SimVQConfig"]["properties"]
    assert set(options) >= {"kind", "codebook_size", "codebook_weight"} and all(
        option["description"] for option in options.values()
    )
    assert right.returncode == 0 and "tokenizer_image" in right.stdout, right.stderr
    for (_, field, message), done in zip(wrong, refused, strict=True):
        told = " ".join(done.stderr.split())
        assert done.returncode == 2 and f"{where}.{field}: " in told and message in told, done.stderr


@pytest.mark.parametrize(
    "source, reason",
    [
        ("raise RuntimeError('no such chip')", "cannot be loaded: RuntimeError: no such chip"),
        ("KIND = 3", "is no omniloom.models.tokenizer.quantizers.kinds.QuantizerKind but a int"),
    ],
)
def test_one_that_cannot_be_used_stops_only_who_asks_for_it(installed, tmp_path, source, reason):
    broken = tmp_path / "broken"
    broken.mkdir()
    text = (EXAMPLE / "pyproject.toml").read_text()
    (broken / "pyproject.toml").write_text(text.replace(', "simvq_module"]', "]"))
    (broken / "simvq_quantizer.py").write_text(source)
    site = install(broken, tmp_path / "site")
    plan = ["plan", "demo", f"storage={tmp_path}"]
    ours, done = omniloom(site, plan, [*plan, "stages.tokenizer_image.model.quantizer={kind: simvq}"])
    assert ours.returncode == 0, ours.stderr
    told = " ".join(done.stderr.split())
    assert done.returncode == 2 and reason in told
    assert "simvq cannot be used; it is offered by simvq-quantizer 1.0" in told
