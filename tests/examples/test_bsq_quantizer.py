"""The example of a quantizer: installed as a distribution of its own, it works without an edit of the tree."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributions import EXAMPLES, install, omniloom

EXAMPLE = EXAMPLES / "bsq_quantizer"
# The family's own tests, over a table of cases that has BSQ's as well.
FAMILY = """
import sys
import pytest, quantizer_cases
from bsq_quantizer import BSQConfig
quantizer_cases.CASES.clear()
quantizer_cases.CASES["bsq"] = BSQConfig(bits=5)
quantizer_cases.WITH_CODES[:] = ["bsq"]
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-k", "bsq", *sys.argv[1:]]))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the example as pip installs it."""
    return install(EXAMPLE, tmp_path_factory.mktemp("site"))


@pytest.fixture
def bsq(monkeypatch):
    """The example's modules, for its arithmetic."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    import bsq_module
    import bsq_quantizer

    return lambda **fields: bsq_module.BinarySphericalQuantizer(bsq_quantizer.BSQConfig(**fields))


def python(installed: Path, *arguments: str) -> subprocess.CompletedProcess:
    tests = Path(__file__).parents[1]
    path = os.pathsep.join(map(str, (installed, tests, tests / "models")))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "300"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300)


def test_codes_are_corners_of_a_cube_in_the_unit_sphere(bsq):
    quantizer = bsq(bits=4)
    out = quantizer.eval()(torch.tensor([[3.0, -1.0, 0.5, -2.0]]))
    norm = math.sqrt(9 + 1 + 0.25 + 4)
    torch.testing.assert_close(out.latents, torch.tensor([[3.0, -1.0, 0.5, -2.0]]) / norm)
    torch.testing.assert_close(out.z_q, torch.tensor([[0.5, -0.5, 0.5, -0.5]]))  # sign(u) / sqrt(4)
    assert out.codes.tolist() == [0b0101]
    everything = quantizer.decode_codes(torch.arange(16))
    torch.testing.assert_close(everything.norm(dim=-1), torch.ones(16))
    assert len(everything.unique(dim=0)) == 16


@pytest.mark.parametrize("bits, tau", [(2, 1.0), (5, 3.0), (6, 20.0)])
def test_entropies_against_enumeration(bsq, bits, tau):
    """Of a token exactly; of the mean the sum over channels, which is its upper bound (arXiv 2406.07548)."""
    quantizer = bsq(bits=bits, inverse_temperature=tau)
    u = torch.nn.functional.normalize(
        torch.randn(40, bits, generator=torch.Generator().manual_seed(1)), dim=-1
    ).double()
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=bits)), dtype=torch.float64) / math.sqrt(bits)
    q = (tau * u @ corners.T).softmax(-1)
    per_token = -torch.xlogy(q, q).sum(-1).mean()
    mean = q.mean(0)
    of_mean = -torch.xlogy(mean, mean).sum()
    ones = torch.stack([q[:, corners[:, d] > 0].sum(-1).mean() for d in range(bits)])
    channels = -(torch.xlogy(ones, ones) + torch.xlogy(1 - ones, 1 - ones)).sum()
    sure, spread = quantizer.entropies(u.float())
    torch.testing.assert_close(sure.double(), per_token, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(spread.double(), channels, rtol=1e-4, atol=1e-6)
    assert float(spread) >= float(of_mean) - 1e-6


def test_the_loss_is_the_sum_that_is_said(bsq):
    quantizer = bsq(bits=3, entropy_weight=0.7, entropy_gamma=1.5, commitment=0.4).eval()
    out = quantizer(torch.randn(20, 3, generator=torch.Generator().manual_seed(2)))
    sure, spread = quantizer.entropies(out.latents)
    distance = (out.latents - out.z_q).square().sum(-1).mean()
    torch.testing.assert_close(out.loss, 0.7 * (sure - 1.5 * spread) + 0.4 * distance)


def test_it_holds_what_every_quantizer_promises_and_a_tokenizer_learns_with_it(installed):
    file = Path(__file__).parents[1] / "models" / "test_tokenizer_quantize.py"
    done = python(installed, "-c", FAMILY, str(file))
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout and "no tests ran" not in done.stdout


def test_it_is_in_plan_schema_and_errors(installed, tmp_path):
    where = "stages.tokenizer_image.model.quantizer"
    wrong = (
        ("{kind: bsq, bits: 1}", "bits", "expected an integer from 2 to 24, got 1"),
        (
            "{kind: bsq, codebook_size: 512}",
            "codebook_size",
            "kind bsq takes bits, inverse_temperature, entropy_weight",
        ),
        ("{kind: bsqq}", "kind", "'kl', 'bsq' (got 'bsqq'); did you mean 'bsq'?"),
    )
    quantizers = ["{kind: bsq, bits: 9}", *(quantizer for quantizer, _, _ in wrong)]
    plans = (["plan", "demo", f"storage={tmp_path}", f"{where}={quantizer}"] for quantizer in quantizers)
    schema, right, *refused = omniloom(installed, ["schema"], *plans)
    options = json.loads(schema.stdout)["$defs"]["BSQConfig"]["properties"]
    assert set(options) >= {"kind", "bits", "inverse_temperature"} and all(
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
    text = (EXAMPLE / "pyproject.toml").read_text().replace('["bsq_quantizer", "bsq_module"]', '["bsq_quantizer"]')
    (broken / "pyproject.toml").write_text(text)
    (broken / "bsq_quantizer.py").write_text(source)
    site = install(broken, tmp_path / "site")
    plan = ["plan", "demo", f"storage={tmp_path}"]
    ours, done = omniloom(site, plan, [*plan, "stages.tokenizer_image.model.quantizer={kind: bsq}"])
    assert ours.returncode == 0, ours.stderr
    told = " ".join(done.stderr.split())
    assert done.returncode == 2 and "bsq cannot be used; it is offered by bsq-quantizer 1.0" in told and reason in told
