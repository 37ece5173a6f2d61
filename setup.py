"""Which folders make up `omniloom`; all else stands in pyproject.toml.

The rooms lie at the top of the tree, so their packages get their full names here: `models/tokenizer` is
`omniloom.models.tokenizer`.
"""

from setuptools import find_packages, setup

ROOMS = ("pipelines", "stages", "models", "infra")

setup(
    packages=["omniloom", *(f"omniloom.{name}" for name in find_packages(include=[f"{room}*" for room in ROOMS]))],
    package_dir={"omniloom": "omniloom", **{f"omniloom.{room}": room for room in ROOMS}},
)
