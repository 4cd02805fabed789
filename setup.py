"""The list of packages, which pyproject.toml cannot say: all below vstore/, and migrations/ as vstore.migrations."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["vstore", "vstore.*"]), "vstore.migrations"])
