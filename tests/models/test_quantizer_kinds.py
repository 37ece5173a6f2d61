"""The table of quantizers: what each kind takes, what was saved before each had its own fields, and what stays as it
was: the form that fingerprints are made of."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from pydantic import TypeAdapter, ValidationError
from quantizer_cases import CASES

from omniloom.models.tokenizer.build import config_from_dict
from omniloom.models.tokenizer.quantizers.base import Quantizer
from omniloom.models.tokenizer.quantizers.build import build_quantizer
from omniloom.models.tokenizer.quantizers.config import (
    BSQConfig,
    FSQConfig,
    GaussianConfig,
    GumbelConfig,
    LFQConfig,
    VQConfig,
    VQGradientConfig,
)
from omniloom.models.tokenizer.quantizers.kinds import QuantizerConfig, kinds, read_quantizer
from omniloom.pipelines.fingerprint import canonical

# As `dataclasses.asdict` wrote a quantizer while all kinds shared one class.
ONE_FORM = {
    "kind": "vq",
    "codebook_size": 8192,
    "latent_dim": 8,
    "fsq_levels": [8, 5, 5, 5],
    "commitment": 0.25,
    "restart_dead_after": 16.0,
    "codebook": "ema",
    "ema_decay": 0.99,
    "rotation_trick": True,
    "kmeans_iterations": 10,
    "fsq_balance": 0.2,
    "entropy_weight": 0.1,
    "entropy_gamma": 1.0,
    "entropy_temperature": 1.0,
    "gumbel_tau": 0.0625,
    "gumbel_anneal_updates": 5000,
    "gumbel_hard": False,
    "gumbel_kl_weight": 0.0005,
    "gumbel_kl_warmup": 1000,
    "gumbel_balance": 0.25,
    "kl_weight": 1e-06,
}
SAVED = [
    ({"codebook_size": 512, "ema_decay": 0.9}, VQConfig(codebook_size=512, ema_decay=0.9)),
    ({"codebook": "gradient", "latent_dim": 4}, VQGradientConfig(latent_dim=4)),
    ({"kind": "fsq", "fsq_levels": [4, 3], "fsq_balance": 0.5}, FSQConfig(levels=(4, 3), balance=0.5)),
    ({"kind": "lfq", "codebook_size": 64, "entropy_gamma": 2.0}, LFQConfig(codebook_size=64, entropy_gamma=2.0)),
    (
        {"kind": "gumbel", "gumbel_tau": 0.5, "gumbel_kl_weight": 0.1, "gumbel_hard": True},
        GumbelConfig(tau=0.5, kl_weight=0.1, hard=True),
    ),
    ({"kind": "kl", "latent_dim": 4, "kl_weight": 0.1}, GaussianConfig(latent_dim=4, kl_weight=0.1)),
]


@pytest.mark.parametrize("fields, config", SAVED, ids=lambda value: getattr(value, "kind", ""))
def test_what_was_saved_in_the_one_form_is_read_and_has_the_same_canonical_form(fields, config):
    saved = ONE_FORM | fields
    assert read_quantizer(saved, "config.json") == config
    assert canonical(config) == saved
    assert read_quantizer(fields, "yaml") == config  # as a YAML file of that time wrote it
    assert read_quantizer(asdict(config), "config.json") == config
    tokenizer = config_from_dict({"width": 64, "quantizer": saved})
    assert tokenizer.quantizer == config and canonical(tokenizer)["quantizer"] == saved


@pytest.mark.parametrize(
    "fields, config",
    [
        ({"codebook": "ema", "codebook_size": 512}, VQConfig(codebook_size=512)),
        ({"codebook": "gradient"}, VQGradientConfig()),
        ({"kind": "gumbel", "gumbel_tau": 0.5, "kl_weight": 0.1}, GumbelConfig(tau=0.5, kl_weight=0.1)),
    ],
)
def test_a_few_fields_of_that_time_are_read_and_left_as_they_were(fields, config):
    given = dict(fields)
    assert read_quantizer(given, "yaml") == config and given == fields


def test_a_kind_that_came_later_has_its_own_form():
    config = BSQConfig(codebook_size=64, group_size=3)
    assert canonical(config) == asdict(config) and read_quantizer(canonical(config), "config.json") == config


def test_a_field_of_any_kind_takes_values_and_configs_by_their_kind():
    adapter = TypeAdapter(QuantizerConfig)
    assert adapter.validate_python({"codebook_size": 64}) == VQConfig(codebook_size=64)
    for config in CASES.values():
        assert adapter.validate_python(config) == config
        assert adapter.validate_python(asdict(config)) == config
    for value in (3, "vq", None):
        with pytest.raises(ValidationError, match="union_tag_not_found"):
            adapter.validate_python(value)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"kind": "fsq", "codebook_size": 8}, "q.codebook_size: unknown field; fsq takes levels, commitment, "),
        ({"kind": "fsq", "fsq_levels": [4, 3], "levels": [5, 5]}, "q.fsq_levels: unknown field; fsq takes levels, "),
        ({"kind": ["vq"]}, r"q.kind: expected one of vq, .*, got \"\['vq'\]\""),
        ({"kind": "nope"}, "q.kind: expected one of vq, vq_gradient, fsq, lfq, bsq, gumbel, kl, got 'nope'"),
        ({"codebook": "sgd"}, "q.codebook: unknown field; vq takes codebook_size, "),
        ({"kind": "kl", "kl_weight": "much"}, "q: GaussianConfig: '>=' not supported"),
        (3, "q: expected an object, got 3"),
    ],
)
def test_what_a_kind_does_not_take_is_refused(values, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        read_quantizer(values, "q")


def test_each_kind_is_built_from_its_config():
    assert {config.kind for config in CASES.values()} == set(kinds())
    for config in CASES.values():
        quantizer = build_quantizer(config)
        assert isinstance(quantizer, Quantizer) and (quantizer.dim, quantizer.size) == (config.dim, config.size)
